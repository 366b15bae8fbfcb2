"""Structural similarity, by torch: on the device where the images are, or can be sent to for it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BORDER = 5  # half of the 11 x 11 window: pixels nearer to the edge have no whole window
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2  # (K x range)^2
_ROWS = 32  # at a time: they stay in the cache


def ssim_map(pred: NDArray, truth: NDArray, device: torch.device | str = "cpu") -> NDArray:
    """(bands, H, W) float32 structural similarity (Wang et al. 2004) of float32 images: Gaussian 11 x 11 window of
    sigma 1.5, K 0.01 and 0.03, range 1, population covariance; in float64. NaN where the window is not whole."""
    found = np.full(pred.shape, np.nan, np.float32)
    height, width = pred.shape[1:]
    for first in range(0, height - 2 * BORDER, _ROWS) if width > 2 * BORDER else ():
        rows = slice(first, first + _ROWS + 2 * BORDER)
        here = (torch.from_numpy(np.nan_to_num(image[:, rows])).to(device).double() for image in (pred, truth))
        part = _similarity(*here).float().cpu().numpy()
        found[:, first + BORDER : first + BORDER + part.shape[1], BORDER:-BORDER] = part
    return found


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    """Of (bands, H, W) float64: (bands, H - 10, W - 10)."""
    mean_a, mean_b, square_a, square_b, product = _weighted(torch.stack([a, b, a * a, b * b, a * b]))
    both = mean_a * mean_b
    means = mean_a.square() + mean_b.square()
    variances = square_a + square_b - means
    return (2 * both + _C1) * (2 * (product - both) + _C2) / ((means + _C1) * (variances + _C2))


def _weighted(images: Tensor) -> Tensor:
    """Means under the window, where it is whole. Sums of shifted images: a GPU's products would round to TF32."""
    distance = np.arange(-BORDER, BORDER + 1)
    weights = np.exp(-0.5 * (distance / _SIGMA) ** 2)
    for axis in (-2, -1):
        size = images.shape[axis] - 2 * BORDER
        total = torch.zeros_like(images.narrow(axis, 0, size))
        for place, weight in enumerate((weights / weights.sum()).tolist()):
            total.add_(images.narrow(axis, place, size), alpha=weight)
        images = total
    return images
