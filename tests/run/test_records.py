"""Records, and why an item would run again."""

import errno

import pytest

from cloudjob.errors import (
    ConfigError,
    CorruptFileError,
    DiskFullError,
    InputError,
    InterruptedJob,
    ItemError,
    RejectedError,
    SystemTroubleError,
)
from cloudjob.files import file_sha256, write_text
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def item(name="a", config=None, inputs=None):
    return Item("shard", name, config or {"shard": {"window": 64}}, inputs or {"x": "1"})


def maker(folder, text="made"):
    def make(item):
        path = folder.root / f"{item.name}.txt"
        write_text(path, text)
        return [path], {"answer": 42}

    return make


def test_done_once_and_only_once(folder):
    items = [item("a"), item("b")]
    assert records.work(folder, "shard", items, maker(folder)).done == ["a", "b"]
    again = records.work(folder, "shard", items, None)
    assert (again.done, again.skipped) == ([], ["a", "b"])
    assert records.results(folder, [*items, item("c")]) == [{"answer": 42}, {"answer": 42}, None]
    kept = records.record(folder, "shard", "a")
    assert kept["outputs"] == {"a.txt": {"size": 4, "sha256": file_sha256(folder.root / "a.txt")}}
    assert again.line().startswith("shard: 0 done, 2 skipped, 0 rejected, 0 failed, ")


def test_why_names_what_changed(folder):
    records.work(folder, "shard", [item()], maker(folder))
    assert records.why(folder, item()) is None
    assert records.why(folder, item(config={"shard": {"window": 128}})) == "changed: shard.window 64 -> 128"
    assert records.why(folder, item(inputs={"x": "2"})) == "changed: input x"
    (folder.root / "a.txt").write_text("mad")
    assert "3 bytes instead of 4" in records.why(folder, item())
    (folder.root / "a.txt").unlink()
    assert records.why(folder, item()) == "output a.txt is gone"
    for torn in ('{"stage"', "", "{}", "[]", "\0\0", '{"status": "done"}'):
        records.path(folder, "shard", "a").write_text(torn)
        kept = records.path(folder, "shard", "a")
        assert records.why(folder, item()) == f"its record {kept} cannot be read; cloudjob shard {folder.root}"
        assert records.record(folder, "shard", "a") is None
    records.path(folder, "shard", "a").unlink()
    assert records.why(folder, item()) == "missing"


def test_an_error_of_the_system_fails_the_item_and_leaves_its_file_alone(folder):
    band = folder.root / "band.jp2"
    band.write_bytes(b"whole")

    def make(item):
        raise {"a": OSError(errno.ESTALE, "Stale file handle", str(band)), "b": SystemTroubleError("no locks")}[
            item.name
        ]

    summary = records.work(folder, "shard", [item("a"), item("b")], make)
    assert summary.failed["a"].startswith(f"{band}: Stale file handle: ")
    assert summary.failed["b"] == "no locks"
    assert [path.name for path in folder.root.glob("band*")] == ["band.jp2"]

    def full(item):
        raise OSError(errno.ENOSPC, "No space left on device", str(band))

    with pytest.raises(DiskFullError, match=r"band\.jp2"):
        records.work(folder, "shard", [item("c")], full)


def test_a_key_younger_than_the_record_counts_with_the_value_of_then(folder):
    records.work(folder, "train", [Item("train", "run", {"train": {"lr": 1}}, {})], lambda item: ([], None))
    young = {"train": {"lr": 1, "betas": [0.9, 0.99]}}
    newer = {"train": {"betas": [0.9, 0.99], "lr": 7}}  # lr is recorded, so that this one is not asked
    assert records.why(folder, Item("train", "run", young, {}, newer)) is None
    assert records.why(folder, Item("train", "run", young, {})) == "changed: train.betas None -> [0.9, 0.99]"
    other = {"train": {"lr": 1, "betas": [0.9, 0.5]}}
    assert records.why(folder, Item("train", "run", other, {}, newer)) == (
        "changed: train.betas [0.9, 0.99] -> [0.9, 0.5]"
    )


