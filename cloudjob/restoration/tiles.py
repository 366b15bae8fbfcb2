"""The tiles that a scene is restored by: where they lie on its pixel grid, and their weights in the blend."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Tile:
    """A rectangle of a scene: upper left pixel and size, in pixels. It may hang over the scene's edges (the reader pads
    there); of `tiles` only where the scene is smaller than a tile."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """(rows, columns), to cut the tile out of an array of the scene."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)

    def common(self, other: "Tile") -> "Tile | None":
        """What two have in common; None without any."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = min(self.row + self.height, other.row + other.height) - row
        width = min(self.col + self.width, other.col + other.width) - col
        return Tile(row, col, height, width) if height > 0 and width > 0 else None

    def within(self, whole: "Tile") -> tuple[slice, slice]:
        """(rows, columns) of this part of another, counted from the first pixel of that."""
        return Tile(self.row - whole.row, self.col - whole.col, self.height, self.width).slices


def tiles(shape: tuple[int, int], *, size: int, overlap: int) -> list[Tile]:
    """Square tiles of `size` pixels that cover a scene of `shape` (rows, columns), row by row.

    Neighbours overlap by at least `overlap` pixels; the last of a row or column is shifted inwards, so that no tile
    leaves a scene that is at least `size` wide.
    """
    return [Tile(r, c, size, size) for r in _starts(shape[0], size, overlap) for c in _starts(shape[1], size, overlap)]


def own_parts(shape: tuple[int, int], *, size: int, overlap: int) -> list[tuple[Tile, tuple[slice, slice]]]:
    """The same tiles, each with the rows and columns of the scene of which it has more around than any other tile: its
    own part, up to the middle of what it has in common with a neighbour. Parts neither overlap nor leave gaps."""
    rows, cols = (_parts(length, size, overlap) for length in shape)
    return [(Tile(r, c, size, size), (high, wide)) for r, high in rows for c, wide in cols]


def _parts(length: int, size: int, overlap: int) -> list[tuple[int, slice]]:
    starts = _starts(length, size, overlap)
    middles = [(before + size + after) // 2 for before, after in pairwise(starts)]
    return [
        (start, slice(*ends)) for start, ends in zip(starts, pairwise([0, *middles, max(length, size)]), strict=True)
    ]


def _starts(length: int, size: int, overlap: int) -> list[int]:
    last = max(length - size, 0)
    return [*range(0, last, size - overlap), last]


def taper(size: int, overlap: int) -> np.ndarray:
    """(size, size) float32 weights of a tile in the blend: raised cosine over the overlap, 1 inside, never 0."""
    ramp = np.ones(size, np.float32)
    if overlap:
        edge = 0.5 - 0.5 * np.cos(np.pi * (np.arange(overlap) + 0.5) / overlap)
        ramp[:overlap] = edge
        ramp[-overlap:] = np.minimum(ramp[-overlap:], edge[::-1])
    return np.outer(ramp, ramp)
