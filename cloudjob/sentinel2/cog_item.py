"""Folders of Cloud-Optimized GeoTIFFs with their STAC item, as Element 84's Earth Search keeps them.

Its collections are sentinel-2-l2a (v1, before that sentinel-s2-l2a-cogs, v0), whose pixels mostly have BOA_ADD_OFFSET
applied, and sentinel-2-c1-l2a, whose pixels are ESA's. Fields: github.com/Element84/earth-search, and the STAC
extensions raster, eo and view.
"""

import math
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from cloudjob.errors import ConfigError, CorruptFileError, ItemError
from cloudjob.files import read_json, reading
from cloudjob.names import ProductName
from cloudjob.pixels import BANDS
from cloudjob.sentinel2.geometry import lon_lat, sun_position
from cloudjob.sentinel2.safe_xml import moment

# Assets by their keys in v1 and in v0
_ASSETS = {"red": "B04_10m", "green": "B03_10m", "blue": "B02_10m", "nir": "B08_10m", "swir16": "B11_20m"}
_ASSETS |= {key[:3]: key for key in _ASSETS.values()}
_ASSETS |= {"scl": "SCL_20m", "SCL": "SCL_20m", "cloud": "MSK_CLDPRB_20m", "snow": "MSK_SNWPRB_20m"}
_NAMES = ("s2:product_uri", "sentinel:product_id", "sentinel2:product_id")
_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied", "sentinel2:boa_offset_applied")
_FIRST_OFFSET = "04.00"  # the baseline from which on ESA's pixels have one
_OFFSET, _QUANTIFICATION = -1000, 10000.0
_TOO_DARK, _FEW = 900, 0.05  # DN, with the offset reflectance -0.01; no more than this share of a scene is so dark


def find(folder: Path) -> Path | None:
    """The STAC item of a folder of such files; None where it has none."""
    for path in sorted(folder.glob("*.json")) if any(folder.glob("*.tif")) else ():
        try:
            item = read_json(path)
        except CorruptFileError:  # somebody else's, or the item: then the folder has none that can be read
            continue
        assets = item.get("assets") if isinstance(item, dict) and item.get("type") == "Feature" else None
        if isinstance(assets, dict) and {"red", "B04"} & assets.keys():
            return path
    return None


def read(path: Path) -> dict[str, Any]:
    """The fields of a product from its item; its grid from B04. CorruptFileError names the item; ItemError where nobody
    can tell whether the pixels have their offset."""
    try:
        return _fields(path, read_json(path))
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFileError(path, f"the STAC item of no Level-2A product: {error}") from None


def _fields(path: Path, item: dict[str, Any]) -> dict[str, Any]:
    properties = item["properties"]
    name = ProductName.parse(next((properties[key] for key in _NAMES if properties.get(key)), str(item.get("id"))))
    when = moment(properties["datetime"])
    files = _files(path.parent, item["assets"])
    if "B04_10m" not in files:
        raise CorruptFileError(path, "the file of its asset red (B04) does not lie beside it")
    red = path.parent / files["B04_10m"]
    with reading(red, RasterioError), rasterio.open(red) as image:
        crs, transform, shape = str(image.crs or ""), image.transform, (image.height, image.width)
    if not crs.startswith("EPSG:") or (transform.a, transform.e) != (10, -10):
        raise CorruptFileError(red, f"pixels of {transform.a:g} x {-transform.e:g} in {crs or 'no CRS'}, expected 10 m")
    place = lon_lat(crs, transform.c + 5 * shape[1], transform.f - 5 * shape[0])
    sun = _number(properties.get("view:sun_elevation"))
    return {
        "name": name,
        "baseline": name.baseline,
        "offsets": dict.fromkeys((*BANDS, "B11"), _offset(path, item, name.baseline, red)),
        "quantification": _QUANTIFICATION,
        "crs": crs,
        "transform": transform,
        "shape": shape,
        "sun_elevation": sun if sun is not None else place and sun_position(when, *place)[0],
        "percentages": _percentages(properties),
        "sensing_time": when,
        "files": files,
    }


def _files(folder: Path, assets: dict[str, dict]) -> dict[str, str]:
    """The files that lie beside the item, by the keys of `Product.files`: under the name that they have in the archive,
    or under that of the asset."""
    found = {}
    for asset in _ASSETS.keys() & assets.keys():
        names = (urlsplit(str(assets[asset].get("href"))).path.rpartition("/")[2], f"{asset}.tif")
        if there := [name for name in names if name and (folder / name).is_file()]:
            found[_ASSETS[asset]] = there[0]
    return found


def _offset(path: Path, item: dict, baseline: str, red: Path) -> int:
    """BOA_ADD_OFFSET that the pixels still have. The item's own `offset` of the bands tells nothing where the flag says
    that it was applied, and the flag is false of some items whose pixels have it applied: then the image tells."""
    if baseline < _FIRST_OFFSET:
        return 0
    said = (item["properties"].get(key) for key in _APPLIED)
    applied = next((flag for flag in said if isinstance(flag, bool)), None)
    if applied is None and not _says_offset(item):
        raise ItemError(f"{path}: baseline {baseline}, but no {_APPLIED[0]}: nobody can tell if the offset was applied")
    if applied:
        return 0
    with reading(red, RasterioError), rasterio.open(red) as image:
        pixels = image.read(1, out_shape=tuple(-(-length // 16) for length in image.shape))
    valid = pixels[pixels > 0]
    dark = float(np.mean(valid < _TOO_DARK)) if valid.size else 0.0
    if dark > _FEW:
        raise ItemError(
            f"{path}: says that BOA_ADD_OFFSET is not applied, but {dark:.0%} of B04 would be darker than black; set "
            f'"{_APPLIED[0]}": true there'
        )
    return _OFFSET


def _says_offset(item: dict) -> bool:
    """Whether the item says that B04 has an offset, or that the file is one of ESA's SAFE, as the Planetary Computer's
    are; the first items of v0 say nothing."""
    red = item["assets"].get("red") or item["assets"]["B04"]
    said = (red.get("raster:bands") or [{}])[0].get("offset") or red.get("raster:offset")
    return bool(said) or ".SAFE/" in str(red.get("href"))


def _percentages(properties: dict) -> dict[str, float]:
    """Under the names of ESA's XML."""
    found = {key[3:].upper(): value for key, value in properties.items() if key.endswith("_percentage")}
    found["Cloud_Coverage_Assessment"] = properties.get("eo:cloud_cover")
    return {key: number for key, value in found.items() if (number := _number(value)) is not None}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
