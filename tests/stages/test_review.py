"""The review: a person's decisions on the page, in a real browser and from disk, and their way back into the run."""

import csv
import json
import os
import shutil
import subprocess
import time
from datetime import date
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from browsing import chromium
from examples import examples
from front_door import CONFIG, copied, good
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.archive.make import make_synthetic
from cloudjob.config.source import load
from cloudjob.errors import ConfigError, InterruptedJob
from cloudjob.files import write_jsonl, write_text
from cloudjob.pages.review import COLUMNS, MEASURES, REASONS
from cloudjob.pixels import CIRRUS, CLOUD, HIDDEN, NO_DATA, SHADOW
from cloudjob.run import decisions, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.product import Product
from cloudjob.stages import review

HEAD = ",".join(COLUMNS)


def written(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# --- from the file into the run --------------------------------------------------------------------------------
PAIRS = [
    {"pair": f"p{n}", "version": f"v{n}", "accepted": n % 2 == 0, "shown": True, "reasons": ["haze"] * (n % 2)}
    for n in range(4)
]
ROWS = st.fixed_dictionaries(
    {
        "pair": st.sampled_from(["p0", "p1", "p2", "p3", "p9"]),
        "decision": st.sampled_from(["accept", "reject"]),
        "reason": st.sampled_from(["", "hazy", 'one, "two"', "=1", "ü"]),
        "reviewer": st.sampled_from(["rule", "Ada", ""]),
        "version": st.sampled_from(["v0", "v1", "v2", "v3"]),
    }
)


@pytest.fixture(scope="module")
def given_run(tmp_path_factory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("given"))
    write_jsonl(folder.pairs, PAIRS)
    return folder


@examples(50)
@given(st.lists(ROWS, max_size=6), st.lists(ROWS, max_size=6))
def test_the_last_word_of_a_person_on_this_very_pair_counts_and_nothing_else(given_run, before, new):
    folder, file = given_run, given_run.root / "new.csv"
    write_text(folder.decisions, review._csv([]))
    said = []
    for rows in (before, new):
        write_text(file, review._csv(rows))
        said = review.apply(None, folder, file)
    versions = {pair["pair"]: pair["version"] for pair in PAIRS}
    outcome = {pair["pair"]: pair["accepted"] for pair in PAIRS}
    rule = dict(outcome)
    for row in [*before, *new]:
        accepts = row["decision"] == "accept"
        good = versions.get(row["pair"]) == row["version"]
        if good and not (row["reviewer"] == "rule" and accepts == rule[row["pair"]]):
            outcome[row["pair"]] = accepts
    assert [row["pair"] for row in decisions.accepted_pairs(folder)] == [
        name for name, accepted in outcome.items() if accepted
    ]
    strangers = [row["pair"] for row in new if versions.get(row["pair"]) != row["version"]]
    assert [line.split()[4] for line in said[:-1]] == strangers
    assert f"{len(strangers)} refused" in said[-1]


def test_a_broken_file_changes_nothing(given_run):
    write_text(given_run.decisions, review._csv([]))
    file = given_run.root / "broken.csv"
    write_text(file, f"{HEAD}\np0,reject,,Ada,v0\np1,perhaps,,Ada,v1\n")
    with pytest.raises(ConfigError, match=r"broken\.csv:3 .*accept or reject"):
        review.apply(None, given_run, file)
    assert written(given_run.decisions) == []
    with pytest.raises(ConfigError, match=r"none\.csv: no such file"):
        review.apply(None, given_run, given_run.root / "none.csv")


# --- the page of a real run ------------------------------------------------------------------------------------
def cloudjob(*arguments) -> str:
    return good(*arguments).stderr


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory) -> Path:
    """Three pairs, of which the rule rejects the cloudiest; each has another candidate."""
    folder = copied(finished, tmp_path_factory.mktemp("review") / "run", until="pair")
    clouds = sorted({row["cloudy_cloud"] for row in decisions.shown_pairs(RunFolder(folder))})
    limit = f"pair.cloudy_range=[0.01, {(clouds[-1] + clouds[-2]) / 2:.4f}]"
    cloudjob("run", folder, "--set", limit, "--until", "review")
    return folder


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def on_page(run: Path) -> dict:
    text = (run / "review" / "index.html").read_text()
    return json.loads(text.split('<script id="data" type="application/json">')[1].split("</script>")[0])


