"""Which windows of a pair become triplets."""

import numpy as np
import shapely

from cloudjob.sentinel2.grid import window_sums


def select(
    mask: np.ndarray,
    target_mask: np.ndarray,
    valid: np.ndarray,
    *,
    window: int,
    stride: int,
    cloud: tuple[float, float],
    target_max_cloud: float,
) -> list[tuple[int, int, float]]:
    """(row, column, cloud fraction) of every sliding window that can teach something, from the upper left on.

    `mask` and `target_mask` are the mask classes (H, W) of the cloudy and of the clear date, not dilated; `valid`
    (H, W) bool is where both dates have data. A window is taken if all of it is valid, its share of cloud and cirrus
    (classes 1 and 3, as ESA's percentage) lies within `cloud`, and the clear date has at most `target_max_cloud`.
    """
    area = window * window

    def share(flags):
        return window_sums(flags, size=window, stride=stride) / area

    fraction = share(np.isin(mask, (1, 3)))
    good = (fraction >= cloud[0]) & (fraction <= cloud[1])
    good &= share(np.isin(target_mask, (1, 2, 3))) <= target_max_cloud
    good &= window_sums(~valid | (mask == 255) | (target_mask == 255), size=window, stride=stride) == 0
    return [(int(i) * stride, int(j) * stride, float(fraction[i, j])) for i, j in np.argwhere(good)]


def off_ground(windows: list, *, window: int, transform, taken: list) -> list:
    """The windows that do not touch the polygons `taken` (map coordinates of the scene): ground of another split."""
    if not taken or not windows:
        return windows
    rows, cols = np.array([w[:2] for w in windows]).T
    left, top = transform.c + transform.a * cols, transform.f + transform.e * rows
    size = window * transform.a
    boxes = shapely.box(left, top - size, left + size, top)
    touches = shapely.intersects(boxes, shapely.union_all(taken))
    return [w for w, touch in zip(windows, touches, strict=True) if not touch]
