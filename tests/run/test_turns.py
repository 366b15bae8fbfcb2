"""Whose turn it is: what others hold comes last, and what they have made is not made again."""

import threading
import time

import pytest

from cloudjob import files
from cloudjob.errors import ConfigError, InterruptedJob
from cloudjob.files import write_text
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    made = RunFolder(tmp_path)
    made.patience = 1.0
    return made


def items(*names: str) -> list[Item]:
    return [Item("shard", name, {}, {}) for name in names]


def maker(folder, order):
    def make(item):
        order.append(item.name)
        path = folder.root / f"{item.name}.txt"
        write_text(path, "made")
        return [path], None

    return make


def released_later(folder: RunFolder, name: str, before=lambda: None) -> threading.Thread:
    """A lease that somebody else holds for a moment."""
    lease = folder.lease("shard", name)
    assert lease.take()

    def go_on():
        time.sleep(0.2)
        before()
        lease.release()

    thread = threading.Thread(target=go_on)
    thread.start()
    return thread


def test_a_sweep_comes_back_to_what_others_held_when_all_else_is_made(folder):
    order: list[str] = []
    thread = released_later(folder, "a")
    summary = records.work(folder, "shard", items("a", "b", "c"), maker(folder, order))
    thread.join()
    assert order == summary.done == ["b", "c", "a"]
    assert [path for path in folder.leases.rglob("*") if path.is_file()] == files.guards == []


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_what_another_one_makes_meanwhile_is_skipped(folder, names):
    order, said, looks = [], [], []
    folder.say = said.append
    other = RunFolder(folder.root)

    def by_the_other():
        other_make = maker(other, [])
        (path,), _ = other_make(items("a")[0])
        records._note(other, items("a")[0], "done", 0.0, outputs=records._facts(other, [path]))

    thread = released_later(folder, "a", by_the_other)
    summary = records.work(folder, "shard", items(*names), maker(folder, order), meanwhile=lambda: looks.append(1))
    thread.join()
    assert (summary.skipped, summary.done) == (["a"], names[1:])
    assert len(said) == 1
    assert "waits: shard a is being made by process" in said[0]
    assert looks


def test_made_between_a_look_and_the_lease_it_is_skipped_too(folder, monkeypatch):
    take = folder.lease("shard", "a").__class__.take

    def late(lease):
        records._note(folder, items("a")[0], "done", 0.0)
        return take(lease)

    monkeypatch.setattr("cloudjob.leases.Lease.take", late)
    summary = records.work(folder, "shard", items("a"), maker(folder, []))
    assert (summary.skipped, summary.done) == (["a"], [])
    assert files.guards == []


def test_a_stop_while_waiting_ends_in_good_order(folder):
    with folder.lease("shard", "a") as lease:
        lease.take()
        made = threading.Event()
        folder.progress = lambda share, line: made.set()
        folder.stop_requested = made.is_set
        with pytest.raises(InterruptedJob, match="stopped while waiting: shard a"):
            records.work(folder, "shard", items("a"), maker(folder, []))
        lease.check()


def test_an_error_gives_the_lease_back(folder):
    def wrong(item):
        raise ConfigError("wrong")

    with pytest.raises(ConfigError):
        records.work(folder, "shard", items("a"), wrong)
    assert folder.lease("shard", "a").take()
    files.guards.clear()


@pytest.mark.slow
def test_who_lost_its_lease_neither_records_nor_sets_aside(folder, monkeypatch):
    monkeypatch.setattr("cloudjob.leases.Lease._live", lambda self: None)
    broken = folder.root / "band.jp2"
    broken.write_text("as the other one is just writing it")

    def make(item):
        with folder.lease("shard", "a") as other:
            while not other.take():
                time.sleep(0.05)
            raise records.CorruptFileError(broken, "is short")

    with pytest.raises(InterruptedJob, match="took it over"):
        records.work(folder, "shard", items("a"), make)
    assert broken.exists()
    assert records.record(folder, "shard", "a") is None
