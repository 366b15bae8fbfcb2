"""Where pixels lie, how wide they are, and other dates on them."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from own_images import DEGREES, UTM
from rasterio.warp import Resampling, reproject
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


def placed(bands: np.ndarray, other: Grid, *, stripe: int = 60) -> np.ndarray:
    """The date on the pixels of HERE, made by stripes."""

    def cut(window: Window) -> np.ndarray:
        return bands[:, *window.toslices()]

    stripes = [slice(top, min(top + stripe, 60)) for top in range(0, 60, stripe)]
    return np.concatenate([placing.onto(cut, other, HERE, rows=rows) for rows in stripes], 1)


@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 60))
def test_by_whole_pixels_a_date_is_moved_exactly(rows, cols, stripe):
    """What is not there has no data, and nothing leaks into its neighbours."""
    bands = np.random.default_rng(0).integers(1, 65536, (4, 60, 70)).astype(np.uint16)
    out = placed(bands, grid(left=500_000 + 10 * cols, top=5_700_000 - 10 * rows), stripe=stripe)
    expected = np.zeros_like(bands)
    there = np.s_[:, max(rows, 0) : 60 + min(rows, 0), max(cols, 0) : 70 + min(cols, 0)]
    expected[there] = bands[:, max(-rows, 0) : 60 - max(rows, 0), max(-cols, 0) : 70 - max(cols, 0)]
    np.testing.assert_array_equal(out, expected)


TURNED = {
    "degrees": Grid("EPSG:4326", Affine(1.4e-4, 0, 2.99, 0, -9e-5, 51.46), (300, 300)),
    "neighbouring zone": Grid("EPSG:32632", Affine(10, 0, 82_500, 0, -10, 5_717_900), (300, 300)),
    "turned by hand": Grid(
        "EPSG:32631", Affine.translation(499_600, 5_701_200) @ Affine.rotation(-30) @ Affine.scale(10, -10), (300, 300)
    ),
    "south up": Grid("EPSG:32631", Affine(10, 0, 499_500, 0, 10, 5_698_000), (300, 300)),
}


@pytest.mark.parametrize("how", TURNED)
def test_a_stripe_is_read_of_few_rows_and_comes_out_as_of_the_whole(how):
    other = TURNED[how]
    bands = np.random.default_rng(0).integers(1, 65536, (4, *other.shape)).astype(np.uint16)
    whole = np.zeros((4, 60, 70), np.uint16)
    place = {"src_crs": other.crs, "src_transform": other.transform, "src_nodata": 0, "dst_nodata": 0}
    place |= {"dst_crs": HERE.crs, "dst_transform": HERE.transform, "XSCALE": 1, "YSCALE": 1}
    reproject(bands, whole, resampling=Resampling.bilinear, **place)
    assert (whole != 0).all()
    for stripe in (60, 16):
        np.testing.assert_allclose(placed(bands, other, stripe=stripe), whole, rtol=0, atol=1)  # rounded, after all
    asked = []
    placing.onto(lambda window: asked.append(window) or bands[:, *window.toslices()], other, HERE, rows=slice(16, 32))
    assert asked[0].height * asked[0].width < 120 * 120


def test_much_finer_pixels_are_averaged():
    bands = np.full((4, 600, 700), 1000, np.uint16)
    bands[:, ::2, ::2] = 3000  # a quarter
    assert set(np.unique(placed(bands, grid((600, 700), step=1.0)))) == {1500}


def test_classes_keep_their_numbers():
    mask = np.array([[0, 3], [1, 255]], np.uint8)
    out = placing.classes_onto(mask, grid((2, 2), step=20), grid((6, 6)), beyond=254)
    assert out[:4, :4].tolist() == np.kron(mask, np.ones((2, 2), int)).tolist()
    assert set(out[4:].ravel()) == {254}
