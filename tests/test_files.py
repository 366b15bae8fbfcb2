"""Files whole or absent, links, and what killed processes leave."""

import errno
import io
import json
import math
import os
import resource
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudjob import files
from cloudjob.errors import CorruptFileError, DiskFullError, ItemError, SystemTroubleError
from cloudjob.files import atomic, expanded, json_text, write_text


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


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(VALUES)
def test_json_is_strict_and_says_null_where_a_number_is_not_known(value):
    def refuse(word):
        raise AssertionError(word)

    def same(before, after):
        if isinstance(before, dict):
            assert list(before) == list(after)
            return all(same(before[key], after[key]) for key in before)
        if isinstance(before, list):
            return len(before) == len(after) and all(map(same, before, after))
        return after is None if isinstance(before, float) and not math.isfinite(before) else before == after

    assert same(value, json.loads(json_text(value, indent=1), parse_constant=refuse))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("umask", "wanted"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_has_the_mode_of_the_umask_without_a_change_of_mode(tmp_path, monkeypatch, umask, wanted):
    """Strange file systems refuse chmod."""
    monkeypatch.setattr(os, "chmod", lambda *_: pytest.fail("chmod"))
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "whole")
        with atomic(tmp_path / "token.json", mode=0o600) as temporary:
            assert mode(temporary) == 0o600
            assert not (tmp_path / "token.json").exists()
    finally:
        os.umask(before)
    assert mode(tmp_path / "a.txt") == wanted
    assert mode(tmp_path / "token.json") == 0o600


def test_a_disk_that_cannot_flush_is_no_fault_but_one_that_fails_is(tmp_path, monkeypatch):
    def sync(number):
        def fsync(handle):
            raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, "fsync", sync(errno.EINVAL))
    write_text(tmp_path / "a", "whole")
    monkeypatch.setattr(os, "fsync", sync(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        write_text(tmp_path / "b", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_vanishes_is_named_and_nothing_else(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone/a\.txt"), atomic(tmp_path / "gone" / "a.txt") as temporary:
        shutil.rmtree(temporary.parent)


def test_a_free_disk_is_a_hint(tmp_path, monkeypatch):
    assert files.free(tmp_path) > 0
    assert files.free(tmp_path / "gone") is None
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 0))
    assert files.free(tmp_path) is None
    assert "no space left" in str(files.disk_full(tmp_path / "a"))


# --- trouble and damage ------------------------------------------------------------------------------------------
def told(path: Path, error: Exception) -> Exception:
    """What `reading` makes of an error over this file."""
    with pytest.raises(ItemError) as caught, files.reading(path, ValueError, reason="cannot be decoded"):
        raise error
    return caught.value


@pytest.mark.parametrize("number", ["ESTALE", "EACCES", "EMFILE", "ENOLCK", "EIO", "ENOTCONN", "EROFS", "EPERM"])
def test_an_error_of_the_system_is_no_damage(tmp_path, monkeypatch, number):
    """Told by its number, by the words that a library repeats, or by a look at the file."""
    path, number = tmp_path / "a.jp2", getattr(errno, number)
    path.write_bytes(b"whole")
    words = os.strerror(number)
    for error in (OSError(number, words), OSError(f"open failed: {words}"), ValueError(words)):
        if number in (errno.EROFS, errno.EPERM) and not (isinstance(error, OSError) and error.errno):
            continue  # of writing: a library says nothing of them when it reads
        found = told(path, error)
        assert type(found) is SystemTroubleError
        assert str(path) in str(found)
        assert words in str(found)
        assert "\n" not in str(found)

    class Refusing(io.RawIOBase):
        def read(self, size=-1):
            raise OSError(number, words)

    monkeypatch.setattr(files, "open", lambda *_, **__: Refusing(), raising=False)
    assert type(told(path, OSError("not recognized as a supported file format"))) is SystemTroubleError


def test_what_can_be_read_whole_and_makes_no_sense_is_damaged(tmp_path):
    path = tmp_path / "a.jp2"
    path.write_bytes(b"x" * 100)
    for error in (OSError("file signature not found"), ValueError("no tiles"), OSError(errno.EINVAL, "odd offset")):
        found = told(path, error)
        assert isinstance(found, CorruptFileError)
        assert found.path == path
        assert "cannot be decoded" in found.reason
    assert told(tmp_path / "b.jp2", FileNotFoundError(errno.ENOENT, "no such file")).reason == "missing"
    with pytest.raises(KeyError), files.reading(path, ValueError):
        raise KeyError("a bug")


def test_a_full_disk_is_neither(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    assert isinstance(told(tmp_path / "a", OSError(errno.ENOSPC, "full")), DiskFullError)


def test_what_nobody_expected_is_one_line_with_the_file(tmp_path):
    with (
        pytest.raises(SystemTroubleError, match=r"gone/a.txt: No such file .*run the same command again"),
        files.troubles(),
    ):
        (tmp_path / "gone" / "a.txt").read_text()
    with pytest.raises(DiskFullError), files.troubles():
        raise OSError(errno.EDQUOT, "quota", str(tmp_path / "a"))
    with pytest.raises(DiskFullError), files.troubles():
        raise OSError(errno.ENOSPC, "full")


def test_this_process_may_open_as_many_files_as_the_system_allows():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        files.raise_open_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_sweep_takes_only_what_a_killed_process_left_behind(tmp_path):
    killed = subprocess.Popen(["sleep", "100"])
    killed.kill()
    killed.wait()
    write_text(tmp_path / "scenes.jsonl", "")
    here = socket.gethostname()
    left = [f".tmp-{killed.pid}-a@{here}.h5", f".tmp-{killed.pid}-step-1.pt@{here}"]
    kept = [f".tmp-{os.getpid()}-a@{here}.h5", f".tmp-{killed.pid}-a@elsewhere.h5", "scenes.jsonl"]
    for name in left + kept:
        (tmp_path / name).write_text("half")
    scratch = tmp_path.with_name(f"{tmp_path.name}-scratch")
    (scratch / "a.SAFE").mkdir(parents=True)
    (scratch / "a.SAFE" / left[0]).write_text("half")
    (tmp_path / "scenes").symlink_to(scratch)
    files.sweep(tmp_path)
    assert not list((scratch / "a.SAFE").iterdir())
    (tmp_path / "scenes").unlink()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(kept)


def test_a_full_disk_is_known_however_deep_it_is_told():
    full, quota = OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "quota")
    assert files.is_disk_full(full)
    assert files.is_disk_full(quota)
    assert files.is_disk_full(DiskFullError("full"))
    assert not files.is_disk_full(OSError(errno.EACCES, "no"))
    assert not files.is_disk_full(None)
    context = RuntimeError("torch's own")
    context.__context__ = full
    assert files.is_disk_full(context)
    cause = RuntimeError("told")
    cause.__cause__ = quota
    assert files.is_disk_full(cause)


def test_a_link_is_the_same_file_and_replaces_what_was_there(tmp_path):
    source, target = tmp_path / "a", tmp_path / "sub" / "b"
    write_text(source, "new")
    write_text(target, "old")
    files.link(source, target)
    assert os.path.samefile(source, target)
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_where_there_are_no_links_there_is_a_copy(tmp_path, monkeypatch):
    def refuse(*names: Path) -> None:
        raise PermissionError

    write_text(tmp_path / "a", "new")
    monkeypatch.setattr(os, "link", refuse)
    files.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new"
    assert not os.path.samefile(tmp_path / "a", tmp_path / "b")


def test_json_comes_back_as_it_was_and_lines_are_rows(tmp_path):
    files.write_json(tmp_path / "a.json", {"ü": [1, None]})
    assert files.read_json(tmp_path / "a.json") == {"ü": [1, None]}
    files.write_jsonl(tmp_path / "a.jsonl", [{"a": 1}, {"a": "\n"}])
    assert files.read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}, {"a": "\n"}]
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


