"""shard through the front door: array tasks, presets, masks of one's own, statistics, and what a person decided."""

import csv
import json
import subprocess
from datetime import datetime
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401 (reads zstd)
import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from forked import Forked
from front_door import CLOUDJOB, CONFIG, call, copied, good

from cloudjob.benches import notebook
from cloudjob.sentinel2.product import Product, read_bands, read_scl

pytestmark = pytest.mark.slow


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """Fetched, and not cut yet."""
    return copied(finished, tmp_path / "run", until="download")


@pytest.fixture
def cut(finished, tmp_path) -> Path:
    """A run with its shards, and nothing after them."""
    return copied(finished, tmp_path / "run", until="shard")


def shards(run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "shards").iterdir()}


def index(run) -> dict:
    return json.loads((run / "shards" / "index.json").read_text())


def test_array_tasks_side_by_side_give_what_one_task_gives(run, finished):
    tasks = good("items", "shard", run, "--as-array").stdout.strip()
    assert tasks == "0-2"
    command = [*CLOUDJOB, "shard", str(run), "--index"]
    array = [Forked([*command, str(i)], stderr=subprocess.DEVNULL) for i in range(3)]
    assert [task.wait(timeout=300) for task in array] == [0, 0, 0]
    assert shards(run) == shards(finished)
    done = good("shard", run)
    assert "3 skipped" in done.stderr


def test_the_settings_are_in_the_shard(cut):
    for path in (cut / "shards").glob("*.h5"):
        with h5py.File(path) as file:
            settings = json.loads(file.attrs["settings"])
            (pair,) = json.loads(file.attrs["pairs"])
            assert settings["masks"]["cloud_m"] == 50
            assert settings["shard"]["stride"] == 24
            known = {"gain", "offset", "r2", "rmse", "r2_all", "kept", "pixels"}
            assert set(pair["radiometric_match"]["clear"]["lines"][0]) == known
            assert pair["windows"]["kept"] == len(file["row"]) == len(file["cloudy"])
            assert file["reference_days"][0] == (10 if pair["target"] == "clear date" else -6)
            assert set(np.unique(file["mask"])) <= {0, 1, 2, 3, 4, 255}


def test_the_notebooks_preset_selects_what_its_loop_selects(run):
    good("shard", run, "--set", "shard.preset=notebook-2025", "--set", "shard.window=64")
    found = {}
    for path in (run / "shards").glob("*.h5"):
        with h5py.File(path) as file:
            cloudy = json.loads(file.attrs["pairs"])[0]["products"]["cloudy"]
            found[cloudy] = list(zip(file["row"][:].tolist(), file["col"][:].tolist(), strict=True))
            product = Product.open(run / "scenes" / f"{cloudy}.SAFE")
            scl = read_scl(product).repeat(2, 0).repeat(2, 1)
            bands = read_bands(product)
            for i, (row, col) in enumerate(found[cloudy]):
                here = np.s_[row : row + 64, col : col + 64]
                np.testing.assert_array_equal(file["cloudy"][i], bands[:, *here])
                np.testing.assert_array_equal(file["mask"][i] > 0, np.isin(scl[here], (3, 8, 9, 10)))
            assert found[cloudy] == notebook.select(scl, window=64, stride=64)
    assert found


@pytest.mark.parametrize("radiometry", ["none", "grid"])
def test_the_match_can_be_left_out_or_vary_over_the_scene(run, radiometry):
    good("shard", run, "--set", f"shard.radiometry={radiometry}")
    entry = next(entry for entry in index(run)["files"] if entry["split"] == "train")
    with h5py.File(run / "shards" / entry["file"]) as file:
        (pair,) = json.loads(file.attrs["pairs"])
        bands = read_bands(Product.open(run / "scenes" / f"{pair['products']['clear']}.SAFE"))
        row, col = file["row"][0], file["col"][0]
        source = bands[:, row : row + 32, col : col + 32]
        assert np.array_equal(file["clear"][0], source) == (radiometry == "none")
        assert (pair["radiometric_match"]["clear"]["grid"] is None) == (radiometry == "none")
        assert np.abs(file["clear"][0].astype(int) - source).max() < 1500


