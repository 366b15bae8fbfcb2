"""Which windows of a pair become triplets."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from affine import Affine
from shapely.geometry.base import BaseGeometry

from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA
from cloudjob.sentinel2.masks import SCL_CLOUDS, any_of
from cloudjob.sentinel2.sums import strip_sums

# The 2025 notebook asked for a share of cloud in the scene classification, and for nothing else.
NOTEBOOK_2025: dict[str, Any] = {
    "stride": 64,
    "clouds": SCL_CLOUDS,
    "cloud": (0.05, 0.30),
    "target_max_cloud": 1.0,
    "max_no_data": 1.0,
}
GROUND_MARGIN_M = 100  # footprints are drawn through rounded corners
_MIN_PIXELS = 16  # below, a correlation says nothing


@dataclass(frozen=True, eq=False)
class Windows:
    """Square windows of `window` pixels of 10 m, in row-major order: row and col (N,) int32 of the upper left pixel,
    and cloud_fraction (N,) float32."""

    row: np.ndarray
    col: np.ndarray
    cloud_fraction: np.ndarray
    window: int

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: np.ndarray) -> "Windows":
        """The windows at these positions, or those flagged True."""
        return Windows(self.row[which], self.col[which], self.cloud_fraction[which], self.window)


def select(
    core: np.ndarray,
    target_core: np.ndarray,
    *,
    factor: int,
    shape: tuple[int, int],
    window: int,
    stride: int,
    cloud: tuple[float, float],
    target_max_cloud: float,
    max_no_data: float,
    clouds: tuple[int, ...] = (CLOUD, CIRRUS),
) -> Windows:
    """Every sliding window, wholly inside the scene of `shape` (rows, columns at 10 m), that can teach something.

    `core` and `target_core` are the mask classes of the cloudy and of the clear date, not grown, (h, w) uint8 on a grid
    whose pixels are `factor` times 10 m. Limits are shares of a window's pixels, and the limit itself is allowed: the
    share of `clouds` (by default as in ESA's percentage) lies within `cloud`; at most `target_max_cloud` are hidden or
    unknown on the clear date; at most `max_no_data` lack data on either date. The clear date is not read where both of
    the latter are 1.
    """
    rules = [(lambda here, there: any_of(here, *clouds), *cloud)]
    if target_max_cloud < 1:
        rules.append((lambda here, there: (there != CLEAR) & (there != NO_DATA), 0, target_max_cloud))
    if max_no_data < 1:
        rules.append((lambda here, there: (here == NO_DATA) | (there == NO_DATA), 0, max_no_data))
    unit = factor if window % factor == 0 and stride % factor == 0 else 1  # pixels of 10 m

    def rows_of(mask: np.ndarray, rows: slice) -> np.ndarray:
        if unit == factor:
            return mask[rows]
        return mask[np.arange(rows.start, rows.stop) // factor].repeat(factor, axis=1)[:, : shape[1]]

    def strip(rows: slice) -> list[np.ndarray]:
        here, there = rows_of(core, rows), rows_of(target_core, rows)
        return [flags(here, there) for flags, _, _ in rules]

    whole = (shape[0] // unit, shape[1] // unit)
    sums = strip_sums(strip, whole, size=window // unit, stride=stride // unit)
    shares = sums * unit**2 / window**2
    good = np.all([(low <= share) & (share <= high) for share, (_, low, high) in zip(shares, rules, strict=True)], 0)
    row, col = np.nonzero(good)
    return Windows((row * stride).astype("i4"), (col * stride).astype("i4"), shares[0][good].astype("f4"), window)


def correlation(
    cloudy: np.ndarray, clear: np.ndarray, usable: np.ndarray, windows: Windows, *, step: int
) -> np.ndarray:
    """(N,) float32 Pearson correlation of both dates in each window, the mean over the bands in which both vary.

    `cloudy` and `clear` are (bands, h, w) uint16 DN on a grid whose pixels are `step` times 10 m; `usable` (h, w) bool
    is where they may be compared. NaN where fewer than 16 pixels are usable or no band varies. The summed-area tables
    (Crow 1984) hold whole numbers that float64 represents exactly, so that nothing is lost in their differences.
    """
    if not len(windows) or not usable.any():
        return np.full(len(windows), np.nan, np.float32)
    (rows, (top, bottom)), (cols, (left, right)) = (
        _lines(start, windows.window, step) for start in (windows.row, windows.col)
    )

    def sums(values: np.ndarray) -> np.ndarray:
        blocks = np.add.reduceat(values[: rows[-1], : cols[-1]], rows[:-1], dtype=np.float64)
        table = np.add.reduceat(blocks, cols[:-1], axis=1).cumsum(0).cumsum(1)
        table = np.pad(table, ((1, 0), (1, 0)))
        return table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]

    number = sums(usable)
    total, bands = np.zeros((2, len(windows)))
    for pair in zip(cloudy, clear, strict=True):
        x, y = (np.where(usable, band - np.rint(band[usable].mean()), 0) for band in pair)
        sum_x, sum_y = sums(x), sums(y)
        spread = (number * sums(x * x) - sum_x**2) * (number * sums(y * y) - sum_y**2)
        varies = (number >= _MIN_PIXELS) & (spread > 0)
        covariance = number * sums(x * y) - sum_x * sum_y
        total += np.where(varies, covariance, 0) / np.sqrt(np.where(varies, spread, 1))
        bands += varies
    return np.where(bands, total / np.maximum(bands, 1), np.nan).astype(np.float32)


def _lines(start: np.ndarray, window: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The lines of the reduced grid on which some window begins or ends, and (2, N) their numbers for each window.

    A summed-area table of these lines alone takes a third of the time of a whole one.
    """
    edges = (start + np.array([[0], [window]]) + step // 2) // step
    lines = np.unique(edges)
    return lines, np.searchsorted(lines, edges)


def balance(windows: Windows, *, bins: int, cloud: tuple[float, float], limit: int | None, seed: int) -> Windows:
    """At most `limit` of the windows, drawn at random, with a histogram of cloud fraction as even as they allow.

    The range `cloud` is parted into `bins` (0: a single one), and each bin gives one window in turn until `limit` is
    reached. Without a limit each bin keeps at most the median count of the bins that are not empty.
    """
    if not len(windows):
        return windows
    inner = np.linspace(*cloud, max(bins, 1) + 1)[1:-1]
    place = np.searchsorted(inner, windows.cloud_fraction, side="right")
    chance = np.random.default_rng(seed).permutation(len(windows))
    order = np.lexsort((chance, place))  # bin by bin
    turn = np.empty(len(windows), int)
    turn[order] = np.arange(len(windows)) - np.searchsorted(place[order], place[order])
    if limit is None:
        counts = np.bincount(place)
        return windows.take(turn < int(np.median(counts[counts > 0])))
    return windows.take(np.sort(np.lexsort((chance, turn))[:limit]))


def off_ground(windows: Windows, *, transform: Affine, excluded: list[BaseGeometry]) -> Windows:
    """The windows farther than GROUND_MARGIN_M from the polygons `excluded`, another split's ground in map coordinates
    the scene."""
    if not excluded or not len(windows):
        return windows
    left, top = transform.c + transform.a * windows.col, transform.f + transform.e * windows.row
    size = windows.window * transform.a
    ground = shapely.union_all(shapely.buffer(excluded, GROUND_MARGIN_M))
    shapely.prepare(ground)
    return windows.take(~shapely.intersects(ground, shapely.box(left, top - size, left + size, top)))
