"""Previews in memory; pairs of older versions stay valid, and a pair is another one when something of it changes."""

from pathlib import Path
from types import SimpleNamespace

from cloudjob import files
from cloudjob.config import source
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.stages import pair

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "test.yaml"


def test_a_pair_that_an_older_version_made_is_not_made_again(tmp_path):
    folder = RunFolder(tmp_path)
    rows = [{"product": name, "tile": "05WPS", "roles": [role]} for name, role in (("A", "cloudy"), ("B", "clear"))]
    files.write_jsonl(folder.scenes, rows)
    (item,) = pair.items(source.load(CONFIG, [])[0], folder)
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
    assert len({*versions, pair._version(row | further, inputs)}) == 6


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
