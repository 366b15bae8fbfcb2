"""Changes to the ground of training samples, so that a model is not lost where the ground is another one, or moves."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cloudjob.diffusion import noise
from cloudjob.diffusion.noise import Numbers

_FARTHEST = 12  # pixels that the ground moves from a date to the next
_CELL = 16  # pixels: of the shapes of what moves


def gains(share: float, *, seed: int, samples: Numbers, like: Tensor) -> Tensor:
    """(N, 4, 1, 1): what a random `share` of the grounds keeps of its light in each band, 1 for the others."""
    darker = noise.uniforms(seed, samples, "other ground") < share
    level = noise.uniforms(seed, samples, "ground level").mul(math.log(0.08)).exp().float()
    colour = noise.normals(seed, samples, "ground colour", like=like[..., :1, :1])
    kept = level.to(like.device)[:, None, None, None] * (0.4 * colour).exp()
    return torch.where(darker.to(like.device)[:, None, None, None], kept.clamp(max=1), 1.0)


def moved(references: Tensor, share: float, *, where: Tensor, seed: int, samples: Numbers) -> Tensor:
    """The other dates (N, R, C, n, n), in a random `share` of the samples with a part of their ground elsewhere, as
    drifting ice is: it goes on in its direction, on the second date twice as far, and so on.

    Only `where` (N, 1, n, n) bool something is seen of it: a model is to learn to see, not to guess movements.
    """
    size, device = references.shape[-1], references.device

    def draw(use: str) -> Tensor:
        return noise.uniforms(seed, samples, use).float().to(device)

    angle, far = 2 * math.pi * draw("direction of the ground"), 1 + (_FARTHEST - 1) * draw("way of the ground")
    way = torch.stack([angle.sin(), angle.cos()]) * far * (draw("moving ground") < share)
    dates = torch.arange(1, references.shape[1] + 1, device=device)
    rows, cols = (way[..., None] * dates).round().long()[..., None]  # (N, R, 1)
    places = torch.arange(size, device=device)
    there = references.gather(-2, ((places - rows) % size)[:, :, None, :, None].expand_as(references))
    there = there.gather(-1, ((places - cols) % size)[:, :, None, None, :].expand_as(references))
    shapes = torch.empty(len(samples), 1, *[max(size // _CELL, 2)] * 2, device=device)
    shapes = noise.normals(seed, samples, "shapes of the ground", like=shapes)
    part = (
        F.interpolate(shapes, size=(size, size), mode="bicubic")
        > (2 * draw("part of the ground") - 1)[:, None, None, None]
    )
    return torch.where((part & where)[:, None], there, references)
