"""Mask classes from ESA's scene classification and from what else tells cloud from snow, and how they are grown.

A pixel is clear, hidden (cloud, cloud shadow, thin cirrus), or unknown, where the sources disagree.
"""

from dataclasses import dataclass, field
from functools import reduce
from math import atan, ceil, cos, isqrt, radians, sin, tan
from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter

from cloudjob.pixels import CIRRUS, CLASSES, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN

# Classes of ESA's scene classification (Level-2A algorithm theoretical basis document)
SCL_NO_DATA, SCL_SATURATED, SCL_DARK, SCL_SHADOW, SCL_VEGETATION, SCL_BARE, SCL_WATER = range(7)
SCL_UNCLASSIFIED, SCL_MEDIUM, SCL_HIGH, SCL_CIRRUS, SCL_SNOW = range(7, 12)
SCL_GROUND = (SCL_DARK, SCL_VEGETATION, SCL_BARE, SCL_WATER)
SCL_CLOUDS = (SCL_MEDIUM, SCL_HIGH, SCL_CIRRUS)  # what ESA's own percentage of cloud counts
_CLASSES = {SCL_NO_DATA: NO_DATA, SCL_SHADOW: SHADOW, SCL_MEDIUM: CLOUD, SCL_HIGH: CLOUD, SCL_CIRRUS: CIRRUS}
_STRIP = 32  # rows: they fit the cache

