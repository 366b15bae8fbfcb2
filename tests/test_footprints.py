"""Ground at 180 degrees, in both hemispheres, against shapely on an endless map."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from shapely.geometry import MultiPolygon, Polygon, box, mapping, shape

from cloudjob import footprints


def wrapped(lon):
    return (lon + 180) % 360 - 180


@given(
    lon=st.floats(-180, 180),
    lat=st.floats(-80, 80),
    width=st.floats(0.01, 12),
    height=st.floats(0.01, 5),
    skew=st.floats(-2, 2),
)
def test_what_lies_across_is_cut_and_nothing_is_lost(lon, lat, width, height, skew):
    corners = [(lon, lat), (lon + width, lat), (lon + width + skew, lat + height), (lon + skew, lat + height)]
    ring = [(wrapped(x), y) for x, y in [*corners, corners[0]]]
    assume(all(abs(abs(x) - 180) > 1e-6 for x, _ in ring))
    across = min(x for x, _ in corners) < 180 < max(x for x, _ in corners) or (
        min(x for x, _ in corners) < -180 < max(x for x, _ in corners)
    )
    geometry = {"type": "Polygon", "coordinates": [ring]}
    cut = footprints.split(geometry)
    assert (cut["type"] == "MultiPolygon") == across
    assert across or cut is geometry
    ground = shape(cut)
    assert ground.is_valid
    assert ground.area == pytest.approx(Polygon(corners).area)
    west, south, east, north = footprints.bbox(cut)
    assert (west > east) == across
    assert wrapped(min(x for x, _ in corners)) == pytest.approx(west, abs=1e-9)
    assert wrapped(max(x for x, _ in corners)) == pytest.approx(east, abs=1e-9)
    assert (south, north) == (pytest.approx(lat), pytest.approx(lat + height))
    assert footprints.split(cut) == cut
    assert (shape(footprints.split(mapping(MultiPolygon([Polygon(ring)])))).area) == pytest.approx(ground.area)


def test_esas_footprint_of_a_tile_at_180_degrees(shared_data):
    """It touches neither the North Slope nor Norway, and covers what its points go round."""
    numbers = list(map(float, (shared_data / "real_cases" / "T01WCS_EXT_POS_LIST.txt").read_text().split()))
    ring = list(zip(numbers[1::2], numbers[::2], strict=True))
    cut = footprints.split({"type": "Polygon", "coordinates": [ring]})
    parts = shape(cut)
    assert parts.is_valid
    assert [part.bounds[::2] for part in parts.geoms] == [
        (pytest.approx(179.006, abs=1e-3), 180),
        (-180, pytest.approx(-179.197, abs=1e-3)),
    ]
    assert parts.area == pytest.approx(Polygon([(lon % 360, lat) for lon, lat in ring]).area)
    assert footprints.bbox(cut)[::2] == [pytest.approx(179.006, abs=1e-3), pytest.approx(-179.197, abs=1e-3)]


def test_other_geometries_stay_as_they_are():
    pole = {"type": "Polygon", "coordinates": [[[0, 80], [120, 80], [-120, 80], [0, 80]]]}
    for geometry in (pole, {"type": "Point", "coordinates": [1, 2]}, {"type": "GeometryCollection", "geometries": []}):
        assert footprints.split(geometry) is geometry
    world = {"type": "Polygon", "coordinates": [[[-180, -80], [-180, 80], [0, 80], [180, 80], [180, -80], [-180, -80]]]}
    assert footprints.bbox(world) == [-180, -80, 180, 80]


def test_a_hole_stays_in_its_polygon():
    shell = [[178, 0], [-178, 0], [-178, 4], [178, 4], [178, 0]]
    hole = [[-179.5, 1], [-179, 1], [-179, 2], [-179.5, 2], [-179.5, 1]]
    cut = shape(footprints.split({"type": "Polygon", "coordinates": [shell, hole]}))
    assert cut.is_valid
    assert cut.area == pytest.approx(16 - 0.5)


def test_an_area_goes_on_beyond_180_degrees():
    east, west = footprints.parts(box(170, 60, 190, 70))
    assert (east.bounds, west.bounds) == ((170, 60, 180, 70), (-180, 60, -170, 70))
    for turn in (-720, -360, 360):
        area = box(170 + turn, 60, 190 + turn, 70)
        assert sorted(part.bounds for part in footprints.parts(area)) == [west.bounds, east.bounds]
    (part,) = footprints.parts(west)
    assert part.equals(west)
