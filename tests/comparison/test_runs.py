"""What a variant's run folder gets from another one."""

import json
import os
from pathlib import Path

import pytest
import yaml

from cloudjob.comparison import runs, variants
from cloudjob.diffusion import checkpoint
from cloudjob.errors import InputError
from cloudjob.files import write_text
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.sentinel2.corrected import exported

TEST = Path(__file__).resolve().parents[2] / "configs" / "test.yaml"


def note(folder: RunFolder, stage: str, name: str, text: str) -> Item:
    """An item of `stage` with one output that holds `text`, made if it is not there."""
    item = Item(stage, "run" if stage == "train" else name, {"text": text}, {})

    def make(item):
        path = folder.root / ("train/checkpoints" if stage == "train" else "shards") / name
        write_text(path, text)
        return [path], {"text": text}

    records.work(folder, stage, [item], make)
    return item


@pytest.fixture
def origin(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "base")
    for path in (folder.scenes, folder.pairs, folder.decisions):
        write_text(path, path.name)
    return folder


def test_outputs_are_linked_and_what_people_edit_is_copied(origin, tmp_path):
    item, target = note(origin, "shard", "a.h5", "abc"), RunFolder(tmp_path / "ours")
    runs._share(origin, target, ("shard",))
    assert records.why(target, item) is None
    assert os.path.samefile(origin.root / "shards/a.h5", target.root / "shards/a.h5")
    assert not os.path.samefile(origin.decisions, target.decisions)
    write_text(target.root / "shards/a.h5", "its own")
    assert (origin.root / "shards/a.h5").read_text() == "abc"


def test_masks_that_a_person_corrected_count_in_the_variants_too_as_long_as_they_are_there(origin, tmp_path):
    target = RunFolder(tmp_path / "ours")
    names = {path.relative_to(origin.root) for path in (origin.labels / "P.tif", exported(origin.labels, "P"))}
    for name in names:
        write_text(origin.root / name, name.name)
    runs._share(origin, target, ())
    assert {path.relative_to(target.root) for path in target.labels.rglob("*.tif")} == names
    assert not any(os.path.samefile(origin.root / name, target.root / name) for name in names)  # edited in place
    (origin.labels / "P.tif").unlink()
    runs._share(origin, target, ())
    assert not (target.labels / "P.tif").exists()


def test_without_hard_links_outputs_are_copied(origin, tmp_path, monkeypatch):
    def refuse(*names):
        raise PermissionError

    item, target = note(origin, "shard", "a.h5", "abc"), RunFolder(tmp_path / "ours")
    monkeypatch.setattr(os, "link", refuse)
    runs._share(origin, target, ("shard",))
    assert records.why(target, item) is None
    assert not os.path.samefile(origin.root / "shards/a.h5", target.root / "shards/a.h5")


def test_again_only_what_is_missing_or_changed_is_given(origin, tmp_path):
    target = RunFolder(tmp_path / "ours")
    for name in ("a.h5", "b.h5", "c.h5"):
        note(origin, "shard", name, "old")
    runs._share(origin, target, ("shard",))
    before = {path.name: path.stat().st_ino for path in (target.root / "records/shard").iterdir()}
    (target.root / "shards/a.h5").unlink()  # as after a kill
    (origin.root / "shards/c.h5").unlink()  # damaged: the stage that needs it says so
    changed = note(origin, "shard", "b.h5", "new")
    runs._share(origin, target, ("shard",))
    assert [(target.root / "shards" / name).read_text() for name in ("a.h5", "b.h5", "c.h5")] == ["old", "new", "old"]
    assert records.why(target, changed) is None
    after = {path.name: path.stat().st_ino for path in (target.root / "records/shard").iterdir()}
    assert [name for name in before if before[name] != after[name]] == ["b.h5.json"]


def test_another_network_leaves_no_checkpoint_of_the_one_before(origin, tmp_path):
    target = RunFolder(tmp_path / "steps-1")
    note(origin, "train", "step-00000900.pt", "longer")
    runs._share(origin, target, ("train",))
    checkpoint.newest(origin.checkpoints).unlink()
    note(origin, "train", "step-00000100.pt", "shorter")
    runs._share(origin, target, ("train",))
    assert checkpoint.newest(target.checkpoints).read_text() == "shorter"
    assert json.loads(records.path(target, "train", "run").read_text())["result"] == {"text": "shorter"}


def test_a_training_of_its_own_is_kept_aside_when_it_takes_the_network_of_another(origin, tmp_path):
    target, said = RunFolder(tmp_path / "steps-1"), []
    target.say = said.append
    note(origin, "train", "step-00000900.pt", "the other's")
    note(target, "train", "step-00000500.pt", "its own")
    runs._share(origin, target, ("train",))
    aside = target.root / "train-before-1"
    assert said == [f"compare: the training of {target.root} itself is kept in {aside}"]
    assert (aside / "checkpoints" / "step-00000500.pt").read_text() == "its own"
    assert [path.name for path in checkpoint.saved(target.checkpoints)] == ["step-00000900.pt"]


# --- as long as another ----------------------------------------------------------------------------------------------
@pytest.fixture
def timed(tmp_path) -> variants.Comparison:
    given = {"slow": {"like": "rival", "as_long_as": "ours"}, "rival": {"train.lr": 0.5}, "ours": {}}
    path = tmp_path / "comparison.yaml"
    path.write_text(yaml.safe_dump({"base": str(TEST), "variants": given}, sort_keys=False))
    return variants.load(path)


@pytest.fixture
def made(timed, tmp_path, monkeypatch) -> tuple[RunFolder, list[tuple[str, list[str]]]]:
    """A comparison whose data are there, and what its children would be called with: (variant, overrides)."""
    folder, called = RunFolder(tmp_path / "all"), []
    base = RunFolder(folder.root / "base")
    for path in (base.shard_index, base.pairs, base.decisions):
        write_text(path, path.name)
    records.work(folder, runs.STAGE, [runs.base_item(timed)], lambda item: ([], None))
    monkeypatch.setattr(runs, "_make_base", lambda *_: ([], None))
    monkeypatch.setattr(runs, "_share", lambda *_: None)
    seconds = {"rival": 40.0, "ours": 100.0, "slow": 99.0}

    def child(_, verb, base, root, overrides, *limits):
        if verb == "run":
            called.append((root.name, overrides))
        write_text(RunFolder(root).evaluation, "{}")
        return 0

    def training(run):
        return {"samples": 1000, "seconds": seconds[run.root.name], "parameters": 1}

    monkeypatch.setattr(runs, "_cloudjob", child)
    monkeypatch.setattr(runs, "_training", training)
    monkeypatch.setattr(checkpoint, "newest", lambda path: path.parents[1] / "evaluation" / "summary.json")
    return folder, called


def test_the_samples_are_those_of_the_one_in_the_time_of_the_other(timed, made):
    folder, called = made
    assert not runs.run(timed, folder).failed
    assert [name for name, _ in called] == ["rival", "ours", "slow"], "first who needs nobody"
    assert called[2][1] == ["train.lr=0.5", "train.samples=2496"]  # 1000 * 100 / 40, in whole batches of 8
    assert set(runs.plan(timed, folder).values()) == {None}


def test_it_waits_for_both(timed, made):
    folder, called = made
    folder.only = ["slow"]
    with pytest.raises(InputError, match=r"slow takes the time of rival, which is not finished. Run: .* --only rival"):
        runs.run(timed, folder)
    assert called == []
