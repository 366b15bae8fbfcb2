"""Where the pixels of an image lie: how wide they are, and how those of another date come onto them."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import array_bounds
from rasterio.warp import Resampling, reproject, transform_bounds
from rasterio.windows import Window

from cloudjob.errors import CorruptFileError, OwnFileError
from cloudjob.files import judged
from cloudjob.pixels import BANDS, EMPTY_DN
from cloudjob.sentinel2.foreign_masks import Grid
from cloudjob.sentinel2.geometry import WARP_ERRORS, lon_lat

WANTED_M = 10.0  # metres of the pixels that the networks are trained on
_DEGREE_M = 111_195.0  # of a great circle
_MARGIN = 4  # pixels around what is read, which the resampling looks at


def middle(grid: Grid) -> tuple[float, float] | None:
    """Longitude and latitude, in degrees, of the middle of the pixels; None where nobody knows."""
    x, y = grid.transform @ (grid.shape[1] / 2, grid.shape[0] / 2)
    return None if grid.crs is None else lon_lat(grid.crs, x, y)


def pixel_m(grid: Grid) -> float | None:
    """Metres of a side of a pixel in the middle of the image, were it square, to two digits, as maps are not truer;
    None where nobody knows."""
    row, col = grid.shape[0] / 2, grid.shape[1] / 2
    if grid.crs is None:
        return None
    points = [grid.transform @ place for place in ((col, row), (col + 1, row), (col, row + 1))]
    found = [place for point in points if (place := lon_lat(grid.crs, *point))]
    if len(found) < len(points):
        return None
    (lon, lat), *beside = found
    steep = math.cos(math.radians(lat))
    (a, b), (c, d) = ((math.remainder(x - lon, 360) * steep, y - lat) for x, y in beside)
    return float(f"{_DEGREE_M * math.sqrt(abs(a * d - b * c)):.2g}") or None


def part(source: Grid, target: Grid, *, name: object) -> Window | None:
    """The rows and columns of another date that lie on the pixels of an image; None where both have the same pixels.

    OwnFileError where they share no ground. Where one of them does not say where it lies, they must have one size.
    """
    if source.crs is None or target.crs is None:
        if source.shape == target.shape:
            return None
        raise OwnFileError(
            f"{name}: {source.shape[0]} x {source.shape[1]} pixels, the image has {target.shape[0]} x "
            f"{target.shape[1]}, and one of them does not say where it lies: give it its place, or cut "
            "both to the same pixels"
        )
    if source.equals(target):
        return None
    if (window := _shared(source, target)) is None:
        raise OwnFileError(f"{name} shows other ground than the image: it has {source}, the image {target}")
    return window


def _shared(source: Grid, target: Grid) -> Window | None:
    """What must be read of an image for the pixels of another; None where they share no ground."""
    try:
        west, south, east, north = transform_bounds(
            target.crs, source.crs, *array_bounds(*target.shape, target.transform)
        )
        corners = [~source.transform @ (x, y) for x in (west, east) for y in (south, north)]
    except (*WARP_ERRORS, ValueError):
        return None
    spans = []
    for places, side in zip(zip(*corners, strict=True), reversed(source.shape), strict=True):  # columns, then rows
        if not all(map(math.isfinite, places)):
            return None
        first, last = math.floor(round(min(places), 3)), math.ceil(round(max(places), 3))
        if min(last, side) <= max(first, 0):
            return None
        spans.append((max(first - _MARGIN, 0), min(last + _MARGIN, side)))
    (left, right), (top, bottom) = spans
    return Window(left, top, right - left, bottom - top)


def within(grid: Grid, window: Window) -> Grid:
    """The pixels of a window."""
    corner = grid.transform @ (window.col_off, window.row_off)
    transform = grid.transform
    moved = Affine(transform.a, transform.b, corner[0], transform.d, transform.e, corner[1])
    return Grid(grid.crs, moved, (int(window.height), int(window.width)))


def onto(cut: Callable[[Window], np.ndarray], source: Grid, target: Grid, *, rows: slice) -> np.ndarray:
    """(4, r, W) uint16 DN: these rows of the pixels of an image on another date, EMPTY_DN where it has none. `cut`
    gives a window of the other date, (4, h, w).

    Bilinear between pixels; means over areas where its pixels are much smaller.
    """
    here, there = pixel_m(source), pixel_m(target)
    finer = here is not None and there is not None and 1.5 * here < there
    wanted = within(target, Window(0, rows.start, target.shape[1], rows.stop - rows.start))
    window = _shared(source, wanted)
    if window is None:
        return np.full((len(BANDS), *wanted.shape), EMPTY_DN, np.uint16)
    how = Resampling.average if finer else Resampling.bilinear
    return _resampled(cut(window), within(source, window), wanted, EMPTY_DN, how)


def classes_onto(mask: np.ndarray, source: Grid, target: Grid, *, beyond: int) -> np.ndarray:
    """(H, W) uint8 mask classes on the pixels of an image, the nearest of each; `beyond` where there are none."""
    return _resampled(mask, source, target, beyond, Resampling.nearest)


def grid_of(image: DatasetReader) -> Grid:
    """Where the pixels of an open raster lie; its CRS is None where the file does not say."""
    return Grid(None if image.transform == Affine.identity() else image.crs, image.transform, image.shape)


@contextmanager
def opening(path: Path, reason: str) -> Iterator[None]:
    """Here what GDAL says of a file becomes one line, OwnFileError with the `reason` unless the system refuses it. The
    file need not say where its pixels lie."""
    try:
        with unplaced():
            yield
    except RasterioError as error:
        cause = judged(path, error, reason)
        raise (OwnFileError(str(cause)) if isinstance(cause, CorruptFileError) else cause) from None


@contextmanager
def unplaced() -> Iterator[None]:
    """Here a raster need not say where its pixels lie."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _resampled(array: np.ndarray, source: Grid, target: Grid, empty: int, how: Resampling) -> np.ndarray:
    out = np.full((*array.shape[:-2], *target.shape), empty, array.dtype)
    reproject(
        array,
        out,
        src_transform=source.transform,
        src_crs=source.crs,
        src_nodata=empty,
        dst_transform=target.transform,
        dst_crs=target.crs,
        dst_nodata=empty,
        resampling=how,
        XSCALE=1,  # else GDAL takes the sizes of stripes for those of pixels, and blurs where they are turned
        YSCALE=1,
    )
    return out
