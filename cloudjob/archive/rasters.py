"""Converts a GeoTIFF of four Sentinel-2 bands, cloudy or clear, to a Level-2A product of the archive."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import RasterioError
from rasterio.warp import transform as warp_points
from scipy import ndimage

from cloudjob.archive.safe import pool, write_product
from cloudjob.errors import ConfigError
from cloudjob.files import reading
from cloudjob.names import ProductName
from cloudjob.pixels import BANDS, CIRRUS, CLOUD, EMPTY_DN, NO_DATA, SHADOW, UNKNOWN
from cloudjob.sentinel2 import foreign_masks
from cloudjob.sentinel2.geometry import sun_position, tile_centre, tile_corner
from cloudjob.sentinel2.masks import (
    SCL_BARE,
    SCL_CIRRUS,
    SCL_HIGH,
    SCL_MEDIUM,
    SCL_NO_DATA,
    SCL_SATURATED,
    SCL_SHADOW,
    SCL_SNOW,
    SCL_VEGETATION,
    SCL_WATER,
)
from cloudjob.sentinel2.radiometry import reflectance, to_convention

# Mask classes and their class in the scene classification (of what is not known: one that nobody trusts); if several
# fall on one pixel, the last one counts.
_CLASSES = (
    *((UNKNOWN, SCL_SATURATED), (NO_DATA, SCL_SATURATED)),
    *((SHADOW, SCL_SHADOW), (CIRRUS, SCL_CIRRUS), (CLOUD, SCL_HIGH)),
)
_TILE_M = 109_800  # metres along a side of a tile
_CLOUD_PROBABILITY = {SCL_MEDIUM: 60, SCL_HIGH: 95, SCL_CIRRUS: 25}  # percent


def product_from_raster(
    archive: Path,
    *,
    name: str,
    raster: Path,
    mask: Path | Literal["clear"] | None,
    other: Path | None,
    offset: int,
    values: foreign_masks.Table | str | None = None,
    said: Callable[[str], object] = str,
) -> Path:
    """Writes `<archive>/<name>.SAFE` from a GeoTIFF of B04, B03, B02, B08 (uint16 DN with BOA_ADD_OFFSET `offset`).

    A pixel that is 0 in all bands is no data. `mask` is "clear" or a raster of the same ground; `foreign_masks` tells
    what its `values` mean. On other pixels than the bands', the nearest are taken, and that is `said` (by default to
    nobody). With None, `compare` derives the scene classification from `other`, the same ground on another date.
    """
    bands, crs, transform = read_bands(raster, offset=offset)
    if mask == "clear":
        covered = np.zeros(_halved(bands[0].shape), np.uint8)
    elif mask is not None:
        grid = foreign_masks.Grid(crs, transform, (bands.shape[1], bands.shape[2]))
        core, _, note = foreign_masks.read(mask, {1: grid}, values, placed=False)
        covered = _halved_classes(core)
        if note:
            said(note)
    elif other is not None:
        covered = compare(bands, read_bands(other, bands.shape, offset=offset)[0])
    else:
        raise ConfigError(f"{raster}: give its cloud mask, the other date to compare it with, or 'clear'")
    ground = clear_classes(bands)
    scl = np.where((covered != SCL_NO_DATA) & (ground != SCL_NO_DATA), covered, ground)
    return write_classified(archive, name, bands, scl, crs, transform, offset)


def write_classified(
    archive: Path, name: str, bands: np.ndarray, scl: np.ndarray, crs: str, transform: Affine, offset: int
) -> Path:
    """Writes a product of `bands` (4, H, W) uint16 in our convention and their scene classification, which gives the
    probabilities of cloud and snow."""
    probability = np.zeros_like(scl)
    for value, percent in _CLOUD_PROBABILITY.items():
        probability[scl == value] = percent
    elevation, azimuth = sun_position(ProductName.parse(name).sensing, *centre(crs, transform, bands.shape[1:]))
    return write_product(
        archive,
        name=name,
        bands=bands,
        scl=scl,
        cloud_probability=probability,
        snow_probability=np.where(scl == SCL_SNOW, 95, 0).astype(np.uint8),
        crs=crs,
        transform=transform,
        offset=offset,
        sun_elevation=elevation,
        sun_azimuth=azimuth,
    )


def read_bands(
    path: Path, shape: tuple[int, ...] | None = None, *, offset: int, metres: tuple[int, ...] = (10,)
) -> tuple[np.ndarray, str, Affine]:
    """`read_raster` in our DN convention, from pixels with BOA_ADD_OFFSET `offset`; 0 in all bands is no data."""
    dn, crs, transform = read_raster(path, shape, metres=metres)
    dn = np.where((dn == EMPTY_DN).all(0), EMPTY_DN, np.maximum(dn, 1))  # 0 in one band alone is dark, not missing
    return to_convention(dn, offset=offset), crs, transform


def read_raster(
    path: Path, shape: tuple[int, ...] | None = None, *, metres: tuple[int, ...] = (10,)
) -> tuple[np.ndarray, str, Affine]:
    """(4, H, W) uint16, CRS such as "EPSG:32605" and transform of a north-up GeoTIFF with pixels of one of the widths
    `metres`."""
    with reading(path, RasterioError, reason="not readable as a raster"), rasterio.open(path) as image:
        dn, crs, transform = image.read(), image.crs, image.transform
    if dn.shape[0] != len(BANDS) or dn.dtype != np.uint16 or (shape and dn.shape != shape):
        expected = f"{shape or '(4, H, W)'} uint16 of {', '.join(BANDS)}"
        raise ConfigError(f"{path}: {dn.shape} {dn.dtype}, expected {expected}")
    epsg = crs.to_epsg() if crs else None
    if epsg is None or epsg // 100 not in (326, 327):
        raise ConfigError(f"{path}: its CRS is {crs}, expected a UTM zone on WGS 84 (EPSG:326xx or 327xx)")
    for width in metres:
        exact = Affine(width, 0, transform.c, 0, -width, transform.f)
        if transform.almost_equals(exact, 1e-6):
            return dn, f"EPSG:{epsg}", exact
    expected = " or ".join(f"{width} m" for width in metres)
    raise ConfigError(f"{path}: its transform is {tuple(transform)[:6]}, expected pixels of {expected}, north up")


def centre(crs: str, transform: Affine, shape: tuple[int, int]) -> tuple[float, float]:
    """Longitude and latitude of the middle of an image of `shape` (rows, columns) pixels of 10 m."""
    lon, lat = warp_points(crs, "EPSG:4326", [transform.c + 5 * shape[1]], [transform.f - 5 * shape[0]])
    return lon[0], lat[0]


def off_tile(tile: str, crs: str, transform: Affine, shape: tuple[int, int]) -> str:
    """What to say of an image of 10 m whose middle does not lie on the tile that somebody named; "" where it does."""
    try:
        zone, left, top = tile_corner(tile)
    except ConfigError as error:
        return f"{error}; it counts as a name alone"
    east, south = transform.c + 5 * shape[1] - left, top - transform.f + 5 * shape[0]
    if crs == zone and 0 <= east <= _TILE_M and 0 <= south <= _TILE_M:
        return ""
    lon, lat = centre(crs, transform, shape)
    where, (tile_lon, tile_lat) = f"{lon:.2f}, {lat:.2f} in {crs}", tile_centre(tile)
    return (
        f"its middle lies at {where}, which is not on tile {tile} (about {tile_lon:.2f}, {tile_lat:.2f} in {zone}); "
        "splits by tile keep apart what lies apart only where each names the tile that it lies on"
    )


def compare(bands: np.ndarray, other: np.ndarray) -> np.ndarray:
    """SCL classes of cloud and shadow on the 20 m grid, 0 elsewhere, from two dates (4, H, W) in our DN.

    It compares reflectances averaged over 60 m x 60 m. Visible brightness more than 0.04 above the other date is medium
    cloud, more than 0.15 high cloud. A loss of a third or more in B08 is shadow, except over water, which is too dark
    to tell. This rule makes test scenes; it is not a cloud detector. Fresh snow, muddy water and cirrus count as cloud
    and melt as shadow, a cloud over snow is missed unless it is brighter, and the other date must be clear.
    """
    visible, before = (np.nan_to_num(reflectance(dn[:3])).mean(0) for dn in (bands, other))
    infrared, infrared_before = (np.nan_to_num(reflectance(dn[3])) for dn in (bands, other))
    gain = _smooth(visible - before)
    infrared, infrared_before = _smooth(infrared), _smooth(infrared_before)
    classes = np.zeros(gain.shape, np.uint8)
    classes[(infrared < 0.67 * infrared_before) & (infrared_before > 0.1)] = SCL_SHADOW
    classes[gain > 0.04] = SCL_MEDIUM
    classes[gain > 0.15] = SCL_HIGH
    return classes


def _smooth(image: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter(pool(image, 2, np.mean), 3)


def clear_classes(bands: np.ndarray) -> np.ndarray:
    """Snow, water, vegetation, bare ground and no data as SCL classes on the 20 m grid, uint8, by plain thresholds."""
    red, green, _, infrared = (pool(np.nan_to_num(reflectance(band)), 2, np.mean) for band in bands)
    index = (infrared - red) / np.maximum(infrared + red, 1e-3)
    missing = pool(bands[0] == EMPTY_DN, 2, np.any)
    conditions = [missing, green > 0.4, (infrared < 0.08) & (index < 0), index > 0.35]
    found = [SCL_NO_DATA, SCL_SNOW, SCL_WATER, SCL_VEGETATION]
    return np.select(conditions, found, default=SCL_BARE).astype(np.uint8)


def _halved_classes(core: np.ndarray) -> np.ndarray:
    """The scene classification's classes on the 20 m grid of mask classes at 10 m; 0 where those are clear."""
    classes = np.zeros(_halved(core.shape), np.uint8)
    for ours, esa in _CLASSES:
        classes[pool(core == ours, 2, np.any)] = esa
    return classes


def _halved(shape: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // 2), -(-shape[1] // 2)
