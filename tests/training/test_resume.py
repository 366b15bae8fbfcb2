"""What a training makes of damaged checkpoints, other settings, given weights, bad numbers and a full disk."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import settings, weights, workspace

from cloudjob.config.models import TrainConfig
from cloudjob.diffusion import checkpoint
from cloudjob.errors import ConfigError, DiskFullError, InterruptedJob
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.stages import train
from cloudjob.training import logs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("torch_threads")]

LIGHT = ("train.process=regression", "evaluate.members=1")


def stop_after(space: RunFolder, steps: int, *overrides: str) -> None:
    """Trains until so many steps of 8 samples are done: the wish comes after the look that follows the one before."""
    space.stop_requested = lambda: [row["seen"] for row in logs.rows(space.validation)][-1:] == [8 * (steps - 1)]
    with pytest.raises(InterruptedJob, match=f"stopped at {8 * steps} of 48"):
        train.run(settings(*overrides), space)
    space.stop_requested = lambda: False


def begun(folder: Path, steps: int = 3, *overrides: str) -> RunFolder:
    """A training of 6 steps, stopped after so many."""
    space = workspace(folder / "run")
    stop_after(space, steps, *overrides)
    space.said = []
    space.say = space.said.append
    return space


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> RunFolder:
    space = workspace(tmp_path_factory.mktemp("trained") / "run")
    assert train.run(settings(), space).done == ["run"]
    return space


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(trained, tmp_path, caplog):
    space = begun(tmp_path)
    newest = checkpoint.saved(space.checkpoints)[0]
    data = bytearray(newest.read_bytes())
    data[len(data) // 3] ^= 4
    newest.write_bytes(data)
    train.run(settings(), space)
    assert str(newest) in caplog.text
    assert any("goes on from step-00000016.pt" in line for line in space.said)  # the milestone at a quarter
    assert weights(space) == weights(trained)


def test_other_settings_at_resume_are_an_error_that_lists_them(tmp_path):
    space = begun(tmp_path)
    before = sorted(path.name for path in space.checkpoints.iterdir())
    other = settings("train.preset=small", "train.process=ddpm", "train.lr=2e-3")
    with pytest.raises(ConfigError) as failed:
        train.run(other, space)
    for words in ("train.preset tiny -> small", "-> ddpm", "train.lr 0.001 -> 0.002", "--force", "--init-from"):
        assert words in str(failed.value)
    assert sorted(path.name for path in space.checkpoints.iterdir()) == before
    train.run(
        settings("train.log_s=3.0", "train.failure_h=1.0", "train.checkpoint_s=null"), space
    )  # the pace may change
    assert any("goes on from" in line for line in space.said)


def test_a_training_of_a_version_with_another_network_is_not_lost(tmp_path):
    space = begun(tmp_path)
    path = checkpoint.newest(space.checkpoints)
    state = checkpoint.load(path)
    state.model["mean.head.bias"] = state.model["mean.head.bias"][:-1]
    checkpoint.save(path.parent, state, {}, keep=lambda seen: True)
    with pytest.raises(ConfigError, match=r"had another network.*--force.*--init-from") as failed:
        train.run(settings(), space)
    assert str(path) in str(failed.value)
    assert path.exists()


def test_a_finished_training_of_other_settings_is_kept_aside_with_its_logs_by_force_alone(tmp_path):
    space = workspace(tmp_path / "run")
    train.run(settings(*LIGHT), space)
    with pytest.raises(
        ConfigError, match=r"is of a finished training \(48 of 48 samples\).*\n  train.lr 0.001 -> 0.002"
    ):
        train.run(settings(*LIGHT, "train.lr=2e-3"), space)
    assert records.why(space, train.items(settings(*LIGHT), space)[0]) is None
    space.force = True
    assert train.run(settings(*LIGHT, "train.lr=2e-3"), space).done == ["run"]
    aside = space.root / "train-before-1"
    assert (aside / "checkpoints" / "step-00000048.pt").exists()
    for kind in ("metrics", "checks", "validation"):
        assert [row["seen"] for row in logs.rows(getattr(space, kind))] == sorted(
            {row["seen"] for row in logs.rows(getattr(space, kind))}
        )
        assert (aside / f"{kind}.jsonl").exists()


def test_force_counts_once_for_a_training_that_is_stopped_and_put_back(tmp_path):
    """The same command line, again and again, as a queue gives it; finished, it begins another one."""
    space = workspace(tmp_path / "run")
    train.run(settings(*LIGHT), space)
    before = weights(space)
    space.force = True
    for steps in (2, 4):
        stop_after(space, steps, *LIGHT)
    assert train.run(settings(*LIGHT), space).done == ["run"]
    assert weights(space) == before
    assert [path.name for path in space.root.glob("train-before-*")] == ["train-before-1"]
    stop_after(space, 2, *LIGHT)
    assert len(list(space.root.glob("train-before-*"))) == 2
    space.force = False
    assert records.why(space, train.items(settings(*LIGHT), space)[0]) == "--force"
    assert train.run(settings(*LIGHT), space).done == ["run"]
    assert weights(space) == before


def test_a_finished_training_goes_on_when_it_is_to_last_longer(tmp_path):
    """To the same bytes as one that was to last as long from the start."""
    short, long = workspace(tmp_path / "short"), workspace(tmp_path / "long")
    chosen = (*LIGHT, "train.decay=false")
    for epochs in (2, 3):
        assert train.run(settings(*chosen, f"train.epochs={epochs}"), short).done == ["run"]
    train.run(settings(*chosen), long)
    assert weights(short) == weights(long)
    with pytest.raises(ConfigError, match=r"train.epochs 3.0 -> 2.0"):
        train.run(settings(*chosen, "train.epochs=2"), short)


def test_new_training_from_given_weights_says_what_did_not_fit(trained, tmp_path):
    given = checkpoint.newest(trained.checkpoints)
    space = workspace(tmp_path / "same")
    space.said = []
    space.say = space.said.append
    train.run(settings(f"train.init_from={given}", "train.lr=1e-9", "train.warmup=0"), space)
    assert any("starts from" in line for line in space.said)
    assert not any("does not fit" in line for line in space.said)
    state = checkpoint.load(given)
    _, network, _ = checkpoint.open_network(given, "cpu")
    for name, weight in checkpoint.load(checkpoint.newest(space.checkpoints)).model.items():
        torch.testing.assert_close(weight, network.state_dict()[name], rtol=0, atol=1e-6)

    state.averages[state.chosen]["stem.weight"] = torch.zeros(3, 3)
    changed = checkpoint.save(tmp_path / "changed", replace(state, seen=1))
    space = workspace(tmp_path / "other")
    space.said = []
    space.say = space.said.append
    train.run(settings(f"train.init_from={changed}"), space)
    (line,) = [line for line in space.said if "does not fit" in line]
    assert "stem.weight" in line
    assert "there (3, 3)" in line


def test_bad_steps_are_skipped_counted_and_end_it_in_the_end(tmp_path):
    space = workspace(tmp_path / "run")
    space.said = []
    space.say = space.said.append
    summary = train.run(settings("train.lr=1e30", "train.warmup=0", "train.max_skipped=2"), space)
    assert "not finite" in summary.failed["run"]
    assert "for 2 steps in a row" in summary.failed["run"]
    assert "train.lr" in summary.failed["run"]
    assert sum("is skipped" in line for line in space.said) == 2


def test_what_is_written_down(trained):
    rows = logs.rows(trained.metrics)
    expected = {"step", "seen", "loss", "lr", "grad_norm", "samples_per_s", "data_wait_pct", "gpu_memory_gib", "watts"}
    assert expected | {"memory_gib", "energy_kwh", "co2_g", "energy", "skipped", "total", "time"} <= set(rows[-1])
    assert (rows[-1]["seen"], rows[-1]["step"], rows[-1]["skipped"]) == (48, 6, 0)
    assert rows[-1]["energy_kwh"] > 0
    validation = logs.rows(trained.validation)
    assert validation[-1]["seen"] == 48
    assert {"loss", "cloud_psnr", "cloud_ssim", "cloud_mae", "all_psnr"} <= set(validation[-1])
    assert (trained.samples / "seen-00000048.png").read_bytes().startswith(b"\x89PNG")
    start, end = logs.rows(trained.job_cards)
    assert (start["event"], end["event"]) == ("start", "end")
    assert {"nodes", "ranks", "devices", "versions", "commit", "config"} <= set(start)
    assert end["energy_kwh"] == rows[-1]["energy_kwh"]
    assert checkpoint.facts(checkpoint.newest(trained.checkpoints))["co2_g"] == rows[-1]["co2_g"]


def test_tensorboard_is_an_extra(tmp_path):
    space = workspace(tmp_path / "run")
    chosen = settings("train.tensorboard=true")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        with pytest.raises(ConfigError, match=r"cloudjob\[tensorboard\]"):
            train.run(chosen, space)
        return
    train.run(chosen, space)
    events = EventAccumulator(str(space.tensorboard))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("metrics/loss")]
    assert losses == [(row["seen"], pytest.approx(row["loss"])) for row in logs.rows(space.metrics)]


def test_a_full_disk_at_the_end_costs_no_checkpoint(trained, disk):
    folder = disk(200)
    space = begun(folder, 5)
    stuffing = folder / "stuffing"
    stuffing.write_bytes(bytes(shutil.disk_usage(folder).free - 3 * 2**20))  # room for the logs, not for a checkpoint
    before = {path: path.read_bytes() for path in space.checkpoints.glob("*.pt")}
    with pytest.raises(DiskFullError, match="MiB free, a checkpoint needs"):
        train.run(settings(), space)
    assert {path: path.read_bytes() for path in space.checkpoints.glob("*") if path.suffix == ".pt"} == before
    stuffing.unlink()
    train.run(settings(), space)
    assert weights(space) == weights(trained)


@pytest.mark.parametrize("steps", [200, pytest.param(500, marks=pytest.mark.long)])
def test_memory_does_not_grow_over_hundreds_of_steps(tmp_path, steps):
    """Of rank 0, in which the loader's threads are."""
    space = workspace(tmp_path / "run")
    chosen = (f"train.samples={2 * steps}", "train.batch_size=2", "train.log_s=0.2", "train.loader_threads=2")
    assert train.run(settings(*chosen, "evaluate.members=1"), space).done == ["run"]
    memory = [row["memory_gib"] for row in logs.rows(space.metrics) if row["step"] > 100]
    quarter = len(memory) // 4
    assert quarter > 2
    assert max(memory[-quarter:]) < max(memory[:quarter]) + 0.004  # 14 KB per step of five hundred


def test_the_settings_of_the_pace_are_not_part_of_what_comes_out():
    assert set(TrainConfig.model_fields) > train._EXECUTION
    assert json.loads(TrainConfig().model_dump_json())["failure_h"] == 24.0
