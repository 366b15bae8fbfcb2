"""Corners and centres of real tiles, and the sun where ESA's metadata put it."""

import re
from datetime import datetime

import pytest

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
