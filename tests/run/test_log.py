"""jobs/log.txt: what commands said, when, and who."""

import re
from pathlib import Path

import pytest

from cloudjob import __version__
from cloudjob.errors import ConfigError
from cloudjob.run import log
from cloudjob.run.folder import RunFolder
from cloudjob.run.history import Entry


def test_what_a_command_says_is_in_the_log_with_the_time(tmp_path):
    folder = RunFolder(tmp_path, only=[])
    heard = []
    folder.say, folder.job = heard.append, "7_1"

    def command() -> None:
        with Entry(folder, "shard", ["seed=1"]) as entry:
            folder.say("first")
            assert not folder.log.exists(), "nothing is made yet"
            entry.begin()
            folder.say("two\nlines")
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        command()
    assert heard == ["first", "two\nlines"]
    rows = folder.log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}  \S+ job 7_1  ", row) for row in rows)
    said = [row.split("  ", 2)[2] for row in rows]
    assert said[:4] == [f"cloudjob {__version__}: shard --set seed=1", "first", "two", "lines"]
    assert said[4] == "Traceback (most recent call last):", "of a bug, where it came from"
    assert said[-2:] == ["ZeroDivisionError: division by zero", "shard ended with exit code 1"]


def test_who_is_refused_leaves_no_log_and_a_silent_rank_neither(tmp_path):
    folder = RunFolder(tmp_path)

    def refused() -> None:
        with Entry(folder, "shard"):
            folder.say("looked at")
            raise ConfigError("no")

    with pytest.raises(ConfigError):
        refused()
    with Entry(RunFolder(tmp_path), "shard", silent=True) as entry:
        entry.begin()
    assert list(tmp_path.iterdir()) == []


def test_progress_comes_into_the_log_now_and_then(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    kept = log.Log(tmp_path / "jobs" / "log.txt", None)
    kept.begin()
    for now[0] in (1001.0, 1030.0, 1031.0, 1061.0):
        kept.progress(f"at {now[0]:.0f}")
    assert [row[-7:] for row in (tmp_path / "jobs" / "log.txt").read_text().splitlines()] == ["at 1030", "at 1061"]
    log.Log(tmp_path / "none" / "jobs" / "log.txt", None).begin()
    assert not (tmp_path / "none").exists()
    full = log.Log(Path("/dev/full"), None)
    full.begin()
    full.line("what a full disk does not take ends nothing")
