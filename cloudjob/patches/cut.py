"""Cuts windows out of a scene that arrives from north to south in stripes, so that it never lies in memory whole."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from cloudjob.patches.windows import Windows

Images = dict[str, np.ndarray]  # by role: (..., rows, W) of a stripe, (..., n, n) of a window


def cut(stripes: Iterable[tuple[int, Images]], windows: Windows) -> Iterator[tuple[int, Images]]:
    """(number of the window, its images) for each of `windows`, which are in the order of their rows.

    A stripe is its first row and its images, of that many full rows, by role. Rows that a later window still needs are
    kept from one stripe to the next. The images may be views, valid until the next are asked for.
    """
    number, size = 0, windows.window
    kept: Images = {}
    kept_top = 0
    for top, images in stripes:
        bottom = top + next(iter(images.values())).shape[-2]
        here = _Rows(kept, kept_top, images, top)
        while number < len(windows) and windows.row[number] + size <= bottom:
            row, col = int(windows.row[number]), int(windows.col[number])
            yield number, here.cut(row, row + size, slice(col, col + size))
            number += 1
        needed = min(int(windows.row[number]), bottom) if number < len(windows) else bottom
        kept = {role: part.copy() for role, part in here.cut(needed, bottom, slice(None)).items()}
        kept_top = needed


@dataclass(frozen=True)
class _Rows:
    """The rows kept from before, from row `kept_top` of the scene on, and those of a stripe from `top` on."""

    kept: Images
    kept_top: int
    images: Images
    top: int

    def cut(self, first: int, stop: int, cols: slice) -> Images:
        south = {
            role: image[..., max(first - self.top, 0) : stop - self.top, cols] for role, image in self.images.items()
        }
        if first >= self.top:
            return south
        north = {role: image[..., first - self.kept_top :, cols] for role, image in self.kept.items()}
        return {role: np.concatenate([north[role], south[role]], axis=-2) for role in south}
