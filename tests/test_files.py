"""Files whole or absent, links, and what killed processes leave."""

import errno
import json
import math
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudjob import files
from cloudjob.errors import DiskFullError
from cloudjob.files import atomic, json_text, write_text


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


@pytest.mark.parametrize("wanted", [0o644, 0o600])
def test_a_file_is_private_until_it_has_its_name(tmp_path, wanted):
    path = tmp_path / "token.json"
    with atomic(path, mode=wanted) as temporary:
        assert mode(temporary) == 0o600
        temporary.write_text("whole")
        assert not path.exists()
    assert (path.read_text(), mode(path)) == ("whole", wanted)


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
    files.sweep(tmp_path)
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


def test_digests_depend_on_values_not_on_the_order_of_keys(tmp_path):
    assert files.digest({"a": 1, "b": [2, 3]}) == files.digest({"b": [2, 3], "a": 1})
    assert files.digest({"a": 1, "b": [2, 3]}) != files.digest({"a": 1, "b": [3, 2]})
    files.write_bytes(tmp_path / "abc", b"abc")
    assert files.file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
