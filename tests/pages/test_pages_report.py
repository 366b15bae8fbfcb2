"""The report's page: every number and name of a run is on it, and nothing that a run holds can break it."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from cloudjob.pages import report
from cloudjob.pixels import CLOUD
from cloudjob.scoring import scenes


class Reader(HTMLParser):
    """Tables as rows of cells, and captions of pictures, as a browser reads them."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.captions: list[str] = []
        self.tags: list[str] = []
        self.into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.into = self.tables[-1][-1]
            self.into.append("")
        elif tag == "figcaption":
            self.into = self.captions
            self.into.append("")
        elif tag != "b":
            self.into = None

    def handle_endtag(self, tag):
        if tag in ("table", "figcaption"):
            self.into = None

    def handle_data(self, data):
        if self.into is not None:
            self.into[-1] += data


def score(psnr: float | None, **more) -> dict:
    return {"psnr": psnr, "ssim": 0.91234, "mae": 0.01234} | more


def row(product: str, split: str, psnr: float | None, **more) -> dict:
    plain = {"product": product, "pair": f"pair-{product}", "split": split, "psnr": psnr, "truth": "ground"}
    return plain | {"method": "ours", "on": "cloud"} | more


def pair(name: str, **more) -> dict:
    plain = {"pair": name, "split": "train", "triplets": 12, "cloud": 0.1234, "reference_days": -9.04}
    return plain | {"r2": [0.9, None, 0.81234], "shift": [0.25, -1.0]} | more


