"""What the statistics say of two small shards, counted by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from cloudjob.patches import stats
from cloudjob.patches.shard_writer import Writer
from cloudjob.patches.shards import ShardSet
from cloudjob.pixels import CIRRUS, CLOUD, EMPTY_DN, NO_DATA

WINDOW, COUNTS = 16, {"train": 3, "val": 1}
R2 = {"train": [0.9, 0.8, None, 0.95], "val": [None] * 4}
SHIFT = {"train": {"row": 0.25, "col": -0.5, "chips": 5}, "val": {"row": None, "col": None, "chips": 0, "why": "few"}}
FRACTIONS = {"train": [0.05, 0.12, 0.99], "val": [0.5]}
SHOWN = ((0.5, 0), (1, 0), (1, 1))  # cloudy, clear, reference: times the levels, plus 0.1 of reflectance
LEVELS = (2200, 3200, 4200, 6200)  # DN of the bands of the clear image: reflectance 0.12, 0.22, 0.32, 0.52


def write(folder, split):
    clear = np.broadcast_to(np.uint16(LEVELS)[:, None, None], (4, WINDOW, WINDOW)).copy()
    clear[:, :4] = EMPTY_DN
    other = clear + np.uint16(1000)
    mask = np.zeros((WINDOW, WINDOW), np.uint8)
    mask[:4], mask[4:8], mask[8, :8] = NO_DATA, CLOUD, CIRRUS
    lines = [{"gain": 1, "offset": 0, "r2": r2, "rmse": 1, "pixels": 9} for r2 in R2[split]]
    facts = {"radiometric_match": {"clear": {"lines": lines, "grid": None}}, "shift": SHIFT[split]}
    reference = split == "train"
    with Writer(
        folder / f"{split}.h5",
        COUNTS[split],
        window=WINDOW,
        pair=facts,
        attributes={},
        reference_days=[-7.5] if reference else [],
    ) as writer:
        for row, fraction in enumerate(FRACTIONS[split]):
            images = {"cloudy": clear // 2, "clear": clear, "reference": other, "mask": mask}
            writer.add(**images, row=row, col=0, cloud_fraction=fraction)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    files = []
    for split, count in COUNTS.items():
        write(folder, split)
        files.append({"file": f"{split}.h5", "count": count, "split": split, "pair": f"pair-{split}"})
    return folder, {"window": WINDOW, "counts": COUNTS, "files": files}


def test_every_pair_has_its_row(shards):
    found = stats.collect(*shards)["pairs"]
    assert [row["pair"] for row in found] == ["pair-train", "pair-val"]
    assert [row["split"] for row in found] == ["train", "val"]
    assert [row["triplets"] for row in found] == [3, 1]
    assert [row["cloud"] for row in found] == [0.3867, 0.5]
    assert [row["reference_days"] for row in found] == [-7.5, None]
    assert [row["r2"] for row in found] == [R2["train"], R2["val"]]
    assert [row["shift"] for row in found] == [[0.25, -0.5], [None, None]]


def test_a_pair_of_one_triplet_has_its_days(tmp_path, monkeypatch):
    monkeypatch.setitem(COUNTS, "train", 1)
    monkeypatch.setitem(FRACTIONS, "train", [0.05])
    write(tmp_path, "train")
    entry = {"file": "train.h5", "count": 1, "split": "train", "pair": "pair"}
    (row,) = stats.collect(tmp_path, {"window": WINDOW, "counts": {"train": 1}, "files": [entry]})["pairs"]
    assert (row["triplets"], row["reference_days"]) == (1, -7.5)


def test_cloud_fractions_are_counted_by_split_in_twentieths(shards):
    found = stats.collect(*shards)["cloud_fraction"]
    assert {split: np.flatnonzero(counts).tolist() for split, counts in found.items()} == {
        "train": [1, 2, 19],
        "val": [10],
    }
    assert {split: sum(counts) for split, counts in found.items()} == COUNTS


def test_reflectance_is_that_of_the_clear_images_where_they_have_data(shards):
    found = stats.collect(*shards)["reflectance"]
    assert list(found) == ["B04", "B03", "B02", "B08"]
    for shares, level in zip(found.values(), LEVELS, strict=True):
        assert sum(shares) == pytest.approx(1)
        place = np.argmax(shares)
        assert shares[place] == 1
        assert stats.LIGHT_EDGES[place] - 1e-6 <= level / 10000 - 0.1 <= stats.LIGHT_EDGES[place + 1] + 1e-6


def test_shares_of_the_classes_are_of_all_pixels_of_the_masks(shards):
    assert stats.collect(*shards)["classes"] == {
        "clear": 0.46875,
        "cloud": 0.25,
        "shadow": 0.0,
        "cirrus": 0.03125,
        "unknown": 0.0,
        "no data": 0.25,
    }


def test_an_empty_sample_has_no_shares(tmp_path):
    light, classes = stats._pixels(tmp_path, {"window": WINDOW, "counts": {}, "files": []})
    assert set(classes.values()) == {0}
    assert all(set(shares) == {0} for shares in light.values())


def test_a_sample_holds_some_of_every_split(shards):
    folder, index = shards
    for number, expected in ((1, 2), (2, 3), (4, 4), (100, 4)):
        assert len(list(stats.spread(folder, index, number))) == expected
    only = {**index, "files": index["files"][1:], "counts": {"val": 1}}
    (sample,) = stats.spread(folder, only, 3)
    np.testing.assert_array_equal(sample["cloudy"], ShardSet(folder, index, "val")[0]["cloudy"])


def test_text_has_a_line_per_pair_and_the_histograms(shards):
    lines = stats.text(stats.collect(*shards)).splitlines()
    assert lines[0].split() == ["pair", "split", "triplets", "cloud", "reference", "R2", "shift"]
    assert lines[1].split() == ["pair-train", "train", "3", "0.387", "-7.5", "d", "0.800", "+0.25", "-0.50"]
    assert lines[2].split() == ["pair-val", "val", "1", "0.500", "none", "-", "not", "measured"]
    start = lines.index("cloud fraction, train (3 triplets)")
    assert lines[start + 1 : start + 4] == [f"  {low}  {'#' * 50} 1" for low in ("0.05", "0.10", "0.95")]
    assert "pixels of the mask: clear 46.88%, cloud 25.00%, cirrus 3.12%, no data 25.00%" in lines
    assert lines[-4].split() == ["B04", "0.10", "0.10", "0.10"]
    assert lines[-1].split() == ["B08", "0.50", "0.50", "0.50"]


def test_reflectance_is_told_by_where_5_50_and_95_percent_are_reached(shards):
    found = stats.collect(*shards)
    found["reflectance"] = {"B04": [0, 0.04, 0.02, 0.42, 0.03, 0.43, 0.02, 0.04] + [0] * 24}  # 0.05 each, from -0.1
    found["reflectance"]["B08"] = [0] * 32  # all of it brighter than the histogram goes: its last step
    lines = [line.split() for line in stats.text(found).splitlines()]
    assert lines[-2:] == [["B04", "0.00", "0.10", "0.20"], ["B08", "1.45", "1.45", "1.45"]]


def test_a_bar_is_in_proportion_and_one_mark_at_least(shards):
    found = stats.collect(*shards)
    found["cloud_fraction"] = {"train": [100, 1, 0, 30]}
    lines = stats.text(found).splitlines()
    start = lines.index("cloud fraction, train (131 triplets)")
    assert [line.split()[1] for line in lines[start + 1 : start + 4]] == ["#" * 50, "#", "#" * 15]


def test_masks_need_not_hold_every_class(shards, monkeypatch):
    sample = {
        "mask": np.full((WINDOW, WINDOW), CLOUD, np.uint8),
        "clear": np.full((4, WINDOW, WINDOW), 2200, np.uint16),
    }
    monkeypatch.setattr(stats, "spread", lambda *_: iter([sample]))
    assert stats._pixels(*shards)[1]["cloud"] == 1


def test_a_picture_shows_the_roles_side_by_side_and_fills_up_rows_without_a_reference(shards):
    picture = np.asarray(Image.open(io.BytesIO(stats.picture(*shards, number=4, gain=1.0))))
    gap = 8
    assert picture.shape == (4 * (WINDOW + gap), 4 * WINDOW + 3 * gap, 3)
    lefts = [place * (WINDOW + gap) for place in range(4)]
    half, full, other = (255 * (np.array(LEVELS[:3]) * times / 10000 + 0.1 * more - 0.1) for times, more in SHOWN)
    inside = picture[12]  # of the first triplet: clear, and has data
    for left, expected in zip(lefts, (half, half, full, other), strict=True):
        np.testing.assert_allclose(inside[left + 3], expected, atol=1)
    cloud = picture[6]
    np.testing.assert_allclose(cloud[lefts[0] + 3], half, atol=1)
    magenta = np.array([255, 0, 255])  # the mask on the second image: faint within the cloud, opaque at its rim
    np.testing.assert_allclose(cloud[lefts[1] + 3], (half * 225 + magenta * 30) / 255, atol=1)
    assert picture[7, lefts[1] + 3].tolist() == magenta.tolist()
    np.testing.assert_allclose(cloud[lefts[2] + 3], full, atol=1)
    assert (picture[WINDOW : WINDOW + gap] == 255).all()
    without = picture[3 * (WINDOW + gap) :]
    assert (without[:WINDOW, lefts[3] :] == 0).all()
