"""Corners and centres of real tiles, and the sun where ESA's metadata put it."""

import itertools
import json
import math
import re
from datetime import datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rasterio.warp import transform as warp_points
from shapely.geometry import Point

from cloudjob.errors import ConfigError
from cloudjob.sentinel2 import geometry


@pytest.mark.parametrize(
    ("tile", "corner"),
    [
        ("29UNU", ("EPSG:32629", 499980, 5900040)),
        ("22HBD", ("EPSG:32722", 199980, 5900020)),
        ("01CCV", ("EPSG:32701", 300000, 2000020)),
        ("32TNT", ("EPSG:32632", 499980, 5300040)),
    ],
)
def test_corners_of_real_tiles(tile, corner):
    assert geometry.tile_corner(tile) == corner


@given(lon=st.floats(-180, 180, exclude_max=True), lat=st.floats(-80, 84).map(lambda lat: round(lat, 9)))
@example(lon=-179.9, lat=83.99)
@example(lon=179.9, lat=-79.99)
@example(lon=-180, lat=0)
@example(lon=3, lat=-1e-6)
@example(lon=-138.000003, lat=-63.9995)
def test_every_place_from_the_last_tiles_of_one_pole_to_those_of_the_other_lies_in_its_tile(lon, lat):
    zone, band = int((lon + 180) // 6) + 1, "CDEFGHJKLMNPQRSTUVWX"[min(int((lat + 80) // 8), 19)]
    crs = f"EPSG:{326 if band >= 'N' else 327}{zone:02d}"
    (x,), (y,) = warp_points("EPSG:4326", crs, [lon], [lat])
    column = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")[zone % 3][int(x // 1e5) - 1]
    row = "ABCDEFGHJKLMNPQRSTUV"[(int(y // 1e5) + (5 if zone % 2 == 0 else 0)) % 20]
    tile = f"{zone:02d}{band}{column}{row}"
    found, left, top = geometry.tile_corner(tile)
    assert (found, left % 60) == (crs, 0)
    assert left <= x < left + 109_800
    assert top - 109_800 < y <= top
    middle = geometry.tile_centre(tile)
    assert abs(middle[1] - lat) < 1
    assert abs((middle[0] - lon + 180) % 360 - 180) * math.cos(math.radians(lat)) < 1


def square(lon, lat):
    ring = [[lon + x, lat + y] for x, y in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))]
    return {"type": "Polygon", "coordinates": [ring]}


def test_ground_a_quarter_of_the_globe_away_is_none(shared_data):
    case = json.loads((shared_data / "real_cases" / "far_tiles.json").read_text())
    crs = case.pop("crs")
    (footprint,) = case.values()
    assert geometry.ground_near(footprint, crs, (27.0, 0.5)) == []
    for lon in range(-180, 180, 15):
        for lat in range(-80, 80, 20):
            found = geometry.ground_near(square(lon, lat), "EPSG:32635", (27.0, 45.0))
            assert len(found) <= (abs(lon - 27) < 40 and abs(lat - 45) < 25)


def test_near_ground_lies_where_it_does_and_beyond_180_degrees_too():
    (here,) = geometry.ground_near(square(26.5, 45), "EPSG:32635", (27.0, 45.5))
    x, y = (values[0] for values in warp_points("EPSG:4326", "EPSG:32635", [27.0], [45.5]))
    assert here.contains(Point(x, y))
    halves = {"type": "MultiPolygon", "coordinates": [square(179, 70)["coordinates"], square(-180, 70)["coordinates"]]}
    ring = [[179, 70], [-179, 70], [-179, 71], [179, 71], [179, 70]]  # as lists have it that were made without a cut
    uncut = {"type": "Polygon", "coordinates": [ring]}
    for middle, footprint in itertools.product(((179.9, 70.5), (-179.9, 70.5)), (halves, uncut)):
        found = geometry.ground_near(footprint, "EPSG:32601", middle)
        assert len(found) == 2
        assert max(abs(part.centroid.x - 380_000) for part in found) < 60_000  # side by side, at 180 degrees


@pytest.mark.parametrize("tile", ["05WPS", "04WEE", "04WFD", "05WMU", "05WNT", "05WPT", "06WVC", "06WXC", "07WDT"])
def test_tiles_of_the_north_slope_lie_there(tile):
    lon, lat = geometry.tile_centre(tile)
    assert -167 < lon < -140
    assert 68 < lat < 72
    assert geometry.tile_corner(tile)[0] == f"EPSG:326{tile[:2]}"


@pytest.mark.parametrize("tile", ["5WPS", "05WAS", "05IPS", "61WPS", "05WPZ", "T05WPS", ""])
def test_impossible_tiles_are_refused(tile):
    with pytest.raises(ConfigError, match="no such Sentinel-2 tile"):
        geometry.tile_corner(tile)


def test_sun_stands_where_esa_says(shared_data):
    paths = [
        *shared_data.glob("safe_T29UNU/*/GRANULE/*/MTD_TL.xml"),
        *shared_data.glob("l2a_metadata/*/GRANULE/*/MTD_TL.xml"),
    ]
    assert len(paths) == 3
    for path in paths:
        text = path.read_text()
        when = datetime.fromisoformat(re.search(r"SENSING_TIME[^>]*>([^<]+)", text)[1])
        mean = text.partition("<Mean_Sun_Angle>")[2]
        zenith, azimuth = (float(re.search(rf"{n}_ANGLE[^>]*>([^<]+)", mean)[1]) for n in ("ZENITH", "AZIMUTH"))
        tile = re.search(r"_T(\d\d[A-Z]{3})_N", text)[1]
        elevation, found = geometry.sun_position(when, *geometry.tile_centre(tile))
        assert (90 - elevation, found) == (pytest.approx(zenith, abs=0.05), pytest.approx(azimuth, abs=0.05))
