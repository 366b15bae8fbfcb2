"""evaluate on held-out triplets and on scenes, through the front door; and what it takes to lie above the ground."""

import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import yaml
from front_door import CONFIG, call, copied
from skimage.metrics import peak_signal_noise_ratio

from cloudjob.archive.make import make_synthetic
from cloudjob.config import source
from cloudjob.diffusion import checkpoint
from cloudjob.files import read_jsonl, write_json
from cloudjob.patches.shard_writer import Writer
from cloudjob.patches.shards import ShardSet
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, HIDDEN, SHADOW
from cloudjob.run import decisions, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.product import Product, read_scl
from cloudjob.sentinel2.radiometry import reflectance
from cloudjob.sentinel2.scene import open_pair
from cloudjob.stages import evaluate


# --- what lies above ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A small archive, and its products by role."""
    folder = tmp_path_factory.mktemp("archive")
    options = {"size": 96, "seed": 2, "cloud": (0.4, 0.4), "tiles": ["05WPS"]}
    clear, cloudy = make_synthetic(folder, **options, clear=[date(2024, 3, 1)], cloudy=[date(2024, 3, 11)])
    return folder, {"cloudy": cloudy, "clear": clear}


@pytest.fixture
def folder(archive, tmp_path) -> RunFolder:
    """A run folder with these products, and nothing else."""
    found = RunFolder(tmp_path)
    shutil.copytree(archive[0], tmp_path / "scenes")
    return found


PRODUCT = "S2A_MSIL2A_20240315T222541_N0510_R029_T05WPS_20240331T001122"
CORNERS = [(0, 0), (40, 33), (64, 64)]
MASK = np.random.default_rng(0).choice(np.array([*HIDDEN, CLEAR], np.uint8), (3, 32, 32))  # of the shard


def core(folder: RunFolder, products: dict[str, str], *overrides: str) -> np.ndarray:
    return evaluate._core_of_windows(source.load(CONFIG, [*overrides])[0], folder, products, CORNERS, MASK)


def cut(whole: np.ndarray) -> np.ndarray:
    return np.stack([whole[row : row + 32, col : col + 32] for row, col in CORNERS])


def test_what_lies_above_is_read_where_it_is_known(folder, archive):
    """Percent of opacity and of shadow; the product's own mask, which lies there too, is not asked."""
    above = np.zeros((2, 96, 96), np.uint8)
    above[0, 42, 40:43] = 51, 50, 1
    above[1, 42, 40:44] = 99
    path = folder.seen(archive[1]["cloudy"])
    path.parent.mkdir()
    with rasterio.open(path, "w", driver="GTiff", count=2, dtype="uint8", height=96, width=96) as image:
        image.write(above)
    found = core(folder, archive[1])
    assert np.argwhere(found).tolist() == [[1, 2, 7], [1, 2, 8], [1, 2, 9], [1, 2, 10]]
    assert found[1, 2, 7:11].tolist() == [CLOUD, CIRRUS, CIRRUS, SHADOW]
    shutil.rmtree(folder.root / "scenes")
    assert np.array_equal(core(folder, archive[1]), found)


def test_windows_of_a_raster_are_cut_where_it_is_there(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 9000, (4, 96, 96), np.uint16)
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=4, dtype="uint16", height=96, width=96) as image:
        image.write(pixels)
    found = evaluate._windows(tmp_path / "a.tif", CORNERS, 32)
    assert np.array_equal(found, np.stack([pixels[:, row : row + 32, col : col + 32] for row, col in CORNERS]))
    assert evaluate._windows(tmp_path / "b.tif", CORNERS, 32) is None


