"""Which pixels the blocks of `similarity` are told, and which they are asked for: tables of numbers, no reflectance.

A GPU is not asked what it finds where that can be helped: it would have to be waited for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cloudjob.diffusion.device import answers

BLOCK, BLEND, _NEAR, FAR = 64, 4, 32, 128  # pixels: of a block, and around it
WINDOW = BLOCK + 2 * BLEND
CELL = 8  # pixels: of each such cell one pixel is told where it is far from the block
POINTS = 320  # clear pixels that a block is told
_AFTER = 100.0  # more than ranks differ by
# Rings around what is wanted: their width in pixels, and how much farther than the ring before the next one is.
_RINGS = ((1, 1.0), (1, 1.0), (2, 1.5), (4, 3.0), (8, 6.0), (16, 12.0), (0, 24.0))


def shares(wanted: Tensor, like: Tensor) -> Tensor:
    """(N, H / 64, W / 64): how much of the window of each block is wanted, 0 in the border of nothing."""
    around = FAR // BLOCK
    share = F.avg_pool2d(wanted[:, None].to(like.dtype), WINDOW, BLOCK, BLEND)[:, 0]
    return F.pad(share[:, around:-around, around:-around], (around,) * 4)


def ordered(share: NDArray) -> tuple[NDArray, list[int], list[float]]:
    """(place (B, 3), colour, share) of the blocks that are wanted at all, by colour, the most wanted first. Blocks of
    one colour do not overlap: so the sums of pixels have one order."""
    place = np.argwhere(share)
    wanted, colour = share[tuple(place.T)], place[:, 1] % 2 * 2 + place[:, 2] % 2
    order = np.argsort(2 * colour.astype(share.dtype) - wanted, kind="stable")
    return place[order], colour[order].tolist(), wanted[order].tolist()


def distances(wanted: Tensor, like: Tensor) -> Tensor:
    """(N, H, W) about how far the nearest wanted pixel is, the longer way of rows and columns; at most 48.5 pixels."""
    distance = torch.zeros(wanted.shape, dtype=like.dtype, device=like.device)
    for width, farther in _RINGS:
        distance += torch.where(wanted, 0, farther)
        for along in (1, 2):
            wanted = _spread(wanted, along, width)
    return distance


def _spread(chosen: Tensor, along: int, width: int) -> Tensor:
    """The pixels, and those that are so far from one of them along a dimension."""
    spread = chosen.clone()
    length = chosen.shape[along] - width
    for start, other in ((0, width), (width, 0)):
        spread.narrow(along, start, length).logical_or_(chosen.narrow(along, other, length))
    return spread


def sparse(rank: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(N, H / size, W / size): in each cell the lowest rank, and the pixel that has it."""
    samples, height, width = rank.shape
    cells = rank.view(samples, height // size, size, width // size, size).transpose(2, 3).flatten(3)
    lowest, at = cells.min(-1)
    number = torch.arange(rank.numel(), device=rank.device).view(rank.shape)
    first = number[:, ::size, ::size]
    return lowest, first + at // size * width + at % size


def windows(place: Tensor, shape: torch.Size, size: int, margin: int) -> Tensor:
    """(G, size + 2 margin, the same) the pixels of blocks of that size and of a margin around them. place: (G, 3)."""
    side = torch.arange(-margin, size + margin, device=place.device)
    sample, row, col = place[:, :, None].unbind(1)
    rows, cols = row * size + side, col * size + side
    return ((sample * shape[1] + rows)[:, :, None] * shape[2]) + cols[:, None]


def chosen_of(pixels: Tensor, chosen: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(G, P) those of the pixels (G, n) that are chosen, of which no row has more than `most` (P), and whether there
    is one; 0 where there is none."""
    count = chosen.cumsum(1)
    number = torch.arange(1, most + 1, device=pixels.device).expand(len(pixels), -1)
    there = number <= count[:, -1:]
    at = torch.searchsorted(count, number.contiguous()).clamp(max=pixels.shape[1] - 1)
    return pixels.gather(1, at) * there, there


def chunks(colour: list[int], share: list[float], most: int) -> Iterator[slice]:
    """Runs of at most so many blocks of one colour, none of which is asked for much less than the first."""
    start = 0
    while start < len(colour):
        stop = start + 1
        alike = (colour[start], 0.75 * share[start])
        while stop < min(len(colour), start + most) and colour[stop] == alike[0] and share[stop] >= alike[1]:
            stop += 1
        yield slice(start, stop)
        start = stop


def cut(count: int, most: int) -> list[slice]:
    return [slice(start, start + most) for start in range(0, count, most)]


def runs(colour: list[int]) -> list[slice]:
    """Where one colour follows on another."""
    ends = [*(place for place in range(1, len(colour)) if colour[place] != colour[place - 1]), len(colour)]
    return [slice(start, end) for start, end in pairwise([0, *ends])]


@dataclass(frozen=True)
class Everywhere:
    """About one pixel for each block of all there are."""

    rank: Tensor  # (N, K)
    place: Tensor  # (K, 2) row and column, in blocks
    pixel: Tensor  # (N, K) their numbers

    def nearest(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """(G, M) those to be told to blocks (G, 3), the pixels and whether there is one."""
        apart = (self.place - place[:, None, 1:]).to(self.rank.dtype).square().sum(-1).sqrt()
        ranks = self.rank[place[:, 0]] + 2 * (1 + apart).log()
        found, chosen = ranks.topk(min(POINTS, ranks.shape[1]), largest=False)
        return self.pixel[place[:, 0]].gather(1, chosen), found.isfinite()


def select(place: Tensor, rank: Tensor, cells: tuple[Tensor, Tensor], everywhere: Everywhere) -> tuple[Tensor, Tensor]:
    """(G, M) the pixels that blocks are told, and whether there is one: of those nearby the ones of the lowest rank; if
    they are too few, of cells farther off, the nearer ones the likelier; if there is none, of all the image."""
    near = windows(place, rank.shape, BLOCK, _NEAR).flatten(1)
    share = BLOCK // CELL
    far = windows(place, cells[0].shape, share, FAR // CELL)
    side = torch.arange(far.shape[1], device=rank.device) - FAR // CELL
    apart = CELL * torch.maximum(-side, side - share + 1).clamp(min=0).to(rank.dtype)
    apart = torch.hypot(apart[:, None], apart)
    far_rank = cells[0].flatten()[far] + 2 * (3 + apart).log() + _AFTER
    inner = slice((FAR - _NEAR) // CELL, -(FAR - _NEAR) // CELL)
    far_rank[:, inner, inner].fill_(torch.inf)
    ranks = torch.cat([rank.flatten()[near], far_rank.flatten(1)], 1)
    pixels = torch.cat([near, cells[1].flatten()[far.flatten(1)]], 1)
    found, chosen = ranks.topk(POINTS, largest=False)
    points, told = pixels.gather(1, chosen), found.isfinite()
    lost = ~told.any(1, keepdim=True)
    # Where there are few to choose from, that costs less than to wait for the answer of a GPU.
    if (answers(lost) or everywhere.rank.shape[1] > POINTS) and not lost.any():
        return points, told
    pixels, there = everywhere.nearest(place)
    first = slice(pixels.shape[1])
    points[:, first], told[:, first] = torch.where(lost, pixels, points[:, first]), told[:, first] | (lost & there)
    return points, told
