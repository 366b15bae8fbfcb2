"""CF's grid mapping of any CRS, against pyproj's where that is installed."""

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from cloudjob.restoration.output.grid_mapping import axes, grid_mapping

PLACE = Affine(10, 0, 600000, 0, -10, 7900020)
# UTM, polar, cones, areas, a national grid in feet, the globe also in grads
CODES = [32605, 32733, 3413, 3031, 32761, 2154, 5070, 3035, 3395, 2263, 4326, 4258, 4807]


def test_utm_has_all_parameters_of_appendix_f():
    found = grid_mapping(CRS.from_epsg(32605), PLACE)
    assert found["GeoTransform"] == "600000.0 10.0 0.0 7900020.0 0.0 -10.0"
    assert CRS.from_wkt(found["crs_wkt"]) == CRS.from_epsg(32605)
    assert found["spatial_ref"] == found.pop("crs_wkt")
    expected = {
        "grid_mapping_name": "transverse_mercator",
        "latitude_of_projection_origin": 0.0,
        "longitude_of_central_meridian": -153.0,
        "scale_factor_at_central_meridian": 0.9996,
        "false_easting": 500000.0,
        "false_northing": 0.0,
        "semi_major_axis": 6378137.0,
        "inverse_flattening": 298.257223563,
        "longitude_of_prime_meridian": 0.0,
        "reference_ellipsoid_name": "WGS 84",
        "projected_crs_name": "WGS 84 / UTM zone 5N",
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("code", CODES[:-1])  # the text of the last, in grads, loses digits
def test_the_same_is_said_of_a_crs_wherever_it_comes_from(code):
    """By its code, from a file: bytes must not depend on what PROJ was asked before."""
    crs = CRS.from_epsg(code)
    assert grid_mapping(CRS.from_wkt(crs.to_wkt()), PLACE) == grid_mapping(crs, PLACE)


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
def test_what_pyproj_says_of_a_crs_is_said(code):
    pyproj = pytest.importorskip("pyproj")
    found, known = grid_mapping(CRS.from_epsg(code), PLACE), pyproj.CRS.from_epsg(code).to_cf()
    known.pop("crs_wkt")
    if code == 4807:
        known["longitude_of_prime_meridian"] = 2.5969213 * 0.9  # pyproj says grads
    if known["grid_mapping_name"] == "mercator" and "scale_factor_at_projection_origin" in known:
        known.pop("standard_parallel")  # Appendix F wants one of the two
    for name, value in known.items():
        if isinstance(value, str):
            assert name in found, name
        else:
            np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)


def test_angles_are_degrees_whatever_the_system_measures_them_in():
    grads = CRS.from_epsg(4807).to_wkt()
    wkt = f'PROJCS["mine",{grads},PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",50],'
    wkt += 'PARAMETER["central_meridian",10],PARAMETER["scale_factor",1],PARAMETER["false_easting",7],'
    wkt += 'PARAMETER["false_northing",0],UNIT["metre",1]]'
    found = grid_mapping(CRS.from_wkt(wkt), PLACE)
    assert found["latitude_of_projection_origin"] == pytest.approx(45)
    assert found["longitude_of_central_meridian"] == pytest.approx(9)
    assert found["longitude_of_prime_meridian"] == pytest.approx(2.33722917)
    assert found["false_easting"] == 7


@pytest.mark.parametrize("code", [3857, 27572])  # on a sphere; a cone with a scale
def test_a_projection_that_cf_cannot_name_has_its_wkt(code):
    found = grid_mapping(CRS.from_epsg(code), PLACE)
    assert "grid_mapping_name" not in found
    assert CRS.from_wkt(found["crs_wkt"]) == CRS.from_epsg(code)


@pytest.mark.parametrize(
    ("crs", "names", "units"),
    [
        (CRS.from_epsg(32605), ["projection_x_coordinate", "projection_y_coordinate"], ["m", "m"]),
        (CRS.from_epsg(2263), ["projection_x_coordinate", "projection_y_coordinate"], ["US_survey_foot"] * 2),
        (CRS.from_epsg(4326), ["longitude", "latitude"], ["degrees_east", "degrees_north"]),
        (None, [None, None], [None, None]),
    ],
)
def test_axes_say_what_they_measure(crs, names, units):
    found = axes(crs)
    assert [found[axis].get("standard_name") for axis in "xy"] == names
    assert [found[axis].get("units") for axis in "xy"] == units
    assert [found[axis]["axis"] for axis in "xy"] == ["X", "Y"]
