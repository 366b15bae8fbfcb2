"""The stage report: what it reads, when it makes the page again, and what is said where something is missing."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio

from cloudjob.archive.make import make_synthetic
from cloudjob.config import source
from cloudjob.config.models import Config
from cloudjob.errors import InputError
from cloudjob.files import read_json, write_bytes, write_json, write_jsonl
from cloudjob.patches import stats
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.sentinel2.labels import export
from cloudjob.sentinel2.product import Product
from cloudjob.sentinel2.render import encode_png
from cloudjob.stages import report

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "test.yaml"
SUMMARY = {
    "headline_split": "test",
    "scenes": {"test": 1},
    "changed_clear_pixels": 0,
    "scores": {"test": {"ours": {"thick": {"psnr": 31.5, "ssim": 0.9, "mae": 0.01}}}},
    "strata": {"thick": "below thick cloud"},
    "headline": "thick",
    "best_fill": {"method": "poisson", "above_ours": 0.5},
    "verdict": "poisson is 0.50 dB above ours",
    "methods": {"ours": "restored"},
    "definitions": "What they mean.",
    "of": "triplets",
}
DATA = {
    "pairs": [],
    "cloud_fraction": {"train": [1] * 20},
    "reflectance": {"B04": [0.1] * 32},
    "classes": {"clear": 1.0},
}

PICTURE = encode_png(np.full((8, 24, 3), 90, np.uint8))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> RunFolder:
    """A run of which everything is there that the page must have; what shards hold is made up."""
    found = RunFolder(tmp_path / "run")
    row = {"product": "P", "pair": "p-1", "method": "ours", "on": "thick", "split": "test", "psnr": 31.5, "truth": "x"}
    row |= {"pixels": 10}
    write_json(found.evaluation, SUMMARY)
    write_jsonl(found.scores, [row])
    write_bytes(found.evaluation_picture("p-1"), PICTURE)
    write_json(found.shard_index, {"window": 64, "counts": {"train": 20}})
    monkeypatch.setattr(stats, "collect", lambda shards, index: DATA)
    monkeypatch.setattr(stats, "picture", lambda shards, index, number, gain: PICTURE)
    return found


@pytest.fixture
def config() -> Config:
    return source.load(CONFIG, ["review.gain=1.5", "train.lr=0.0123"])[0]


def test_the_page_says_what_is_not_scored(folder, config):
    write_json(folder.evaluation, SUMMARY | {"lacking": ["one", "two"]})
    report.run(config, folder)
    page = folder.report.read_text()
    assert "Not scored, for they are not made: one, two." in page
    assert ">Data</h2>" in page


def test_the_page_holds_what_the_stages_wrote(folder, config):
    summary = report.run(config, folder)
    assert (summary.done, summary.output) == (["run"], f"report: {folder.report}")
    page = folder.report.read_text()
    assert ">Clouds removed no better than without learning</h1>" in page
    assert "<b>Poisson is 0.50 dB above ours.</b>" in page
    assert "p-1 (test), 31.50 dB" in page
    assert (
        page.count("data:image/webp;base64,") == 3
    )  # of p-1 where one looks at every pair, and as the worst; examples
    assert "lr: 0.0123" in page
    assert "Too few lines of metrics" in page
    assert "held-out triplets each time" not in page


def test_metrics_validation_and_checks_are_read_where_the_training_wrote_them(folder, config):
    write_jsonl(folder.metrics, [{"seen": seen, "loss": 0.5, "samples_per_s": 3.25} for seen in (8, 16)])
    write_jsonl(folder.validation, [{"seen": 16, "loss": 0.125, "triplets": 4}])
    shuffled = {"cloudy": 1, "mask": 1, "reference": 1}
    checks = {"seen": 16, "against_zero": [1] * 3, "x0_error": [1] * 3, "against_shuffled": shuffled}
    write_jsonl(folder.checks, [checks | {"warnings": ["nothing is learned"]}])
    report.run(config, folder)
    page = folder.report.read_text()
    assert "3.2 samples per second" in page
    assert "0.1250" in page
    assert "nothing is learned" in page


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(folder, config):
    said = []
    folder.say = said.append
    write_jsonl(folder.metrics, [{"seen": seen, "loss": 0.5, "samples_per_s": 3.25} for seen in (8, 16)])
    for path in (folder.metrics, folder.scores):
        with path.open("ab") as file:
            file.write(b'{"seen": 24, "lo')
    folder.shard_index.write_text('{"window": ')
    assert report.run(config, folder).done == ["run"]
    page = folder.report.read_text()
    assert "3.2 samples per second" in page
    assert "p-1 (test), 31.50 dB" in page
    assert "The index of the shards cannot be read." in page
    for name, stage in (("metrics.jsonl:3", "train"), ("scores.jsonl:2", "evaluate"), ("index.json", "shard")):
        assert [line for line in said if name in line and f"cloudjob {stage} {folder.root}" in line], name
    folder.evaluation.write_text("{")
    with pytest.raises(InputError, match=r"summary\.json: is not JSON .* cloudjob evaluate"):
        report.items(config, folder)


def test_made_again_when_the_scores_or_the_training_change_and_only_then(folder, config):
    assert report.run(config, folder).done == ["run"]
    again = report.run(config, folder)
    assert (again.done, again.skipped) == ([], ["run"])
    write_json(folder.evaluation, SUMMARY | {"changed_clear_pixels": 1})
    assert records.why(folder, report.items(config, folder)[0]) == "changed: input evaluation"
    assert report.run(config, folder).done == ["run"]
    records.work(folder, "train", [Item("train", "run", {}, {})], lambda item: ([], read_json(folder.evaluation)))
    assert records.why(folder, report.items(config, folder)[0]) == "changed: input train"


@pytest.mark.slow
def test_masks_that_a_person_corrected_are_shown_and_one_that_cannot_be_read_is_said(folder, config, tmp_path):
    asked = {"tiles": ["06WVC"], "size": 96, "seed": 2, "cloud": (0.4, 0.4)}
    names = make_synthetic(folder.root / "scenes", clear=[date(2024, 3, 1)], cloudy=[date(2024, 3, 11)], **asked)
    for name in names:
        product = Product.open(folder.safe(name))
        export(product, np.zeros((48, 48), np.uint8), 2, folder.labels)
    assert report.run(config, folder).done == ["run"]
    assert "by hand" not in folder.report.read_text()
    path = folder.labels / f"{names[0]}.tif"
    with rasterio.open(path, "r+") as image:
        image.write(np.eye(48, dtype=np.uint8), 1)
    (folder.labels / f"{names[1]}.tif").write_bytes(b"no raster")
    said = []
    folder.say = said.append
    (item,) = report.items(config, folder)
    assert records.why(folder, item).startswith("changed: input review/masks/")
    assert report.run(config, folder).done == ["run"]
    page = folder.report.read_text()
    assert f'{names[0]}</th><td>2.08%</td><td class="text">clear to cloud 48<' in page
    assert [line.startswith(f"report: without the corrected mask of {names[1]}") for line in said] == [True]


def test_without_scores_or_shards_it_says_what_to_run_first(folder, config, tmp_path):
    folder.shard_index.unlink()
    elsewhere = source.load(CONFIG, [f"infer.checkpoint={tmp_path}/elsewhere.pt"])[0]
    assert report.run(elsewhere, folder).done == ["run"]
    assert ">Data</h2>" not in folder.report.read_text()
    folder.report.unlink()
    with pytest.raises(InputError, match="cloudjob shard"):
        report.run(config, folder)
    folder.evaluation.unlink()
    with pytest.raises(InputError, match="cloudjob evaluate"):
        report.items(config, folder)
