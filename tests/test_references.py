"""Three clear dates beside the target, through the front door: fetched, cut, scored, and shown."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from front_door import CONFIG, good
from untrained import untrained

from cloudjob.files import read_jsonl
from cloudjob.names import ProductName
from cloudjob.sentinel2.product import Product, read_bands

pytestmark = pytest.mark.slow
SETTINGS = (
    "archive.synthetic.tiles=[04WFD, 05WPS]",
    "archive.synthetic.clear=[2024-03-01, 2024-03-04, 2024-03-18, 2024-03-25]",
    "pair.references=3",
    "shard.radiometry=none",
    "evaluate.of=triplets",
    "evaluate.members=0",
    "evaluate.triplets=3",
)
DAYS = {"clear date": (-6, 8, -9, 15), "ground": (-6, -6, 8, -9)}  # of the clear image's date, and of the references


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("references") / "run"
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    good("run", CONFIG, "--run-dir", folder, "--until", "shard", *options)
    good("evaluate", folder)
    return folder


def test_shards_hold_each_date_where_it_is_clear(run):
    index = json.loads((run / "shards" / "index.json").read_text())
    assert {entry["target"] for entry in index["files"]} == set(DAYS)
    for entry in index["files"]:
        assert entry["references"] == 3
        clear, *days = DAYS[entry["target"]]
        with h5py.File(run / "shards" / entry["file"]) as file:
            assert file.attrs["schema_version"] == 2
            (pair,) = json.loads(file.attrs["pairs"])
            ground = entry["target"] == "ground"
            names = ["clear" if ground else "reference", "reference2", "reference3"]
            cloudy = ProductName.parse(pair["products"]["cloudy"]).sensing
            found = {role: ProductName.parse(name).sensing.date() for role, name in pair["products"].items()}
            assert [(found[role] - cloudy.date()).days for role in ("clear", *names)] == [clear, *days]
            size, row, col = file["mask"].shape[-1], file["row"][0], file["col"][0]
            for role, name, day in zip(("reference", "reference2", "reference3"), names, days, strict=True):
                assert file[f"{role}_days"][0] == pytest.approx(day, abs=0.01)
                bands = read_bands(Product.open(run / "scenes" / f"{pair['products'][name]}.SAFE"))
                image = file[role][0]
                assert (image > 0).mean() > 0.5
                assert np.array_equal(image, np.where(image, bands[:, row : row + size, col : col + size], 0))
            if ground:
                with rasterio.open(run / "truth" / f"{pair['products']['cloudy']}.tif") as image:
                    assert np.array_equal(file["clear"][0], image.read()[:, row : row + size, col : col + size])


def test_more_dates_are_scored_on_the_same_pixels_and_nothing_is_done_twice(run):
    rows = read_jsonl(run / "evaluation" / "scores.jsonl")
    pixels = {}
    for row in rows:
        pixels.setdefault(row["method"], []).append((row["triplet"], row["on"], row["pixels"]))
    assert pixels["similar_2_dates"] == pixels["similar_3_dates"] == pixels["similar_pixels"]
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert {"similar_2_dates", "similar_3_dates"} < set(summary["scores"]["test"]) <= set(summary["methods"])
    for stage in ("pair", "download", "shard", "evaluate"):
        assert f"{stage}: 0 done" in good(stage, run).stderr


def test_a_network_is_shown_three_dates_and_none_does_worse(run, tmp_path):
    """One that gives the first guess as it is."""
    network = untrained(tmp_path, "tiny", "regression", first_guess="similar")
    errors = {}
    for reference, days in (("none", []), ("other", [8, -9, 15]), ("nearest", [-6, 8, -9])):
        options = ["--set", f"infer.checkpoint={network}", "--set", f"infer.reference={reference}"]
        assert "infer: 2 done" in good("infer", run, *options).stderr
        for path in (run / "outputs").glob("*/*.h5"):
            with h5py.File(path) as file:
                image, hidden = file["reflectance"][...], file["reconstructed"][...] == 1
                sources = [ProductName.parse(name).sensing for name in file.attrs["source_products"].split()]
            assert [(date.date() - sources[0].date()).days for date in sources[1:]] == days
            with rasterio.open(run / "truth" / f"{path.stem}.tif") as truth:
                difference = image.astype(float) - truth.read()
            errors[path.stem, reference] = np.abs(difference[:, hidden]).mean()
    for path in (run / "outputs").glob("*/*.h5"):
        none, other, nearest = (errors[path.stem, reference] for reference in ("none", "other", "nearest"))
        assert max(other, nearest) < 0.8 * none
