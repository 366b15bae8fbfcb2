"""Thresholds that stand in for the masks that Level-1C images lack."""

import numpy as np
import public_files
import pytest
from public_files import SIZE

from cloudjob.patches.public import l1c_masks
from cloudjob.patches.public.samples import THIRTEEN
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW


def bands(**given):
    image = dict(zip(THIRTEEN, public_files.thirteen(0) / 10000, strict=True))
    return {name: given.get(name, image[name]) for name in l1c_masks.BANDS_NEEDED}


USUAL = l1c_masks.infrared(bands())
SOUTH = np.arange(SIZE)[:, None].repeat(SIZE, 1) >= 24


def within(mask):
    """Away from the edge between what differs."""
    return np.delete(mask, slice(20, 28), 0)


def test_bare_ground_is_clear():
    assert (l1c_masks.classes(bands(), USUAL) == CLEAR).all()


def test_bright_in_b10_is_cirrus():
    mask = l1c_masks.classes(bands(B10=np.where(SOUTH, 0.02, 0.001)), USUAL)
    np.testing.assert_array_equal(mask == CIRRUS, SOUTH)


def test_dark_ground_is_shadow_only_where_it_is_lighter_otherwise():
    image = {name: np.where(SOUTH, values / 4, values) for name, values in bands().items()}
    mask = l1c_masks.classes(image, USUAL)
    np.testing.assert_array_equal(within(mask == SHADOW), within(SOUTH))
    assert (l1c_masks.classes(image, l1c_masks.infrared(image)) == CLEAR).all()


@pytest.mark.parametrize(("b11", "expected"), [(0.6, CLOUD), (0.05, CLEAR)])
def test_snow_is_as_bright_as_cloud_but_dark_in_b11(b11, expected):
    full = np.full((SIZE, SIZE), 0.6)
    image = dict.fromkeys(l1c_masks.BANDS_NEEDED, full) | {"B10": full * 0, "B11": full * 0 + b11}
    assert (l1c_masks.classes(image, l1c_masks.infrared(image)) == expected).all()


def test_no_data_is_no_data_and_spoils_nothing():
    hole = np.where(SOUTH, np.nan, 1)
    mask = l1c_masks.classes({name: values * hole for name, values in bands().items()}, USUAL)
    np.testing.assert_array_equal(mask, np.where(SOUTH, NO_DATA, CLEAR))
    nothing = {name: values * np.nan for name, values in bands().items()}
    assert (l1c_masks.classes(nothing, USUAL) == NO_DATA).all()