_BRIGHT = 0.4  # reflectance in B03 from which a pixel is snow or cloud rather than bare ground
_CELL, _BESIDE, _HIGHEST = 120, 1200, 12_000  # metres, of `sunny`: cells, between the ways looked at, of a cloud's top
_VIEW = 0.21  # tangent of the angle by which the satellite looks sideways, at most
_AROUND, _MOSTLY = 33, 0.9  # cells of 60 m (2 km), and how much of the cloud there must be snow-like


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How pixels become classes. Probabilities are in percent; `snow_b11`, `cloud_b11` and `brighter` are reflectance,
    `darker` is a ratio; radii are in metres. `folder` and `values` describe rasters that replace the classification
    (`source` "raster"; see `foreign_masks`); `b11` is the metres of the pixels of B11."""

    source: str = "scl"
    folder: Path | None = None
    values: dict[str, list[int]] | str = field(
        default_factory=lambda: {"cloud": [1], "shadow": [2], "cirrus": [3], "unknown": [4], "no_data": [255]}
    )
    cloud_probability: float = 20
    snow_probability: float = 80
    b11: int = 60
    snow_ndsi: float = 0.5
    snow_b11: float = 0.15
    cloud_b11: float = 0.20
    brighter: float = 0.04
    darker: float = 0.7
    cloud_m: float = 100
    shadow_m: float = 50
    cirrus_m: float = 20


def classes(scl: np.ndarray) -> np.ndarray:
    """uint8 mask classes by the scene classification alone, on its grid: snow is clear, and nothing is unknown.

    Comparisons of bytes, of which a processor does dozens at a time, take a third of the time of a table.
    """
    out = np.zeros_like(scl)
    for strip, part in ((scl[top : top + _STRIP], out[top : top + _STRIP]) for top in range(0, len(scl), _STRIP)):
        for found, value in _CLASSES.items():
            part += np.uint8(value) * (strip == found).view(np.uint8)
    return out


def any_of(classes: np.ndarray, *values: int) -> np.ndarray:
    """Where the array has one of these values; four times as fast as numpy.isin on bytes."""
    out = classes == values[0]
    for value in values[1:]:
        out |= classes == value
    return out


def combine(
    scl: np.ndarray,
    settings: Settings,
    *,
    cloud_probability: np.ndarray | None = None,
    snow_probability: np.ndarray | None = None,
    green: np.ndarray | None = None,
    b11: np.ndarray | None = None,
) -> np.ndarray:
    """(h, w) uint8 mask classes on the 20 m grid from the scene classification and whatever else was fetched.

    The probabilities (MSK_CLDPRB, MSK_SNWPRB) are percent at 20 m; `green` (B03) and `b11` reflectance at 60 m, `b11`
    also at 20 m, NaN where there is no data. "Snow-like" is B03 > 0.4, (B03 - B11) / (B03 + B11) >= `snow_ndsi` and
    B11 <= `snow_b11`, "cloud-like" is B03 > 0.4 and B11 >= `cloud_b11` (Dozier 1989: snow is dark at 1.6 um, water
    clouds are not). The thin edges of a cloud above snow are snow-like too, so 8, 9 and 10 only count as snow-like
    where nine tenths of all 8, 9 and 10 within 1 km are.

    | SCL                | alone   | by probability                                          | by B11             |
    |--------------------|---------|---------------------------------------------------------|--------------------|
    | 0 no data          | no data |                                                         |                    |
    | 1 saturated        | unknown |                                                         |                    |
    | 2, 4, 5, 6 ground  | clear   | cloud >= limit: unknown                                 | cloud-like: cloud  |
    | 7 unclassified     | clear   | cloud >= half the limit: unknown                        | cloud-like: cloud  |
    | 3 cloud shadow     | shadow  |                                                         |                    |
    | 8 medium cloud     | cloud   | without B11, snow >= limit: unknown                     | snow-like: clear   |
    | 9 high cloud       | cloud   |                                                         | snow-like: unknown |
    | 10 thin cirrus     | cirrus  | without B11, snow >= limit: unknown                     | snow-like: clear   |
    | 11 snow            | clear   | without B11, cloud >= limit and snow below its: unknown | cloud-like: cloud  |

    A low cloud probability clears nothing: ESA gives 0 % to much thick cloud that it classifies as 8 or 10.
    """
    mask = classes(scl)
    mask[scl == SCL_SATURATED] = UNKNOWN
    ground = any_of(scl, *SCL_GROUND, SCL_UNCLASSIFIED)
    doubtful, snow = (scl == SCL_MEDIUM) | (scl == SCL_CIRRUS), scl == SCL_SNOW
    limit = settings.cloud_probability
    if cloud_probability is not None:
        mask[ground & (cloud_probability >= limit)] = UNKNOWN
        mask[(scl == SCL_UNCLASSIFIED) & (cloud_probability >= limit / 2)] = UNKNOWN
    if green is not None and b11 is not None:
        cloud = any_of(scl, *SCL_CLOUDS)
        snow_like, cloud_like = _by_b11(green, b11, cloud, settings)
        mask[doubtful & snow_like] = CLEAR
        mask[(scl == SCL_HIGH) & snow_like] = UNKNOWN
        mask[(ground | snow) & cloud_like] = CLOUD
        return mask
    snowy = np.False_ if snow_probability is None else snow_probability >= settings.snow_probability
    mask[doubtful & snowy] = UNKNOWN
    if cloud_probability is not None:
        mask[snow & ~snowy & (cloud_probability >= limit)] = UNKNOWN
    return mask


def _by_b11(green: np.ndarray, b11: np.ndarray, cloud: np.ndarray, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) bool each, on the 20 m grid of `cloud`: where cloud is rather snow, and where a pixel is cloud-like."""
    factor = 1 if b11.shape == cloud.shape else 3
    green = upsampled(green, 3, b11.shape) if green.shape != b11.shape else green
    bright = green > _BRIGHT
    snow_like = bright & (b11 <= settings.snow_b11) & (green - b11 >= settings.snow_ndsi * (green + b11))
    cells, size = pool(cloud, factor, np.logical_or), _AROUND * 3 // factor
    around, snowy = (uniform_filter(flags.astype(np.float32), size) for flags in (cells, cells & snow_like))
    snow = snow_like & (snowy >= _MOSTLY * around)
    cloud_like = bright & (b11 >= settings.cloud_b11)
    return upsampled(snow, factor, cloud.shape), upsampled(cloud_like, factor, cloud.shape)


