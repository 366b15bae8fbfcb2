import csv

import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from cloudjob.sentinel2.masks import dilate, fractions, from_scl


def test_classes_are_upsampled_nearest_and_cropped():
    scl = np.array([[0, 1, 2], [3, 4, 8], [9, 10, 11]], np.uint8)
    mask = from_scl(scl, shape=(5, 6))
    assert mask.dtype == np.uint8
    assert mask.tolist() == [
        [255, 255, 0, 0, 0, 0],
        [255, 255, 0, 0, 0, 0],
        [2, 2, 0, 0, 1, 1],
        [2, 2, 0, 0, 1, 1],
        [1, 1, 3, 3, 0, 0],
    ]
    with pytest.raises(ValueError, match="does not cover"):
        from_scl(scl, shape=(7, 6))


def test_dilation_stays_out_of_other_classes_and_cloud_wins():
    scl = np.full((1, 12), 4, np.uint8)
    scl[0, [0, 2, 6, 10]] = 0, 3, 9, 10
    mask = from_scl(scl, shape=(1, 24), dilate_px=4)
    assert mask[0].tolist() == [255] * 2 + [2] * 6 + [1] * 10 + [3] * 6
    # both reach column 8, which becomes cloud; the shadow itself stays


@settings(max_examples=60, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=25)), st.integers(0, 30))
def test_dilation_is_that_by_a_disk(mask, radius):
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    expected = ndimage.binary_dilation(mask, y**2 + x**2 <= radius**2)
    assert np.array_equal(dilate(mask, radius), expected)


def test_dilation_across_stripes_and_far_distances():
    mask = np.zeros((700, 300), bool)
    mask[[0, 320, 699], [0, 150, 299]] = True
    assert np.array_equal(dilate(mask, 260), ndimage.distance_transform_edt(~mask) <= 260)


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, (5, 4), elements=st.integers(0, 11)), st.integers(0, 4))
def test_growth_only_takes_clear_pixels(scl, radius):
    before = from_scl(scl, shape=(10, 8))
    after = from_scl(scl, shape=(10, 8), dilate_px=radius)
    kept = before != 0
    assert np.array_equal(after[kept], before[kept])
    near = np.isin(before, (1, 2, 3))
    assert np.array_equal(np.isin(after, (1, 2, 3)), (dilate(near, radius) & (before == 0)) | near)


def test_fractions_are_of_the_valid_pixels():
    mask = np.array([[0, 0, 0, 0, 1, 1, 2, 3, 255, 255]], np.uint8)
    assert fractions(mask) == {"cloud": 0.25, "shadow": 0.125, "cirrus": 0.125, "clear": 0.5, "no_data": 0.2}
    empty = fractions(np.full((3, 3), 255, np.uint8))
    assert empty == {"cloud": 0, "shadow": 0, "cirrus": 0, "clear": 0, "no_data": 1}


def test_real_series_of_classifications(shared_data):
    """118 dates of one place: the fractions are those counted independently when the series was recorded."""
    folder = shared_data / "worldcereal_L2A"
    with xarray.open_dataset(next(folder.glob("*20m*.nc")), mask_and_scale=False) as series:
        scl = series["SCL"].values.astype(np.uint8)
    with next(folder.glob("*.csv")).open() as file:
        recorded = list(csv.DictReader(file))
    assert len(scl) == len(recorded) == 118
    for date, row in zip(scl, recorded, strict=True):
        found = fractions(from_scl(date, shape=(64, 64)))
        assert found["no_data"] == pytest.approx(float(row["frac_nodata_0"]), abs=1e-6)
        valid = 1 - found["no_data"]
        cloudy = (found["cloud"] + found["cirrus"]) * valid
        assert cloudy == pytest.approx(float(row["frac_8_9_10"]), abs=1e-6)
        assert cloudy + found["shadow"] * valid == pytest.approx(float(row["frac_3_8_9_10"]), abs=1e-6)
