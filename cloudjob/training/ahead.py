"""Batches on their way to the device: each is sent while the step before computes."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from cloudjob.diffusion.batch import Batch

# Batches of the loader in use at a time on a GPU: one that is computed with, one whose outcome is not known yet, so
# that nobody has asked whether the device has read it, and one that is being sent.
IN_USE = 3

Loaded = tuple[list[int], dict[str, np.ndarray]]


def sent(loaded: Iterable[Loaded], device: torch.device) -> Iterator[tuple[Tensor, Batch]]:
    """(sample numbers (N,) int64, the batch) of each that was loaded, both on the device.

    All that is random about samples is computed there from their numbers. Of a GPU nothing is waited for: `loaded` must
    leave the arrays of `IN_USE` batches alone.
    """
    if device.type != "cuda":
        for samples, arrays in loaded:
            yield torch.tensor(samples, device=device), Batch.of(arrays, device)
        return
    stream, coming = torch.cuda.Stream(device), None
    for samples, arrays in loaded:
        before, coming = coming, _send(samples, arrays, device, stream)
        if before:
            yield _arrived(*before)
    if coming:
        yield _arrived(*coming)


def _send(
    samples: list[int], arrays: dict[str, np.ndarray], device: torch.device, stream: torch.cuda.Stream
) -> tuple[Tensor, Batch, torch.cuda.Event]:
    with torch.cuda.stream(stream):
        numbers = torch.tensor(samples).pin_memory().to(device, non_blocking=True)
        return numbers, Batch.of(arrays, device), stream.record_event()


def _arrived(numbers: Tensor, batch: Batch, event: torch.cuda.Event) -> tuple[Tensor, Batch]:
    """The kernels that are launched from now on wait for the transfer; the program does not."""
    here = torch.cuda.current_stream()
    here.wait_event(event)
    for tensor in (numbers, *batch.tensors()):
        tensor.record_stream(here)  # its memory is given back when these kernels have run
    return numbers, batch
