"""Real pixels from pairs to batches: ten triplets, 21 pairs, and a season of one place with ESA's classification."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import real_l1c
import yaml
from affine import Affine
from front_door import good

from cloudjob.archive.safe import write_product
from cloudjob.patches import loader
from cloudjob.patches.shards import ShardSet

pytestmark = pytest.mark.slow
SNOW_OVER_CLOUD = "20180923"  # its classification calls thick cloud snow
HAZY = ("20180625", "20180713")  # its classification calls them clear


def dates_of_one_place(shared_data: Path, archive: Path) -> None:
    """T31UDS: products from the recorded pixels, classification, B11 and sun."""
    import xarray

    folder = shared_data / "worldcereal_L2A"
    with (
        xarray.open_dataset(next(folder.glob("S2_L2A_10m_00002806639B424A*.nc")), mask_and_scale=False) as fine,
        xarray.open_dataset(next(folder.glob("S2_L2A_20m_00002806639B424A*.nc")), mask_and_scale=False) as coarse,
    ):
        for number, moment in enumerate(fine["timestamp"].values.astype("datetime64[s]").tolist()):
            bands = np.stack([fine[band].values[number] for band in ("B04", "B03", "B02", "B08")])
            scl = coarse["SCL"].values[number].astype(np.uint8)
            b11 = coarse["B11"].values[number].repeat(2, 0).repeat(2, 1)[::6, ::6]
            zenith = float(coarse["sunZenithAngles"].values[number])
            write_product(
                archive,
                name=f"S2A_MSIL2A_{moment:%Y%m%dT%H%M%S}_N0207_R051_T31UDS_{moment:%Y%m%d}T170000",
                bands=np.where(bands > 0, bands + 1000, 0).astype(np.uint16),
                scl=scl,
                cloud_probability=np.select([scl == 9, scl == 8, scl == 10], [90, 50, 20]).astype(np.uint8),
                snow_probability=np.where(scl == 11, 90, 0).astype(np.uint8),
                b11=np.where(b11 > 0, b11 + 1000, 0).astype(np.uint16),
                crs="EPSG:32631",
                transform=Affine(10, 0, 501360, 0, -10, 5629680),
                offset=0,
                sun_elevation=90 - zenith,
                sun_azimuth=160.0,
            )


@pytest.fixture(scope="module")
def run(shared_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real-triplets")
    dates_of_one_place(shared_data, folder / "archive")
    whole = {"start": "2018-05-15", "end": "2018-10-31"}
    config = {
        "archive": {"path": str(folder / "archive"), "rasters": real_l1c.pairs(shared_data, folder / "pairs")},
        "search": {
            "polygon": [[-179, -80], [-179, 80], [179, 80], [179, -80], [-179, -80]],
            "clear": {**whole, "cloud": [0, 5]},
            "cloudy": {**whole, "cloud": [5, 100]},
        },
        "shard": {"window": 32, "stride": 16, "cloud": [0.05, 0.6], "max_per_pair": 100},
    }
    (folder / "real.yaml").write_text(yaml.safe_dump(config))
    good("run", folder / "real.yaml", "--run-dir", folder / "run", "--until", "shard", timeout=600)
    return folder / "run"


def rows(run):
    return [json.loads(line) for line in (run / "pairs.jsonl").read_text().splitlines()]


def records(run):
    return [json.loads(path.read_text()) for path in sorted((run / "records" / "shard").glob("*.json"))]


def test_everything_is_accepted_or_rejected_with_its_reason(run):
    shown = [row for row in rows(run) if row["shown"]]
    assert {row["pair"][:3] for row in shown} >= {"31T", "31U"}
    assert all(row["accepted"] or row["reasons"] for row in rows(run))
    with (run / "review" / "decisions.csv").open() as file:
        assert [row["decision"] == "accept" for row in csv.DictReader(file)] == [row["accepted"] for row in shown]
    found = records(run)
    assert {record["status"] for record in found} == {"done", "rejected"}
    assert all(record["message"] for record in found if record["status"] == "rejected")


def test_cloud_called_snow_and_haze_called_clear_are_never_a_target_or_a_reference(run):
    taken = [row for row in rows(run) if row["accepted"] and row["pair"].startswith("31UDS")]
    assert len(taken) >= 5
    used = {row[role].split("_")[2][:8] for row in taken for role in ("clear", "reference") if row[role]}
    assert not used & {SNOW_OVER_CLOUD, *HAZY}
    for day in (SNOW_OVER_CLOUD, *HAZY):
        reasons = [row["reasons"] for row in rows(run) if f"_{day}T" in row["clear"] and abs(row["days"]) <= 30]
        assert reasons
        assert all(any("doubtful" in reason for reason in each) for each in reasons)


def test_the_reference_is_another_acquisition_than_the_target(run):
    taken = [row for row in rows(run) if row["accepted"] and row["reference"]]
    assert taken
    assert all(row["reference"] not in (row["clear"], row["cloudy"]) for row in taken)


def test_batches_are_the_pixels_of_the_shards(run):
    index = json.loads((run / "shards" / "index.json").read_text())
    triplets = ShardSet(run / "shards", index, "train")
    seen = 0
    for numbers, arrays in loader.batches(triplets, seed=1, start=0, stop=len(triplets), batch=16, threads=2):
        for number, *images in zip(numbers, arrays["cloudy"], arrays["clear"], arrays["mask"], strict=True):
            expected = triplets[loader.position(1, number, len(triplets))]
            for image, name in zip(images, ("cloudy", "clear", "mask"), strict=True):
                np.testing.assert_array_equal(image, expected[name])
        clear = (arrays["mask"] == 0)[:, None] & (arrays["clear"] > 0)
        difference = np.abs(arrays["cloudy"].astype(int) - arrays["clear"])
        assert np.median(difference[clear]) < 400  # 0.04 of reflectance where both are clear
        seen += len(numbers)
    assert seen == index["counts"]["train"] > 50


def test_what_a_shard_says_of_itself(run):
    done = good("shard", run, "--stats")
    assert "cloud fraction, train" in done.stdout
    rejected = [record["item"] for record in records(run) if record["status"] == "rejected"]
    assert all(f"rejected {name}: " in done.stdout for name in rejected)
