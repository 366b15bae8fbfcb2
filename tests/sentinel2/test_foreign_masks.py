"""What the values of others' masks mean, and how such a mask comes onto a product's pixels: never silently clear."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import rasterio
from affine import Affine
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from cloudjob.config.fields import MaskClass, MaskNames, MaskValues
from cloudjob.config.models import MasksConfig
from cloudjob.errors import ConfigError
from cloudjob.pixels import CIRRUS, CLASSES, CLEAR, CLOUD, NO_DATA, SHADOW
from cloudjob.sentinel2 import foreign_masks as fm
from cloudjob.sentinel2.foreign_masks import Grid
from cloudjob.sentinel2.masks import Settings

PLACE = Affine(10, 0, 500_000, 0, -10, 5_412_000)
GRIDS = {1: Grid("EPSG:32633", PLACE, (60, 80)), 2: Grid("EPSG:32633", PLACE @ Affine.scale(2), (30, 40))}


def write(path, values, *, crs="EPSG:32633", transform=PLACE, no_data=None):
    profile = {"driver": "GTiff", "count": 1, "dtype": values.dtype, "crs": crs, "transform": transform}
    with rasterio.open(path, "w", height=values.shape[0], width=values.shape[1], nodata=no_data, **profile) as image:
        image.write(values, 1)
    return path


def test_the_names_and_classes_are_those_of_the_configuration():
    assert get_args(MaskNames) == fm.NAMES
    assert get_args(MaskClass) == tuple(CLASSES)
    assert Settings().values == MasksConfig().values


@pytest.mark.parametrize(
    ("crs", "step", "moved", "same"),
    [
        ("EPSG:32633", 10, 0.0009, True),
        ("EPSG:32633", 10, 1, False),
        ("EPSG:4326", 9e-5, 1e-9, True),
        ("EPSG:4326", 9e-5, 4.5e-5, False),  # half a pixel
    ],
)
def test_pixels_are_the_same_whatever_their_crs_counts_in(crs, step, moved, same):
    one, other = (Grid(crs, Affine(step, 0, left, 0, -step, 50), (60, 80)) for left in (15, 15 + moved))
    assert one.equals(other) is same
    assert ("degrees" in str(one)) == (crs == "EPSG:4326")


NAMED = {
    "cloudsen12": {0: CLEAR, 1: CLOUD, 2: CIRRUS, 3: SHADOW, 99: NO_DATA},
    "omnicloudmask": {0: CLEAR, 1: CLOUD, 2: CIRRUS, 3: SHADOW, 255: NO_DATA},
    "s2cloudless": {0: CLEAR, 1: CLOUD, 255: NO_DATA},
    "fmask": {0: CLEAR, 1: CLEAR, 2: SHADOW, 3: CLEAR, 4: CLOUD, 255: NO_DATA},
    "python-fmask": {0: NO_DATA, 1: CLEAR, 2: CLOUD, 3: SHADOW, 4: CLEAR, 5: CLEAR},
    # from CNES' list: cloud with its summary bits, shadow in the summary, thin and high cloud, a cloud in a shadow
    "maja": {0: CLEAR, 1: CLOUD, 3: CLOUD, 7: CLOUD, 33: SHADOW, 65: SHADOW, 16: CIRRUS, 128: CIRRUS, 35: CLOUD},
    "binary": {0: CLEAR, 1: CLOUD, 100: CLOUD, 255: CLOUD},
}


@pytest.mark.parametrize("name", fm.NAMES)
def test_the_tables_say_what_their_makers_say(name):
    values = np.array([list(NAMED[name])], np.uint8)
    assert fm.classes(values, name, source=Path("m.tif")).tolist() == [list(NAMED[name].values())]


BYTES = st.integers(0, 255)
TABLES = st.dictionaries(st.sampled_from(list(CLASSES)), st.lists(BYTES, max_size=3), max_size=6)


@examples(200)
@given(TABLES, st.lists(BYTES, min_size=1, max_size=8), st.none() | BYTES, st.sampled_from(["u1", "i2", "f4"]))
def test_a_value_that_nobody_named_is_an_error_with_the_values_found_and_never_clear(table, values, no_data, dtype):
    expected = []
    for value in values:
        names = [name for name, listed in table.items() if value in listed]
        found = names[-1] if names else "clear" if value == 0 else "no_data" if value == no_data else None
        expected.append(found and CLASSES[found])
    array = np.array([values], dtype)
    if None in expected:
        with pytest.raises(ConfigError, match=r"m\.tif: nobody says what its value") as error:
            fm.classes(array, table, source=Path("m.tif"), no_data=no_data)
        found = str(error.value).split("values found: ")[1].split(")")[0]
        assert found == ", ".join(str(value) for value in sorted(set(values)))
    else:
        assert fm.classes(array, table, source=Path("m.tif"), no_data=no_data).tolist() == [expected]


def test_what_is_no_byte_has_no_meaning_but_that_the_raster_gives_it():
    for value in (256.0, -1.0, 0.5, np.nan):
        with pytest.raises(ConfigError, match="nobody says"):
            fm.classes(np.array([[0, value]], "f4"), fm.HOUSE, source=Path("m.tif"))
        found = fm.classes(np.array([[0, value]], "f4"), fm.HOUSE, source=Path("m.tif"), no_data=value)
        assert found.tolist() == [[CLEAR, NO_DATA]]


@pytest.mark.parametrize(
    ("values", "meaning"),
    [
        *(([0, 1], "binary"), ([0, 255], "binary"), ([100], "binary"), ([0], fm.HOUSE), ([0, 2], fm.HOUSE)),
        *(([0, 1, 255], fm.HOUSE), ([0, 1, 2, 3], fm.HOUSE), ([0, 7], fm.HOUSE)),
    ],
)
def test_by_sight(values, meaning):
    assert fm.by_sight(np.array(values, np.uint8)) == meaning


@pytest.mark.parametrize("table", ["clouds", {"cloud": [1], "shadow": [1]}, {"fog": [1]}, {"cloud": [256]}])
def test_the_configuration_refuses_tables_that_say_nothing_or_two_things(table):
    with pytest.raises(ValidationError):
        TypeAdapter(MaskValues).validate_python(table)


@pytest.mark.parametrize("key", [1, 2])
def test_a_mask_on_the_products_pixels_is_taken_as_it_is(tmp_path, key):
    values = np.random.default_rng(key).integers(0, 4, GRIDS[key].shape).astype(np.uint8)
    path = write(tmp_path / "m.tif", values, transform=GRIDS[key].transform)
    core, found, note = fm.read(path, GRIDS, "cloudsen12")
    assert (found, note) == (key, "")
    assert np.array_equal(core, np.array([CLEAR, CLOUD, CIRRUS, SHADOW])[values])


@pytest.mark.parametrize(("metres", "key"), [(5, 1), (10, 1), (13, 1), (20, 2), (60, 2)])
def test_other_pixels_of_the_same_ground_give_the_nearest(tmp_path, metres, key):
    """Each pixel's middle is looked up in the raster, whose corner lies 37 m further out."""
    shape = (2000 // metres, 2000 // metres)
    values = np.random.default_rng(metres).integers(0, 4, shape).astype(np.uint8)
    corner = (PLACE.c - 37, PLACE.f + 37)
    path = write(tmp_path / "m.tif", values, transform=Affine(metres, 0, corner[0], 0, -metres, corner[1]))
    core, found, note = fm.read(path, GRIDS, "cloudsen12")
    assert found == key
    rows, cols = (((np.arange(side) + 0.5) * 10 * key + 37) // metres for side in GRIDS[key].shape)
    expected = np.array([CLEAR, CLOUD, CIRRUS, SHADOW])[values[np.ix_(rows.astype(int), cols.astype(int))]]
    assert np.array_equal(core, expected)
    assert note.startswith(f"{path}: {shape[0]} x {shape[1]} pixels of {metres}.0")
    assert note.endswith(f"are taken for the product's of {10 * key} m")


def test_a_mask_in_another_projection(tmp_path):
    """Half of the ground is cloud, north of a parallel through its middle."""
    values = np.zeros((400, 400), np.uint8)
    values[:200] = 1
    step, (lat, lon) = 1e-4, (48.8582, 15.0)  # 11 m; of the scene's middle
    there = Affine(step, 0, lon - 200 * step, 0, -step, lat + 200 * step)
    grids = {1: Grid("EPSG:32633", Affine(10, 0, 499_600, 0, -10, 5_411_900), (60, 80))}
    core, _, note = fm.read(write(tmp_path / "m.tif", values, crs="EPSG:4326", transform=there), grids, "binary")
    assert "in EPSG:4326: the nearest of them" in note
    cloudy = core == CLOUD
    assert np.isin(core, (CLEAR, CLOUD)).all()
    assert 0.3 < cloudy.mean() < 0.7
    assert (np.diff(cloudy.astype(int), axis=0) <= 0).all()


def test_what_a_mask_just_misses_is_no_data(tmp_path):
    short = write(tmp_path / "s.tif", np.ones((60, 79), np.uint8))
    with pytest.raises(ConfigError, match="or other pixels of the same ground"):
        fm.read(short, GRIDS, "binary")  # a column of 80 is more than a hundredth
    wide = {1: Grid("EPSG:32633", PLACE, (60, 160))}
    core, _, _ = fm.read(write(tmp_path / "w.tif", np.ones((60, 159), np.uint8)), wide, "binary")
    assert (core[:, :159] == CLOUD).all()
    assert (core[:, 159:] == NO_DATA).all()


def test_without_a_place_the_shape_is_enough_only_where_that_is_asked(tmp_path):
    path = write(tmp_path / "m.tif", np.ones((60, 80), np.uint8), crs=None)
    core, key, note = fm.read(path, GRIDS, "binary", placed=False)
    assert (key, note, (core == CLOUD).all()) == (1, "", True)
    with pytest.raises(ConfigError, match="in None"):
        fm.read(path, GRIDS, "binary")
    with pytest.raises(ConfigError, match="in None"):
        fm.read(write(tmp_path / "s.tif", np.ones((9, 9), np.uint8), crs=None), GRIDS, "binary", placed=False)
