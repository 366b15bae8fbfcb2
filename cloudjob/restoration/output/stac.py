"""STAC 1.1: an item beside the files of a scene, and the collection of all scenes of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rasterio.crs import CRS
from rasterio.warp import transform

from cloudjob import footprints
from cloudjob.errors import CorruptFileError
from cloudjob.files import json_text, read_json, write_json
from cloudjob.pixels import BANDS
from cloudjob.restoration.output.header import Header, Layer

COLLECTION = "cloudjob"
_COMMON_NAMES = dict(zip(BANDS, ("red", "green", "blue", "nir"), strict=True))
# Of the projection extension the one version with both the new name of the CRS and the old one, which stackstac reads
_EXTENSIONS = ("projection/v1.2.0", "eo/v2.0.0", "file/v2.1.0", "raster/v2.0.0", "processing/v1.2.0")
# STAC asks for a range of time where it is not known; this one begins with Sentinel-2.
_ANY_TIME = {"start_datetime": "2015-06-23T00:00:00Z", "end_datetime": "2099-12-31T23:59:59Z"}
_LINK = {"type": "application/json"}
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_KINDS = {
    "h5": {"type": "application/x-hdf5", "roles": ["data"], "title": "All layers, HDF5 and netCDF-4"},
    "tif": {"type": _COG, "roles": ["data", "overview"], "title": "All layers, Cloud-Optimized GeoTIFF"},
    "png": {"type": "image/png", "roles": ["thumbnail", "overview"], "title": "True colour"},
}


@dataclass(frozen=True)
class File:
    """A file that an asset points to: its size in bytes, and its SHA-256 in hexadecimal."""

    path: Path
    size: int
    sha256: str


def item(header: Header, files: Mapping[str, File], views: Mapping[str, File]) -> str:
    """The text of the item. `files` by "h5", "tif", "png"; `views` by the name of their layer.

    Place and size stand with the assets that are images, so that clients take these for the bands, and no other.
    """
    ring, (height, width) = _ring(header), header.shape
    place = {"proj:shape": [height, width], "proj:transform": list(header.transform)[:6]}
    assets = {}
    for layer in header.layers:
        assets[layer.name] = _asset(views[layer.name]) | place | _band(layer) | {"roles": ["data"]}
    for key, file in files.items():
        assets[key] = _asset(file) | _KINDS[key]
    assets["tif"] |= place | {"bands": [_band(layer) for layer in header.layers]}
    document: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in _EXTENSIONS],
        "id": f"{header.name}_{COLLECTION}",
        "geometry": None,
        "properties": _properties(header),
        "links": [
            *({"rel": "derived_from", "href": href, "title": name} for name, href in header.sources.items()),
        ],
        "assets": assets,
    }
    if header.collection is not None:
        document["collection"] = COLLECTION
        there = _LINK | {"href": header.collection}
        document["links"] += [there | {"rel": rel} for rel in ("collection", "parent", "root")]
    if ring is not None:
        document["geometry"], document["bbox"] = _footprint(str(header.crs), ring)
    return json_text(document, indent=1) + "\n"


def _properties(header: Header) -> dict[str, Any]:
    facts = header.attributes
    found: dict[str, Any] = {"datetime": header.sensing_time, "title": f"{header.name} without clouds"}
    found |= {} if header.sensing_time else _ANY_TIME
    if header.platform:
        found |= {"platform": header.platform, "constellation": "sentinel-2", "instruments": ["msi"]}
    crs = CRS.from_user_input(header.crs) if header.crs else None
    if crs is not None and crs.is_projected and crs.linear_units == "metre":
        found["gsd"] = abs(header.transform.a)
    authority = crs.to_authority() if crs is not None else None
    found["proj:code"] = ":".join(authority) if authority else None
    if authority and authority[0] == "EPSG":
        found["proj:epsg"] = int(authority[1])
    if crs is not None and authority is None:
        found["proj:wkt2"] = CRS.from_wkt(crs.to_wkt()).to_wkt(version="WKT2_2019")  # see `grid_mapping`
    return found | {
        "processing:software": {"cloudjob": str(facts["cloudjob_version"])},
        "processing:level": "L3",
        "processing:lineage": header.lineage,
        "attribution": header.attribution,
        **{f"cloudjob:{key}": value for key, value in facts.items()},
    }


def _asset(file: File) -> dict[str, Any]:
    # 0x12 is SHA-256, 0x20 its 32 bytes: a multihash
    return {"href": f"./{file.path.name}", "file:size": file.size, "file:checksum": f"1220{file.sha256}"}


def _band(layer: Layer) -> dict[str, Any]:
    found: dict[str, Any] = {"name": layer.name, "data_type": layer.dtype}
    if layer.empty is not None:
        found["nodata"] = layer.empty
    if layer.scale != 1:
        found |= {"unit": "1", "raster:scale": layer.scale, "raster:offset": layer.offset}
    if layer.name in _COMMON_NAMES:
        found["eo:common_name"] = _COMMON_NAMES[layer.name]
    return found


def _ring(header: Header) -> list[list[float]] | None:
    """The outline of the scene in its CRS, None where it has none."""
    if not header.crs:
        return None
    height, width = header.shape
    corners = [(0, height), (width, height), (width, 0), (0, 0), (0, height)]
    return [list(header.transform @ corner) for corner in corners]


def _footprint(crs: str, ring: list[list[float]]) -> tuple[dict, list[float]]:
    """A ring in `crs` as a GeoJSON geometry, and its box: see `footprints`."""
    points = zip(*transform(crs, "EPSG:4326", *zip(*ring, strict=True)), strict=True)
    rounded = [[round(value, 7) for value in point] for point in points]
    geometry = footprints.split({"type": "Polygon", "coordinates": [rounded]})
    return geometry, footprints.bbox(geometry)


# --- the collection ----------------------------------------------------------------------------------------------
def write_collection(folder: Path) -> list[Path]:
    """Writes `folder`/collection.json of all items `folder`/<product>/<product>.json, if there is one. Returns those
    that cannot be read, and are left out."""
    paths = sorted(path for path in folder.glob("*/*.json") if path.stem == path.parent.name)
    known = {path: item for path in paths if (item := _read(path))}
    broken = [path for path in paths if path not in known]
    if not known:
        return broken
    items = list(known.values())
    times = sorted(item["properties"]["datetime"] for item in items)
    boxes = [item["bbox"] for item in items if item.get("bbox")] or [[-180.0, -90.0, 180.0, 90.0]]
    properties = [item["properties"] for item in items]
    hrefs = [f"./{path.parent.name}/{path.name}" for path in known]
    summaries = {
        key: found
        for key in ("platform", "constellation", "gsd", "proj:code")
        if (found := sorted({each[key] for each in properties if each.get(key)}))
    }
    write_json(folder / "collection.json", {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": COLLECTION,
        "title": "Scenes without clouds",
        "description": "Sentinel-2 scenes whose ground under clouds was restored by a diffusion model (cloudjob).",
        "license": "other",
        "providers": [{"name": "European Union, Copernicus Sentinel data", "roles": ["licensor"]}],
        "extent": {"spatial": {"bbox": [_around(boxes)]}, "temporal": {"interval": [[times[0], times[-1]]]}},
        "summaries": summaries,
        "links": [
            _LINK | {"rel": "root", "href": "./collection.json"},
            *({"rel": "item", "href": href, "type": "application/geo+json"} for href in hrefs),
        ],
    })  # fmt: skip
    return broken


def _read(path: Path) -> dict | None:
    """The item; None for what is none."""
    try:
        item = read_json(path)
        return item if item["properties"]["datetime"] else None
    except (CorruptFileError, TypeError, KeyError):
        return None


def _around(boxes: list[list[float]]) -> list[float]:
    """The smallest box round these; its west is greater than its east where it lies across 180 degrees."""
    spans = sorted((west, east + 360 * (west > east)) for west, _, east, _ in boxes)
    reach, gaps = spans[0][1], []
    for west, east in [*spans[1:], (spans[0][0] + 360, 0.0)]:
        gaps.append((west - reach, reach, west))
        reach = max(reach, east)
    widest, east, west = max(gaps)
    if widest <= 0:
        west, east = -180.0, 180.0
    south, north = min(box[1] for box in boxes), max(box[3] for box in boxes)
    return [_turned(west), south, _turned(east) if widest > 0 else east, north]


def _turned(longitude: float) -> float:
    """The longitude between -180 and 180."""
    return longitude - 360 if longitude > 180 else longitude
