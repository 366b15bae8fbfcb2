"""SEN12MS-CR as its loaders read it."""

import numpy as np
import public_files
import pytest
from public_files import CLOUDY_ROWS, RULES, SHADOWED_ROWS, SIZE, THIRTEEN

from cloudjob.errors import CorruptFileError
from cloudjob.patches.public import sen12mscr
from cloudjob.pixels import BANDS, CLEAR, CLOUD, EMPTY_DN, NO_DATA, SHADOW


def test_a_region_is_its_own_name_and_no_beginning_of_another(tmp_path):
    """1 trains; the published loader takes 106 with it, which is tested on."""
    for region in ("1", "106", "17", "999"):
        public_files.pair(tmp_path, "ROIs1158_spring", region, 30)
    found = sen12mscr.find(tmp_path)
    assert {each.region: each.split for each in found.samples} == {
        "ROIs1158_1": "train",
        "ROIs1158_106": "test",
        "ROIs1158_17": "val",
    }
    assert found.notes == ["1 regions in no published split: ROIs1158_999"]


def test_an_image_without_its_pair_is_left_and_counted(tmp_path):
    for patch in (30, 31):
        public_files.pair(tmp_path, "ROIs2017_winter", "108", patch)
    (tmp_path / "ROIs2017_winter_s2" / "s2_108" / "ROIs2017_winter_s2_108_p31.tif").unlink()
    found = sen12mscr.find(tmp_path)
    assert [(each.region, each.number) for each in found.samples] == [("ROIs2017_108", 30)]
    assert found.notes == ["1 cloudy images without a clear one"]


def test_bands_and_digital_numbers_are_those_of_this_project(tmp_path):
    public_files.pair(tmp_path, "ROIs1158_spring", "106", 30)
    (sample,) = sen12mscr.find(tmp_path).samples
    triplet = sen12mscr.load(sample, RULES)
    raw = public_files.thirteen(1)
    assert BANDS == ("B04", "B03", "B02", "B08")
    np.testing.assert_array_equal(triplet.clear, raw[[3, 2, 1, 7]] + 1000)
    assert np.isnan(triplet.clear_days)
    assert not triplet.references
    rows = np.arange(SIZE)
    expected = np.select([rows < CLOUDY_ROWS, rows >= SIZE - SHADOWED_ROWS], [CLOUD, SHADOW], CLEAR)
    edge = slice(CLOUDY_ROWS - 4, CLOUDY_ROWS + 4)  # the score is a mean
    np.testing.assert_array_equal(np.delete(triplet.core, edge, 0), np.delete(expected, edge)[:, None].repeat(SIZE, 1))


def test_pixels_without_any_light_are_no_data(tmp_path):
    public_files.pair(tmp_path, "ROIs1158_spring", "106", 30)
    (sample,) = sen12mscr.find(tmp_path).samples
    image = public_files.thirteen(0)
    image[:, 3, 4] = 0
    image[THIRTEEN.index("B08"), 5, 6] = 0  # water is as dark
    public_files.write(sample.files[0], image)
    triplet = sen12mscr.load(sample, RULES)
    assert (triplet.cloudy[:, 3, 4] == EMPTY_DN).all()
    assert triplet.core[3, 4] == NO_DATA
    assert triplet.cloudy[BANDS.index("B08"), 5, 6] == 1000
    assert np.count_nonzero(triplet.core == NO_DATA) == 1


def test_what_is_not_such_an_image_is_named(tmp_path):
    public_files.pair(tmp_path, "ROIs1158_spring", "106", 30)
    (sample,) = sen12mscr.find(tmp_path).samples
    public_files.write(sample.files[0], np.zeros((4, SIZE, SIZE), np.uint16))
    with pytest.raises(CorruptFileError, match=f"{sample.files[0].name}: 4 bands of 32 x 32 pixels; expected 12 of 32"):
        sen12mscr.load(sample, RULES)
