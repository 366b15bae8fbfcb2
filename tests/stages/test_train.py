import itertools
import json
import subprocess
from pathlib import Path

import pytest
import torch
from small_runs import CLOUDJOB, TORCHRUN, configure, settings, weights, workspace

from cloudjob.errors import InputError, InterruptedJob
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.stages import train


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> RunFolder:
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
    assert records.why(trained, train.items(pace, trained)[0]) is None
    other = workspace(tmp_path / "run")
    train.run(pace, other)
    assert weights(other) == weights(trained)
    copied = {path.name for path in (tmp_path / "disk" / "shards").rglob("*.h5")}
    assert {entry["file"] for entry in json.loads(other.shard_index.read_text())["files"]} >= copied
    assert "train-00000.h5" in copied


@pytest.mark.slow
def test_synthetic_clouds_change_the_training(trained):
    (item,) = train.items(settings("train.synthetic_clouds=0"), trained)
    assert "train.synthetic_clouds" in records.why(trained, item)


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
    assert str(path) in records.record(space, "train", "run")["message"]
    assert done.returncode != 0
    assert not path.exists()
    assert Path(f"{path}.corrupt").exists()
