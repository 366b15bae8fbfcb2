"""Arrays of triplets as torch's tensors: reflectance on the device."""

import numpy as np
import torch
from torch import Tensor

from cloudjob.pixels import OFFSET, SCALE


def pinned(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An array in page-locked memory, which a GPU reads by itself."""
    return torch.empty(shape, dtype=getattr(torch, np.dtype(dtype).name), pin_memory=True).numpy()


def to_tensors(arrays: dict[str, np.ndarray], device: torch.device | str) -> dict[str, Tensor]:
    """uint16 DN to reflectance on the device (torch's default type), NaN where there is no data; masks as they are.

    On the CPU masks share the memory of their array; a GPU may still be reading when this returns.
    """
    tensors = {}
    for name, array in arrays.items():
        tensor = torch.from_numpy(array).to(device, non_blocking=True)
        if tensor.dtype == torch.uint16:
            dn = tensor.to(torch.get_default_dtype())
            tensor = (dn * SCALE + OFFSET).masked_fill(dn == 0, torch.nan)
        tensors[name] = tensor
    if "clear_days" in tensors:  # the network is asked for the ground of the clear date
        tensors["target_days"] = tensors.pop("clear_days")
        tensors["reference_days"] = tensors["reference_days"] - tensors["target_days"]
    return tensors