def sunny(core: np.ndarray, elevation: float | None, azimuth: float | None, *, pixel_m: float) -> np.ndarray:
    """(h, w) bool: shadow with no cloud between it and the sun, as on the sunny side of a cloud; `azimuth` is clockwise
    from north, in degrees.

    A cloud up to 12 km high stands where the way to the sun goes, or up to 12 degrees beside its foot, from where the
    satellite sees it. Anything but clear ground and shadow may be that cloud; so may what lies beyond the scene, and
    where the sun is not known nothing is told. In cells of 120 m.
    """
    if elevation is None or azimuth is None or elevation <= 0:
        return np.zeros(core.shape, bool)
    factor = max(round(_CELL / pixel_m), 1)
    cell, slope = factor * pixel_m, tan(radians(elevation))
    cloud = dilate(pool(~any_of(core, CLEAR, SHADOW), factor, np.logical_or), _BESIDE / cell)
    without = pool(core == SHADOW, factor, np.logical_or) & ~cloud
    steps = ceil(_HIGHEST / slope / cell)
    for turn in (-1, 0, 1):
        way = radians(azimuth) + turn * atan(_VIEW * slope)
        row, col = np.nonzero(without)
        for step in range(1, steps + 1):
            r, c = np.rint(row - step * cos(way)).astype(int), np.rint(col + step * sin(way)).astype(int)
            inside = (r >= 0) & (c >= 0) & (r < cloud.shape[0]) & (c < cloud.shape[1])
            met = ~inside
            met[inside] = cloud[r[inside], c[inside]]
            without[row[met], col[met]] = False
            row, col = row[~met], col[~met]
            if not row.size:
                break
    return upsampled(without, factor, core.shape) & (core == SHADOW)


def pool(flags: np.ndarray, factor: int, join: np.ufunc) -> np.ndarray:
    """`join` (np.logical_and, np.logical_or) of blocks of `factor` x `factor` flags; the last may be incomplete."""
    missing = [(0, -length % factor) for length in flags.shape]
    padded = np.pad(flags, missing, mode="edge") if np.any(missing) else flags
    rows = reduce(join, (padded[n::factor] for n in range(factor)))  # 15 times as fast as .all() of a reshaped array
    return reduce(join, (rows[:, n::factor] for n in range(factor)))


def upsampled(cells: np.ndarray, factor: int, shape: tuple[int, int]) -> np.ndarray:
    """Each cell `factor` x `factor` pixels, cropped to `shape`."""
    return cells.repeat(factor, axis=1).repeat(factor, axis=0)[: shape[0], : shape[1]]


def grow(mask: np.ndarray, settings: Settings, *, pixel_m: float) -> np.ndarray:
    """The mask with cloud, shadow and cirrus grown by their radii into clear and unknown pixels of `pixel_m` metres.

    The classification misses the thin edges of clouds. Where they meet, cloud wins over shadow, shadow over cirrus.
    """
    out, free = mask.copy(), (mask == CLEAR) | (mask == UNKNOWN)
    for value, metres in ((CIRRUS, settings.cirrus_m), (SHADOW, settings.shadow_m), (CLOUD, settings.cloud_m)):
        out[free & dilate(mask == value, metres / pixel_m)] = value
    return out


def dilate(mask: np.ndarray, radius: float) -> np.ndarray:
    """True where a True pixel of the (H, W) mask lies within `radius` pixels (Euclidean, centre to centre).

    Meijster's two passes (Mathematical Morphology, 2000) with the distance cut off at the radius: exact, ten
    times as fast on a full scene as scipy's distance transform, and in a tenth of the memory.
    """
    if not mask.any():
        return np.zeros(mask.shape, bool)
    reach = int(radius)
    vertical = np.full(mask.shape, reach + 1, np.min_scalar_type(reach + 2))  # rows to the nearest True
    vertical[mask] = 0
    for row in range(1, len(mask)):
        np.minimum(vertical[row], vertical[row - 1] + 1, out=vertical[row])
    for row in range(len(mask) - 2, -1, -1):
        np.minimum(vertical[row], vertical[row + 1] + 1, out=vertical[row])
    out = np.zeros(mask.shape, bool)
    width = mask.shape[1]
    reach = min(reach, width - 1)
    for top in range(0, len(mask), 64):  # stripes that stay in the processor's cache
        stripe, grown = vertical[top : top + 64], out[top : top + 64]
        for shift in range(-reach, reach + 1):
            near = stripe[:, max(0, shift) : width + min(0, shift)] <= isqrt(int(radius**2 - shift**2))
            grown[:, max(0, -shift) : width + min(0, -shift)] |= near
    return out


def fractions(mask: np.ndarray) -> dict[str, float]:
    """The fraction of no_data among all pixels, and of each other class among the valid ones (0 if there are none)."""
    counts = {name: int(np.count_nonzero(mask == value)) for name, value in CLASSES.items()}
    no_data = counts.pop("no_data")
    valid = max(1, mask.size - no_data)
    return {name: count / valid for name, count in counts.items()} | {"no_data": no_data / mask.size}
