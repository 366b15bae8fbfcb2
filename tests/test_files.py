"""A file has its final name whole or not at all, and its temporary is nobody else's to read."""

import errno
import os
import stat
import subprocess

import pytest

from cloudjob import files
from cloudjob.errors import DiskFullError


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("wanted", [0o644, 0o600])
def test_a_file_is_private_until_it_has_its_name(tmp_path, wanted):
    path = tmp_path / "new" / "token.json"
    with files.atomic(path, mode=wanted) as temporary:
        assert mode(temporary) == 0o600
        assert temporary.parent == path.parent
        temporary.write_text("whole")
        assert not path.exists()
    assert (path.read_text(), mode(path)) == ("whole", wanted)
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "before")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "half, then \udc80")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path, number):
    with pytest.raises(DiskFullError, match=r"a\.txt: no space left"), files.atomic(tmp_path / "a.txt"):
        raise OSError(number, "full")
    with pytest.raises(OSError, match="broken") as caught, files.atomic(tmp_path / "a.txt"):
        raise OSError(errno.EIO, "broken")
    assert not isinstance(caught.value, DiskFullError)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_found_behind_other_errors():
    other = RuntimeError("torch says less")
    other.__cause__ = OSError(errno.ENOSPC, "full")
    assert files.is_disk_full(other)
    assert not files.is_disk_full(RuntimeError("something else"))
    assert not files.is_disk_full(None)


def test_a_link_shares_the_bytes_and_replaces_what_was_there(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("same")
    target.write_text("old")
    files.link(source, target)
    assert os.path.samefile(source, target)


def test_without_hard_links_a_link_is_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("same")
    files.link(source, target)
    assert target.read_text() == "same"
    assert not os.path.samefile(source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_json_comes_back_and_its_digest_does_not_depend_on_the_order_of_keys(tmp_path):
    rows = [{"a": 1, "b": [None, "ü"]}, {}]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    files.write_json(tmp_path / "row.json", rows[0])
    assert files.read_jsonl(tmp_path / "rows.jsonl") == rows
    assert files.read_json(tmp_path / "row.json") == rows[0]
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1}) != files.digest({"a": 2, "b": 1})


def test_temporary_files_of_processes_that_are_no_more_are_swept(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    for owner in (f"{ended.pid}-x@{files.HOST}.h5", f"{os.getpid()}-x@{files.HOST}.h5", f"{ended.pid}-x@elsewhere.h5"):
        (tmp_path / f".tmp-{owner}").touch()
    files.sweep(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([f".tmp-{os.getpid()}-x@{files.HOST}.h5", f".tmp-{ended.pid}-x@elsewhere.h5"])
