import io

import numpy as np
from PIL import Image

from cloudjob.sentinel2.render import encode_png, outline, side_by_side, true_colour


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


def test_outline_marks_the_outermost_pixels_of_the_mask_and_nothing_else():
    rgb = np.full((9, 9, 3), 50, np.uint8)
    mask = np.zeros((9, 9), np.uint8)
    mask[2:7, 2:7] = 3
    drawn = (outline(rgb, mask) != rgb).any(axis=-1)
    assert not drawn[4, 4]  # the middle
    assert drawn[2, 2:7].all()
    assert not drawn[mask == 0].any()
    assert (rgb == 50).all()  # the input is left alone
    assert np.array_equal(outline(rgb, np.zeros((9, 9), np.uint8)), rgb)


def test_side_by_side_and_png_round_trip():
    left, right = np.zeros((5, 4, 3), np.uint8), np.full((5, 7, 3), 9, np.uint8)
    row = side_by_side([left, right], gap=2)
    assert row.shape == (5, 13, 3)
    assert (row[:, 4:6] == 255).all()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(row)))), row)
