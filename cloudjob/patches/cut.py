"""Cuts windows out of a scene that arrives from north to south in stripes, so that it never lies in memory whole."""

from collections.abc import Iterable, Iterator

import numpy as np

from cloudjob.patches.windows import Windows


def cut(stripes: Iterable[tuple[int, list[np.ndarray]]], windows: Windows) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(number of the window, views of its pixels) for each of `windows`, which are in the order of their rows.

    A stripe is its first row and the arrays (..., rows, W) of that many full rows. Rows that a later window still
    needs are kept from one stripe to the next. The views are valid until the next one is asked for.
    """
    number, size, kept, kept_top = 0, windows.window, None, 0
    for top, arrays in stripes:
        if kept is not None and kept[0].shape[-2]:
            arrays = [np.concatenate(parts, axis=-2) for parts in zip(kept, arrays, strict=True)]
            top = kept_top
        bottom = top + arrays[0].shape[-2]
        while number < len(windows) and windows.row[number] + size <= bottom:
            row, col = windows.row[number] - top, windows.col[number]
            yield number, [array[..., row : row + size, col : col + size] for array in arrays]
            number += 1
        kept_top = min(int(windows.row[number]), bottom) if number < len(windows) else bottom
        kept = [array[..., kept_top - top :, :].copy() for array in arrays]