@pytest.mark.parametrize("option", ["radiometry=none", "radiometry=line", "preset=notebook-2025", "truth=false"])
def test_what_is_held_out_is_judged_by_the_ground_of_the_day(run, option):
    good("shard", run, "--set", f"shard.{option}")
    for entry in index(run)["files"]:
        ground = entry["split"] != "train" and option != "truth=false"
        with h5py.File(run / "shards" / entry["file"]) as file:
            (pair,) = json.loads(file.attrs["pairs"])
            assert entry["target"] == pair["target"] == ("ground" if ground else "clear date")
            with rasterio.open(run / "truth" / f"{pair['products']['cloudy']}.tif") as image:
                truth = image.read()
            bands = read_bands(Product.open(run / "scenes" / f"{pair['products']['clear']}.SAFE"))
            size = file["mask"].shape[-1]
            for row, col, clear, reference in zip(
                file["row"][:], file["col"][:], file["clear"][:], file["reference"][:], strict=True
            ):
                here = np.s_[:, row : row + size, col : col + size]
                assert np.array_equal(clear, truth[here]) == ground
                if ground:
                    seen = reference > 0
                    assert (seen.all(0) == seen.any(0)).all()
                    assert seen.mean() > 0.8
                    difference = np.abs(reference.astype(int) - bands[here])[seen]
                    assert difference.max() == 0 if "none" in option else 0 < difference.mean() < 500
            assert set(file["reference_days"][:]) == {-6 if ground else 10}


def test_tiles_are_kept_for_testing(cut):
    run = cut
    tiles = {entry["split"]: entry["pair"].split("_")[0] for entry in index(run)["files"]}
    said = good("shard", run, "--set", f"shard.split.test_tiles=[{tiles['train']}, 06WVC]").stderr
    assert "test_tiles: no accepted pair is of 06WVC" in said
    assert {e["pair"].split("_")[0] for e in index(run)["files"] if e["split"] == "test"} > {tiles["train"]}


def test_triplets_may_all_be_for_testing_but_then_there_is_no_training(cut):
    run = cut
    tiles = sorted({entry["pair"].split("_")[0] for entry in index(run)["files"]})
    good("shard", run, "--set", f"shard.split.test_tiles={json.dumps(tiles)}")
    assert {entry["split"] for entry in index(run)["files"]} == {"test"}
    done = call("train", run)
    assert done.returncode == 2
    assert "no triplet to train on" in done.stderr


def replace_truth(run, product, change):
    """In the archive, from where a download brings it again."""
    path = run / "archive" / "truth" / f"{product}.tif"
    with rasterio.open(path) as image:
        pixels, facts = change(image.read()), image.profile
    path.unlink()
    with rasterio.open(path, "w", **facts | {"height": pixels.shape[1], "width": pixels.shape[2]}) as image:
        image.write(pixels)
    (run / "truth" / path.name).unlink()
    good("download", run)


def test_another_ground_makes_its_shard_again_and_one_of_another_size_is_named(cut):
    run = cut
    held_out = next(entry["pair"] for entry in index(run)["files"] if entry["split"] == "test")
    rows = [json.loads(line) for line in (run / "pairs.jsonl").read_text().splitlines()]
    product = next(row["cloudy"] for row in rows if row["pair"] == held_out)
    replace_truth(run, product, lambda pixels: pixels + np.uint16(7))
    assert "1 done, 2 skipped" in good("shard", run).stderr
    replace_truth(run, product, lambda pixels: pixels[:, :100])
    done = call("shard", run)
    assert done.returncode == 4
    assert f"{product}.tif: (4, 100, 192) uint16, the scene has (4, 192, 192) uint16" in done.stderr
    assert "Traceback" not in done.stderr
    assert (run / "truth" / f"{product}.tif").exists()


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_compressed_shards_hold_the_same(run, finished, compression):
    plain = index(finished)
    good("shard", run, "--set", f"shard.compression={compression}")
    for entry in index(run)["files"]:
        with h5py.File(finished / "shards" / entry["file"]) as a, h5py.File(run / "shards" / entry["file"]) as b:
            for name in ("cloudy", "clear", "mask", "reference"):
                np.testing.assert_array_equal(a[name][:], b[name][:])
    assert sum(f["size"] for f in index(run)["files"]) < 0.9 * sum(f["size"] for f in plain["files"])


def test_masks_of_ones_own_replace_those_of_esa(run, tmp_path):
    """All is clear but for a square, in values of another kind of mask."""
    folder = tmp_path / "masks"
    folder.mkdir()
    options = [
        "--set",
        "masks.source=raster",
        "--set",
        f"masks.folder={folder}",
        "--set",
        "masks.values={clear: [0, 1], cloud: [7]}",
    ]
    options += ["--set", "masks.brighter=1", "--set", "masks.cloud_m=0", "--set", "pair.max_snow_difference=1"]
    done = call("pair", run, *options)
    assert done.returncode == 4  # each product whose mask is missing is named
    assert ".tif" in done.stderr
    assert "Traceback" not in done.stderr
    for safe in sorted((run / "scenes").glob("*.SAFE")):
        product = Product.open(safe)
        values = np.zeros(product.shape, np.uint8)
        cloudy = "20240310" in safe.name
        values[40:100, 30:90] = 7 if cloudy else 1
        with rasterio.open(
            folder / f"{safe.stem}.tif", "w", driver="GTiff", dtype="uint8", count=1, crs=product.crs,
            width=product.shape[1], height=product.shape[0], transform=product.transform,
        ) as image:  # fmt: skip
            image.write(values, 1)
    for stage in ("pair", "review", "download", "shard"):
        good(stage, run, *options)
    for entry in index(run)["files"]:
        with h5py.File(run / "shards" / entry["file"]) as file:
            for row, col, mask in zip(file["row"][:], file["col"][:], file["mask"][:], strict=True):
                expected = np.zeros((192, 192), np.uint8)
                expected[40:100, 30:90] = 1
                np.testing.assert_array_equal(mask, expected[row : row + 32, col : col + 32])
    with rasterio.open(next(folder.glob("*_20240310T*.tif")), "r+") as image:
        image.write(image.read(1) * 0, 1)
    assert "0 done, 2 skipped, 1 rejected" in good("pair", run, *options).stderr


