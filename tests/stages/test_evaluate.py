"""evaluate on the held-out triplets, through the front door."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from front_door import call, copied
from skimage.metrics import peak_signal_noise_ratio

from cloudjob.diffusion import checkpoint
from cloudjob.patches.shards import ShardSet
from cloudjob.pixels import HIDDEN
from cloudjob.sentinel2.radiometry import reflectance

pytestmark = pytest.mark.slow


def cloudjob(*arguments, code: int = 0):
    done = call(*arguments)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory) -> Path:
    folder = copied(finished, tmp_path_factory.mktemp("evaluate") / "run", until="shard")
    settings = ("evaluate.of=triplets", "evaluate.members=3", "evaluate.triplets=12", "train.samples=160")
    overrides = [part for setting in settings for part in ("--set", setting)]
    cloudjob("run", folder, "--until", "train", *overrides)
    cloudjob("evaluate", folder)
    return folder


def summary(run) -> dict:
    return json.loads((run / "evaluation" / "summary.json").read_text())


def test_the_baselines_are_scored_on_the_pixels_of_the_shard(run):
    index = json.loads((run / "shards" / "index.json").read_text())
    shards = ShardSet(run / "shards", index, "test")
    chosen = [shards[place * len(shards) // 12] for place in range(12)]
    hidden = np.stack([np.isin(one["mask"], HIDDEN) for one in chosen])
    truth, cloudy, nearest = (
        np.stack([reflectance(one[name]) for one in chosen]).transpose(0, 2, 3, 1)[hidden]
        for name in ("clear", "cloudy", "reference")
    )
    known = np.isfinite(nearest).all(1)
    scores = summary(run)["scores"]["test"]
    assert scores["cloudy"]["cloud"]["psnr"] == pytest.approx(
        peak_signal_noise_ratio(truth, cloudy, data_range=1), abs=1e-3
    )
    expected = peak_signal_noise_ratio(truth[known], nearest[known], data_range=1)
    assert scores["nearest_matched"]["cloud"]["psnr"] == pytest.approx(expected, abs=1e-3)


def test_the_truth_is_the_ground_of_the_day_and_clear_pixels_are_exact(run):
    found = summary(run)
    assert found["changed_clear_pixels"] == 0
    assert {entry["target"] for entry in json.loads((run / "shards/index.json").read_text())["files"]} == {
        "ground",
        "clear date",
    }
    assert found["scores"]["test"]["ours"]["clear"]["psnr"] == found["scores"]["test"]["cloudy"]["clear"]["psnr"]
    assert found["scores"]["test"]["ours"]["cloud"]["triplets"] == 12
    assert 0 <= found["ensemble"]["coverage_50"] <= found["ensemble"]["coverage_90"] <= 1
    assert found["strata"]


def test_scores_are_made_once_and_come_out_the_same_again(run):
    before = {path.name: path.read_bytes() for path in (run / "evaluation").iterdir()}
    assert "1 skipped" in cloudjob("evaluate", run).stderr
    cloudjob("evaluate", run, "--force")
    assert {path.name: path.read_bytes() for path in (run / "evaluation").iterdir()} == before


def test_a_checkpoint_from_elsewhere_gives_the_same_scores(run, tmp_path):
    """In a run that has shards but never trained."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    trained = max((run / "train" / "checkpoints").glob("*.pt"))
    for folder in ("train", "evaluation", "records/train", "records/evaluate"):
        shutil.rmtree(other / folder)
    cloudjob("evaluate", other, "--set", f"infer.checkpoint={trained}")
    assert summary(other) == summary(run)


@pytest.mark.parametrize("stage", ["evaluate", "infer"])
def test_a_checkpoint_of_another_version_is_said_to_be_one(run, tmp_path, stage):
    state = checkpoint.load(checkpoint.newest(run / "train" / "checkpoints"))
    del state.recipe["std"]
    path = checkpoint.save(tmp_path, replace(state, seen=1))
    other = shutil.copytree(run, tmp_path / "other")
    said = cloudjob(stage, other, "--set", f"infer.checkpoint={path}", code=4).stderr
    lacking = "Recipe.of() missing 1 required keyword-only argument: 'std'"
    assert f"{path}: is not a checkpoint of this version ({lacking})" in said
    assert "Traceback" not in said


def test_the_factors_on_the_spread_hold_for_the_steps_that_are_taken(run, tmp_path):
    """Training found those of infer.steps; evaluate finds others anew, and infer says that it has none."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    cloudjob("evaluate", other, "--set", "infer.steps=3")
    assert summary(other)["ensemble"] != summary(run)["ensemble"]
    options = [part for setting in ("infer.steps=3", "infer.members=2") for part in ("--set", setting)]
    said = cloudjob("infer", other, *options, "--index", 0).stderr
    assert "calibrated for other steps than 3 of euler" in said
    (scene,) = (other / "outputs").glob("*/*.h5")
    with h5py.File(scene) as file:
        assert file.attrs["uncertainty_factors"] == "1.0000 1.0000 1.0000 1.0000"
    trained = yaml.safe_load((run / "config.yaml").read_text())["infer"]["steps"]
    cloudjob("infer", other, "--set", f"infer.steps={trained}", "--index", 0)
    with h5py.File(scene) as file:
        assert file.attrs["uncertainty_factors"] != "1.0000 1.0000 1.0000 1.0000"
