"""The triplets of a training: checked where they lie or copied to the node, and some of them to measure with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import workspace

from cloudjob.errors import ConfigError, CorruptFileError
from cloudjob.files import digest
from cloudjob.hpc.distributed import ProcessGroup
from cloudjob.training import data
from cloudjob.training.settings import Settings

CPU = torch.device("cpu")
ALONE = ProcessGroup(0, 1, 0, CPU)
PLAIN = Settings(options={})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return workspace(tmp_path_factory.mktemp("shards") / "run").shards


@pytest.fixture
def shards(made, tmp_path) -> Path:
    """Two shards to train on, one held out, in a folder of the test's own."""
    return Path(shutil.copytree(made, tmp_path / "shards"))


def index(shards: Path) -> dict:
    return json.loads((shards / "index.json").read_text())


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --- splits ------------------------------------------------------------------------------------------------------
def test_the_training_split_comes_first_then_what_is_held_out(shards):
    train, held_out = data.open_splits(shards, index(shards), PLAIN, ALONE, lambda line: None)
    assert (len(train), len(held_out)) == (16, 4)
    assert train[0]["cloudy"].shape == (4, 32, 32)


@pytest.mark.parametrize("name", ["train-00000.h5", "train-00001.h5", "val-00002.h5"])
def test_a_damaged_shard_of_either_split_is_named(shards, name):
    damage(shards / name)
    with pytest.raises(CorruptFileError) as failed:
        data.open_splits(shards, index(shards), PLAIN, ALONE, lambda line: None)
    assert failed.value.path == shards / name


def test_a_rank_checks_its_share_of_each_split(shards):
    damage(shards / "train-00000.h5")
    second = ProcessGroup(1, 2, 1, CPU)
    assert len(data.open_splits(shards, index(shards), PLAIN, second, lambda line: None)) == 2
    damage(shards / "train-00001.h5")
    with pytest.raises(CorruptFileError, match="train-00001"):
        data.open_splits(shards, index(shards), PLAIN, second, lambda line: None)


def test_shards_are_copied_to_the_node_once(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    local, said = replace(PLAIN, local_dir="$NODE_DISK/shards"), []
    content = index(shards)
    content["files"].append(content["files"][0] | {"file": "test-00003.h5", "split": "test"})  # not read, so not copied
    splits = data.open_splits(shards, content, local, ALONE, said.append)
    folder = tmp_path / "disk" / "shards" / digest(content)[:16]
    assert {path.name for path in folder.iterdir()} == {"train-00000.h5", "train-00001.h5", "val-00002.h5"}
    assert len(said) == 1
    shutil.rmtree(shards)  # it is read from there
    assert [len(split) for split in splits] == [16, 4]
    assert splits[0][3]["mask"].shape == (32, 32)
    data.open_splits(shards, content, local, ALONE, said.append)
    assert len(said) == 1


def test_the_first_rank_of_a_node_copies(shards, tmp_path):
    local = replace(PLAIN, local_dir=str(tmp_path / "disk"))
    data.open_splits(shards, index(shards), local, ProcessGroup(1, 2, 1, CPU), lambda line: None)
    assert list((tmp_path / "disk").iterdir()) == []
    data.open_splits(shards, index(shards), local, ProcessGroup(1, 2, 0, CPU), lambda line: None)
    assert len(list((tmp_path / "disk").rglob("*.h5"))) == 3


# --- some of them ------------------------------------------------------------------------------------------------
def test_some_triplets_are_from_all_over_the_split_and_always_the_same(shards):
    train, _ = data.open_splits(shards, index(shards), PLAIN, ALONE, lambda line: None)
    some = data.some(train, 4, CPU)
    expected = [train[position] for position in (0, 4, 8, 12)]
    assert torch.equal(some.mask, torch.stack([torch.from_numpy(one["mask"]) for one in expected]))
    dn = torch.stack([torch.from_numpy(one["clear"]) for one in expected])
    torch.testing.assert_close(some.known_target, dn.float() / 1e4 - 0.1, atol=1e-6, rtol=0)
    assert some.donor is None
    assert len(data.some(train, 99, CPU)) == 16


def test_each_lends_itself_its_mask(shards):
    train, _ = data.open_splits(shards, index(shards), PLAIN, ALONE, lambda line: None)
    some = data.some(train, 2, CPU, donors=True)
    assert len(some) == 2
    assert torch.equal(some.donor, some.mask)


# --- the folder of a node ----------------------------------------------------------------------------------------
def test_a_node_folder_that_cannot_be_used_is_a_mistake_in_the_configuration(tmp_path, monkeypatch):
    monkeypatch.delenv("NODE_DISK", raising=False)
    monkeypatch.setenv("EMPTY", "")
    (tmp_path / "file").touch()
    unset = dict.fromkeys(("$NODE_DISK", "$NODE_DISK/shards", "${NODE_DISK}"), "$NODE_DISK is not set on this node")
    for text, words in (unset | {"$EMPTY": "$EMPTY is empty on this node", "": "an empty text names no path"}).items():
        with pytest.raises(ConfigError) as failed:
            data.node_folder(text)
        assert str(failed.value).startswith(f"train.local_dir = {text}: {words}")
    for below in ("below", "below/it"):
        with pytest.raises(ConfigError, match=r"train\.local_dir = .*cannot be made \(Not a directory\)"):
            data.node_folder(str(tmp_path / "file" / below))
    monkeypatch.setattr(data.os, "access", lambda path, how: how != data.os.W_OK)
    with pytest.raises(ConfigError, match="cannot be written to"):
        data.node_folder(str(tmp_path))


def test_variables_and_the_home_folder_are_put_in(tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data.node_folder("${NODE_DISK}/a/b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    assert data.node_folder("~/shards") == tmp_path / "home" / "shards"