@pytest.mark.slow
def test_every_measure_reason_candidate_and_picture_is_on_the_page(run):
    page = on_page(run)
    known = {"pair", "cloudy", "clear", "version", "accepted", "shown", "reasons", "reference", "reference_days"}
    known |= {"further", "further_of_ground"}
    rows = RunFolder(run).rows(run / "pairs.jsonl", stage="pair")
    assert {key for row in rows for key in row} == known | set(MEASURES)
    assert [pair["accepted"] for pair in page["pairs"]].count(False) == 1
    for row, pair in zip((row for row in rows if row["shown"]), page["pairs"], strict=True):
        assert (row["pair"], row["version"], row["reasons"]) == (pair["pair"], pair["version"], pair["reasons"])
        assert (len(pair["values"]), len(pair["more"])) == (len(MEASURES), 2)
        assert [other["clear"] for other in pair["others"]] == [
            other["clear"] for other in rows if other["cloudy"] == row["cloudy"] and not other["shown"]
        ]
        assert all((run / "review" / image).stat().st_size for image in pair["images"].values())


@pytest.mark.slow
def test_what_a_person_wrote_cannot_break_the_page_and_stays_when_settings_change(copy):
    folder, config = RunFolder(copy), load(copy / "config.yaml", [])[0]
    said = []
    folder.say = said.append
    pair = decisions.shown_pairs(folder)[0]
    mine = {"pair": pair["pair"], "decision": "reject", "reason": "</script><b>,\"'", "reviewer": "Ada"}
    stale = {**mine, "reviewer": "Bob", "version": "0" * 64}
    write_text(folder.decisions, review._csv([{**mine, "version": pair["version"]}, stale]))
    assert review.run(config, folder).done == []  # decisions need no new pictures
    assert on_page(copy)["pairs"][0]["decided"]["reason"] == mine["reason"]
    assert said == []  # Ada's decision counts; Bob's is of no account
    rows = written(folder.decisions)
    assert [row["reviewer"] for row in rows] == ["Ada", "rule", "rule", "Bob"]
    write_text(folder.decisions, review._csv([stale]))
    review.run(config, folder)
    assert len(said) == 1
    assert pair["pair"] in said[0]
    assert "another version" in said[0]
    assert [row["reviewer"] for row in written(folder.decisions)] == ["rule", "rule", "rule", "Bob"]
    assert len(review.run(load(copy / "config.yaml", ["review.gain=2"])[0], folder).done) == 3


# --- masks for a person to correct -----------------------------------------------------------------------------
@pytest.mark.slow
def test_masks_of_the_pairs_that_can_be_read_are_exported_and_those_that_are_asked_for(tmp_path):
    folder, said = RunFolder(tmp_path), []
    folder.say = said.append
    asked = {"tiles": ["05WMU", "05WPS"], "size": 96, "seed": 5, "cloud": (0.2, 0.3)}
    days = {"clear": [date(2024, 3, 4)], "cloudy": [date(2024, 3, 10)]}
    names = make_synthetic(folder.root / "scenes", **asked, **days)
    records.work(folder, "preview", [Item("preview", name, {}, {}) for name in names], lambda _: ([], None))
    rows = []
    for tile in asked["tiles"]:
        clear, cloudy = sorted(name for name in names if tile in name)
        rows.append({"pair": tile, "cloudy": cloudy, "clear": clear, "reference": None, "shown": True})
    write_jsonl(folder.pairs, [rows[0] | {"further": [{"product": "gone", "days": 3}]}, rows[1]])
    config = load(CONFIG, [])[0]
    assert "2 masks in" in review.export_masks(config, folder)
    (line,) = said
    assert line.startswith("review: no masks of 05WMU: preview of gone: missing")
    assert {path.stem for path in folder.labels.glob("*.tif")} == {rows[1]["cloudy"], rows[1]["clear"]}
    write_jsonl(folder.pairs, rows)
    folder.only = ["05WPS"]
    with rasterio.open(folder.labels / f"{rows[1]['clear']}.tif", "r+") as image:
        image.write(np.full_like(image.read(1), CIRRUS), 1)
    assert "1 masks in" in (last := review.export_masks(config, folder))
    assert last.endswith("1 more stay as a person changed them")
    folder.stop_requested = lambda: True
    with pytest.raises(InterruptedJob):
        review.export_masks(config, folder)


