"""Masks of other tools on one's own image."""

import numpy as np
import pytest
from own_images import DEGREES, UTM, write

from cloudjob.errors import ConfigError, OwnFileError
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN
from cloudjob.restoration import own_mask
from cloudjob.sentinel2.foreign_masks import Grid

HERE = Grid(UTM["crs"], UTM["transform"], (4, 6))
DATA = np.ones((4, 6), bool)
VALUES = np.repeat(np.arange(4), 6).reshape(4, 6).astype(np.uint8)


@pytest.fixture
def mask(tmp_path):
    def put(values, **place):
        return write(tmp_path / "mask.tif", np.asarray(values, np.uint8)[None], names=None, **(place or UTM))

    return put


@pytest.mark.parametrize(
    ("meaning", "classes"),
    [
        ("omnicloudmask", [CLEAR, CLOUD, CIRRUS, SHADOW]),
        ({"cloud": [1, 2], "no_data": [3]}, [CLEAR, CLOUD, CLOUD, NO_DATA]),
        ("binary", [CLEAR, CLOUD, CLOUD, CLOUD]),
    ],
)
def test_values_mean_what_is_said(mask, meaning, classes):
    path = mask(VALUES)
    own_mask.check(path, HERE, meaning)
    core, note = own_mask.read(path, HERE, meaning, DATA)
    assert core[:, 0].tolist() == classes
    assert note == ""


@pytest.mark.parametrize("value", [1, 100, 255])
def test_one_value_beside_0_says_itself_what_it_means(mask, value):
    core, _ = own_mask.read(mask(value * (VALUES > 1)), HERE, None, DATA)
    assert core[:, 0].tolist() == [CLEAR, CLEAR, CLOUD, CLOUD]


def test_several_values_do_not(mask):
    with pytest.raises(
        ConfigError, match=r"nobody says what its values 0, 1, 2, 3 mean.*--mask-values cloudsen12\|omni"
    ):
        own_mask.check(mask(VALUES), HERE, None)
    with pytest.raises(ConfigError, match=r"what its value 3 means.*--mask-values"):
        own_mask.check(mask(VALUES), HERE, {"cloud": [1], "shadow": [2]})


def test_on_other_pixels_the_nearest_are_taken_and_what_is_left_out_is_unknown(mask):
    here = HERE._replace(shape=(400, 6))
    path = mask(np.ones((199, 3)), crs=UTM["crs"], transform=UTM["transform"] @ UTM["transform"].scale(2))
    data = np.ones(here.shape, bool)
    data[-1] = False
    core, note = own_mask.read(path, here, None, data)
    assert (core[:398] == CLOUD).all()
    assert (core[398] == UNKNOWN).all()
    assert (core[399] == NO_DATA).all()
    assert note == "mask.tif: lies on other pixels than the image; of each the nearest is taken"
    with pytest.raises(OwnFileError, match="leaves 50% of the image out"):
        own_mask.read(path, HERE._replace(shape=(796, 6)), None, np.ones((796, 6), bool))


def test_of_other_ground_or_another_size(mask, tmp_path):
    with pytest.raises(OwnFileError, match="shows other ground"):
        own_mask.check(mask(VALUES, **DEGREES), HERE, "binary")
    path = write(tmp_path / "bare.tif", VALUES[None], names=None)
    core, _ = own_mask.read(path, HERE, "binary", DATA)
    assert core[:, 0].tolist() == [CLEAR, CLOUD, CLOUD, CLOUD]
    with pytest.raises(OwnFileError, match="4 x 6 pixels, the image has 4 x 7"):
        own_mask.check(path, HERE._replace(shape=(4, 7)), "binary")


def test_what_is_no_mask(tmp_path):
    with pytest.raises(ConfigError, match="no such mask"):
        own_mask.check(tmp_path / "x.tif", HERE, None)
    (tmp_path / "x.tif").write_text("no")
    with pytest.raises(OwnFileError, match="not readable as a mask"):
        own_mask.check(tmp_path / "x.tif", HERE, None)
