"""Cuts windows out of a scene that arrives from north to south in stripes, so that it never lies in memory whole."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from cloudjob.patches.windows import Windows


def cut(stripes: Iterable[tuple[int, list[np.ndarray]]], windows: Windows) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(number of the window, its pixels) for each of `windows`, which are in the order of their rows.

    A stripe is its first row and the arrays (..., rows, W) of that many full rows. Rows that a later window still
    needs are kept from one stripe to the next. The pixels may be views, valid until the next are asked for.
    """
    number, size, kept, kept_top = 0, windows.window, [], 0
    for top, arrays in stripes:
        bottom = top + arrays[0].shape[-2]
        here = _Rows(kept, kept_top, arrays, top)
        while number < len(windows) and windows.row[number] + size <= bottom:
            row, col = int(windows.row[number]), int(windows.col[number])
            yield number, here.cut(row, row + size, slice(col, col + size))
            number += 1
        needed = min(int(windows.row[number]), bottom) if number < len(windows) else bottom
        kept, kept_top = [part.copy() for part in here.cut(needed, bottom, slice(None))], needed


@dataclass(frozen=True)
class _Rows:
    """The rows kept from before, from row `kept_top` of the scene on, and those of a stripe from `top` on."""

    kept: list[np.ndarray]
    kept_top: int
    arrays: list[np.ndarray]
    top: int

    def cut(self, first: int, stop: int, cols: slice) -> list[np.ndarray]:
        south = [array[..., max(first - self.top, 0) : stop - self.top, cols] for array in self.arrays]
        if first >= self.top:
            return south
        north = [array[..., first - self.kept_top :, cols] for array in self.kept]
        return [np.concatenate(parts, axis=-2) for parts in zip(north, south, strict=True)]
