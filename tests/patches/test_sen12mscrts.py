"""SEN12MS-CR-TS: which of its dates become a triplet."""

from dataclasses import replace

import numpy as np
import public_files
import pytest
import rasterio
from public_files import RULES, thirteen

from cloudjob.patches.public import sen12mscrts
from cloudjob.patches.public.samples import THIRTEEN, Rules, cloud_share, hidden_share
from cloudjob.pixels import EMPTY_DN

DATES = {
    "2018-01-01": thirteen(1, cloud=16),
    "2018-02-01": thirteen(2, cloud=12),
    "2018-03-01": thirteen(3),
    "2018-03-20": thirteen(4, cloud=32),  # too cloudy
    "2018-04-01": thirteen(5),
    "2018-09-01": thirteen(6),
}


@pytest.fixture
def sample(tmp_path):
    public_files.series(tmp_path, "ROIs1868", "119", 7, DATES)
    (found,) = sen12mscrts.find(tmp_path).samples
    return found


def test_split_patch_and_days_come_from_the_names(sample, tmp_path):
    assert (sample.region, sample.split, sample.number) == ("ROIs1868_119", "test", 7)
    assert [f"{day}" for day in sample.days] == list(DATES)
    public_files.series(tmp_path, "ROIs1868", "11", 7, DATES)
    found = sen12mscrts.find(tmp_path)
    assert len(found.samples) == 1
    assert found.notes == ["1 regions in no published split: ROIs1868_11"]


def test_the_cloudy_and_the_clear_date_that_are_nearest_to_each_other_are_taken(sample):
    triplet = sen12mscrts.load(sample, RULES)
    bands = [THIRTEEN.index(name) for name in ("B04", "B03", "B02", "B08")]
    np.testing.assert_array_equal(triplet.clear, DATES["2018-03-01"][bands] + 1000)
    np.testing.assert_array_equal(triplet.cloudy, DATES["2018-02-01"][bands] + 1000)
    assert triplet.clear_days == 28
    assert triplet.reference_days == [59]  # the last is more than 60 days away
    np.testing.assert_array_equal(triplet.references[0], DATES["2018-04-01"][bands] + 1000)
    assert len(sen12mscrts.load(sample, replace(RULES, reference_days=365)).references) == 2


def test_without_a_clear_date_or_one_with_cloud_there_is_no_triplet(sample):
    assert sen12mscrts.load(replace(sample, files=sample.files[:2], days=sample.days[:2]), RULES) is None
    assert sen12mscrts.load(replace(sample, files=sample.files[4:], days=sample.days[4:]), RULES) is None


@pytest.mark.slow
def test_real_dates_of_a_place_give_a_triplet(shared_data, tmp_path):
    """Its two bands that were dropped, B06 and B07, are told by B05; nothing looks at them."""
    dates = {}
    for path in (shared_data / "sen12mscrts_ROI146_p0").glob("*.tif"):
        with rasterio.open(path) as image:
            bands = dict(zip(image.descriptions, image.read(), strict=True))
        bands |= {"B06": bands["B05"], "B07": bands["B05"]}
        dates[path.name.split("_")[5]] = np.stack([bands[name] for name in THIRTEEN])
    public_files.series(tmp_path, "ROIs2017", "146", 0, dates)
    (sample,) = sen12mscrts.find(tmp_path).samples
    assert sample.split == "train"
    triplet = sen12mscrts.load(sample, Rules(256, (0.05, 0.95), 0.01, 0.05, 3, 60))
    assert 0.05 <= cloud_share(triplet.core) <= 0.95
    assert hidden_share(triplet.core) < 1
    assert len(triplet.references) == 3
    assert abs(triplet.clear_days) <= 15
    assert all(np.mean(each == EMPTY_DN) <= 0.05 for each in triplet.references)
    clear, cloudy = (image[2].astype(float) for image in (triplet.clear, triplet.cloudy))
    hidden = triplet.core > 0
    assert np.abs(cloudy - clear)[hidden].mean() > 3 * np.abs(cloudy - clear)[~hidden].mean()
