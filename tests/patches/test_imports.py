"""Parts of public data sets become shards, each triplet with its own days."""

import json

import numpy as np
import public_files
import pytest
from public_files import RULES, thirteen

from cloudjob.errors import ConfigError, InterruptedJob, RejectedError
from cloudjob.patches import shards
from cloudjob.patches.public import imports
from cloudjob.pixels import CLOUD, EMPTY_DN, HIDDEN
from cloudjob.sentinel2.masks import Settings

DATES = {"2018-01-01": thirteen(1, cloud=16), "2018-01-11": thirteen(2), "2018-02-01": thirteen(3)}
NO_GROWTH = Settings(cloud_m=0, shadow_m=0, cirrus_m=0)


def write(folder, kind, path, *, growth=NO_GROWTH, rules=RULES, stopped=lambda: False, part=0):
    part = imports.parts(kind, folder)[0][part]
    more = {"compression": "none", "attributes": {}, "stopped": stopped}
    return part, imports.write(path, kind, part, rules, growth, **more)


def shard_set(path, result, split):
    entry = {"file": path.name, "count": result["count"], "split": split}
    return shards.ShardSet(path.parent, {"window": result["window"], "files": [entry]}, split)


def test_a_region_is_a_part_and_a_large_one_several(tmp_path, monkeypatch):
    for patch in range(5):
        public_files.pair(tmp_path, "ROIs1158_spring", "1", patch)
    public_files.pair(tmp_path, "ROIs1868_summer", "119", 0)
    monkeypatch.setattr(imports, "_MOST", 3)
    found, _ = imports.parts("sen12mscr", tmp_path)
    assert [(part.name, part.split, [each.number for each in part.samples]) for part in found] == [
        ("ROIs1868_119", "test", [0]),
        ("ROIs1158_1_000", "train", [0, 1, 2]),
        ("ROIs1158_1_001", "train", [3, 4]),
    ]


def test_triplets_of_a_shard_have_days_and_references_of_their_own(tmp_path):
    public_files.series(tmp_path, "ROIs1868", "119", 0, DATES)
    later = {day.replace("02-01", "03-01"): image for day, image in DATES.items()}
    public_files.series(tmp_path, "ROIs1868", "119", 1, later)
    public_files.series(tmp_path, "ROIs1868", "119", 2, dict(list(DATES.items())[:2]))
    part, result = write(tmp_path, "sen12mscr-ts", tmp_path / "a.h5")
    assert (part.split, result["count"], result["references"]) == ("test", 3, 3)
    found = shard_set(tmp_path / "a.h5", result, "test")
    positions, arrays = found.evenly(3, references=3)
    assert positions == [0, 1, 2]
    np.testing.assert_array_equal(arrays["clear_days"], [10, 10, 10])
    np.testing.assert_array_equal(arrays["reference_days"], [31, 59, np.nan])
    np.testing.assert_array_equal(arrays["reference2_days"], [np.nan] * 3)
    assert [np.any(each != EMPTY_DN) for each in arrays["reference"]] == [True, True, False]
    buffers = found.buffers(2)
    filler = shards.Filler(found, buffers)
    filler.fill(filler.plan([2, 1]))
    np.testing.assert_array_equal(buffers["reference_days"], [np.nan, 59])
    np.testing.assert_array_equal(buffers["clear"], arrays["clear"][[2, 1]])


def test_a_shard_says_what_it_is_of(tmp_path):
    public_files.pair(tmp_path, "ROIs1158_spring", "106", 30)
    write(tmp_path, "sen12mscr", tmp_path / "a.h5")
    (facts,) = json.loads(shards.columns(tmp_path / "a.h5")["attributes"]["pairs"])
    assert (facts["level"], facts["data_set"], facts["pair"]) == ("L1C", "sen12mscr", "ROIs1158_106")
    assert "DSen2-CR" in facts["masks"]


def test_masks_grow_but_for_those_that_are_grown(tmp_path):
    public_files.allclear(tmp_path, "test", "roi12", ["2022-01-05", "2022-02-11"], "2022-02-20")
    public_files.sen2mtc(tmp_path, "test", "T12TUR_R027", 12)
    shares = []
    for kind in ("allclear", "sen2mtc"):
        _, result = write(tmp_path, kind, tmp_path / f"{kind}.h5", growth=Settings(cloud_m=20))
        shares.append((shard_set(tmp_path / f"{kind}.h5", result, "test")[0]["mask"][:, 1] == CLOUD).sum())
    assert shares == [16, 18]


def test_a_part_without_a_triplet_is_rejected_and_a_wish_to_stop_ends_it(tmp_path):
    public_files.series(tmp_path, "ROIs1868", "119", 0, {day: thirteen(0) for day in DATES})
    with pytest.raises(RejectedError, match="none of 1 patches"):
        write(tmp_path, "sen12mscr-ts", tmp_path / "a.h5")
    with pytest.raises(InterruptedJob):
        write(tmp_path, "sen12mscr-ts", tmp_path / "a.h5", stopped=lambda: True)


def test_a_folder_of_something_else_says_what_is_expected(tmp_path):
    for kind, words in (("sen12mscr", "s2_cloudy"), ("allclear", "metadata"), ("sen2mtc", r"no train\.txt")):
        with pytest.raises(ConfigError, match=words):
            imports.parts(kind, tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        imports.parts("sen12mscr", tmp_path / "none")


@pytest.mark.slow
def test_real_pairs_are_hidden_where_they_differ(shared_data, tmp_path):
    """Of the 21 pairs B01 is told by B02; B10 and B11 are real, and nothing looks at the others."""
    like = {"B01": 2, "B02": 2, "B03": 1, "B04": 0, "B08": 3, "B10": 5, "B11": 4}
    for path in (shared_data / "sen12mscr_pairs_6band").glob("*.npz"):
        *season, region, patch = path.stem.split("_")
        season = "_".join(season)
        with np.load(path) as six:
            for kind in ("s2_cloudy", "s2"):
                image = np.stack([six[kind][like.get(band, 0)] for band in public_files.THIRTEEN])
                name = f"{season}_{kind}_{region}_p{patch}.tif"
                public_files.write(tmp_path / f"{season}_{kind}" / f"{kind}_{region}" / name, image)
    found, notes = imports.parts("sen12mscr", tmp_path)
    assert not notes
    assert {part.split for part in found} == {"train"}
    assert sum(len(part.samples) for part in found) == 21
    rules = RULES.__class__(256, (0, 1), 1, 1, 0, 0)
    part = next(number for number, part in enumerate(found) if part.name == "ROIs1970_136")
    _, result = write(tmp_path, "sen12mscr", tmp_path / "a.h5", growth=Settings(), rules=rules, part=part)
    triplets = shard_set(tmp_path / "a.h5", result, "train").evenly(12)[1]
    hidden = np.isin(triplets["mask"], HIDDEN)
    assert hidden.mean() > 0.5  # thick cloud over most of them
    change = np.abs(triplets["cloudy"].astype(float) - triplets["clear"]).mean(1)
    assert change[hidden].mean() > 5 * change[~hidden].mean()
