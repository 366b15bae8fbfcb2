"""The area: where it lies, what is asked for of it, and what is wrong with one that is none."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import union_all
from shapely.geometry import Point, Polygon, box, mapping

from cloudjob.copernicus.area import describe, off_the_globe, read_geojson, rings
from cloudjob.errors import ConfigError

ALASKA = [(-162.0, 68.5), (-162.0, 71.5), (-140.0, 71.5), (-140.0, 68.5), (-162.0, 68.5)]
CHUKOTKA = [(178.0, 65.0), (-178.0, 65.0), (-178.0, 67.0), (178.0, 67.0), (178.0, 65.0)]


def square(lon: float, lat: float, size: float = 1.0) -> list:
    return [list(point) for point in box(lon, lat, lon + size, lat + size).exterior.coords]


def test_a_small_ring_is_asked_for_as_it_is():
    said = []
    assert (rings([ALASKA], "search.polygon", said.append), said) == ([ALASKA], [])
    world = [(-180.0, -90.0), (180.0, -90.0), (180.0, 90.0), (-180.0, 90.0), (-180.0, -90.0)]
    assert rings([world], "search.polygon") == [world]
    nearly = [(-179.0, -80.0), (-179.0, 80.0), (179.0, 80.0), (179.0, -80.0), (-179.0, -80.0)]
    assert rings([nearly], "search.polygon") == [nearly]
    assert describe([nearly]).startswith("179 W to 179 E")


@pytest.mark.parametrize("turn", [0, 360, -360])
def test_a_ring_across_180_degrees_is_asked_for_in_two_parts(turn):
    goes_on = [(lon % 360 + turn, lat) for lon, lat in CHUKOTKA] if turn else CHUKOTKA
    said = []
    found = rings([goes_on], "search.polygon", said.append)
    assert sorted(Polygon(ring).bounds for ring in found) == [(-180, 65, -178, 67), (178, 65, 180, 67)]
    assert said == ["search.polygon: crosses 180 degrees; asked for in 2 parts"]
    assert describe([goes_on]).startswith("178 E to 178 W, 65 N to 67 N (about 181 km by 222 km)")


def test_an_area_that_is_cut_at_180_degrees_lies_on_both_sides_of_it():
    cut = [square(178, 65, 2), square(-180, 65, 2)]
    assert describe(cut).startswith("178 E to 178 W, 65 N to 67 N (about 181 km")
    assert describe([ALASKA]).startswith("162 W to 140 W, 68.5 N to 71.5 N (about 838 km")
    world = [list(point) for point in box(-180, -80, 180, 80).exterior.coords]
    assert describe([world]).startswith("180 W to 180 E, 80 S to 80 N")
    assert describe([square(-1, 50, 2)]).startswith("1 W to 1 E, 50 N to 52 N")


def test_a_ring_round_a_pole_and_one_that_crosses_itself_are_mistakes():
    pole = [(0.0, 80.0), (120.0, 80.0), (-120.0, 80.0), (0.0, 80.0)]
    with pytest.raises(ConfigError, match=r"search\.polygon: goes round a pole; write it in parts"):
        rings([pole], "search.polygon")
    with pytest.raises(ConfigError, match=r"search\.area: Self-intersection"):
        rings([[(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]], "search.area")


@pytest.mark.slow
@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.floats(-179, 178), st.floats(-80, 80), st.floats(0.001, 2)), min_size=1, max_size=40),
    st.integers(1, 40),
)
def test_few_vertices_cover_all_that_was_asked_for(places, corners):
    outlines = [list(Point(lon, lat).buffer(size, quad_segs=corners).exterior.coords) for lon, lat, size in places]
    found = rings(outlines, "search.area")
    assert sum(map(len, found)) <= 100
    assert len(found) <= 8
    assert all(ring[0] == ring[-1] and max(abs(lon) for lon, _ in ring) <= 180 for ring in found)
    covered, wanted = union_all([Polygon(ring) for ring in found]), union_all([Polygon(ring) for ring in outlines])
    world = box(-180, -90, 180, 90)
    assert wanted.intersection(world).difference(covered.buffer(1e-9)).area < 1e-6


def test_that_vertices_were_too_many_is_said():
    said = []
    (ring,) = rings([list(Point(10, 50).buffer(5, quad_segs=75).exterior.coords)], "search.area", said.append)
    assert said[0].startswith("search.area: 301 vertices of 1 polygons are too many to ask for: simplified to")
    assert Polygon(ring).area < 1.1 * Point(10, 50).buffer(5).area


def test_what_is_the_other_way_round_is_told_where_it_would_lie():
    text = off_the_globe([(lat, lon) for lon, lat in ALASKA])
    assert "write (longitude, latitude). The other way round this area lies at 162 W to 140 W, 68.5 N to 71.5 N" in text
    assert "other way" not in off_the_globe([(0.0, 0.0), (500000.0, 7600000.0), (1.0, 1.0), (0.0, 0.0)])
    assert off_the_globe(ALASKA) == ""


def feature(geometry) -> dict:
    return {"type": "Feature", "properties": {}, "geometry": geometry}


@pytest.mark.parametrize(
    "document",
    [
        mapping(box(9, 47, 10, 48)),
        feature(mapping(box(9, 47, 10, 48))),
        feature({"type": "Polygon", "coordinates": [[[*point, 312.5] for point in square(9, 47)]]}),
        {"type": "FeatureCollection", "features": [feature(None), feature(mapping(box(9, 47, 10, 48)))]},
        {
            "type": "GeometryCollection",
            "geometries": [{"type": "Point", "coordinates": [0, 0]}, mapping(box(9, 47, 10, 48))],
        },
        mapping(box(9, 47, 10, 48))
        | {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}},
    ],
)
def test_every_kind_of_geojson_is_read(tmp_path, document):
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps(document))
    (ring,) = read_geojson(path, "search.area")
    assert Polygon(ring).equals(box(9, 47, 10, 48))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no GeoJSON"),
        ("[]", "is no GeoJSON"),
        ('{"type": "Polygon", "coordinates": [[[9]]]}', "is no GeoJSON"),
        ('{"type": "Topology"}', "is no GeoJSON"),
        ('{"type": "Point", "coordinates": [9, 47]}', "holds no polygon"),
        ('{"type": "FeatureCollection", "features": []}', "holds no polygon"),
        (json.dumps(mapping(box(5e5, 7e6, 6e5, 8e6))), "outside longitude"),
        (json.dumps(mapping(box(9, 47, 10, 48)) | {"crs": {"properties": {"name": "EPSG:32605"}}}), "not in WGS 84"),
    ],
)
def test_what_is_no_area_is_a_mistake(tmp_path, text, words):
    path = tmp_path / "area.geojson"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"search\.area: .*area\.geojson.*{words}"):
        read_geojson(path, "search.area")


def test_an_area_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_geojson(tmp_path / "none", "search.area")
