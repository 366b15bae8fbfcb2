"""Previews in memory; pairs of older versions stay valid, and a pair is another one when something of it changes."""

from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudjob import files
from cloudjob.archive.make import make_synthetic
from cloudjob.config import source
from cloudjob.errors import ConfigError, LeftOutError
from cloudjob.run import decisions, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.stages import pair

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "test.yaml"


def test_a_pair_that_an_older_version_made_is_not_made_again(tmp_path):
    folder = RunFolder(tmp_path)
    rows = [{"product": name, "tile": "05WPS", "roles": [role]} for name, role in (("A", "cloudy"), ("B", "clear"))]
    files.write_jsonl(folder.scenes, rows)
    (item,) = pair.items(source.load(CONFIG, ["pair.references=1"])[0], folder)
    rules = {key: value for key, value in item.config["pair"].items() if key not in ("min_days", "references")}
    old = Item("pair", item.name, item.config | {"pair": rules}, item.inputs)
    records.work(folder, "pair", [old], lambda _: ([], []))
    assert records.why(folder, item) is None
    (item,) = pair.items(source.load(CONFIG, ["pair.references=3"])[0], folder)
    assert records.why(folder, item) == "changed: pair.references 1 -> 3"


def test_the_version_changes_with_the_mask_of_any_date():
    row = {"cloudy": "A", "clear": "B", "reference": "C"}
    further = {"further": [{"product": "D", "days": 3}], "further_of_ground": [{"product": "E", "days": 4}]}
    inputs = {f"{name}.tif": name for name in "ABCDE"}
    assert pair._version(row, inputs) == files.digest([row, ["A", "B", "C"]])  # as in older versions
    versions = [pair._version(row | further, inputs | {f"{name}.tif": "new"}) for name in "ABCDE"]
    versions += [pair._version(row | further, inputs | {f"review/masks/{name}.tif": "new"}) for name in "ABCDE"]
    assert len({*versions, pair._version(row | further, inputs)}) == 11


def test_previews_are_kept_as_far_as_memory_goes_those_used_last():
    opened = []

    def open_preview(name: str) -> SimpleNamespace:
        opened.append(name)
        return SimpleNamespace(name=name, nbytes=150 if name == "large" else 30)

    preview = pair._kept(open_preview, memory=100)
    assert [preview(name).name for name in "abcabcabc"] == list("abcabcabc")
    assert "".join(opened) == "abc"
    for name in "adab":  # a is used before d comes: b must go, then c
        preview(name)
    assert "".join(opened) == "abcdb"
    preview("large")  # more than the memory: it alone is kept
    preview("large")
    preview("a")
    assert opened[5:] == ["large", "a"]


# --- neighbours --------------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=12))
def test_a_pair_keeps_its_number_whatever_comes_before_it_later(cases):
    """(candidates of a cloudy product, made): one without a candidate has nothing to show, and none of the number."""
    every = [Item("pair", f"P{number}", {}, {}) for number in range(len(cases))]
    rows = {
        item.name: [{"pair": item.name, "shown": not place} for place in range(max(count, not made))]
        for item, (count, made) in zip(every, cases, strict=True)  # what is not made yet would have something to show
    }

    def numbers(results: dict) -> dict[str, int]:
        """As `decisions.shown_pairs` reads them."""
        shown = [row for row in pair._numbered(every, results) if row["shown"]]
        return {row["pair"]: ({"number": place} | row)["number"] for place, row in enumerate(shown)}

    now = {item.name: rows[item.name] for item, (_, made) in zip(every, cases, strict=True) if made}
    whole = numbers(rows)
    assert numbers(now) == {name: whole[name] for name in whole if name in now}
    assert pair._numbered(every, rows) == [row for own in rows.values() for row in own]  # nothing is written down


TILE = "05WMU"


@pytest.fixture
def previewed(tmp_path) -> RunFolder:
    """A cloudy product and three clear ones, as the stage preview leaves them."""
    folder = RunFolder(tmp_path)
    days = {"clear": [date(2024, 3, day) for day in (4, 8, 20)], "cloudy": [date(2024, 3, 10)]}
    names = make_synthetic(folder.root / "scenes", tiles=[TILE], size=96, seed=5, cloud=(0.2, 0.3), **days)
    rows = [{"product": name, "tile": TILE, "roles": ["cloudy" if "_20240310T" in name else "clear"]} for name in names]
    files.write_jsonl(folder.scenes, rows)
    items = [Item("preview", name, {}, {}) for name in names]
    records.work(folder, "preview", items, lambda item: (sorted(folder.safe(item.name).rglob("*.jp2")), None))
    return folder


def run(folder: RunFolder) -> tuple[records.Summary, list[str]]:
    """Its summary, and the days of the clear dates of all candidates."""
    summary = pair.run(source.load(CONFIG, [])[0], folder)
    return summary, sorted(row["clear"][17:19] for row in files.read_jsonl(folder.pairs))


def of(folder: RunFolder, day: str) -> str:
    return next(path.stem for path in (folder.root / "scenes").glob(f"*_202403{day}T*_T*.SAFE"))


@pytest.mark.slow
def test_a_clear_date_that_cannot_be_read_is_no_candidate_until_it_can(previewed):
    nearest = of(previewed, "08")
    (scl,) = previewed.safe(nearest).rglob("*_SCL_20m.jp2")
    whole = scl.read_bytes()
    scl.write_bytes(bytes(len(whole)))
    summary, days = run(previewed)
    assert (len(summary.done), list(summary.failed), days) == (1, [nearest], ["04", "20"])
    assert "its SHA-256 is" in summary.failed[nearest]
    assert not scl.exists()
    assert records.record(previewed, "preview", nearest)["status"] == "failed"
    again = run(previewed)
    assert (len(again[0].skipped), again[0].failed, again[1]) == (1, {}, days)
    scl.write_bytes(whole)
    item = Item("preview", nearest, {}, {})
    records.work(previewed, "preview", [item], lambda item: (sorted(previewed.safe(nearest).rglob("*.jp2")), None))
    summary, days = run(previewed)
    assert (len(summary.done), summary.failed, days) == (1, {}, ["04", "08", "20"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["preview", "download"])
def test_a_product_that_is_gone_is_no_candidate_and_has_no_pair(previewed, stage):
    def gone(item):
        raise LeftOutError("HTTP 404")

    clear, cloudy = of(previewed, "08"), of(previewed, "10")
    assert run(previewed)[1] == ["04", "08", "20"]
    assert decisions.shown_pairs(previewed)[0]["clear"] == clear
    previewed.force = True
    records.work(previewed, stage, [Item(stage, clear, {}, {})], gone)
    previewed.force = False
    summary, days = run(previewed)
    assert (len(summary.done), summary.failed, days) == (1, {}, ["04", "20"])
    previewed.force = True
    records.work(previewed, stage, [Item(stage, cloudy, {}, {})], gone)
    previewed.force = False
    with pytest.raises(ConfigError, match="none of 0 candidates is acceptable, and 1 cloudy products are left out"):
        run(previewed)
    assert records.record(previewed, "pair", cloudy)["message"] == f"{stage} of {cloudy}: HTTP 404"