@pytest.fixture
def run(tmp_path) -> report.Run:
    for name in ("A", "B", "C", "pair-A", "pair-B"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    ours = {
        "thick": score(31.987, high_pass_ratio=0.8765),
        "rim": score(41.0),
        "cloud": score(34.0),
        "all": score(33.0),
    }
    checks = {"seen": 320, "against_zero": [0.1, 0.2, None], "x0_error": [0.4, 0.5, 0.6], "warnings": ["look at it"]}
    metrics = [
        {"seen": 32, "loss": 1.0, "samples_per_s": 5.0},
        {"seen": 64, "loss": 0.0, "samples_per_s": 9.0},
        {"seen": 96, "loss": 0.1, "samples_per_s": 7.0},
    ]
    return report.Run(
        summary={
            "headline_split": "test",
            "scenes": {"test": 2, "train": 1},
            "changed_clear_pixels": 3,
            "seam_index": {"ours": 1.046, "truth": 0.99},
            "scores": {"test": {"ours": ours, "cloudy": {"thick": score(None)}}, "train": {}},
            "strata": {"thick": "much", "rim": "nothing", "cloud": "any of 'these'", "clear": "none", "all": "all"},
            "headline": "thick",
            "best_fill": {"method": "poisson", "above_ours": -1.5},
            "verdict": "under thick cloud ours is 1.50 dB above poisson",
            "methods": {"ours": "restored by this run", "cloudy": "as it is", "smooth_fill": "not scored here"},
            "definitions": "Reflectance, range 1.0.",
            "of": "scenes",
        },
        scores=[
            row("C", "train", 20.0, truth="clear date"),
            row("A", "test", 31.0),
            row("B", "test", None),
            row("A", "test", 99.0, on="clear"),
            row("A", "test", 98.0, method="cloudy"),
        ],
        pictures=tmp_path,
        metrics=metrics,
        validation=[{"seen": 96, "loss": 0.25, "cloud_psnr": 27.5, "cloud_ssim": 0.9, "triplets": 64}],
        checks=[checks | {"against_shuffled": {"cloudy": 2.5, "mask": 1.5, "reference": 1.0}}],
        index={"window": 64, "counts": {"train": 12, "test": 4}},
        data={
            "pairs": [pair("p1"), pair("p2", split="test", reference_days=None, r2=[None], shift=[None, None])],
            "cloud_fraction": {"train": [3] * 20, "test": [1] * 20},
            "reflectance": {"B04": [0.1] * 32},
            "classes": {"clear": 0.8, "cloud": 0.2},
        },
        examples=b"examples",
        configuration="seed: 7\ntrain:\n  lr: 0.0004\n",
    )


def test_scores_stand_in_their_columns(run):
    head, names, ours, cloudy = Reader(report.page(run)).tables[0]
    assert head == ["method", "PSNR dB on pixels of", "thick"]
    assert names == ["thick", "rim", "cloud", "clear", "all", "SSIM", "MAE", "texture"]
    assert ours == ["ours", "31.99", "41.00", "34.00", "-", "33.00", "0.9123", "0.0123", "0.88"]
    assert cloudy == ["cloudy", *["-"] * 5, "0.9123", "0.0123", "-"]


def test_the_measures_are_of_the_pixels_to_judge_by(run):
    ours = run.summary["scores"]["test"]["ours"]
    ours["cloud"] |= {"ssim": 0.5, "mae": 0.25, "high_pass_ratio": 1.5}
    head, _, line, _ = Reader(report.page(replace(run, summary=run.summary | {"headline": "cloud"}))).tables[0]
    assert head[-1] == "cloud"
    assert line[-3:] == ["0.5000", "0.2500", "1.50"]


def test_the_heads_of_the_columns_span_them_and_tell_what_they_are(run):
    text = report.page(run)
    assert "<th rowspan=2>method<th colspan=5>PSNR dB on pixels of<th colspan=3>thick" in text
    assert "<th title='any of &#x27;these&#x27;'>cloud" in text


@pytest.mark.parametrize(
    ("above", "title"),
    [
        (-0.01, "Clouds removed"),
        (0.0, "Clouds removed no better than without learning"),
        (2.5, "Clouds removed no better than without learning"),
        (None, "Clouds removed, not compared"),
    ],
)
def test_the_title_claims_no_more_than_the_scores_do(run, above, title):
    text = report.page(replace(run, summary=run.summary | {"best_fill": {"method": "poisson", "above_ours": above}}))
    assert f"<h1>{title}</h1>" in text


def test_the_headline_says_what_the_scores_are_of(run):
    text = report.page(run)
    assert "<p><b>Under thick cloud ours is 1.50 dB above poisson.</b></p>" in text
    assert "the split <b>test</b> (tiles that no triplet of the training came from), 2 scenes" in text
    assert "changed by the restoration: <b>3</b>" in text
    assert "<b>1.05</b>; 0.99 in the truth" in text
    assert "Reflectance, range 1.0." in text
    assert "restored by this run" in text
    assert "not scored here" not in text  # a method without scores
    summary = {key: value for key, value in run.summary.items() if key != "seam_index"}
    text = report.page(replace(run, summary=summary | {"headline_split": "train", "scenes": {}}))
    assert "the split <b>train</b> (training tiles: nothing is held out), 0 scenes" in text
    assert "edges of tiles" not in text


def test_scenes_are_shown_held_out_ones_first_with_their_score_and_truth(run):
    text = report.page(run)
    assert Reader(text).captions[:3] == [
        "A (test): 31.00 dB on cloud pixels; truth: ground",
        "B (test): not scored; truth: ground",
        "C (train): 20.00 dB on cloud pixels; truth: clear date",
    ]
    shown = re.findall(r"base64,([^']+)", text)
    assert shown == ["QQ==", "Qg==", "Qw==", "ZXhhbXBsZXM="]  # A, B, C, the examples


def test_a_scene_is_shown_as_it_is_scored(run):
    images = {name: np.full((4, 24, 24), dn, np.uint16) for name, dn in (("ours", 3100), ("cloudy", 9000))}
    truth, cloud = np.full((4, 24, 24), 3000, np.uint16), np.full((24, 24), CLOUD, np.uint8)
    found = scenes.score(images, truth, cloud, cloud, kind="ground", tile=24, overlap=0)
    rows = [{"product": "A", "pair": "pair-A", "split": "test"} | each for each in found]
    assert (
        Reader(report.page(replace(run, scores=rows))).captions[0]
        == "A (test): 40.00 dB on cloud pixels; truth: ground"
    )


def test_triplets_are_shown_by_pair_with_their_mean(run):
    rows = [row("A", "test", 30.0), row("A", "test", 33.0), row("A", "test", None), row("B", "val", 20.0)]
    text = report.page(replace(run, summary=run.summary | {"of": "triplets"}, scores=rows))
    assert Reader(text).captions[:2] == [
        "pair-A (test): 31.50 dB on cloud pixels (mean of 3 triplets); truth: ground",
        "pair-B (val): 20.00 dB on cloud pixels; truth: ground",
    ]
    assert "cGFpci1B" in text  # pair-A.png


def test_scores_of_a_version_that_did_not_say_what_they_are_of_are_shown(run):
    del run.summary["of"]
    assert Reader(report.page(run)).captions[0].startswith("A (test)")


def test_no_more_pictures_than_a_page_bears(run):
    rows = [row(f"P{number:03}", "test", 1.0) for number in range(report.PICTURES + 5)]
    for each in rows:
        (run.pictures / f"{each['product']}.png").write_bytes(b"")
    captions = Reader(report.page(replace(run, scores=rows))).captions[:-1]
    assert [caption[:4] for caption in captions] == [f"P{number:03}" for number in range(report.PICTURES)]


def test_the_training_with_its_curve_speed_and_use(run):
    text = report.page(run)
    assert text.count("<polyline") == 1
    assert "7.0 samples per second (median), last loss 0.1000" in text
    assert "kWh" not in text
    used = {"energy_kwh": 0.012345, "energy": "estimated", "co2_g": 5.4936, "seconds": 5400.0}
    text = report.page(replace(run, metrics=[*run.metrics[:-1], run.metrics[-1] | used]))
    assert "0.0123 kWh (estimated), 5.49 g CO2, in 1.50 h" in text
    used |= {"energy_kwh": None, "energy": "not measured", "co2_g": None}
    text = report.page(replace(run, metrics=[*run.metrics[:-1], run.metrics[-1] | used]))
    assert "In 1.50 h; its energy was not measured." in text


def test_a_loss_of_zero_has_no_logarithm_and_one_point_is_no_curve(run):
    (line,) = re.findall(r"points='([^']+)'", report.page(run))
    assert line.split() == ["360.0,20.0", "960.0,220.0"]  # 32 and 96 samples, not 64
    for metrics in ([], run.metrics[:2]):
        assert "Too few lines of metrics for a curve." in report.page(replace(run, metrics=metrics))


def test_validation_and_checks_have_a_row_per_look(run):
    text = report.page(run)
    _, validation, checks, _ = Reader(text).tables
    assert validation == [
        ["samples", "loss", "cloud, psnr", "cloud, ssim", "cloud, mae", "all, psnr"],
        ["96", "0.2500", "27.50", "0.9000", "-", "-"],
    ]
    levels = ["least noise", "middle", "most noise"]
    assert checks[0] == ["samples", *levels, *(f"x0, {level}" for level in levels), "cloudy", "mask", "reference"]
    assert checks[1:] == [["320", "0.100", "0.200", "-", "0.400", "0.500", "0.600", "2.500", "1.500", "1.000"]]
    assert "<b>look at it</b>" in text
    assert "the same 64 held-out triplets" in text


def test_a_run_without_looks_has_no_tables_of_them(run):
    text = report.page(replace(run, validation=[], checks=[]))
    assert len(Reader(text).tables) == 2
    assert "held-out" not in text.split("<h2>Training")[1]


def test_the_data_by_pair_and_as_histograms(run):
    text = report.page(run)
    heads, first, second = Reader(text).tables[-1]
    assert heads[-3:] == ["reference, days", "lowest R²", "shift, pixels"]
    assert first == ["p1", "train", "12", "12.3%", "-9.0", "0.812", "+0.25, -1.00"]
    assert second == ["p2", "test", "12", "12.3%", "-", "-", "not measured"]
    assert "Triplets of 64 pixels: 12 train, 4 test. Pixels of their masks: clear 80.0%, cloud 20.0%." in text
    titles = re.findall(r"aria-label='([^']+)'", text)
    assert titles[1:] == [
        "cloud fraction of a triplet, train",
        "cloud fraction of a triplet, test",
        "reflectance of the clear images, B04",
    ]


def test_the_configuration_is_there_to_the_letter(run):
    text = report.page(run)
    assert unescape(text.split("<pre>")[1].split("</pre>")[0]) == run.configuration
    assert "Contains modified Copernicus Sentinel data." in text


def test_nothing_that_a_run_holds_becomes_markup(run):
    evil = "<script>'&\""
    summary = run.summary | {
        "scores": {"test": {evil: {}}},
        "methods": {evil: evil},
        "definitions": evil,
        "strata": {"thick": evil},
        "verdict": evil,
    }
    checks = [run.checks[0] | {"warnings": [evil]}]
    (run.pictures / "<script>'&\".png").write_bytes(b"")
    changed = replace(
        run,
        summary=summary,
        scores=[row(evil, "test", 1.0, truth=evil)],
        metrics=[run.metrics[0], run.metrics[2] | {"energy_kwh": 1, "energy": evil, "co2_g": 1, "seconds": 1}],
        checks=checks,
        index=run.index | {"counts": {evil: 1}},
        data={
            "pairs": [pair(evil, split=evil)],
            "cloud_fraction": {evil: [1] * 20},
            "reflectance": {evil: [1] * 32},
            "classes": {evil: 1.0},
        },
        configuration=f"seed: {evil}",
    )
    text = report.page(changed)
    reader = Reader(text)
    assert "script" not in reader.tags
    assert reader.tables[0][2][0] == evil
    assert reader.captions[0].startswith(f"{evil} (test)")
    assert text.count("&lt;script&gt;") >= 16


def test_a_page_needs_no_other_file(run):
    addresses = re.findall(r"(?:src|href)=['\"]?([^'\" >]+)", report.page(run))
    assert len(addresses) == 4
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