def test_a_person_may_accept_what_the_rule_rejected(run):
    rows = [json.loads(line) for line in (run / "pairs.jsonl").read_text().splitlines()]
    kept = [row["pair"] for row in rows if row["accepted"]]
    rule = ["--set", "pair.cloudy_range=[0.01, 0.2]"]
    call("pair", run, *rule)
    good("review", run, *rule)
    decisions = run / "review" / "decisions.csv"
    with decisions.open() as file:
        found = list(csv.DictReader(file))
    rejected = [row for row in found if row["decision"] == "reject"]
    assert rejected
    assert len(found) == len(kept)
    with decisions.open("w", newline="") as file:
        writer = csv.DictWriter(file, found[0].keys())
        writer.writeheader()
        writer.writerows({**row, "decision": "accept", "reviewer": "me"} for row in found)
    for stage in ("review", "download", "shard"):
        good(stage, run, *rule)
    assert {entry["pair"] for entry in index(run)["files"]} == set(kept)


def test_a_damaged_shard_is_named_set_aside_and_made_again(cut):
    run = cut
    entry = next(entry for entry in index(run)["files"] if entry["split"] == "train")
    path = run / "shards" / entry["file"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = call("train", run)
    assert done.returncode == 4, done.stderr
    assert entry["file"] in done.stderr
    assert "Traceback" not in done.stderr
    good("shard", run)
    assert entry in index(run)["files"]
    good("train", run, "--set", "train.epochs=0.2")


def test_statistics(run, finished):
    assert call("shard", run, "--stats").returncode == 3
    said = good("shard", finished, "--stats").stdout
    for entry in index(finished)["files"]:
        assert entry["pair"] in said
    assert "cloud fraction, train" in said
    assert "pixels of the mask" in said


def test_dates_that_do_not_lie_on_each_other_are_no_pair(tmp_path):
    """The clear date is moved by a column: nothing but the bands at full resolution shows it."""
    from cloudjob.archive.synthetic import acquire

    days = {"cloudy": ("2024-03-08", 0.04), "clear": ("2024-03-12", 0.0)}
    for role, (day, cloud) in days.items():
        seen = acquire(tile="05WPS", when=datetime.fromisoformat(f"{day}T22:00+00:00"), size=512, seed=3, cloud=cloud)
        bands = np.roll(seen.bands, 1, 2) if role == "clear" else seen.bands
        layers = {role: bands, "mask": np.isin(seen.scl, (3, 8, 9, 10)).repeat(2, 0).repeat(2, 1)[None].astype("u1")}
        for name in (role, "mask") if role == "cloudy" else (role,):
            facts = {"crs": "EPSG:32605", "transform": Affine(10, 0, 500000, 0, -10, 7800000)}
            count, height, width = layers[name].shape
            facts |= {"count": count, "height": height, "width": width, "dtype": layers[name].dtype}
            with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", **facts) as file:
                file.write(layers[name])
    raster = {"tile": "05WPS"} | {name: str(tmp_path / f"{name}.tif") for name in ("cloudy", "clear", "mask")}
    raster |= {f"{role}_date": day for role, (day, _) in days.items()}
    month = {"start": "2024-03-01", "end": "2024-03-31"}
    config = yaml.safe_load(CONFIG.read_text())
    config |= {"archive": {"rasters": [raster]}, "masks": dict.fromkeys(("cloud_m", "shadow_m", "cirrus_m"), 0)}
    config["search"] |= {"clear": {**month, "cloud": [0, 1]}, "cloudy": {**month, "cloud": [1, 60]}}
    (tmp_path / "moved.yaml").write_text(yaml.safe_dump(config))
    good("run", tmp_path / "moved.yaml", "--run-dir", tmp_path / "run", "--until", "download")
    done = call("shard", tmp_path / "run", "--set", "shard.max_shift=0.5")
    assert done.returncode == 2  # nothing is left to train on
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "run" / "records" / "shard").iterdir())
    assert record["status"] == "rejected"
    assert "shifted" in record["message"]
    assert round(record["result"]["measures"]["shift"]["col"]) == 1
    assert not list((tmp_path / "run" / "shards").glob("*"))
