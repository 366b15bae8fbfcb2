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
    LeftOutError,
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


def test_what_fails_is_no_progress(folder):
    shares = []
    folder.progress = lambda share, line: shares.append((share, line))

    def make(item):
        if item.name != "b":
            raise ItemError("no")
        return [], None

    records.work(folder, "shard", [item(name) for name in "abcd"], make)
    assert shares == [
        (0, "shard: 0 of 4 (a)"),
        (0.25, "shard: 1 of 4 (b)"),
        *((0.25, f"shard: 1 of 4 ({c})") for c in "cd"),
    ]


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


def test_force_counts_once_however_often_it_is_stopped(folder):
    """What it asked for is made once, in as many goes as it takes; with --force again, or without."""
    items, made = [item(name) for name in "abcd"], []

    def make(each):
        made.append(each.name)
        return maker(folder)(each)

    folder.only = ["a", "b"]
    records.work(folder, "shard", items, maker(folder))
    folder.only, folder.force = [], True
    for force, goes in ((True, 2), (True, 1), (False, 4)):
        folder.force, end = force, len(made) + goes
        folder.stop_requested = lambda end=end: len(made) == end
        if made != ["a", "b", "c"]:
            with pytest.raises(InterruptedJob):
                records.work(folder, "shard", items, make)
        else:
            assert records.why(folder, items[3]) == "missing"
            assert records.work(folder, "shard", items, make).skipped == ["a", "b", "c"]
    assert made == ["a", "b", "c", "d"]
    assert not any(records.forced(folder, each) for each in items)
    folder.force, folder.stop_requested = True, lambda: False
    assert records.work(folder, "shard", items, make).done == ["a", "b", "c", "d"]


def test_a_stop_comes_between_items(folder):
    folder.stop_requested = lambda: (folder.root / "a.txt").exists()
    with pytest.raises(InterruptedJob) as caught:
        records.work(folder, "shard", [item("a"), item("b")], maker(folder))
    assert caught.value.exit_code == 75
    assert records.why(folder, item("a")) is None
    assert records.why(folder, item("b")) == "missing"


# --- neighbours --------------------------------------------------------------------------------------------------
INPUTS = ("whole", "failed", "gone", "never made", "damaged")


@pytest.fixture
def fetched(folder):
    """A folder with one product in each state that an earlier stage leaves behind."""

    def fetch(item):
        if item.name in ("failed", "gone"):
            raise {"failed": ItemError("HTTP 500"), "gone": LeftOutError("HTTP 404")}[item.name]
        return maker(folder)(item)

    made = [Item("download", name, {}, {}) for name in INPUTS if name != "never made"]
    assert records.work(folder, "download", made, fetch).left_out == {"gone": "HTTP 404"}
    (folder.root / "damaged.txt").unlink()
    return folder


def asks_for_its_own(folder):
    """An item needs the product of its name."""

    def make(item):
        records.need(folder, "download", [item.name], own=item.name)
        return maker(folder)(item)

    return make


def test_an_item_lacks_its_own_input_alone_and_is_made_when_that_comes(fetched):
    items = [item(name) for name in INPUTS]
    summary = records.work(fetched, "shard", items, asks_for_its_own(fetched))
    assert summary.done == ["whole"]
    assert summary.left_out == {"gone": "download of gone: HTTP 404"}
    why = {"failed": "HTTP 500", "never made": "missing", "damaged": "output damaged.txt is gone"}
    assert summary.failed == {
        name: f"download of {name}: {reason}. Run: cloudjob download {fetched.root}" for name, reason in why.items()
    }
    assert [records.why(fetched, each) for each in items] == [None, "missing", None, "missing", "missing"]
    later = [Item("download", name, {}, {}) for name in INPUTS]
    records.work(fetched, "download", later, maker(fetched))
    assert records.work(fetched, "shard", items, asks_for_its_own(fetched)).done == ["failed", "never made", "damaged"]


def test_single_items_and_a_stage_that_has_nothing_say_which_stage_comes_first(fetched):
    items = [item(name) for name in INPUTS]
    fetched.only = ["failed", "whole"]
    with pytest.raises(InputError, match=f"^download of failed: HTTP 500. Run: cloudjob download {fetched.root}$"):
        records.work(fetched, "shard", items, asks_for_its_own(fetched))
    assert records.why(fetched, item("whole")) is None  # made all the same
    fetched.only = []
    with pytest.raises(InputError, match=r"^shard: 2 items lack their input, failed: download of failed: HTTP 500"):
        records.work(fetched, "shard", [item("failed"), item("damaged")], asks_for_its_own(fetched))


def test_what_is_gone_beside_the_own_product_is_paired_anew(fetched):
    with pytest.raises(InputError, match=r"download of gone: HTTP 404\. Run: cloudjob pair"):
        records.need(fetched, "download", ["whole", "gone"], own="whole")
    records.need(fetched, "download", ["whole"])


def test_left_out_is_settled_and_no_failure(fetched):
    made = {name: Item("download", name, {}, {}) for name in INPUTS}
    assert records.settled(fetched, made.values()) == [made["whole"], made["gone"]]
    assert (records.why(fetched, made["gone"]), records.left_out(fetched, "download", "gone")) == (None, True)
    assert [records.left_out(fetched, "download", name) for name in ("whole", "failed", "never made")] == [False] * 3
    assert [records.output_digest(fetched, "download", name) for name in ("failed", "gone", "never made")] == [""] * 3
    again = records.work(fetched, "download", [made["gone"], made["whole"]], None)
    assert (again.left_out, again.skipped, again.failed) == ({"gone": "HTTP 404"}, ["whole"], {})
    assert again.line().startswith("download: 0 done, 1 skipped, 0 rejected, 0 failed, 1 left out, ")


def test_what_an_earlier_stage_made_and_nobody_can_read_is_made_again(fetched):
    path = fetched.root / "whole.txt"
    message = records.spoil(fetched, "download", "whole", CorruptFileError(path, "cannot be decoded"))
    assert f"{path}: cannot be decoded" in message
    assert not path.exists()
    assert records.why(fetched, Item("download", "whole", {}, {})) == f"failed: {message}"
    assert records.output_digest(fetched, "download", "whole") == ""


def test_shards_are_asked_for_only_where_the_network_is_our_own(folder):
    elsewhere = folder.root / "model.pt"
    assert records.shard_index(folder, elsewhere) is None
    with pytest.raises(InputError, match="cloudjob shard"):
        records.shard_index(folder, None)
    folder.shards.mkdir()
    folder.shard_index.write_text('{"window": 64}')
    assert records.shard_index(folder, elsewhere) == records.shard_index(folder, None) == {"window": 64}


def test_an_output_that_vanishes_fails_its_item_and_no_other(folder):
    """Another process may have set it aside as broken."""

    def make(item):
        made = maker(folder)(item)
        if item.name == "a":
            made[0][0].unlink()
        return made

    summary = records.work(folder, "shard", [item("a"), item("b")], make)
    assert (summary.done, list(summary.failed)) == (["b"], ["a"])
    assert "a.txt" in summary.failed["a"]
    assert records.record(folder, "shard", "a")["outputs"] == {}
