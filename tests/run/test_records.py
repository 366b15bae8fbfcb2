"""Records, atomic writes, and why an item would run again."""

import errno
import os
import socket
import subprocess

import pytest

from cloudjob.errors import (
    ConfigError,
    CorruptFileError,
    DiskFullError,
    InputError,
    InterruptedJob,
    ItemError,
    RejectedError,
)
from cloudjob.run.records import Item
from cloudjob.run.folder import RunFolder
from cloudjob.files import atomic, write_text


@pytest.fixture
def workspace(tmp_path):
    return RunFolder(tmp_path)


def item(name="a", config=None, inputs=None):
    return Item("shard", name, config or {"shard": {"window": 64}}, inputs or {"x": "1"})


def maker(workspace, text="made"):
    def make(item):
        path = workspace.root / f"{item.name}.txt"
        write_text(path, text)
        return [path], {"answer": 42}

    return make


def test_done_once_and_only_once(workspace):
    items = [item("a"), item("b")]
    assert records.work(workspace, "shard", items, maker(workspace)).done == ["a", "b"]
    again = records.work(workspace, "shard", items, None)
    assert (again.done, again.skipped) == ([], ["a", "b"])
    assert records.results(workspace, items) == [{"answer": 42}] * 2


def test_why_names_what_changed(workspace):
    records.work(workspace, "shard", [item()], maker(workspace))
    assert records.why(workspace, item()) is None
    assert records.why(workspace, item(config={"shard": {"window": 128}})) == "changed: shard.window 64 -> 128"
    assert records.why(workspace, item(inputs={"x": "2"})) == "changed: input x"
    (workspace.root / "a.txt").write_text("mad")
    assert "3 bytes instead of 4" in records.why(workspace, item())
    (workspace.root / "a.txt").unlink()
    assert records.why(workspace, item()) == "output a.txt is gone"
    records.path(workspace, "shard", "a").write_text('{"stage"')
    assert records.why(workspace, item()) == "missing"


def test_rejected_is_not_failed_is_not_skipped(workspace):
    def make(item):
        raise {"a": RejectedError("too dark", [1]), "b": ItemError("broken")}[item.name]

    summary = records.work(workspace, "shard", [item("a"), item("b")], make)
    assert summary.rejected == {"a": "too dark"}
    assert summary.failed == {"b": "broken"}
    assert records.why(workspace, item("a")) is None  # a rule's no stands until something changes
    assert records.why(workspace, item("b")) == "failed: broken"
    assert records.results(workspace, [item("a")]) == [[1]]
    again = records.work(workspace, "shard", [item("a")], make)
    assert (again.skipped, again.rejected) == ([], {"a": "too dark"})
    with pytest.raises(InputError, match="broken"):
        records.require(workspace, "shard", ["a", "b"], reader="train")
    records.require(workspace, "shard", ["a"], reader="train")


def test_a_corrupt_file_of_the_run_is_set_aside_and_anothers_is_left(workspace, tmp_path_factory):
    foreign = tmp_path_factory.mktemp("elsewhere") / "model.pt"
    for path in (workspace.root / "band.jp2", foreign):
        path.write_text("broken")

        def make(item, path=path):
            raise CorruptFileError(path, "cannot be decoded")

        summary = records.work(workspace, "shard", [item()], make)
        assert f"{path}: cannot be decoded" in summary.failed["a"]
        assert path.exists() == (path == foreign)
    assert (workspace.root / "band.jp2.corrupt").read_text() == "broken"


def test_only_and_force(workspace):
    items = [item("a"), item("b")]
    workspace.only = ["b"]
    assert records.work(workspace, "shard", items, maker(workspace)).done == ["b"]
    workspace.force = True
    assert records.work(workspace, "shard", items, maker(workspace)).done == ["b"]
    workspace.only = ["c"]
    with pytest.raises(ConfigError, match="no such item"):
        records.work(workspace, "shard", items, maker(workspace))


def test_a_stop_comes_between_items(workspace):
    workspace.stop_requested = lambda: (workspace.root / "a.txt").exists()
    with pytest.raises(InterruptedJob) as caught:
        records.work(workspace, "shard", [item("a"), item("b")], maker(workspace))
    assert caught.value.exit_code == 75
    assert records.why(workspace, item("a")) is None
    assert records.why(workspace, item("b")) == "missing"


def test_atomic_leaves_whole_files_or_none(tmp_path):
    path = tmp_path / "sub" / "file.txt"
    write_text(path, "old")

    def half():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        half()
    assert path.read_text() == "old"
    with pytest.raises(DiskFullError, match=r"file\.txt.*no space left"), atomic(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_sweep_takes_only_what_a_killed_process_left_behind(workspace):
    killed = subprocess.Popen(["sleep", "100"])
    killed.kill()
    killed.wait()
    write_text(workspace.scenes, "")
    here = socket.gethostname()
    left = [f".tmp-{killed.pid}-a@{here}.h5", f".tmp-{killed.pid}-step-1.pt@{here}"]
    kept = [f".tmp-{os.getpid()}-a@{here}.h5", f".tmp-{killed.pid}-a@elsewhere.h5", "scenes.jsonl"]
    for name in left + kept:
        (workspace.root / name).write_text("half")
    workspace.sweep()
    assert sorted(entry.name for entry in workspace.root.iterdir()) == sorted(kept)


def test_decisions_written_by_hand_are_checked(workspace):
    write_text(workspace.decisions, "pair,decision,reason,reviewer,version\np,maybe,,me,1\n")
    with pytest.raises(ConfigError, match=r"decisions\.csv:2.*accept or reject"):
        decisions.read(workspace.decisions)
