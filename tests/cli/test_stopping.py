"""STOP files: whose they are, and which are left over."""

import os
import time

import pytest

from cloudjob.cli import stopping
from cloudjob.errors import InterruptedJob
from cloudjob.hpc import stop
from cloudjob.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path, monkeypatch) -> RunFolder:
    monkeypatch.setattr(stop.signal, "signal", lambda *_: None)  # they belong to the test's own process
    monkeypatch.setattr(stop, "_LOOK_S", 0.0)
    monkeypatch.setattr(stop, "_state", {"signalled": False, "file": None})
    monkeypatch.delenv("CLOUDJOB_STOP_FILE", raising=False)
    return RunFolder(tmp_path)


def listened(folder: RunFolder, **options) -> list[str]:
    said: list[str] = []
    folder.say = said.append
    stopping.listen(folder, **options)
    return said


def test_one_that_is_left_over_is_removed_and_its_age_is_said(folder):
    assert listened(folder) == []
    path = folder.root / "STOP"
    for age, words in ((180, "3 minutes old"), (8000, "2 hours old")):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
        (line,) = listened(folder)
        assert line == f"{path} was left over ({words}): nobody is at work here. It is removed"
        assert not path.exists()
    assert not folder.stop_requested()
    path.touch()
    assert folder.stop_requested()


def test_a_rank_that_is_not_the_first_leaves_it_alone(folder):
    (folder.root / "STOP").touch()
    assert listened(folder, first=False) == []
    assert (folder.root / "STOP").exists()


def test_while_somebody_is_at_work_it_stays(folder):
    (folder.root / "STOP").touch()
    with folder.lease("train", "run") as lease:
        lease.take()
        for first in (True, False):
            with pytest.raises(InterruptedJob, match=rf"STOP asks .*process {os.getpid()} on .* still makes train run"):
                listened(folder, first=first)
    assert (folder.root / "STOP").exists()
    listened(folder)
    assert not (folder.root / "STOP").exists()


@pytest.mark.parametrize("own", ["jobs/STOP-7", ""])
def test_a_job_has_a_file_of_its_own_and_an_empty_name_is_none(folder, monkeypatch, own):
    monkeypatch.setenv("CLOUDJOB_STOP_FILE", str(folder.root / own) if own else "")
    listened(folder)
    assert not folder.stop_requested()
    wanted = folder.root / (own or "STOP")
    wanted.parent.mkdir(exist_ok=True)
    wanted.touch()
    assert folder.stop_requested()
    assert len(listened(folder)) == (not own)  # a job's own is not judged
    assert wanted.exists() == bool(own)
