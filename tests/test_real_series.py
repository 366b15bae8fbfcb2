"""The real benchmark through the front door: real clouds over real ground, scored without a model."""

import json
import shutil
from datetime import date

import front_door
import numpy as np
import pytest
import rasterio
import real_series
import yaml

ROOT = front_door.CONFIG.parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(shared_data, tmp_path_factory):
    """A summer of the series, two clouds per clear date."""
    folder = tmp_path_factory.mktemp("real")
    whole = real_series.main(shared_data / "worldcereal_L2A", folder / "whole")
    (folder / "summer" / "31UDS").mkdir(parents=True)
    for path in whole.glob("2018-0[67]-*.tif"):
        shutil.copy(path, folder / "summer" / "31UDS")
    for name in ("real.yaml", "series.yaml"):
        shutil.copy(ROOT / "configs" / name, folder)
    config = yaml.safe_load((folder / "series.yaml").read_text())
    config["archive"]["series"][0]["clouds"] = 2
    (folder / "series.yaml").write_text(yaml.safe_dump(config))
    env = {"CLOUDJOB_REAL": str(folder / "summer")}
    done = front_door.call("compare", folder / "real.yaml", "--run-dir", folder / "run", env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_fills_are_ranked_on_real_ground_without_any_training(run):
    (variant,) = json.loads((run / "comparison.json").read_text())["variants"]
    assert (variant["scores"], variant["training"]["samples"]) == ({}, 0)
    summary = json.loads((run / "fills" / "evaluation" / "summary.json").read_text())
    psnr = {method: scores["cloud"]["psnr"] for method, scores in summary["scores"]["test"].items()}
    assert psnr["similar_pixels"] > psnr["nearest_clear"] + 1
    assert psnr["nearest_clear"] > psnr["cloudy"] + 10
    assert "the best that learns nothing" in summary["verdict"]
    assert "no model is scored" in summary["verdict"]
    assert not (run / "fills" / "train").exists()


def test_the_ground_below_is_a_clear_date_and_the_reference_another_day(run):
    pairs = [json.loads(line) for line in (run / "base" / "pairs.jsonl").read_text().splitlines()]
    accepted = [pair for pair in pairs if pair["accepted"]]
    assert len(accepted) >= 8
    for pair in accepted:
        assert abs(pair["days"]) >= 2
        day = date.fromisoformat(pair["cloudy"][11:19])
        with rasterio.open(run.parent / "summer" / "31UDS" / f"{day}.tif") as file:
            clear = file.read() + np.uint16(1000)
        with rasterio.open(run / "base" / "truth" / f"{pair['cloudy']}.tif") as file:
            assert np.array_equal(file.read(), clear)
