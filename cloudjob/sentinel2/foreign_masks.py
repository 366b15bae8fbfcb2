"""Masks that others made: what their values mean, and how they come onto a product's pixels.

A value that nobody named is an error, never clear.
"""

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import array_bounds
from rasterio.warp import Resampling, calculate_default_transform, reproject

from cloudjob.errors import CorruptFileError, OwnFileError
from cloudjob.files import judged
from cloudjob.pixels import CLASSES, CLEAR, CLOUD, NO_DATA
from cloudjob.sentinel2.geometry import WARP_ERRORS
from cloudjob.sentinel2.product import Product

Table = dict[str, list[int]]  # class -> values


# Bits of MAJA's CLM (CNES): 0 all clouds and shadows but the thinnest, 1 to 3 clouds, 4 the thinnest clouds, 5 and 6
# shadows, 7 high clouds at 1.38 um. The first of these that a value has is its class.
_MAJA = (("cloud", 0b1110), ("shadow", 0b1100000), ("cirrus", 0b10010000), ("cloud", 0b1))


def _maja() -> Table:
    table: Table = {"clear": [0], "cloud": [], "shadow": [], "cirrus": []}
    for value in range(1, 256):
        table[next(name for name, bits in _MAJA if value & bits)].append(value)
    return table


_THICK_THIN_SHADOW = {"clear": [0], "cloud": [1], "cirrus": [2], "shadow": [3]}
TABLES: dict[str, Table] = {
    "cloudsen12": _THICK_THIN_SHADOW | {"no_data": [99, 255]},
    "omnicloudmask": _THICK_THIN_SHADOW | {"no_data": [255]},
    "s2cloudless": {"clear": [0], "cloud": [1], "no_data": [255]},  # the mask CLM; CLP is a probability
    "fmask": {"clear": [0, 1, 3], "cloud": [4], "shadow": [2], "no_data": [255]},  # Fmask 4: water is 1, snow 3
    "python-fmask": {"clear": [1, 4, 5], "cloud": [2], "shadow": [3], "no_data": [0]},  # snow is 4, water 5
    "maja": _maja(),
}
BINARY = "binary"  # 0 is clear, all else is cloud: 1, 100, 255
NAMES = (*TABLES, BINARY)
HOUSE: Table = {name: [value] for name, value in CLASSES.items()}

_COVERED = 0.99  # share of a product's pixels that a raster on another grid must have
_UNSEEN = 254  # no class: a pixel that the raster does not cover
_CURE = f"list it in `values`, under clear too, or choose one of {', '.join(NAMES)}"


