import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cloudjob import config
from cloudjob.errors import ConfigError, InputError, InterruptedJob
from cloudjob.patches import shards
from cloudjob.stages import train
from cloudjob.workspace import Item, Workspace, file_sha256, write_json

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "test.yaml"
WINDOW, COUNT = 64, 8
PAIRS = {"pair-a": "train", "pair-b": "train", "pair-c": "val"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write_shard(path: Path, seed: int, *, reference: bool) -> dict:
    """`COUNT` triplets of smooth ground below a round cloud with a shadow beside it."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[:WINDOW, :WINDOW]
    days = 9.0 if reference else None
    with shards.Writer(
        path,
        COUNT,
        window=WINDOW,
        reference=reference,
        compression="none",
        pair={"pair": path.stem},
        attributes={},
        reference_days=days,
    ) as writer:
        for number in range(COUNT):
            waves = rng.uniform(0.05, 0.3, (4, 2, 1, 1))
            clear = (3000 + 800 * np.sin(waves[:, 0] * row + waves[:, 1] * col)).astype(np.uint16)
            mask = np.zeros((WINDOW, WINDOW), np.uint8)
            mask[np.hypot(row - rng.uniform(10, 50), col - rng.uniform(10, 50)) < 16] = 2
            mask[np.hypot(row - rng.uniform(10, 50), col - rng.uniform(10, 50)) < 16] = 1
            cloudy = np.where(mask == 1, 8000, np.where(mask == 2, clear // 2, clear)).astype(np.uint16)
            other = (clear + 100).astype(np.uint16) if reference else None
            writer.add(cloudy, clear, mask, other, number, 0, float((mask == 1).mean()))
    return writer.result


def workspace(root: Path, *, reference: bool = True) -> Workspace:
    """A run folder as the stage shard leaves it."""
    space, results = Workspace(root), {}
    space.shard_index.parent.mkdir(parents=True)
    paths = {pair: space.shard(split, number) for number, (pair, split) in enumerate(PAIRS.items())}

    def make(item: Item):
        results[item.name] = write_shard(paths[item.name], len(results), reference=reference)
        return [paths[item.name]], None

    space.work("shard", [Item("shard", pair, {}, {}) for pair in PAIRS], make)
    files = [
        {"file": path.name, "count": COUNT, "pair": pair, "split": PAIRS[pair]}
        | {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for pair, path in paths.items()
    ]
    parts = [results[pair] for pair, split in PAIRS.items() if split == "train"]
    write_json(space.shard_index, {"files": files, "window": WINDOW, "normalisation": shards.normalisation(parts)})
    return space


def settings(*overrides: str) -> config.Config:
    return config.load(CONFIG, ["train.synthetic_clouds=0.5", "train.epochs=3", *overrides])[0]


def weights(space: Workspace) -> bytes:
    return space.newest_checkpoint().read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Workspace:
    space = workspace(tmp_path_factory.mktemp("trained") / "run")
    assert train.run(settings(), space).done == ["run"]
    return space


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
    space.config.write_text(config.dump(settings()))
    path = space.shard("train", 1)
    damage(path)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command = [*launcher, sys.executable, "-m", "cloudjob", "train", str(space.root)]
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
    tensors = train.to_tensors(arrays, torch.device("cpu"))
    assert tensors["clear"][0, 0].isnan()
    assert tensors["clear"][0, 1:].tolist() == pytest.approx([0, 1], abs=1e-6)
    assert tensors["donor"].tolist() == [[0, 4, 255]]