def test_a_row_with_half_of_a_surrogate_pair_is_a_row(tmp_path):
    """As of a file name that is not UTF-8."""
    row = {"path": os.fsdecode(b"caf\xe9")}
    files.append_jsonl(tmp_path / "a.jsonl", row)
    assert files.split_jsonl(tmp_path / "a.jsonl") == ([row], [])


def test_a_line_that_cannot_be_read_is_named_and_the_others_are_had(tmp_path):
    path = tmp_path / "a.jsonl"
    whole = b'{"a": 1}\n{"b": "\xc3\xbc"}\n'
    for torn in (b'{"c":', b"\xff\n", b"\0\0\0", b"3\n", b"\n"):
        path.write_bytes(whole + torn)
        assert files.split_jsonl(path) == ([{"a": 1}, {"b": "ü"}], [3])
        with pytest.raises(CorruptFileError, match=r"a\.jsonl: line 3 "):
            files.read_jsonl(path)
    path.write_bytes(b"{\n" + whole)
    assert files.split_jsonl(path) == ([{"a": 1}, {"b": "ü"}], [1])
    (tmp_path / "a.json").write_bytes(b'{"a": ')
    with pytest.raises(CorruptFileError, match=r"a\.json: is not JSON"):
        files.read_json(tmp_path / "a.json")


def test_a_writer_killed_anywhere_in_a_row_neither_spoils_nor_doubles_another(tmp_path):
    path = tmp_path / "sub" / "a.jsonl"
    rows = [{"a": 1}, {"b": "x" * 100}]
    for row in rows:
        files.append_jsonl(path, row)
    whole = path.read_bytes()
    assert files.read_jsonl(path) == rows
    first = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        files.append_jsonl(path, {"c": 3})
        kept = (cut >= first - 1) + (cut >= len(whole) - 1)  # a row without its end is whole
        assert files.read_jsonl(path) == [*rows[:kept], {"c": 3}], cut


def test_digests_depend_on_values_not_on_the_order_of_keys(tmp_path):
    assert files.digest({"a": 1, "b": [2, 3]}) == files.digest({"b": [2, 3], "a": 1})
    assert files.digest({"a": 1, "b": [2, 3]}) != files.digest({"a": 1, "b": [3, 2]})
    files.write_bytes(tmp_path / "abc", b"abc")
    assert files.file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_home_and_variables_are_put_into_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("A", "/a")
    monkeypatch.delenv("B", raising=False)
    monkeypatch.setenv("EMPTY", "")
    for text, path in {"~": "/home/me", "~/$A": "/home/me//a", "${A}b": "/ab", "$$A": "$A", "a~b$": "a~b$"}.items():
        assert expanded(text) == path
    wrong = {
        "$B/x": r"\$B is not set",
        "${EMPTY}/x": r"\$EMPTY is empty",
        "": "empty text",
        "~none/x": "~none is nobody",
    }
    for text, words in wrong.items():
        with pytest.raises(ValueError, match=words):
            expanded(text)


def test_a_link_takes_the_place_of_a_file_or_a_link(tmp_path):
    for source in ("a", "b"):
        (tmp_path / source).mkdir()
        files.symlink(tmp_path / source, tmp_path / "below" / "link")
        assert (tmp_path / "below" / "link").readlink() == tmp_path / source
    write_text(tmp_path / "file", "")
    files.symlink(tmp_path / "a", tmp_path / "file")
    assert (tmp_path / "file").is_symlink()
    with pytest.raises(IsADirectoryError):
        files.symlink(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "below", "file"]
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["link"]
