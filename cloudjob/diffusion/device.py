"""What keeps a program ahead of the device that computes for it: constants that lie there, and questions not asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor


def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(values, 1, 1) of torch's default type, copied to the device once and not to be changed."""
    if torch.compiler.is_compiling():  # written there by the kernel that needs them
        return torch.stack([torch.full((1, 1), value, device=device) for value in values])
    return _constant(values, device, torch.get_default_dtype())


@lru_cache(256)
def _constant(values: tuple[float, ...], device: torch.device, kind: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=kind, device=device)[:, None, None]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on the device, to which they are sent without waiting for it."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


@contextmanager
def full_products() -> Iterator[None]:
    """Within it a GPU rounds the factors of float32 products to nothing less, whatever it may do elsewhere."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def answers(tensor: Tensor) -> bool:
    """Whether the program may ask for the values of a tensor: of a GPU it would have to wait for all that it was told
    before, and a graph that is compiled knows none."""
    return tensor.is_cpu and not torch.compiler.is_compiling()