def test_two_nested_dictionaries_in_one_and_their_differences():
    below, above = {"a": {"b": 1, "c": 2}, "d": 3, "e": {"f": 4}}, {"a": {"c": 5}, "e": 6, "g": 7}
    assert records.merged(below, above) == {"a": {"b": 1, "c": 5}, "d": 3, "e": 6, "g": 7}
    assert records.changes({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}) == [
        "a.c 2 -> 5",
        "d 3 -> None",
        "e None -> 4",
    ]
    assert records.changes({"a": {"c": 2}}, {"a": {"c": 5}}, values=False) == ["a.c"]


def test_the_network_of_this_run_or_from_elsewhere_is_known_by_its_digest(folder, tmp_path):
    assert records.checkpoint_digest(folder, None) == ""
    records.work(folder, "train", [Item("train", "run", {}, {})], maker(folder))
    mine = records.checkpoint_digest(folder, None)
    folder.force = True
    records.work(folder, "train", [Item("train", "run", {}, {})], maker(folder, "made otherwise"))
    assert records.checkpoint_digest(folder, None) not in (mine, "")
    elsewhere = tmp_path / "model.pt"
    with pytest.raises(InputError, match=r"infer\.checkpoint: .*model\.pt does not exist"):
        records.checkpoint_digest(folder, elsewhere)
    write_text(elsewhere, "network")
    assert records.checkpoint_digest(folder, elsewhere) == file_sha256(elsewhere)


def test_rejected_is_not_failed_is_not_skipped(folder):
    def make(item):
        raise {"a": RejectedError("too dark", [1]), "b": ItemError("broken")}[item.name]

    summary = records.work(folder, "shard", [item("a"), item("b")], make)
    assert summary.rejected == {"a": "too dark"}
    assert summary.failed == {"b": "broken"}
    assert records.why(folder, item("a")) is None  # a rule's no stands until something changes
    assert records.why(folder, item("b")) == "failed: broken"
    assert records.results(folder, [item("a")]) == [[1]]
    again = records.work(folder, "shard", [item("a")], make)
    assert (again.skipped, again.rejected) == ([], {"a": "too dark"})
    with pytest.raises(InputError, match="broken"):
        records.require(folder, "shard", ["a", "b"], reader="train")
    records.require(folder, "shard", ["a"], reader="train")


def test_a_corrupt_file_of_the_run_is_set_aside_and_anothers_is_left(folder, tmp_path_factory):
    foreign = tmp_path_factory.mktemp("elsewhere") / "model.pt"
    for path in (folder.root / "band.jp2", foreign):
        path.write_text("broken")

        def make(item, path=path):
            raise CorruptFileError(path, "cannot be decoded")

        summary = records.work(folder, "shard", [item()], make)
        assert f"{path}: cannot be decoded" in summary.failed["a"]
        assert path.exists() == (path == foreign)
    assert (folder.root / "band.jp2.corrupt").read_text() == "broken"


def test_only_and_force(folder):
    items = [item("a"), item("b")]
    folder.only = ["b"]
    assert records.work(folder, "shard", items, maker(folder)).done == ["b"]
    folder.force = True
    assert records.work(folder, "shard", items, maker(folder)).done == ["b"]
    folder.only = ["c"]
    with pytest.raises(ConfigError, match="no such item"):
        records.work(folder, "shard", items, maker(folder))


def test_a_stop_comes_between_items(folder):
    folder.stop_requested = lambda: (folder.root / "a.txt").exists()
    with pytest.raises(InterruptedJob) as caught:
        records.work(folder, "shard", [item("a"), item("b")], maker(folder))
    assert caught.value.exit_code == 75
    assert records.why(folder, item("a")) is None
    assert records.why(folder, item("b")) == "missing"
