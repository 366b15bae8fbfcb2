"""What the STAC extensions in use ask for, as schemas in our own words: nothing is fetched when an item is validated.

Each restates the fields of one version, after its documentation at https://stac-extensions.github.io: every field of
its prefix that is not named is a mistake. The core's schemas come with pystac.
"""

from typing import Any

NUMBER, TEXT, WHOLE = {"type": "number"}, {"type": "string"}, {"type": "integer"}
COLOURS = "pan coastal blue green green05 yellow red rededge rededge071 rededge075 rededge078 nir nir08 nir09 cirrus"
COLOURS += " swir16 swir22 lwir lwir11 lwir12"
FIELDS: dict[str, dict[str, Any]] = {
    "projection/v1.2.0": {
        "proj:code": {"type": ["string", "null"], "pattern": "^[A-Z_]+:.+"},
        "proj:epsg": {"type": ["integer", "null"]},
        "proj:wkt2": {"type": ["string", "null"]},
        "proj:projjson": {"type": ["object", "null"]},
        "proj:bbox": {"type": "array", "items": NUMBER, "minItems": 4, "maxItems": 6},
        "proj:shape": {"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 2},
        "proj:transform": {"type": "array", "items": NUMBER, "minItems": 6, "maxItems": 9},
    },
    "eo/v2.0.0": {
        "eo:common_name": {"enum": COLOURS.split()},
        "eo:cloud_cover": NUMBER | {"minimum": 0, "maximum": 100},
        "eo:snow_cover": NUMBER | {"minimum": 0, "maximum": 100},
        "eo:center_wavelength": NUMBER,
        "eo:full_width_half_max": NUMBER,
        "eo:solar_illumination": NUMBER,
    },
    "file/v2.1.0": {
        "file:size": WHOLE | {"minimum": 0},
        "file:checksum": TEXT | {"pattern": "^[a-f0-9]+$"},
        "file:header_size": WHOLE | {"minimum": 0},
        "file:byte_order": {"enum": ["big-endian", "little-endian"]},
        "file:local_path": TEXT,
    },
    "raster/v2.0.0": {
        "raster:scale": NUMBER,
        "raster:offset": NUMBER,
        "raster:sampling": {"enum": ["area", "point"]},
        "raster:bits_per_sample": WHOLE,
        "raster:spatial_resolution": NUMBER,
    },
    "processing/v1.2.0": {
        "processing:lineage": TEXT,
        "processing:level": TEXT,
        "processing:facility": TEXT,
        "processing:version": TEXT,
        "processing:datetime": TEXT,
        "processing:software": {"type": "object", "additionalProperties": TEXT},
        "processing:expression": {"type": "object", "required": ["format", "expression"]},
    },
}


def schemas() -> dict[str, dict[str, Any]]:
    """The schemas by their addresses."""
    return {f"https://stac-extensions.github.io/{name}/schema.json": _schema(name) for name in FIELDS}


def _schema(name: str) -> dict[str, Any]:
    prefix = next(iter(FIELDS[name])).partition(":")[0]
    fields = {
        "type": "object",
        "properties": FIELDS[name],
        "patternProperties": {f"^(?!{prefix}:)": {}},
        "additionalProperties": False,
    }
    with_bands = {"allOf": [fields, {"properties": {"bands": {"type": "array", "items": fields}}}]}
    address = f"https://stac-extensions.github.io/{name}/schema.json"
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": address,
        "type": "object",
        "required": ["type", "stac_extensions", "properties", "assets"],
        "properties": {
            "type": {"const": "Feature"},
            "stac_extensions": {"type": "array", "contains": {"const": address}},
            "properties": with_bands,
            "assets": {"type": "object", "additionalProperties": with_bands},
        },
    }