@pytest.mark.slow
def test_else_the_product_says_what_lies_above_before_its_mask_grows(folder, archive):
    scl = read_scl(Product.open(folder.safe(archive[1]["cloudy"]))).repeat(2, 0).repeat(2, 1)
    found, classes = core(folder, archive[1]), cut(scl)
    assert found.shape == MASK.shape
    assert (found[classes == 9] == CLOUD).mean() > 0.9
    assert (found[classes == 3] == SHADOW).mean() > 0.9
    wide = core(folder, archive[1], "masks.cloud_m=90", "masks.shadow_m=90")
    assert np.array_equal(wide, found)
    settings = masks.Settings(**dict(source.load(CONFIG, [])[0].masks))
    scene = open_pair({role: folder.safe(name) for role, name in archive[1].items()}, settings)("cloudy")
    assert np.array_equal(found, cut(scene.core))
    assert not np.array_equal(found, cut(scene.mask))


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["masks.cloud_b11=1", "masks.brighter=1"], ids=["its own", "by the clear date"])
def test_the_masks_are_those_of_the_configuration(folder, archive, setting):
    assert not np.array_equal(core(folder, archive[1]), core(folder, archive[1], setting))


@pytest.mark.parametrize("missing", ["cloudy", "clear"])
def test_else_what_lies_above_is_what_the_shard_says(folder, archive, missing):
    shutil.rmtree(folder.safe(archive[1][missing]))
    assert np.array_equal(core(folder, archive[1]), MASK)


# --- triplets ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("days", [[], [3.0]], ids=["no date", "one date"])
def test_a_pair_with_fewer_dates_than_others_is_scored_with_what_it_has(tmp_path, days):
    folder, rng = RunFolder(tmp_path), np.random.default_rng(0)
    products = {"cloudy": PRODUCT, "clear": PRODUCT.replace("20240315", "20240311")}
    match = {"reference": {"lines": [{"gain": 1.0, "offset": 0.0}] * 4}}
    facts = {"products": products, "radiometry": "line", "target": "clear date", "radiometric_match": match}
    folder.shards.mkdir()
    path, names = folder.shard("test", 0), ["cloudy", "clear", "reference"][: 2 + len(days)]
    with Writer(path, 1, window=16, pair=facts, attributes={}, reference_days=days) as writer:
        images = dict(zip(names, rng.integers(1500, 3000, (3, 4, 16, 16), np.uint16), strict=False))
        mask = np.zeros((16, 16), np.uint8)
        mask[4:9, 4:12] = CLOUD
        writer.add(**images, mask=mask, row=0, col=0, cloud_fraction=0.2)
    entry = {"file": path.name, "count": 1, "split": "test", "pair": "P", "target": "clear date", "sha256": "0" * 64}
    write_json(folder.shard_index, {"window": 16, "files": [entry]})
    others = [entry, entry | {"references": 3}]
    item = Item("evaluate", "P", {"triplets": 1, "references": evaluate._references(others)}, {})
    config = source.load(CONFIG, ["evaluate.members=0"])[0]
    _, result = evaluate._score_triplets(config, folder, item, entry, None, [1.0] * 4)
    found = {row["method"]: row["psnr"] for row in result["rows"][0] if row["on"] == "cloud"}
    assert all(psnr is not None for psnr in found.values())
    assert ("nearest_clear" in found) == ("similar_3_dates" in found) == bool(days)
    if days:
        assert found["similar_3_dates"] == found["similar_2_dates"] == found["similar_pixels"]


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


def rows(run: Path) -> list[dict]:
    return read_jsonl(run / "evaluation" / "scores.jsonl")


