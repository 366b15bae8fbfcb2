"""Sen2_MTC: three cloudy images of a patch, and a clear one."""

import numpy as np
import public_files
import pytest
from public_files import CLOUDY_ROWS, RULES, SIZE

from cloudjob.errors import CorruptFileError
from cloudjob.patches.public import sen2mtc
from cloudjob.pixels import CLEAR, CLOUD, EMPTY_DN


def test_tiles_are_split_as_the_lists_say(tmp_path):
    public_files.sen2mtc(tmp_path, "train", "T09WWP_R071", 3)
    public_files.sen2mtc(tmp_path, "test", "T12TUR_R027", 12)
    found = sen2mtc.find(tmp_path)
    assert [(each.split, each.region, each.number) for each in found.samples] == [
        ("test", "T12TUR_R027", 12),
        ("train", "T09WWP_R071", 3),
    ]
    assert found.notes == ["no val.txt, which names the tiles of this split"]


def test_the_first_date_is_restored_and_the_others_hide_what_is_not_as_the_clear_image(tmp_path):
    public_files.sen2mtc(tmp_path, "train", "T09WWP_R071", 3)
    triplet = sen2mtc.load(sen2mtc.find(tmp_path).samples[0], RULES)
    np.testing.assert_array_equal(triplet.cloudy, public_files.thirteen(0, CLOUDY_ROWS)[[3, 2, 1, 7]] + 1000)
    expected = np.where(np.arange(SIZE) < CLOUDY_ROWS, CLOUD, CLEAR)
    np.testing.assert_array_equal(triplet.core, expected[:, None].repeat(SIZE, 1))
    dark, whole = (each == EMPTY_DN for each in triplet.references)
    np.testing.assert_array_equal(dark, np.broadcast_to(np.arange(SIZE)[:, None] >= SIZE - 8, dark.shape))
    assert not whole.any()


def test_images_of_another_range_are_named(tmp_path):
    public_files.sen2mtc(tmp_path, "train", "T09WWP_R071", 3)
    (sample,) = sen2mtc.find(tmp_path).samples
    public_files.write(sample.files[-1], np.full((4, SIZE, SIZE), 0.2))
    with pytest.raises(CorruptFileError, match="expected reflectance times 10000"):
        sen2mtc.load(sample, RULES)
