import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from cloudjob.pixels import CLEAR, NO_DATA
from cloudjob.sentinel2.render import (
    BRIGHTER,
    DARKER,
    DIFFERENCE,
    OUTLINES,
    SAME,
    difference,
    encode_png,
    encode_webp,
    outlines,
    resized,
    side_by_side,
    true_colour,
)

VALUES = [CLEAR, *OUTLINES, NO_DATA]


def test_true_colour_is_a_fixed_stretch_of_red_green_blue():
    dn = np.zeros((4, 1, 4), np.uint16)
    dn[:, 0, 1] = 1000 + 1000, 1000 + 3000, 1000 + 4000, 1  # reflectance 0.1, 0.3, 0.4
    dn[:, 0, 2] = 1000 - 200  # below zero
    dn[:, 0, 3] = 1000 + 12000  # snow above one
    assert true_colour(dn)[0].tolist() == [[0, 0, 0], [64, 191, 255], [0, 0, 0], [255, 255, 255]]
    assert true_colour(dn, gain=2.0)[0, 1].tolist() == [51, 153, 204]


def test_the_stretch_does_not_depend_on_the_rest_of_the_picture():
    rng = np.random.default_rng(0)
    dn = rng.integers(0, 12000, (4, 20, 30), dtype=np.uint16)
    assert np.array_equal(true_colour(dn)[3:7, 5:9], true_colour(dn[:, 3:7, 5:9]))


@given(arrays.arrays(np.uint8, (7, 9), elements=st.sampled_from(VALUES)))
def test_outlines_are_where_a_class_ends_and_in_its_colour(mask):
    drawn = outlines(mask)
    assert (drawn[..., 3] > 0).tolist() == np.isin(mask, list(OUTLINES)).tolist()
    for value, (_, colour) in OUTLINES.items():
        assert (drawn[mask == value, :3] == colour).all()
    for row, column in np.argwhere(np.isin(mask, list(OUTLINES))):
        steps = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        around = {int(mask[r, c]) for r, c in steps if 0 <= r < 7 and 0 <= c < 9} - {NO_DATA}
        assert (drawn[row, column, 3] == 255) == bool(around - {int(mask[row, column])})


def test_pictures_shrink_by_means_and_masks_by_the_nearest_class():
    values = np.arange(36, dtype=np.float32).reshape(6, 6)
    assert np.allclose(resized(values, (2, 2), covers=(6, 6)), values.reshape(2, 3, 2, 3).mean((1, 3)))
    mask = np.array([[0, 0, 4, 4], [0, 0, 4, 4]], np.uint8)
    assert resized(mask, (1, 2), covers=(2, 4)).tolist() == [[0, 4]]
    assert resized(np.zeros((4, 4, 3), np.uint8), (3, 2), covers=(4, 4)).shape == (3, 2, 3)


def test_what_lies_beyond_the_scene_is_left_out():
    """60 m pixels cover more than a scene whose side is no multiple of theirs; so fine and coarse pictures meet."""
    coarse = np.array([[1, 3]], np.float32)
    assert resized(coarse, (1, 1), covers=(1, 1)).tolist() == [[1]]
    assert resized(coarse, (1, 3), covers=(1, 1.5)).tolist() == [[1, 1, 3]]


def test_light_alone_is_no_difference_and_changes_have_their_colours():
    rng = np.random.default_rng(1)
    clear = rng.uniform(0.1, 0.4, (20, 30))
    cloudy = 1.2 * clear
    everywhere = np.ones(clear.shape, bool)
    gain, picture = difference(cloudy, clear, everywhere)
    assert gain == pytest.approx(1.2)
    assert (picture == SAME).all()
    cloudy[:3] += DIFFERENCE
    cloudy[3:5] -= 2 * DIFFERENCE
    cloudy[5] += DIFFERENCE / 2
    cloudy[6, :4] = np.nan
    _, picture = difference(cloudy, clear, np.arange(20)[:, None] * np.ones(30) > 8)
    assert (picture[:3] == BRIGHTER).all()
    assert (picture[3:5] == DARKER).all()
    assert (np.abs(picture[5] - np.add(SAME, BRIGHTER) / 2) <= 1).all()
    assert (picture[6, :4] == 0).all()
    assert (picture[7:] == SAME).all()


def test_without_clear_pixels_there_is_no_gain():
    clear = np.full((5, 5), 0.3)
    gain, picture = difference(clear, clear, np.zeros((5, 5), bool))
    assert gain is None
    assert (picture == SAME).all()
    assert difference(clear, np.zeros((5, 5)), np.ones((5, 5), bool))[0] is None


def test_side_by_side_and_the_files_give_the_pixels_back():
    left, right = np.zeros((5, 4, 3), np.uint8), np.full((5, 7, 3), 9, np.uint8)
    row = side_by_side([left, right], gap=2)
    assert row.shape == (5, 13, 3)
    assert (row[:, 4:6] == 255).all()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(row)))), row)
    drawn = outlines(np.array([[0, 1, 2], [3, 4, 255]], np.uint8))
    back = np.asarray(Image.open(io.BytesIO(encode_webp(drawn))))
    assert np.array_equal(back[drawn[..., 3] > 0], drawn[drawn[..., 3] > 0])
    assert (back[..., 3] == drawn[..., 3]).all()
    smooth = np.full((32, 32, 3), 120, np.uint8)
    assert np.abs(np.asarray(Image.open(io.BytesIO(encode_webp(smooth, quality=80)))).astype(int) - 120).max() < 4
