"""What hides the ground on a date: its own masks, and the second opinion of another date of the same ground."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import RasterioError

from cloudjob.errors import ConfigError
from cloudjob.sentinel2 import masks
from cloudjob.pixels import CLASSES, CLEAR, CLOUD, HIDDEN, NO_DATA, UNKNOWN
from cloudjob.sentinel2.masks import Settings
from cloudjob.sentinel2.product import (
    Product,
    read_b11,
    read_cloud_probability,
    read_overview,
    read_scl,
    read_snow_probability,
)
from cloudjob.sentinel2.radiometry import reflectance

_GREEN, _BLUE = 1, 2  # in `rgb`
_LIGHT = 1.1  # so much the light on the same ground varies between dates
_SAME = 0.01  # reflectance that is no difference


@dataclass(frozen=True)
class View:
    """What the small files of a product tell; the arrays are of one grid, whose pixels are `factor` x 10 m wide."""

    product: Product
    core: np.ndarray  # (h, w) uint8 mask classes from this date alone, not grown
    factor: int  # 2; 1 where a raster at 10 m replaces the classification
    snow: np.ndarray  # (h, w) bool
    rgb: np.ndarray  # (3, ceil(H/6), ceil(W/6)) uint16 DN of B04, B03, B02 at 60 m
    scl: np.ndarray | None = None  # (h, w) uint8 scene classification, None where a raster replaces it

    @classmethod
    def open(cls, product: Product, settings: Settings) -> "View":
        """Needs what `preview` fetches; with source "raster" also `<folder>/<product>.tif` (see `_read_raster`)."""
        scl, rgb = read_scl(product), read_overview(product)
        snow = scl == masks.SCL_SNOW
        if settings.source == "raster":
            core, factor = _read_raster(product, settings)
            times = 2 // factor
            core[masks.upsampled(scl == masks.SCL_NO_DATA, times, core.shape)] = NO_DATA
            return cls(product, core, factor, masks.upsampled(snow, times, core.shape), rgb)
        b11 = read_b11(product)
        core = masks.combine(
            scl,
            settings,
            cloud_probability=read_cloud_probability(product),
            snow_probability=read_snow_probability(product) if b11 is None else None,  # B11 says it better
            green=None if b11 is None else reflectance(rgb[_GREEN]),
            b11=None if b11 is None else reflectance(b11),
        )
        return cls(product, core, 2, snow, rgb, scl)


@dataclass(frozen=True)
class Cover:
    """Mask classes (h, w) uint8 on a grid whose pixels are `factor` x 10 m wide; `mask` is grown, `core` is not."""

    core: np.ndarray
    mask: np.ndarray
    factor: int

    def at_10m(self, array: str, shape: tuple[int, int], rows: slice = slice(None)) -> np.ndarray:
        """(rows, W) uint8: these rows of "core" or "mask" on the 10 m grid of `shape`, a copy."""
        top, bottom, _ = rows.indices(shape[0])
        first = top // self.factor
        part = getattr(self, array)[first : -(-bottom // self.factor)]
        end = (bottom - first * self.factor, shape[1])
        return masks.upsampled(part, self.factor, end)[top - first * self.factor :]


def suspect(view: View, other: View, settings: Settings) -> np.ndarray:
    """(h, w) bool on the grid of `view`: clear on both dates, yet brighter here: cloud or haze that the classification
    missed, or new snow. Symmetric: ask both ways to find which of two dates it is on."""
    return _brighter(view, other, settings) & (view.core == CLEAR)


def cover(view: View, other: View | None, settings: Settings) -> Cover:
    """The masks of `view`, revised by another date of the same pixel grid where that one is clear.

    What is brighter than there becomes cloud where the classification had said so (and B11 or the snow probability had
    doubted it), unknown elsewhere. Medium cloud and thin cirrus that do not differ from there in any visible band
    become unknown: no cloud, or none that matters. `brighter` 1 switches both off.
    """
    core = view.core.copy()
    if other is not None and settings.brighter < 1:
        brighter = _brighter(view, other, settings)
        core[brighter] = UNKNOWN
        if view.scl is not None:
            medium_or_thin = masks.any_of(view.scl, masks.SCL_MEDIUM, masks.SCL_CIRRUS)
            core[brighter & (medium_or_thin | (view.scl == masks.SCL_HIGH))] = CLOUD
            core[medium_or_thin & masks.any_of(core, *HIDDEN) & _same(view, other)] = UNKNOWN
    return Cover(core, masks.grow(core, settings, pixel_m=10 * view.factor), view.factor)


def _brighter(view: View, other: View, settings: Settings) -> np.ndarray:
    """(h, w) bool: cells of 60 m without anything hidden here, clear there, and here brighter in B02.

    B02 tells haze from ground best: haze scatters blue, while drying and harvested ground brightens in red. On bright
    ground, which clouds hardly brighten, a change of light must not count.
    """
    if settings.brighter >= 1:
        return np.zeros(view.core.shape, bool)
    here, there = (reflectance(date.rgb[_BLUE]) for date in (view, other))
    open_here = masks.any_of(view.core, CLEAR, UNKNOWN)
    cells = (here - _LIGHT * there > settings.brighter) & _whole(view, open_here) & _whole(other, other.core == CLEAR)
    return _on_grid(cells, view)


def _same(view: View, other: View) -> np.ndarray:
    """(h, w) bool: cells of 60 m that are clear there and no different in any visible band."""
    cells = _whole(other, other.core == CLEAR)
    for here, there in zip(view.rgb, other.rgb, strict=True):
        cells &= np.abs(reflectance(here) - reflectance(there)) <= _SAME
    return _on_grid(cells, view)


def _whole(view: View, flags: np.ndarray) -> np.ndarray:
    """(h60, w60) bool: cells of 60 m with all their pixels flagged."""
    return masks.pool(flags, 6 // view.factor, np.logical_and)


def _on_grid(cells: np.ndarray, view: View) -> np.ndarray:
    return masks.upsampled(cells, 6 // view.factor, view.core.shape)


def _read_raster(product: Product, settings: Settings) -> tuple[np.ndarray, int]:
    """Mask classes from band 1 of the product's raster, and how many times 10 m its pixels are wide.

    It has the CRS and the upper left corner of the product and covers it exactly with pixels of 10 or 20 m.
    """
    path = Path(settings.folder) / f"{product.name.name}.tif"
    grids = {factor: _grid(product, factor) for factor in (1, 2)}
    expected = f"expected for {product.name.name}: {' or '.join(_words(*grid) for grid in grids.values())}"
    try:
        with rasterio.open(path) as image:
            found = (image.crs, image.transform, image.shape)
            factor = next((factor for factor, grid in grids.items() if _equal(found, grid)), None)
            if factor is None:
                raise ConfigError(f"{path}: {_words(*found)}; {expected}")
            values = image.read(1)
    except RasterioError as error:
        raise ConfigError(f"{path}: not readable as a raster ({error}); {expected}") from None
    core = np.full(values.shape, CLEAR, np.uint8)
    for name, wanted in settings.values.items():
        core[np.isin(values, wanted)] = CLASSES[name]
    return core, factor


def _grid(product: Product, factor: int) -> tuple[str, Affine, tuple[int, int]]:
    transform = Affine(10.0 * factor, 0, product.transform.c, 0, -10.0 * factor, product.transform.f)
    return product.crs, transform, (-(-product.shape[0] // factor), -(-product.shape[1] // factor))


def _equal(found: tuple, grid: tuple) -> bool:
    return found[0] == grid[0] and found[1].almost_equals(grid[1], 1e-3) and found[2] == grid[2]


def _words(crs, transform: Affine, shape: tuple[int, int]) -> str:
    size, corner = f"{transform.a} x {-transform.e} m", f"({transform.c}, {transform.f})"
    return f"{shape[0]} x {shape[1]} pixels of {size} from {corner} in {crs}"
