"""The area that is searched: read from GeoJSON, cut at 180 degrees, with as few vertices as an address can hold."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from shapely import force_2d, union_all
from shapely.errors import ShapelyError
from shapely.geometry import Polygon, box, shape
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient
from shapely.validation import explain_validity

from cloudjob.copernicus.scenes import Ring
from cloudjob.errors import ConfigError
from cloudjob.footprints import parts, unwrapped

_WORLD = box(-180, -90, 180, 90)
_VERTICES = 100  # of all rings: OData is asked by an address
_RINGS = 8  # each is asked for by itself: OData takes no MULTIPOLYGON
_WGS84 = ("CRS84", "4326")


def read_geojson(path: Path, key: str) -> list[Ring]:
    """The outer rings of the polygons in a GeoJSON file (RFC 7946: longitude, latitude, WGS 84).

    ConfigError, which begins with `key`, where it holds none, or something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        crs = json.dumps(document.get("crs") or _WGS84[0])
        found = [ring for geometry in _geometries(document) for ring in _outer(force_2d(shape(geometry)))]
    except OSError as error:
        raise ConfigError(f"{key}: {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, ShapelyError) as error:
        raise ConfigError(f"{key}: {path} is no GeoJSON ({type(error).__name__}: {error})") from None
    if not any(name in crs for name in _WGS84):
        raise ConfigError(f"{key}: {path} is not in WGS 84 but in {crs}; convert it: ogr2ogr -t_srs EPSG:4326")
    if not found:
        raise ConfigError(f"{key}: {path} holds no polygon")
    for ring in found:
        if mistake := off_the_globe(ring):
            raise ConfigError(f"{key}: {path}: {mistake}")
    return found


def off_the_globe(ring: Ring) -> str:
    """What is wrong with points that lie nowhere; "" of a ring on the globe. Longitudes may go on beyond 180."""
    bad = next(((lon, lat) for lon, lat in ring if not (abs(lon) <= 360 and abs(lat) <= 90)), None)
    if bad is None:
        return ""
    text = f"the point {list(bad)} lies outside longitude -180..180, latitude -90..90; write (longitude, latitude)"
    if all(abs(lat) <= 360 and abs(lon) <= 90 for lon, lat in ring):
        text += f". The other way round this area lies at {describe([[(lat, lon) for lon, lat in ring]])}"
    return text


def rings(outlines: list[Ring], key: str, said: Callable[[str], None] = lambda line: None) -> list[Ring]:
    """The closed rings to ask for, which cover `outlines`: within -180..180 degrees, of few vertices.

    An edge of more than 180 degrees goes the short way, across the date line (RFC 7946, 3.1.9). What is changed is
    `said`. ConfigError where a ring crosses itself.
    """
    whole = []
    for ring in map(_endless, outlines):
        if ring[0] != ring[-1]:
            raise ConfigError(f"{key}: goes round a pole; write it in parts, from 180 W to 0 and from 0 to 180 E")
        whole.append(Polygon(ring))
        if not whole[-1].is_valid:
            raise ConfigError(f"{key}: {explain_validity(whole[-1])}")
    if len(whole) == 1 and _WORLD.covers(whole[0]) and len(outlines[0]) <= _VERTICES:
        return outlines
    found = _cut(union_all(whole))
    vertices, parts, tolerance = sum(map(len, found)), len(found), 1e-3
    while sum(map(len, found)) > _VERTICES or len(found) > _RINGS:
        tolerance *= 2
        found = _cut(union_all(whole).buffer(2 * tolerance).simplify(tolerance))
    if tolerance > 1e-3:
        said(
            f"{key}: {vertices} vertices of {parts} polygons are too many to ask for: simplified to "
            f"{sum(map(len, found))} of {len(found)}, which reach up to {3 * tolerance:.3g} degrees further"
        )
    elif len(found) > len(whole):
        said(f"{key}: crosses 180 degrees; asked for in {len(found)} parts")
    return found


def describe(outlines: list[Ring]) -> str:
    """Where an area lies, and how large the box around it is, for a person to see whether it is the right one."""
    boxes = [Polygon(_endless(ring)).bounds for ring in outlines]
    ways = [  # by Greenwich, by the date line
        (min(box[0] + turn for box, turn in turned), max(box[2] + turn for box, turn in turned))
        for turned in ([(box, 0) for box in boxes], [(box, 360 if box[0] + box[2] < 0 else 0) for box in boxes])
    ]
    west, east = min(ways, key=lambda ends: ends[1] - ends[0])
    south, north = min(box[1] for box in boxes), max(box[3] for box in boxes)
    width = (east - west) * 111.32 * math.cos(math.radians((south + north) / 2))
    lon, lat = (" to ".join(map(name, ends)) for name, ends in ((_lon, (west, east)), (_lat, (south, north))))
    return f"{lon}, {lat} (about {width:,.0f} km by {(north - south) * 111.2:,.0f} km)"


def _endless(ring: Ring) -> Ring:
    """The ring as `footprints.unwrapped` has it. But a side of 360 degrees alone is one of the whole world, and a ring
    that is taller than a quarter of the globe is meant to go round it, and no strip along the date line."""
    crosses = any(180 < abs(b - a) < 360 for (a, _), (b, _) in pairwise(ring))
    tall = max(lat for _, lat in ring) - min(lat for _, lat in ring) > 90
    return unwrapped(ring) if crosses and not tall else ring


def _lon(degrees: float) -> str:
    degrees = (degrees + 180) % 360 - 180 if abs(degrees) > 180 else degrees
    return f"{abs(degrees):g} {'W' if degrees < 0 else 'E'}"


def _lat(degrees: float) -> str:
    return f"{abs(degrees):g} {'S' if degrees < 0 else 'N'}"


def _geometries(document: dict[str, Any]) -> list[dict]:
    match document["type"]:
        case "FeatureCollection":
            return [each for feature in document["features"] for each in _geometries(feature)]
        case "GeometryCollection":
            return [each for geometry in document["geometries"] for each in _geometries(geometry)]
        case "Feature":
            return _geometries(document["geometry"]) if document["geometry"] else []
    return [document]


def _outer(geometry: BaseGeometry) -> list[Ring]:
    polygons = [each for each in getattr(geometry, "geoms", [geometry]) if isinstance(each, Polygon)]
    return [list(orient(each).exterior.coords) for each in polygons if not each.is_empty]


def _cut(geometry: BaseGeometry) -> list[Ring]:
    """The outer rings of what lies in the world, whichever way round the globe its longitudes go."""
    return _outer(union_all(parts(geometry)))
