import errno
import os
import pickle
import re

import pytest
import torch

from cloudjob.errors import CorruptFileError, DiskFullError
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


def test_milestones_and_what_was_noted_stay(tmp_path):
    for step in range(1, 8):
        checkpoint.save(tmp_path, step, state(step), {"energy_kwh": step / 8}, keep=lambda step: step % 3 == 0)
    kept = {f"step-{step:08d}.{suffix}" for step in (3, 6, 7) for suffix in ("pt", "json")}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert checkpoint.facts(tmp_path / "step-00000006.pt") == {"energy_kwh": 0.75}
    assert checkpoint.facts(tmp_path / "step-00000009.pt") == {}


def test_torch_alone_can_read_it(tmp_path):
    assert torch.load(checkpoint.save(tmp_path, 1, state(7)), weights_only=True)["seen"] == 7


@pytest.mark.slow
def test_any_byte_changed_or_cut_off_is_noticed(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"seen": 1, "weight": torch.arange(8)})
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(CorruptFileError):
            checkpoint.load(path)
        path.write_bytes(content[:place])
        with pytest.raises(CorruptFileError):
            checkpoint.load(path)
    path.write_bytes(content)
    assert checkpoint.load(path)["seen"] == 1


def test_an_unreadable_one_is_named_and_set_aside(tmp_path, caplog):
    checkpoint.save(tmp_path, 1, state(1))
    newest = checkpoint.save(tmp_path, 2, state(2))
    newest.write_bytes(newest.read_bytes()[:-1000])
    path, loaded = checkpoint.load_newest(tmp_path)
    assert (path.name, loaded["seen"]) == ("step-00000001.pt", 1)
    assert str(newest) in caplog.text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-00000001.pt", "step-00000002.pt.corrupt"]


def test_a_checkpoint_cannot_run_code(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"seen": os.getcwd, "harm": re.compile})
    with pytest.raises(CorruptFileError, match="cannot be read"):
        checkpoint.load(path)


def test_what_a_killed_save_left_is_removed(tmp_path):
    checkpoint.save(tmp_path, 1, state(1))
    (tmp_path / ".tmp-1-step-00000002.pt@elsewhere").write_bytes(b"half")
    checkpoint.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_the_interval_grows_with_the_cost_of_a_save():
    assert checkpoint.interval(2, 3600) == pytest.approx(120)


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_ROOM", 2**60)
    with pytest.raises(DiskFullError, match="MiB free"):
        checkpoint.save(tmp_path, 1, state(1))
    assert not list(tmp_path.iterdir())


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
