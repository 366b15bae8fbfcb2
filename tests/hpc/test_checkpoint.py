import errno
import os
import pickle
import re

import pytest
import torch

from cloudjob.errors import DiskFullError
from cloudjob.hpc import checkpoint


def state(seen: int) -> dict:
    return {"seen": seen, "model": {"weight": torch.full((1000,), float(seen))}, "bands": ["B04"]}


def test_the_newest_two_are_kept_and_the_newest_comes_back(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None
    for step in (9, 100, 20):
        checkpoint.save(tmp_path, step, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020.pt", "step-00000100.pt"]
    path, loaded = checkpoint.load_newest(tmp_path)
    assert path.name == "step-00000100.pt"
    assert loaded["seen"] == 100
    assert torch.equal(loaded["model"]["weight"], torch.full((1000,), 100.0))


def test_bytes_depend_on_the_content_alone(tmp_path):
    one = checkpoint.save(tmp_path / "a", 1, state(7)).read_bytes()
    assert one == checkpoint.save(tmp_path / "b", 2, state(7)).read_bytes()


@pytest.mark.parametrize("damage", ["truncated", "empty", "code"])
def test_an_unreadable_one_is_named_and_set_aside(tmp_path, damage, caplog):
    checkpoint.save(tmp_path, 1, state(1))
    newest = checkpoint.save(tmp_path, 2, state(2))
    content = newest.read_bytes()
    if damage == "code":
        torch.save({"seen": os.getcwd, "harm": re.compile}, newest)
    else:
        newest.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    path, loaded = checkpoint.load_newest(tmp_path)
    assert (path.name, loaded["seen"]) == ("step-00000001.pt", 1)
    assert str(newest) in caplog.text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-00000001.pt", "step-00000002.pt.corrupt"]


def test_a_full_disk_leaves_the_older_checkpoints(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(1))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=re.escape(str(tmp_path))):
        checkpoint.save(tmp_path, 2, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_a_full_disk_in_the_middle_of_torchs_writer(tmp_path, monkeypatch):
    def save(value, file):
        file.write(b"x")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 (as torch does)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(DiskFullError):
        checkpoint.save(tmp_path, 2, state(2))
    assert not list(tmp_path.iterdir())


def test_other_errors_are_not_disguised(tmp_path):
    with pytest.raises((pickle.PicklingError, AttributeError)):
        checkpoint.save(tmp_path, 2, {"seen": lambda: None})
    assert not list(tmp_path.iterdir())
