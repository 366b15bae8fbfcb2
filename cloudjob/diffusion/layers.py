"""What all networks begin with: the noise level as numbers, an empty image for a regression, the size of images."""

import math

import torch
from torch import Tensor

from cloudjob.diffusion.conditions import BAND_COUNT


def sinusoids(level: Tensor, channels: int) -> Tensor:
    """(N, channels) sines and cosines of 1000 * level, wavelengths 2 pi to 2e4 pi (Vaswani et al. 2017, 3.5)."""
    frequency = torch.exp(torch.arange(channels // 2, device=level.device) * (-math.log(1e4) / (channels // 2 - 1)))
    angle = 1000 * level.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


def noisy_or_empty(x: Tensor | None, level: Tensor | None, conditions: Tensor) -> tuple[Tensor, Tensor]:
    """x and level as they are; for a regression, which has neither, an empty image (N, 4, H, W) and the most noise."""
    if x is None or level is None:
        x = conditions.new_zeros(len(conditions), BAND_COUNT, *conditions.shape[-2:])
        level = x.new_ones(len(x))
    return x, level


def check_size(x: Tensor, stride: int) -> None:
    """ValueError unless both sides of the images are multiples of the stride."""
    height, width = x.shape[-2:]
    if height % stride or width % stride:
        raise ValueError(f"image of {height} x {width} pixels: both must be divisible by the network's stride {stride}")
