"""What keeps a program ahead of the device that computes for it: constants that lie there, and questions not asked."""

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


def answers(tensor: Tensor) -> bool:
    """Whether the program may ask for the values of a tensor: of a GPU it would have to wait for all that it was told
    before, and a graph that is compiled knows none."""
    return tensor.is_cpu and not torch.compiler.is_compiling()
