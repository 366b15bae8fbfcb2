"""Ground in longitude and latitude, as GeoJSON: cut at 180 degrees where it lies across (RFC 7946, 3.1.9 and 5.2)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from shapely import get_parts, make_valid
from shapely.affinity import translate
from shapely.geometry import MultiPolygon, Polygon, box, mapping
from shapely.geometry.base import BaseGeometry

_LEAST = 1e-9  # square degrees; a smaller part is a corner that touches the line


def split(geometry: dict) -> dict:
    """A Polygon or MultiPolygon as parts that lie within -180 to 180 degrees, one on either side of 180; as it is where
    it does not lie across. Between two of its points the shorter way is meant, as no product reaches round half the
    globe. One round a pole stays as it is, and so does any other geometry."""
    polygons = _polygons(geometry)
    if not any(_jumps(ring) for rings in polygons for ring in rings):
        return geometry
    found = [[unwrapped(ring, rings[0][0][0]) for ring in rings] for rings in polygons]
    if any(ring[0][0] != ring[-1][0] for rings in found for ring in rings):
        return geometry
    return _geojson([part for shell, *holes in found for part in parts(make_valid(Polygon(shell, holes)))])


def unwrapped(ring: Sequence[Sequence[float]], before: float | None = None) -> list[tuple[float, float]]:
    """The ring with longitudes that go on beyond 180 degrees where a side is longer than that, without jumps, nor one
    from the longitude `before`. It ends elsewhere than it begins where it goes round a pole."""
    turns, out = 0, []
    before = ring[0][0] if before is None else before
    for lon, lat, *_ in ring:
        turns += (before - lon > 180) - (lon - before > 180)
        before = lon
        out.append((lon + 360 * turns, lat))
    return out


def parts(area: BaseGeometry) -> list[Polygon]:
    """The polygons of an area whose longitudes go on beyond 180 degrees, as 179, 181: each between -180 and 180."""
    sides = [
        translate(area.intersection(box(360 * turn - 180, -90, 360 * turn + 180, 90)), -360 * turn)
        for turn in (0, 1, -1, 2, -2)
    ]
    return [part for part in get_parts(get_parts(sides)) if part.area > _LEAST]


def bbox(geometry: dict) -> list[float]:
    """[west, south, east, north] of a geometry that `split` has cut: west is greater than east where it lies across 180
    degrees."""
    boxes = [Polygon(rings[0]).bounds for rings in _polygons(geometry)]
    beyond = [each for each in boxes if each[0] == -180 and each[2] < 180]
    here = [each for each in boxes if each not in beyond]
    if not any(each[2] == 180 for each in here):
        beyond, here = [], boxes
    south, north = min(each[1] for each in boxes), max(each[3] for each in boxes)
    return [min(each[0] for each in here), south, max(each[2] for each in beyond or here), north]


def _polygons(geometry: dict) -> list:
    """The rings of each polygon; none of a geometry of another kind."""
    if geometry["type"] == "MultiPolygon":
        return geometry["coordinates"]
    return [geometry["coordinates"]] if geometry["type"] == "Polygon" else []


def _jumps(ring: Sequence[Sequence[float]]) -> bool:
    return any(abs(b[0] - a[0]) > 180 for a, b in pairwise(ring))


def _geojson(polygons: list[Polygon]) -> dict[str, Any]:
    return mapping(polygons[0] if len(polygons) == 1 else MultiPolygon(polygons))
