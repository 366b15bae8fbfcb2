import itertools
import json
import subprocess
from pathlib import Path

import pytest
from small_runs import CLOUDJOB, TORCHRUN, configure, settings, weights, workspace

from cloudjob.errors import ConfigError, InputError, InterruptedJob
from cloudjob.files import digest, read_json, write_json
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.stages import train

PRODUCT = "S2A_MSIL2A_20240310T222541_N0510_R029_T05WPS_20240311T001122"


pytestmark = pytest.mark.usefixtures("torch_threads")


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


def test_a_training_stays_with_the_shards_that_it_began_with(tmp_path):
    """Shards of products that had none then cost it nothing; other changes count."""
    files = [{"pair": f"05WPS_202403{day}T222541_20240320T222541", "sha256": str(day)} for day in (12, 14, 10)]
    space = RunFolder(tmp_path)

    def shards(*numbers: int, lacking: tuple[str, ...] = ()) -> str:
        index = {"files": [files[number] for number in numbers]} | ({"lacking": list(lacking)} if lacking else {})
        write_json(space.shard_index, index)
        return digest(index)

    def trains_on() -> str:
        return train.items(settings(), space)[0].inputs["shards"]

    begun = shards(0, 1, lacking=(PRODUCT,))
    assert trains_on() == begun
    write_json(space.trained_on, read_json(space.shard_index))
    now = shards(0, 1, 2)
    assert trains_on() == begun
    space.say = (said := []).append
    train._say_lacking(space, train._index(space))
    assert said[0] == f"train: on all but 1 cloudy products without a shard: {PRODUCT}"
    assert said[1].endswith(f"1 of them have one by now; to train on them too: cloudjob train {tmp_path} --force")
    space.force = True
    assert trains_on() == now
    space.force = False
    files[2]["pair"] = "05WPS_20240316T222541_20240320T222541"  # a product that nobody lacked
    for numbers in ((0, 1, 2), (0,)):
        now = shards(*numbers)
        assert trains_on() == now


def test_without_a_triplet_it_says_whether_one_may_still_come(tmp_path):
    space = RunFolder(tmp_path)
    for more, error in (({}, ConfigError), ({"lacking": [PRODUCT]}, InputError)):
        write_json(space.shard_index, {"files": [], "normalisation": None} | more)
        with pytest.raises(error, match="no triplet to train on"):
            train.run(settings(), space)


@pytest.mark.slow
def test_what_is_lacking_is_kept_for_the_next_time(tmp_path):
    space = workspace(tmp_path / "run")
    short = settings("train.samples=8", "train.process=regression")
    lacking = {"lacking": [PRODUCT]}
    whole = read_json(space.shard_index)
    write_json(space.shard_index, whole | lacking)
    assert train.run(short, space).done == ["run"]
    assert read_json(space.trained_on) == whole | lacking
    write_json(space.shard_index, whole)
    assert train.run(short, space).skipped == ["run"]
    space.force = True
    assert train.run(short, space).done == ["run"]
    space.force = False
    assert not space.trained_on.exists()
    assert train.run(short, space).skipped == ["run"]
