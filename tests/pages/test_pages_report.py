"""The report's page: every number and name of a run is on it, and nothing that a run holds can break it."""

import json
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from cloudjob.pages import report


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
        elif tag not in ("b", "button", "code", "small"):
            self.into = None

    def handle_endtag(self, tag):
        if tag in ("table", "figcaption", "td", "th"):
            self.into = None

    def handle_data(self, data):
        if self.into is not None:
            self.into[-1] += data


def score(psnr: float | None, **more) -> dict:
    return {"psnr": psnr, "ssim": 0.91234, "mae": 0.01234} | more


def row(product: str, split: str, psnr: float | None, **more) -> dict:
    plain = {"product": product, "pair": f"pair-{product}", "split": split, "psnr": psnr, "truth": "ground"}
    return plain | {"method": "ours", "on": "thick", "pixels": 10 if psnr else 0} | more


def pair(name: str, **more) -> dict:
    plain = {"pair": name, "split": "train", "triplets": 12, "cloud": 0.1234, "reference_days": -9.04}
    return plain | {"r2": [0.9, None, 0.81234], "shift": [0.25, -1.0]} | more


def scene(product: str, **more) -> dict:
    return {"product": product, "sha256": f"sha-{product}", "pictures": {"cloudy": "c", "restored": "r"}} | more


@pytest.fixture
def run() -> report.Run:
    ours = {
        "thick": score(31.987, high_pass_ratio=0.8765, psnr_interval=[31.0, 33.0], spectrum=[-1.0, 0, 0.5, None]),
        "rim": score(41.0),
        "cloud": score(34.0),
        "all": score(33.0),
    }
    checks = {"seen": 320, "against_zero": [0.1, 0.2, None], "x0_error": [0.4, 0.5, 0.6], "warnings": ["look at it"]}
    return report.Run(
        name="demo",
        summary={
            "headline_split": "test",
            "scenes": {"test": 2, "train": 1},
            "changed_clear_pixels": 3,
            "seam_index": {"ours": 1.046, "truth": 0.99},
            "scores": {"test": {"ours": ours, "poisson": {"thick": score(None)}}, "train": {}},
            "differences": {"thick": {"poisson": {"psnr": 1.5, "interval": [0.5, 2.5]}}},
            "strata": {"thick": "much", "rim": "nothing", "cloud": "any of 'these'", "clear": "none", "all": "all"},
            "headline": "thick",
            "best_fill": {"method": "poisson", "above_ours": -1.5},
            "verdict": "under thick cloud ours is 1.50 dB above poisson",
            "methods": {"ours": "restored by this run", "poisson": "cloned", "smooth_fill": "not scored here"},
            "definitions": "Reflectance, range 1.0.",
            "of": "scenes",
        },
        scores=[
            row("C", "train", 20.0, truth="clear date"),
            row("A", "test", 31.0),
            row("A", "test", 30.0, method="poisson"),
            row("B", "test", None),
            row("A", "test", 99.0, on="clear"),
        ],
        scenes=[scene("A"), scene("B"), scene("C"), scene("D", pictures={}, why="its band is missing")],
        sheets={"A": "sheet-A", "C": "sheet-C"},
        metrics=[
            {"seen": 32, "loss": 1.0, "samples_per_s": 5.0, "lr": 1e-4},
            {"seen": 64, "loss": 0.0, "samples_per_s": 9.0, "lr": 2e-4},
            {"seen": 96, "loss": 0.1, "samples_per_s": 7.0, "lr": 0.0},
        ],
        validation=[{"seen": 96, "loss": 0.25, "cloud_psnr": 27.5, "cloud_ssim": 0.9, "triplets": 64}],
        checks=[checks | {"against_shuffled": {"cloudy": 2.5, "mask": 1.5, "reference": 1.0}}],
        cards=[{"event": "end", "seen": 96, "total": 96, "ranks": 2, "commit": "abc123", "nodes": ["n1"],
                "devices": ["H200"], "versions": {"torch": "2.9"}}],
        index={"window": 64, "counts": {"train": 12, "test": 4}},
        data={
            "pairs": [pair("p1"), pair("p2", split="test", reference_days=None, r2=[None], shift=[None, None])],
            "cloud_fraction": {"train": [3] * 20, "test": [1] * 20},
            "reflectance": {"B04": [0.1] * 32},
            "classes": {"clear": 0.8, "cloud": 0.2},
        },
        examples="examples",
        products=[{"product": "S2A_MSIL2A_20240301T222541_N0510_R029_T05WPS_20240402T001122", "footprint": None}],
        candidates=[{"accepted": True, "reasons": []}, {"accepted": False, "reasons": ["+1.0 days apart, at least 2"]}],
        accepted=[{"days": 8.0, "clear": "C", "reference": None}],
        by_person=[("rejected: hazy", 2)],
        troubles=[
            {"stage": "infer", "item": "E", "status": "failed", "message": "no bands"},
            {"stage": "preview", "item": "F", "status": "left out", "message": "HTTP 404"},
        ],
        history=[{"time": "2026-01-01", "user": "ada", "host": "n1", "version": "0.1.0", "command": "train",
                  "overrides": ["train.lr=2e-4", "search.tiles=[05WPS, 06WVC]"], "exit_code": 0, "seconds": 9.5}],
        hashes={"checkpoint, step-96.pt": "f00d"},
        commit="abc124",
        grid_co2=445.0,
        configuration="seed: 7\ntrain:\n  lr: 0.0004\n",
    )  # fmt: skip


