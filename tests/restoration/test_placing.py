"""Where pixels lie, how wide they are, and other dates on them."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from own_images import DEGREES, UTM
from rasterio.windows import Window

from cloudjob.errors import OwnFileError
from cloudjob.restoration import placing
from cloudjob.sentinel2.foreign_masks import Grid

HERE = Grid(UTM["crs"], UTM["transform"], (60, 70))


def grid(shape=(60, 70), *, crs="EPSG:32631", left=500_000, top=5_700_000, step=10.0):
    return Grid(crs, Affine(step, 0, left, 0, -step, top), shape)


@pytest.mark.parametrize(
    ("where", "metres"),
    [
        (HERE, 10),
        (grid(step=20), 20),
        (Grid(DEGREES["crs"], DEGREES["transform"], (60, 70)), 9.85),
        (grid(crs="EPSG:3857", step=10), 6.3),  # web mercator, at 45 degrees: less than it says
        (Grid("EPSG:4326", Affine(1e-4, 0, 179.99, 0, -1e-4, 0), (60, 200)), 11.1),
        (Grid("EPSG:32631", Affine(0, 10, 5e5, 10, 0, 5.7e6), (60, 70)), 10),  # turned
        (Grid(None, UTM["transform"], (60, 70)), None),
    ],
)
def test_how_wide_pixels_are(where, metres):
    found = placing.pixel_m(where)
    if metres is None:
        assert found is None
    else:
        assert abs(found - metres) < 0.12 * metres
    assert (placing.middle(where) is None) == (metres is None)


@pytest.mark.parametrize(
    ("other", "window"),
    [
        (HERE, None),
        (grid((160, 170), left=499_500, top=5_700_500), Window(46, 46, 78, 68)),
        (grid((30, 35), step=20), Window(0, 0, 35, 30)),
        (grid((10, 10)), Window(0, 0, 10, 10)),
    ],
)
def test_what_is_read_of_another_date(other, window):
    assert placing.part(other, HERE, name="b.tif") == window


@pytest.mark.parametrize(
    "other",
    [grid(left=600_000), grid(top=5_699_400), grid(crs="EPSG:32731"), grid(crs="EPSG:4326", left=99, top=9, step=1e-4)],
)
def test_another_date_of_other_ground(other):
    with pytest.raises(OwnFileError, match=r"b\.tif shows other ground than the image: it has"):
        placing.part(other, HERE, name="b.tif")


def test_without_a_place_the_size_must_be_the_same():
    assert placing.part(Grid(None, Affine.identity(), (60, 70)), HERE, name="b.tif") is None
    with pytest.raises(OwnFileError, match="60 x 71 pixels, the image has 60 x 70, and one of them does not say"):
        placing.part(Grid(None, Affine.identity(), (60, 71)), HERE, name="b.tif")


@given(st.integers(-20, 20), st.integers(-20, 20))
def test_by_whole_pixels_a_date_is_moved_exactly(rows, cols):
    """What is not there has no data, and nothing leaks into its neighbours."""
    bands = np.random.default_rng(0).integers(1, 65536, (4, 60, 70)).astype(np.uint16)
    other = grid(left=500_000 + 10 * cols, top=5_700_000 - 10 * rows)
    out = placing.onto(bands, other, HERE)
    expected = np.zeros_like(bands)
    there = np.s_[:, max(rows, 0) : 60 + min(rows, 0), max(cols, 0) : 70 + min(cols, 0)]
    expected[there] = bands[:, max(-rows, 0) : 60 - max(rows, 0), max(-cols, 0) : 70 - max(cols, 0)]
    np.testing.assert_array_equal(out, expected)


def test_a_part_gives_what_the_whole_gives():
    bands = np.random.default_rng(0).integers(1, 65536, (4, 300, 300)).astype(np.uint16)
    other = Grid("EPSG:4326", Affine(1.4e-4, 0, 2.99, 0, -9e-5, 51.46), (300, 300))
    window = placing.part(other, HERE, name="b.tif")
    assert window.height < 200
    here = np.s_[
        :,
        int(window.row_off) : int(window.row_off + window.height),
        int(window.col_off) : int(window.col_off + window.width),
    ]
    np.testing.assert_array_equal(
        placing.onto(bands[here], placing.within(other, window), HERE), placing.onto(bands, other, HERE)
    )


def test_much_finer_pixels_are_averaged():
    bands = np.full((4, 600, 700), 1000, np.uint16)
    bands[:, ::2, ::2] = 3000  # a quarter
    out = placing.onto(bands, grid((600, 700), step=1.0), HERE)
    assert set(np.unique(out)) == {1500}


def test_classes_keep_their_numbers():
    mask = np.array([[0, 3], [1, 255]], np.uint8)
    out = placing.classes_onto(mask, grid((2, 2), step=20), grid((6, 6)), beyond=254)
    assert out[:4, :4].tolist() == np.kron(mask, np.ones((2, 2), int)).tolist()
    assert set(out[4:].ravel()) == {254}