class Grid(NamedTuple):
    """Pixels of a raster; `shape` is (rows, columns)."""

    crs: CRS | str | None
    transform: Affine
    shape: tuple[int, int]

    @classmethod
    def of(cls, product: Product, factor: int) -> Self:
        """The pixels of a product, `factor` x 10 m wide."""
        transform = Affine(10.0 * factor, 0, product.transform.c, 0, -10.0 * factor, product.transform.f)
        return cls(product.crs, transform, (-(-product.shape[0] // factor), -(-product.shape[1] // factor)))

    def equals(self, other: "Grid") -> bool:
        """The same pixels, to a ten thousandth of one's width: their CRS may count in metres or degrees."""
        close = 1e-4 * max(abs(self.transform.a), abs(self.transform.b))
        return self.crs == other.crs and self.transform.almost_equals(other.transform, close) and self[2] == other[2]

    def __str__(self) -> str:
        unit = "degrees" if self.crs and CRS.from_user_input(self.crs).is_geographic else "m"
        size, corner = f"{self.transform.a} x {-self.transform.e} {unit}", f"({self.transform.c}, {self.transform.f})"
        return f"{self.shape[0]} x {self.shape[1]} pixels of {size} from {corner} in {self.crs}"


def classes(
    values: np.ndarray, meaning: Table | str, *, source: Path, no_data: float | None = None, cure: str = _CURE
) -> np.ndarray:
    """uint8 mask classes of a raster's values, by a table or by one of NAMES.

    0 is clear unless the table says otherwise, and the raster's own `no_data` is no data unless the table names it.
    OwnFileError with the values found, and the `cure`, where one of them has no meaning.
    """
    if meaning == BINARY:
        return np.where(values == 0, np.uint8(CLEAR), np.uint8(CLOUD))
    table = np.full(256, _UNSEEN, np.uint8)
    table[0] = CLEAR
    for name, listed in (TABLES[meaning] if isinstance(meaning, str) else meaning).items():
        table[listed] = CLASSES[name]
    with np.errstate(invalid="ignore"):  # NaN is no byte
        byte = values.astype(np.uint8)
    out = np.where(byte == values, table[byte], np.uint8(_UNSEEN))
    if no_data is not None:
        empty = np.isnan(values) if np.isnan(no_data) else values == no_data
        out[empty & (out == _UNSEEN)] = NO_DATA
    if (without := out == _UNSEEN).any():
        raise OwnFileError(
            f"{source}: nobody says what its value {_list(values[without])} means (values found: {_list(values)}); "
            f"{cure}"
        )
    return out


def _list(values: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in np.unique(values)[:20])


def by_sight(values: np.ndarray) -> Table | str:
    """What the values of a mask mean of which nothing is said: with one value beside 0, and that 1, 100 or 255, it is
    binary; otherwise it holds the classes of this project."""
    return BINARY if len(found := set(np.unique(values)) - {0}) == 1 and found <= {1, 100, 255} else HOUSE


def read(
    path: Path, grids: dict[int, Grid], meaning: Table | str | None, *, placed: bool = True, cure: str = _CURE
) -> tuple[np.ndarray, int, str]:
    """Mask classes from band 1 of a raster on one of the `grids` of a product, which one by its key, and a note where
    the raster lies on other pixels and the nearest were taken; what it does not cover is no data then.

    Unless it is `placed`, a raster of the same shape is on these pixels, wherever it says that it lies.

    OwnFileError for values without a meaning (where none is given: see `by_sight`; the `cure` says what to do), and for
    a raster of other ground.
    """
    expected = f"expected {' or '.join(map(str, grids.values()))}, or other pixels of the same ground"
    try:
        with rasterio.open(path) as image:
            found, values, no_data = Grid(image.crs, image.transform, image.shape), image.read(1), image.nodata
    except RasterioError as error:
        cause = judged(path, error, "not readable as a raster")
        raise (OwnFileError(f"{cause}; {expected}") if isinstance(cause, CorruptFileError) else cause) from None
    meaning = by_sight(values) if meaning is None else meaning
    core = classes(values, meaning, source=path, no_data=no_data, cure=cure)
    for key, grid in grids.items():
        if found.equals(grid) or (not placed and found.shape == grid.shape):
            return core, key, ""
    key = _nearest_size(found, grids)
    core = _resampled(core, found, grids[key]) if key else core
    if not key or np.mean(core != _UNSEEN) < _COVERED:
        raise OwnFileError(f"{path}: {found}; {expected}")
    core[core == _UNSEEN] = NO_DATA
    return core, key, f"{path}: {found}: the nearest of them are taken for the product's of {10 * key} m"


def _nearest_size(found: Grid, grids: dict[int, Grid]) -> int:
    """The key of the grid whose pixels are as wide as those of a raster, or nearly so; 0 where it lies elsewhere."""
    if found.crs is None:
        return 0
    crs, (height, width) = next(iter(grids.values())).crs, found.shape
    try:
        transform, _, _ = calculate_default_transform(
            found.crs, crs, width, height, *array_bounds(height, width, found.transform)
        )
    except WARP_ERRORS:
        return 0
    return min(grids, key=lambda key: abs(grids[key].transform.a - transform.a))


def _resampled(core: np.ndarray, found: Grid, grid: Grid) -> np.ndarray:
    out = np.full(grid.shape, _UNSEEN, np.uint8)
    reproject(
        core,
        out,
        src_transform=found.transform,
        src_crs=found.crs,
        dst_transform=grid.transform,
        dst_crs=grid.crs,
        src_nodata=_UNSEEN,
        dst_nodata=_UNSEEN,
        resampling=Resampling.nearest,
    )
    return out
