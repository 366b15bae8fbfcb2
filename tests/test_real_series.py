"""The real benchmarks through the front door: real clouds over real ground, scored without a model and with one."""

import json
import shutil
from datetime import date
from pathlib import Path

import front_door
import h5py
import numpy as np
import pytest
import rasterio
import real_l1c
import real_series
import yaml

CONFIGS = front_door.CONFIG.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(shared_data, tmp_path_factory) -> Path:
    """All series, of which two summer months are kept."""
    folder = tmp_path_factory.mktemp("data")
    real_series.main(shared_data / "worldcereal_L2A", folder)
    real_l1c.main(shared_data, folder)
    for path in folder.glob("**/20??-*.tif"):
        if path.name[5:7] not in ("06", "07", "09"):
            path.unlink()
    return folder


def compare(name: str, data: Path, folder: Path, *, clouds: int, variants: tuple[str, ...] = (), **changes) -> Path:
    """The run folder of a shipped comparison, or of some of its variants, with so many clouds per clear date, and other
    keys of the base changed."""
    shutil.copy(CONFIGS / "series.yaml", folder)
    config = yaml.safe_load((CONFIGS / name).read_text())
    common = config["common"] = config.get("common", {}) | changes
    series = common.get("archive.series") or yaml.safe_load((folder / "series.yaml").read_text())["archive"]["series"]
    common["archive.series"] = [place | {"clouds": clouds} for place in series]
    (folder / name).write_text(yaml.safe_dump(config))
    env = {"CLOUDJOB_REAL": str(data)}
    only = [part for each in ("base", *variants) for part in ("--only", each)] if variants else []
    front_door.good("compare", folder / name, "--run-dir", folder / "run", *only, env=env, timeout=900)
    return folder / "run"


def summary(run: Path, variant: str) -> dict:
    return json.loads((run / variant / "evaluation" / "summary.json").read_text())


def on_clouds(run: Path, variant: str) -> dict[str, float]:
    """Method -> PSNR on all cloud pixels."""
    return {method: scores["cloud"]["psnr"] for method, scores in summary(run, variant)["scores"]["test"].items()}


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    return compare("real.yaml", data, tmp_path_factory.mktemp("real"), clouds=2)


def test_fills_are_ranked_on_real_ground_without_any_training(run):
    (variant,) = json.loads((run / "comparison.json").read_text())["variants"]
    assert (variant["scores"], variant["training"]["samples"]) == ({}, 0)
    psnr, found = on_clouds(run, "fills"), summary(run, "fills")
    assert psnr["similar_pixels"] > psnr["nearest_clear"] + 1
    assert psnr["nearest_clear"] > psnr["cloudy"] + 10
    assert "the best that learns nothing" in found["verdict"]
    assert "no model is scored" in found["verdict"]
    assert not (run / "fills" / "train").exists()


def test_the_ground_below_is_a_clear_date_and_the_reference_another_day(run, data):
    accepted = [pair for pair in rows(run) if pair["accepted"]]
    assert len(accepted) >= 8
    for pair in accepted:
        assert abs(pair["days"]) >= 2
        assert not (run / "base" / "truth" / f"{pair['clear']}.tif").exists(), "the reference lies below no clouds"
        with rasterio.open(data / "31UDS" / f"{day(pair['cloudy'])}.tif") as file:
            clear = file.read() + np.uint16(1000)
        with rasterio.open(run / "base" / "truth" / f"{pair['cloudy']}.tif") as file:
            assert np.array_equal(file.read(), clear)


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "base" / "pairs.jsonl").read_text().splitlines()]


def day(product: str) -> date:
    return date.fromisoformat(product[11:19])


def test_no_pair_is_rejected_since_the_ground_has_changed(run):
    records = [json.loads(path.read_text()) for path in (run / "base" / "records" / "shard").glob("*.json")]
    assert {record["status"] for record in records} == {"done"}


@pytest.mark.long  # the folds as such: tests/comparison/test_variants.py
def test_at_20_m_each_place_is_restored_by_a_network_of_the_other(data, tmp_path):
    places = {"31UDS": "31UES", "31UES": "31UDS"}
    train = {"preset": "tiny", "samples": 32, "batch_size": 16}
    changes = {"train": train, "evaluate": {"members": 1, "steps": [], "triplets": 8}}
    variants = tuple(f"ours-{tile}" for tile in places)
    run = compare("real-20m.yaml", data, tmp_path, clouds=1, variants=variants, **changes)
    for tile, other in places.items():
        index = json.loads((run / f"ours-{tile}" / "shards" / "index.json").read_text())
        found = {(file["split"], file["pair"].partition("_")[0]) for file in index["files"]}
        assert found == {("test", tile), ("train", other)}
        assert {file["target"] for file in index["files"]} == {"ground"}
        psnr = on_clouds(run, f"ours-{tile}")
        assert psnr["nearest_clear"] > psnr["cloudy"] + 5
        assert psnr["ours"] > psnr["cloudy"] + 5
        for file in index["files"]:
            with h5py.File(run / f"ours-{tile}" / "shards" / file["file"]) as shard:
                blocks = shard["clear"][:].reshape(-1, 4, 32, 2, 32, 2)
                assert np.array_equal(blocks.min((3, 5)), blocks.max((3, 5)))


def test_level_1c_has_a_table_of_its_own(data, tmp_path):
    run = compare("real-l1c.yaml", data, tmp_path, clouds=1, **{"evaluate.triplets": 20})
    psnr = on_clouds(run, "fills")
    assert psnr["first_guess"] > psnr["nearest_clear"] > psnr["cloudy"] + 5
