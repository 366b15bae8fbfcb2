"""Real clouds over real ground: cloudy dates of a place laid over its clear dates, so that the ground below is known.

A place is a folder of dates: `<YYYY-MM-DD>.tif`, four bands as uint16 at 10 or 20 m, and `<YYYY-MM-DD>_scl.tif`,
Sen2Cor's scene classification at 20 m. The clouds are turned, so that what is seen through them is no ground of the
place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import RasterioError

from cloudjob.archive.rasters import read_bands
from cloudjob.errors import ConfigError
from cloudjob.files import reading
from cloudjob.pixels import EMPTY_DN, HIDDEN
from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.radiometry import reflectance

GROWTH = masks.Settings(cloud_m=50, shadow_m=50, cirrus_m=20)  # to where a cloud's pixels are laid over the ground
_CLEAR, _SNOW = 0.005, 0.02  # a clear date: shares of hidden and of snowy pixels
_CLOUDY, _COVERED = (0.08, 0.6), (0.05, 0.8)  # a cloudy date: share of hidden pixels, and when they have grown


@dataclass(frozen=True)
class Day:
    """A date of a place: `bands` (4, H, W) uint16 DN in our convention, `scl` (ceil(H/2), ceil(W/2)) uint8. It is hazy
    from a median reflectance of `haze` on in the third band, B02."""

    day: date
    bands: np.ndarray
    scl: np.ndarray
    crs: str
    transform: Affine
    haze: float = 0.15

    @property
    def hidden(self) -> np.ndarray:
        """(h, w) bool of `scl`: cloud, shadow and cirrus, not grown."""
        return masks.any_of(self.scl, masks.SCL_SHADOW, *masks.SCL_CLOUDS)

    @property
    def covered(self) -> np.ndarray:
        """(H, W) bool: cloud, shadow and cirrus, grown."""
        grown = masks.grow(masks.classes(self.scl), GROWTH, pixel_m=20)
        return masks.upsampled(masks.any_of(grown, *HIDDEN), 2, self.bands.shape[1:])

    @property
    def is_whole(self) -> bool:
        return bool((self.bands != EMPTY_DN).all() and (self.scl != masks.SCL_NO_DATA).all())

    @property
    def is_clear(self) -> bool:
        snow, blue = np.mean(self.scl == masks.SCL_SNOW), np.median(reflectance(self.bands[2]))
        return bool(self.is_whole and self.hidden.mean() < _CLEAR and snow < _SNOW and blue < self.haze)

    @property
    def is_cloudy(self) -> bool:
        inside = _CLOUDY[0] <= self.hidden.mean() <= _CLOUDY[1]
        return bool(self.is_whole and inside and _COVERED[0] <= self.covered.mean() <= _COVERED[1])


def read(folder: Path, *, offset: int, haze: float = Day.haze) -> list[Day]:
    """The dates of a place in order, from pixels with BOA_ADD_OFFSET `offset`; `haze` as in Day. Each pixel of 20 m
    becomes four of 10 m. ConfigError where the dates are not of one square grid, or there is none."""
    found = []
    for path in sorted(folder.glob("????-??-??.tif")):
        bands, crs, transform = read_bands(path, offset=offset, metres=(10, 20))
        if transform.a == 20:
            bands, transform = bands.repeat(2, 1).repeat(2, 2), transform @ Affine.scale(0.5)
        scl, half = _read_scl(path.with_name(f"{path.stem}_scl.tif")), tuple(-(-side // 2) for side in bands.shape[1:])
        if scl.shape != half:
            raise ConfigError(f"{path}: its scene classification has {scl.shape} pixels, expected {half} of 20 m")
        found.append(Day(date.fromisoformat(path.stem), bands, scl, crs, transform, haze))
    if not found:
        raise ConfigError(f"{folder}: holds no <YYYY-MM-DD>.tif; configs/series.yaml says what a series is")
    grids = {(each.bands.shape, each.crs, each.transform) for each in found}
    if len(grids) > 1 or found[0].bands.shape[1] != found[0].bands.shape[2]:
        raise ConfigError(f"{folder}: its dates must be of one square grid, since clouds are turned")
    return found


def _read_scl(path: Path) -> np.ndarray:
    with reading(path, RasterioError, reason="not readable as a raster"), rasterio.open(path) as image:
        scl = image.read(1)
    found = np.unique(scl)
    if not np.isin(found, range(12)).all():
        raise ConfigError(f"{path}: holds {', '.join(f'{value:g}' for value in found[:20])}; expected classes 0 to 11")
    return scl.astype(np.uint8)


def draws(days: Sequence[Day], *, clouds: int, seed: int) -> Iterator[tuple[Day, Day, int]]:
    """(clear date, cloudy date, turn 0..7): `clouds` cloudy dates for each clear one, drawn by the seed."""
    cloudy = [each for each in days if each.is_cloudy]
    for truth in (each for each in days if each.is_clear):
        rng = np.random.default_rng([seed, truth.day.toordinal()])
        for number in sorted(rng.choice(len(cloudy), min(clouds, len(cloudy)), replace=False)):
            yield truth, cloudy[number], int(rng.integers(8))


def overlaid(truth: Day, cloudy: Day, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Bands and scene classification of the clear date below the clouds and shadows of the cloudy one."""

    def turned(image: np.ndarray) -> np.ndarray:
        image = np.rot90(image, turn % 4, (-2, -1))
        return image[..., ::-1] if turn >= 4 else image

    scl = np.where(turned(cloudy.hidden), turned(cloudy.scl), truth.scl)
    return np.where(turned(cloudy.covered), turned(cloudy.bands), truth.bands), scl
