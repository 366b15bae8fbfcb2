import itertools
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import CLOUDJOB, TORCHRUN, configure, settings, weights, workspace

from cloudjob.errors import ConfigError, InputError, InterruptedJob
from cloudjob.patches.tensors import to_tensors
from cloudjob.stages import train
from cloudjob.workspace import Workspace


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Workspace:
    space = workspace(tmp_path_factory.mktemp("trained") / "run")
    assert train.run(settings(), space).done == ["run"]
    return space


@pytest.mark.slow
@pytest.mark.parametrize("reference", [True, False])
def test_stopped_at_any_step_and_resumed_it_ends_in_the_same_bytes(trained, tmp_path, reference):
    plain = trained
    if not reference:
        plain = workspace(tmp_path / "plain", reference=False)
        train.run(settings(), plain)
    stopped = workspace(tmp_path / "stopped", reference=reference)
    calls = itertools.count()
    stopped.stop_requested = lambda: next(calls) in (2, 5)  # asked once before the stage, then after each step
    for _ in range(2):
        with pytest.raises(InterruptedJob):
            train.run(settings(), stopped)
    train.run(settings(), stopped)
    assert weights(stopped) == weights(plain)


@pytest.mark.slow
def test_how_it_is_read_changes_nothing(trained, tmp_path, monkeypatch):
    """Threads and a node-local copy: the same weights; the run that was done stays done."""
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    pace = settings("train.loader_threads=3", "train.local_dir=$NODE_DISK/shards")
    assert trained.why(train.items(pace, trained)[0]) is None
    other = workspace(tmp_path / "run")
    train.run(pace, other)
    assert weights(other) == weights(trained)
    copied = {path.name for path in (tmp_path / "disk" / "shards").rglob("*.h5")}
    assert {entry["file"] for entry in json.loads(other.shard_index.read_text())["files"]} >= copied
    assert "train-00000.h5" in copied


@pytest.mark.slow
def test_synthetic_clouds_change_the_training(trained):
    assert "train.synthetic_clouds" in trained.why(train.items(settings("train.synthetic_clouds=0"), trained)[0])


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("local", [False, True])
def test_a_damaged_shard_is_named_and_set_aside_so_that_it_is_made_again(tmp_path, local):
    space = workspace(tmp_path / "run")
    path = space.shard("train", 1)
    damage(path)
    chosen = settings(f"train.local_dir={tmp_path}/disk") if local else settings()
    failed = train.run(chosen, space).failed
    assert str(path) in failed["run"]
    assert not path.exists()
    with pytest.raises(InputError, match="pair-b"):
        train.run(chosen, space)


@pytest.mark.slow
def test_two_ranks_report_and_set_aside_what_the_second_one_finds(tmp_path):
    space = workspace(tmp_path / "run")
    configure(space)
    path = space.shard("train", 1)
    damage(path)
    command = [*TORCHRUN, "--nproc-per-node=2", *CLOUDJOB, "train", str(space.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert str(path) in space.record("train", "run")["message"]
    assert done.returncode != 0
    assert not path.exists()
    assert Path(f"{path}.corrupt").exists()


def test_a_node_folder_that_cannot_be_used_is_a_mistake_in_the_configuration(tmp_path, monkeypatch):
    monkeypatch.delenv("NODE_DISK", raising=False)
    monkeypatch.setenv("EMPTY", "")
    (tmp_path / "file").touch()
    for text in ("$NODE_DISK", "$NODE_DISK/shards", "${NODE_DISK}", "$EMPTY", str(tmp_path / "file" / "below")):
        with pytest.raises(ConfigError, match=r"train\.local_dir"):
            train.node_folder(text)
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    assert train.node_folder("${NODE_DISK}/a/b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_digital_numbers_become_reflectance_and_masks_stay():
    arrays = {"clear": np.array([[0, 1000, 11000]], np.uint16), "donor": np.array([[0, 4, 255]], np.uint8)}
    tensors = to_tensors(arrays, torch.device("cpu"))
    assert tensors["clear"][0, 0].isnan()
    assert tensors["clear"][0, 1:].tolist() == pytest.approx([0, 1], abs=1e-6)
    assert tensors["donor"].tolist() == [[0, 4, 255]]