@pytest.mark.slow
def test_a_corrected_mask_counts_in_pair_shard_infer_and_the_report_whatever_the_source(finished, tmp_path):
    run = copied(finished, tmp_path / "run", until="infer")
    folder, own = RunFolder(run), tmp_path / "own"
    said = cloudjob("review", run, "--export-masks")
    products = {row[role] for row in decisions.shown_pairs(folder) for role in ("cloudy", "clear", "reference")}
    assert {path.stem for path in folder.labels.glob("*.tif")} == products
    assert f"{len(products)} masks in {folder.labels}, 0 more stay" in said
    assert "0 done" in cloudjob("run", run, "--from", "pair", "--until", "shard")  # nobody has changed anything

    row = next(row for row in decisions.accepted_pairs(folder))
    path = folder.labels / f"{row['cloudy']}.tif"
    with rasterio.open(path, "r+") as image:
        hand = image.read(1)
        hand[20:60, 20:60] = SHADOW
        image.write(hand, 1)
    shutil.copytree(folder.labels / "exported", own)
    for each in own.glob("*.tif"):
        with rasterio.open(each, "r+") as image:
            image.write(np.zeros_like(image.read(1)), 1)
    assert f"input review/masks/{path.name}" in good("plan", run).stdout
    by_raster = ("--set", "masks.source=raster", "--set", f"masks.folder={own}", "--set", "pair.cloudy_range=[0, 1]")
    cloudjob("run", run, "--from", "pair", "--until", "shard", *by_raster)
    (again,) = [each for each in decisions.shown_pairs(folder) if each["cloudy"] == row["cloudy"]]
    assert again["version"] != row["version"]
    assert again["cloudy_cloud"] == pytest.approx((hand == CLOUD).mean() + (hand == CIRRUS).mean(), abs=0.01)
    config = load(run / "config.yaml", [])[0]
    grown = masks.grow(hand, masks.Settings(**dict(config.masks)), pixel_m=20)
    expected = masks.upsampled(grown, 2, Product.open(folder.safe(row["cloudy"])).shape)
    (entry,) = [each for each in folder.index()["files"] if each["pair"] == row["pair"]]
    with h5py.File(folder.shards / entry["file"]) as file:
        assert json.loads(file.attrs["pairs"])[0]["masks_by_hand"] == [row["cloudy"]]
        for top, left, mask in zip(file["row"], file["col"], file["mask"], strict=True):
            here = expected[top : top + mask.shape[0], left : left + mask.shape[1]]
            assert np.array_equal(mask[mask != NO_DATA], here[mask != NO_DATA])

    cloudjob("infer", run, "--only", row["cloudy"])
    with h5py.File(folder.output(row["cloudy"], ".h5")) as file:
        assert file.attrs["masks_by_hand"] == row["cloudy"]
        hidden = np.isin(expected, HIDDEN)
        assert ((file["reconstructed"][...] > 0) & (file["reconstructed"][...] < NO_DATA) & ~hidden).sum() == 0
        assert (file["reconstructed"][...][masks.upsampled(hand, 2, expected.shape) == SHADOW] > 0).all()
    cloudjob("run", run, "--from", "evaluate")
    assert row["cloudy"] in folder.report.read_text().partition("Masks corrected by hand")[2]


# --- the page in a browser -------------------------------------------------------------------------------------
@pytest.fixture
def browser(tmp_path):
    """A headless Chromium that downloads into `tmp_path`, and goes whatever happens."""
    with chromium(tmp_path) as found:
        yield found