@pytest.mark.slow
def test_the_baselines_are_scored_on_the_pixels_of_the_shard_that_all_methods_have(run):
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
    for method, image in (("cloudy", cloudy), ("nearest_matched", nearest)):
        found = scores[method]["cloud"]
        assert found["pixels"] == known.sum()
        assert found["missing"] == (0 if method == "cloudy" else (~known).sum())
        expected = peak_signal_noise_ratio(truth[known], image[known], data_range=1)
        assert found["psnr"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_thick_is_what_the_archive_says_to_be(run):
    entries = {
        entry["pair"]: entry["file"] for entry in json.loads((run / "shards" / "index.json").read_text())["files"]
    }
    found = [row for row in rows(run) if (row["method"], row["on"]) == ("nearest_matched", "thick")]
    assert found
    for row in found:
        with rasterio.open(run / "truth" / f"{row['product']}_seen.tif") as image:
            thick = image.read(1) > 50
        with h5py.File(run / "shards" / entries[row["pair"]]) as file:
            mask, top, left = (file[name][row["triplet"]] for name in ("mask", "row", "col"))
        here = thick[top : top + 32, left : left + 32] & np.isin(mask, HIDDEN)
        assert row["pixels"] + row["missing"] == here.sum()
        assert row["place"] in row["product"]


@pytest.mark.slow
def test_without_products_strata_are_those_of_the_shards_masks(run, tmp_path):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    shutil.rmtree(other / "scenes")
    shutil.rmtree(other / "truth")
    cloudjob("evaluate", other, "--force")
    found = summary(other)["scores"]["test"]["ours"]
    assert "rim" not in found
    assert found["thick"]["pixels"] > summary(run)["scores"]["test"]["ours"]["thick"]["pixels"]
    assert found["cloud"] == summary(run)["scores"]["test"]["ours"]["cloud"]


@pytest.mark.slow
def test_the_truth_is_the_ground_of_the_day_and_clear_pixels_are_exact(run):
    found = summary(run)
    assert found["changed_clear_pixels"] == 0
    assert {entry["target"] for entry in json.loads((run / "shards/index.json").read_text())["files"]} == {
        "ground",
        "clear date",
    }
    assert found["scores"]["test"]["ours"]["clear"]["psnr"] == found["scores"]["test"]["cloudy"]["clear"]["psnr"]
    assert found["scores"]["test"]["ours"]["cloud"]["triplets"] == 12
    assert found["groups"]
    assert set(found["differences"]) == set(found["strata"])
    assert found["differences"]["thick"]["poisson"]["interval"] == [None, None], "all of one place"


@pytest.mark.slow
def test_the_ensemble_is_of_the_members_that_are_independent(run):
    """Of three, the second is the twin of the first."""
    for on, found in summary(run)["ensemble"].items():
        assert on in ("thick", "veil", "shadow", "rim", "cloud")
        assert found["members"] == 2
        assert sum(found["ranks"]) == pytest.approx(1, abs=1e-5)
        assert 0 <= found["coverage_50"] <= found["coverage_90"] <= 1
    config = source.load(run / "config.yaml", [])[0]
    _, factors = evaluate._open_model(config, RunFolder(run))
    assert all(0.1 < factor < 100 and factor != 1 for factor in factors)
    two = source.load(run / "config.yaml", ["evaluate.members=2"])[0]
    assert evaluate._open_model(two, RunFolder(run))[1] == [1.0] * 4


@pytest.mark.slow
def test_the_verdict_is_said_below_the_table_and_kept(run):
    said, found = cloudjob("evaluate", run).stdout.strip().split("\n"), summary(run)
    assert said[-1] == found["verdict"]
    assert found["headline"] == "thick"
    scores = {method: on["thick"]["psnr"] for method, on in found["scores"]["test"].items()}
    best = max((method for method in scores if not method.startswith("ours")), key=scores.get)
    assert found["best_fill"]["method"] == best
    assert found["best_fill"]["above_ours"] == pytest.approx(scores[best] - scores["ours"])
    assert {"first_guess", "poisson", "similar_pixels", "similar_and_seen"} < set(scores) <= set(found["methods"])


@pytest.mark.slow
def test_what_lies_above_the_ground_is_an_input(run):
    folder = RunFolder(run)
    (item,) = evaluate.items(source.load(run / "config.yaml", [])[0], folder)
    (cloudy,) = [pair["cloudy"] for pair in decisions.accepted_pairs(folder) if pair["pair"] == item.name]
    assert item.inputs["cloudy"] == records.output_digest(folder, "download", cloudy) != ""


@pytest.mark.slow
def test_scores_are_made_once_and_come_out_the_same_again(run):
    before = {path.name: path.read_bytes() for path in (run / "evaluation").iterdir()}
    assert "1 skipped" in cloudjob("evaluate", run).stderr
    cloudjob("evaluate", run, "--force")
    assert {path.name: path.read_bytes() for path in (run / "evaluation").iterdir()} == before


@pytest.mark.slow
def test_a_checkpoint_from_elsewhere_gives_the_same_scores(run, tmp_path):
    """In a run that has shards but never trained."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    trained = max((run / "train" / "checkpoints").glob("*.pt"))
    for folder in ("train", "evaluation", "records/train", "records/evaluate"):
        shutil.rmtree(other / folder)
    cloudjob("evaluate", other, "--set", f"infer.checkpoint={trained}")
    assert summary(other) == summary(run)


@pytest.mark.slow
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


@pytest.mark.slow
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


# --- scenes ------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False], ids=["known", "not known"])
def test_thick_pixels_of_a_scene_are_those_below_known_cloud_else_those_of_its_mask(finished, tmp_path, known):
    run = copied(finished, tmp_path / "run")
    settings = masks.Settings(**dict(source.load(run / "config.yaml", [])[0].masks))
    if not known:
        for path in (run / "truth").glob("*_seen.tif"):
            path.unlink()
        for path in (run / "records" / "download").glob("*.json"):
            record = json.loads(path.read_text())
            record["outputs"] = {name: kept for name, kept in record["outputs"].items() if "_seen" not in name}
            path.write_text(json.dumps(record))
        cloudjob("evaluate", run, "--force")
    found = {row["product"]: row for row in rows(run) if (row["method"], row["on"]) == ("poisson", "thick")}
    assert len(found) == 3
    for pair in decisions.accepted_pairs(RunFolder(run)):
        paths = {role: run / "scenes" / f"{pair[role]}.SAFE" for role in ("cloudy", "clear")}
        scene = open_pair(paths, settings)("cloudy")
        thick = scene.core == CLOUD
        if known:
            with rasterio.open(run / "truth" / f"{pair['cloudy']}_seen.tif") as image:
                thick = image.read(1) > 50
        row = found[pair["cloudy"]]
        assert row["pixels"] + row["missing"] == (thick & np.isin(scene.mask, HIDDEN)).sum() > 0


@pytest.mark.slow
def test_a_checkpoint_from_elsewhere_is_scored_and_reported_without_shards_or_a_training(finished, tmp_path):
    run, elsewhere = copied(finished, tmp_path / "run"), tmp_path / "elsewhere.pt"
    shutil.copy(checkpoint.newest(run / "train" / "checkpoints"), elsewhere)
    for folder in ("shards", "train", "evaluation", "records/shard", "records/train", "records/evaluate", "report"):
        shutil.rmtree(run / folder)
    scene, *others = sorted(path.name for path in (run / "outputs").glob("*/"))
    cloudjob("evaluate", run, "--only", scene, code=3)  # our own shards say how its scenes were split
    cloudjob("evaluate", run, "--set", f"infer.checkpoint={elsewhere}", "--only", scene)
    found = summary(run)
    assert (found["headline_split"], found["scenes"], found["lacking"]) == ("unknown", {"unknown": 1}, others)
    before = {row["method"]: row["psnr"] for row in rows(finished) if row["product"] == scene and row["on"] == "cloud"}
    assert {row["method"]: row["psnr"] for row in rows(run) if row["on"] == "cloud"} == before
    cloudjob("report", run)
    page = (run / "report" / "index.html").read_text()
    assert "what it was trained on is not known here" in page
    assert f"Not scored, for they are not made: {', '.join(others)}." in page
    assert "<h2>Data" not in page