def tables(text: str) -> list[list[list[str]]]:
    return [[[cell.strip() for cell in line] for line in table] for table in Reader(text).tables]


def viewed(text: str) -> list[dict]:
    return json.loads(text.split('<script id="viewing" type="application/json">')[1].split("</script>")[0])


def the(text: str, *head: str) -> list[list[str]]:
    """The rows of the table whose head, in its last row, begins with these cells."""
    (found,) = [table for table in tables(text) if any(line[: len(head)] == list(head) for line in table[:2])]
    return found[next(i for i, line in enumerate(found) if line[: len(head)] == list(head)) + 1 :]


def test_scores_stand_in_their_columns_with_their_intervals(run):
    text = report.page(run)
    (found,) = [table for table in tables(text) if table[0][0] == "method"]
    assert found[0] == ["method", "PSNR, dB, on pixels of", "thick"]
    more = ["SSIM", "MAE", "texture", "interval of PSNR", "ours above it, dB", "interval"]
    assert found[1] == ["thick", "rim", "cloud", "clear", "all", *more]
    ours = ["ours", "31.99", "41.00", "34.00", "–", "33.00", "0.9123", "0.0123", "0.88", "31.00 to 33.00", "–", "–"]
    assert found[2] == ours
    assert found[3][-5:] == ["0.0123", "–", "–", "+1.50", "+0.50 to +2.50"]
    assert '<th scope="colgroup" colspan="6">thick' in text


def test_columns_of_which_nothing_is_known_are_not_there(run):
    del run.summary["differences"], run.summary["scores"]["test"]["ours"]["thick"]["psnr_interval"]
    (found,) = [table for table in tables(report.page(run)) if table[0][0] == "method"]
    assert found[1] == ["thick", "rim", "cloud", "clear", "all", "SSIM", "MAE", "texture"]


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
    assert f">{title}</h1>" in text


def test_the_verdict_comes_first_with_warnings_and_what_is_not_there(run):
    text = report.page(replace(run, summary=run.summary | {"lacking": ["one", "two"]}))
    first = text.partition('<section id="scenes"')[0]
    assert "<b>Under thick cloud ours is 1.50 dB above poisson.</b>" in first
    assert "the split <b>test</b> (tiles that no triplet of the training came from)" in first
    assert "Not scored, for they are not made: one, two." in first
    assert "<li>look at it</li>" in first
    assert [line for table in tables(first) for line in table if line[0] != "stage"] == [
        ["infer", "E", "no bands"],
        ["preview", "F", "HTTP 404"],
    ]
    for name, value in {
        "scenes restored": "4",
        "scenes scored": "2",
        "clear pixels changed": "3",
        "failed": "1",
    }.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in first
    assert "1.05" in first
    trained = report.page(replace(run, summary=run.summary | {"headline_split": "train", "scenes": {}}))
    assert "training tiles: nothing is held out" in trained