class Page:
    """The page as a person meets it."""

    def __init__(self, driver, run: Path):
        self.driver = driver
        self.run = run
        driver.get((run / "review" / "index.html").as_uri())

    def find(self, selector: str, row: int | None = None):
        return self.all(selector if row is None else f"section:nth-of-type({row + 1}) {selector}")[0]

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def outcomes(self) -> list[str]:
        return [element.text for element in self.all(".outcome")]

    def shown(self) -> list[str]:
        return [element.text for element in self.all("section:not([hidden]) .pair")]

    def current(self) -> str:
        return self.find("section[aria-current] .pair").text

    def count(self) -> str:
        return self.find("#count").text

    def choose(self, what: str) -> None:
        self.find(f"#filter option[value={what}]").click()

    def export(self, folder: Path) -> Path:
        self.find("#export").click()
        file = folder / "decisions.csv"
        until(file.exists)
        return file

    def upload(self, file: Path) -> str:
        """What the page says after the import."""
        self.find("#import").send_keys(str(file))
        until(lambda: file.name in self.find("#status").text)
        return self.find("#status").text

    def errors(self) -> list:
        return self.driver.get_log("browser")


def until(condition) -> None:
    """Waits for what the browser does in its own time."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def names(run: Path) -> list[str]:
    return [row["pair"] for row in decisions.shown_pairs(RunFolder(run))]


def by_rule(run: Path) -> int:
    """The position of the pair that the rule rejects."""
    return [row["accepted"] for row in decisions.shown_pairs(RunFolder(run))].index(False)


@pytest.mark.slow
def test_decided_on_the_page_exported_and_fed_back(browser, copy, tmp_path):
    cloudjob("review", copy)  # its page names the folder that it lies in
    page, bad = Page(browser, copy), by_rule(copy)
    good, other = (n for n in range(3) if n != bad)
    pairs = names(copy)
    assert page.outcomes() == ["○ undecided"] * 3
    assert "the rule rejects: cloudy date has" in page.find(".rule", bad).text
    page.find("#reviewer").send_keys("Ada")
    page.find("[data-do='1']", good).click()
    page.find(".reason", bad).send_keys('thin, but "good"')
    page.find(".pair", bad).click()
    page.press("a")
    assert page.outcomes()[good] == f"✗ rejected by Ada: {REASONS[0]} ≠ rule"
    assert page.outcomes()[bad] == '✓ accepted by Ada: thin, but "good" ≠ rule'
    assert page.count() == "2 of 3 decided · 2 accepted, 1 rejected · 2 ≠ rule"
    file = page.export(tmp_path)
    command = page.find("#status").text.splitlines()[1]
    rows = {row["pair"]: row for row in written(file)}
    assert [rows[name]["decision"] for name in (pairs[good], pairs[bad], pairs[other])] == [
        "reject",
        "accept",
        "accept",
    ]
    assert [rows[name]["reviewer"] for name in (pairs[good], pairs[bad], pairs[other])] == ["Ada", "Ada", "rule"]

    (tmp_path / "Downloads").mkdir()
    shutil.copy(file, tmp_path / "Downloads")
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, shell=True, cwd="/", env=home, capture_output=True, text=True, check=False)
    assert "2 accepted, 1 rejected, 2 of them by a person" in done.stderr
    accepted = [row["pair"] for row in decisions.accepted_pairs(RunFolder(copy))]
    assert accepted == [name for name in pairs if name != pairs[good]]
    assert written(copy / "review" / "decisions.csv") == written(file)
    browser.execute_script("localStorage.clear()")
    again = Page(browser, copy)  # made anew, with these decisions in it
    assert again.count() == "2 of 3 decided · 2 accepted, 1 rejected · 2 ≠ rule"
    assert again.find(".reason", bad).get_property("value") == 'thin, but "good"'
    assert page.errors() == []


@pytest.mark.slow
def test_a_decision_for_another_version_is_refused_by_the_run_and_by_the_page(browser, copy, tmp_path):
    pairs, kept = names(copy), copy / "review" / "decisions.csv"
    first, second, third = written(kept)
    mine = [{**row, "decision": "reject", "reason": 'a, "b"\nc', "reviewer": "Ada"} for row in (first, second, third)]
    mine[1]["version"] = "0" * 64
    mine.append({**mine[0], "pair": "99XXX"})
    file = tmp_path / "given.csv"
    write_text(file, "\ufeff" + review._csv(mine).replace("\n", "\r\n"))
    page = Page(browser, copy)
    said = page.upload(file)
    assert said.splitlines() == [
        "given.csv: 2 decisions taken, 2 refused",
        f"{pairs[1]}: refused, decided for another version of the pair",
        "99XXX: refused, no such pair on this page",
    ]
    assert [text.split()[0] for text in page.outcomes()] == ["✗", "○", "✗"]
    assert written(page.export(tmp_path))[0]["reason"].replace("\r", "") == mine[0]["reason"]

    said = cloudjob("review", copy, "--apply", file)
    assert f"the decision on {pairs[1]} is refused: it is for another version" in said
    assert "the decision on 99XXX is refused: this run shows no such pair" in said
    assert "2 decisions taken" in said
    assert [row["reviewer"] for row in written(kept)] == ["Ada", "rule", "Ada"]
    file.write_text("pair,verdict\nx,y\n")
    assert "the first line must be" in page.upload(file)
    assert page.errors() == []


@pytest.mark.slow
def test_keys_filter_progress_undo_and_what_the_browser_remembers(browser, copy):
    from selenium.webdriver.common.keys import Keys

    page, bad, pairs = Page(browser, copy), by_rule(copy), names(copy)
    page.find("#reviewer").send_keys("Ada", Keys.ESCAPE)
    assert page.current() == pairs[0]
    page.press("j")
    assert page.current() == pairs[1]
    page.press(Keys.ARROW_UP, "2")
    assert page.outcomes()[0] == f"✗ rejected by Ada: {REASONS[1]}" + (" ≠ rule" if bad != 0 else "")
    assert page.current() == pairs[1]
    page.press("r", "jar of snow", Keys.ENTER)  # what is typed into the reason is no key
    assert "jar of snow" in page.outcomes()[1]
    assert page.current() == pairs[2]
    assert page.find("progress").get_property("value") == 2
    assert page.count().startswith("2 of 3 decided")

    page.choose("undecided")
    assert page.shown() == [pairs[2]]
    page.choose("rejected")
    assert page.shown() == [pairs[n] for n in range(3) if n in (0, 1, bad)]
    page.choose("differs")
    assert page.shown() == [pairs[n] for n in range(2) if n != bad]
    page.choose("all")
    page.press("/", "jar of", Keys.ENTER)
    assert page.shown() == [pairs[1]]
    page.press("/", "zzz", Keys.ENTER, "a")
    assert page.shown() == []
    assert page.count().startswith("2 of 3 decided")  # nothing is shown, so nothing is decided
    page.press("/", Keys.ESCAPE)
    assert page.shown() == pairs

    again = Page(browser, copy)
    assert again.count().startswith("2 of 3 decided")
    assert again.find("#reviewer").get_property("value") == "Ada"
    again.press("u")
    assert again.outcomes()[1] == "○ undecided"
    assert again.current() == pairs[1]
    again.press("u", "u")
    assert again.count().startswith("0 of 3 decided")

    again.press("z", "o")
    pictures = [p for p in again.all("section:nth-of-type(2) img") if "blink" not in p.get_attribute("class")]
    assert all(picture.is_displayed() for picture in pictures)
    until(lambda: all(picture.get_property("complete") for picture in pictures))
    assert [picture.get_property("naturalWidth") for picture in pictures] == [96] * 7  # 192 pixels of 10 m at 20 m
    again.find("details summary", 1).click()
    until(lambda: again.all("section:nth-of-type(2) table"))
    assert "is nearer" in again.find("table", 1).text
    assert again.errors() == []


@pytest.mark.slow
def test_a_key_does_not_decide_on_a_pair_that_was_scrolled_away(browser, copy):
    page = Page(browser, copy)
    browser.execute_script("scrollTo(0, document.body.scrollHeight)")
    page.press("a")
    assert page.outcomes() == ["○ undecided"] * 3
    page.press("a")
    assert page.outcomes()[0].startswith("✓ accepted by unnamed")
