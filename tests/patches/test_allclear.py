"""AllClear: its lists, wherever its authors had their files."""

import numpy as np
import public_files
import pytest
from public_files import CLOUDY_ROWS, RULES, SIZE

from cloudjob.errors import CorruptFileError
from cloudjob.patches.public import allclear
from cloudjob.pixels import CLEAR, CLOUD, EMPTY_DN, NO_DATA, SHADOW

DAYS = ["2022-01-05", "2022-02-11", "2022-03-01"]


@pytest.fixture
def folder(tmp_path):
    public_files.allclear(tmp_path, "test", "roi12", DAYS, "2022-02-22")
    return tmp_path


def test_the_date_nearest_to_the_target_is_restored_and_the_others_are_references(folder):
    (sample,) = allclear.find(folder).samples
    assert sample.split == "test"
    triplet = allclear.load(sample, RULES)
    np.testing.assert_array_equal(triplet.cloudy, public_files.thirteen(2, CLOUDY_ROWS)[[3, 2, 1, 7]] + 1000)
    np.testing.assert_array_equal(triplet.clear, public_files.thirteen(3)[[3, 2, 1, 7]] + 1000)
    assert triplet.clear_days == -7
    assert list(triplet.reference_days) == [-18, -55]
    expected = np.select([np.arange(SIZE) < CLOUDY_ROWS, np.arange(SIZE) >= SIZE - 4], [CLOUD, SHADOW], CLEAR)
    np.testing.assert_array_equal(triplet.core[:, 1:], expected[:, None].repeat(SIZE - 1, 1))
    assert (triplet.core[:, 0] == NO_DATA).all()  # hidden in the target
    for reference in triplet.references:
        np.testing.assert_array_equal(reference == EMPTY_DN, np.broadcast_to(triplet.core != CLEAR, reference.shape))


def test_of_several_lists_of_a_split_the_largest_counts(folder):
    public_files.allclear(folder, "train", "roi3", DAYS, "2022-02-20", share="3.4")
    public_files.allclear(folder, "train", "roi4", DAYS, "2022-02-20", share="10")
    assert allclear.find(folder).notes == [
        "train: train_tx3_s2-s1_10pct.json, 1 samples",
        "test: test_tx3_s2-s1_100pct.json, 1 samples",
    ]


def test_a_sample_whose_files_are_not_all_there_is_left_and_counted(folder):
    next(folder.glob("data/roi12/*/cld_shdw/*_2_11_*.tif")).unlink()
    found = allclear.find(folder)
    assert not found.samples
    assert found.notes == ["test: test_tx3_s2-s1_100pct.json, 0 samples, 1 without"]


@pytest.mark.parametrize("text", ["[1]", '{"0": {}}', '{"0": {"roi": ["roi12"], "s2_toa": [["today", "x"]]}}', "{"])
def test_what_is_no_list_is_named(folder, text):
    path = folder / "metadata" / "datasets" / "test_tx3_s2-s1_100pct.json"
    path.write_text(text)
    with pytest.raises(CorruptFileError, match=path.name):
        allclear.find(folder)