def test_every_scene_can_be_looked_at_the_worst_first_and_why_one_cannot(run):
    text = report.page(run)
    found = viewed(text)
    assert [line["name"] for line in found] == ["A", "C", "B", "D"]  # with a gain, with a score, scored in vain, not
    assert found[0] | {"gain": 1} == {
        "name": "A", "split": "test", "ours": pytest.approx(31.0), "fill": pytest.approx(30.0), "gain": 1,
        "truth": "ground", "number": 1, "why": "", "pictures": {"cloudy": "c", "restored": "r"},
    }  # fmt: skip
    assert (found[3]["why"], found[3]["pictures"]) == ("its band is missing", {})
    assert [line[0] for line in the(text, "scene", "split")] == ["A", "C", "B", "D"]
    assert the(text, "scene", "split")[0][1:] == ["test", "31.00", "30.00", "+1.00"]


def test_pairs_of_a_run_that_restored_no_scene_are_shown_by_their_sheets(run):
    rows = [row("A", "test", 30.0, triplet=0), row("A", "test", 33.0, triplet=1), row("B", "val", None)]
    summary = run.summary | {"of": "triplets"}
    text = report.page(replace(run, summary=summary, scores=rows, scenes=[], sheets={"pair-A": "s"}))
    (line,) = viewed(text)
    pooled = -10 * math.log10((1e-3 + 10**-3.3) / 2)
    assert (line["name"], line["number"], line["pictures"]) == ("pair-A", 2, {"sheet": "s"})
    assert line["ours"] == pytest.approx(pooled)


def test_worst_median_and_best_each_once(run):
    captions = Reader(report.page(run)).captions
    said = [caption for caption in captions if caption.startswith(("Worst", "Median", "Best"))]
    assert [caption.partition(",")[0] for caption in said] == ["Worst: A (test)", "Best: C (train)"]
    assert "+1.00 dB against poisson" in said[0]


def test_the_spectrum_names_who_is_blurred(run):
    assert "ours -1.0, +0.0, +0.5 dB" in report.page(run)
    del run.summary["scores"]["test"]["ours"]["thick"]["spectrum"]
    assert "Spectrum" not in report.page(run)


def test_training_says_axes_and_the_level_of_an_output_of_zero(run):
    text = report.page(run)
    assert "Loss from 1.0000 to 0.1000 over 96 samples, on a logarithmic scale." in text
    assert "at the end least noise 0.10, middle 0.20." in text
    assert "7.0 samples per second (median), last loss 0.1000" in text
    assert "kWh" not in text
    assert "Too few lines of metrics for a curve." in report.page(replace(run, metrics=run.metrics[:1]))


def test_energy_and_carbon_with_the_grid_they_are_counted_for(run):
    used = {"energy_kwh": 0.012345, "energy": "estimated", "co2_g": 5.4936, "seconds": 5400.0}
    text = report.page(replace(run, metrics=[*run.metrics[:-1], run.metrics[-1] | used]))
    for said in ("energy (estimated)", "0.0123 kWh", "445 g CO₂ per kWh", "5.49 g CO₂", "1.50 h", "on H200"):
        assert said in text


def test_energy_that_nobody_measured_is_no_figure(run):
    unknown = {"energy_kwh": None, "energy": "not measured", "co2_g": None, "seconds": 5400.0}
    text = report.page(replace(run, metrics=[*run.metrics[:-1], run.metrics[-1] | unknown]))
    assert "<dt>energy</dt><dd>not measured</dd>" in text
    assert "1.50 h" in text
    assert "kWh" not in text


def test_a_step_that_was_to_be_compiled_and_was_not_is_a_warning_with_its_cause(run):
    cards = [*run.cards, *[run.cards[0] | {"event": "not compiled", "cause": "no <compiler>"}] * 2]
    assert "not compiled" not in report.page(run)
    text = report.page(replace(run, cards=cards))
    assert text.count("<li>The step was not compiled, so it was slower and took more memory: no &lt;compiler&gt;") == 1


def test_validation_and_checks_have_a_row_per_look(run):
    text = report.page(run)
    assert the(text, "samples", "loss") == [["96", "0.2500", "27.50", "0.9000", "–", "–"]]
    values = ["0.100", "0.200", "–", "0.400", "0.500", "0.600", "2.500", "1.500", "1.000"]
    assert the(text, "samples", "least noise") == [["320", *values]]
    bare = report.page(replace(run, validation=[], checks=[]))
    assert "held-out triplets each time" not in bare
    assert "Reasons to fail" not in bare


def test_the_data_says_what_was_taken_and_why_not(run):
    text = report.page(run)
    assert "1 products, 2 candidates for a pair, 1 pairs taken." in text
    assert the(text, "a reason against candidates") == [["… days apart, at least 2", "1"]]
    assert the(text, "decision") == [["rejected: hazy", "2"]]
    first, second = the(text, "pair", "split")
    assert first == ["p1", "train", "12", "12.3%", "-9.0", "0.812", "+0.25, -1.00"]
    assert second == ["p2", "test", "12", "12.3%", "–", "–", "not measured"]
    assert "Triplets of 64 pixels: 12 train, 4 test. Pixels of their masks: clear 80.0%, cloud 20.0%." in text
    assert text.count('alt="Histogram: ') == 4  # cloud of two splits, one band, days
    assert "cannot be read" in report.page(replace(run, index={}, data=None))


def test_what_made_it_is_there_to_the_letter(run):
    text = report.page(run)
    assert unescape(text.split('<pre tabindex="0">')[1].split("</pre>")[0]) == run.configuration
    (command,) = the(text, "when", "command")
    typed = "cloudjob train demo --set train.lr=2e-4 --set 'search.tiles=[05WPS, 06WVC]'"
    assert command == ["2026-01-01", typed, "0", "9.5", "0.1.0", "ada on n1"]
    assert the(text, "event")[0][:4] == ["end", "96 of 96", "2", "abc123"]
    assert [["checkpoint, step-96.pt", "f00d"]] in tables(text)
    assert ["A", "sha-A"] in the(text, "product", "SHA-256 of its .h5")
    assert "at commit abc124" in text
    assert "Contains modified Copernicus Sentinel data." in text


def test_nothing_that_a_run_holds_becomes_markup(run):
    evil = "</script><script>'&\""
    summary = run.summary | {
        "scores": {"test": {evil: {}}},
        "methods": {evil: evil},
        "definitions": evil,
        "headline": evil,
        "best_fill": {"method": evil, "above_ours": 1.0},
        "strata": {evil: evil},
        "verdict": evil,
    }
    changed = replace(
        run,
        name=evil,
        summary=summary,
        scores=[row(evil, "test", 1.0, truth=evil, on=evil)],
        scenes=[scene(evil, why=evil)],
        sheets={evil: evil},
        metrics=[run.metrics[0], run.metrics[2] | {"energy_kwh": 1, "energy": evil, "co2_g": 1, "seconds": 1}],
        checks=[run.checks[0] | {"warnings": [evil]}],
        index=run.index | {"counts": {evil: 1}},
        data={
            "pairs": [pair(evil, split=evil)],
            "cloud_fraction": {evil: [1] * 20},
            "reflectance": {evil: [1] * 32},
            "classes": {evil: 1.0},
        },
        by_person=[(evil, 1)],
        troubles=[{"stage": evil, "item": evil, "status": "failed", "message": evil}],
        configuration=f"seed: {evil}",
    )
    text = report.page(changed)
    assert Reader(text).tags.count("script") == Reader(report.page(run)).tags.count("script")
    assert viewed(text)[0]["name"] == evil
    assert text.count("&lt;script&gt;") >= 16


def test_a_page_asks_no_network(run):
    addresses = re.findall(r"""(?:src|href)=["']?([^"' >]+)""", report.page(run))
    assert all(address.startswith(("data:image/", "#", "sheet-", "examples")) for address in addresses)
    assert len(addresses) > 10
