"""The loop: what is done after how many samples or seconds, what all ranks agree on, and how it stops and goes on."""

import functools
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import workspace

from cloudjob.diffusion import checkpoint, networks
from cloudjob.diffusion.processes import Residual
from cloudjob.diffusion.recipe import Recipe
from cloudjob.errors import InterruptedJob
from cloudjob.hpc import distributed, sharing
from cloudjob.hpc.distributed import ProcessGroup
from cloudjob.patches import loader
from cloudjob.training import logs, loop
from cloudjob.training.agreement import Agreement
from cloudjob.training.held_out import HeldOut
from cloudjob.training.loop import Training, _interval, _late
from cloudjob.training.settings import Files, Identity, Settings, Talk

CPU = torch.device("cpu")
ALONE = ProcessGroup(0, 1, 0, CPU)
SECOND = ProcessGroup(1, 2, 1, CPU)
PLAIN = Settings(
    options={},
    preset="speck",
    process="regression",
    samples=16,
    batch_size=2,
    warmup=4,
    threads=1,
    precision="float32",
    compile=False,
    checkpoint_s=1e9,
    log_s=1e9,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return workspace(tmp_path_factory.mktemp("shards") / "run").shards


class Looks:
    """What is seen of held-out triplets: nothing but when and with what it was looked at."""

    def __init__(self, recipe, settings, held_out, instead, group, *, bfloat16, stopped):
        self.given = (len(held_out), len(instead), bfloat16)
        self.faults_after, self.validated, self.averages = [], [], []

    def faults(self, network, *, share):
        self.faults_after.append((network, share))
        return {"warnings": [f"at {share}"]}

    def validate(self, network):
        self.validated.append(network)
        return {"loss": 0.5}, None

    def best_average(self, averaged, chosen, say):
        self.averages.append((chosen, averaged("0.05")))
        return "0.05"

    def calibrate(self, network):
        self.averages.append(network)
        return {"factors": [2.0]}


@pytest.fixture(autouse=True)
def small(monkeypatch, torch_threads):
    """A network that is smaller than any that is worth training, and no looks at held-out triplets."""
    monkeypatch.setitem(networks.SIZES, "speck", networks.Size(widths=(8, 8), blocks=1))
    monkeypatch.setattr(networks, "PRESETS", (*networks.PRESETS, "speck"))
    monkeypatch.setattr(loop, "HeldOut", Looks)
    for name in ("SLURM_JOB_END_TIME", "CLOUDJOB_DEADLINE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def training(
    shards: Path,
    folder: Path,
    settings: Settings = PLAIN,
    group: ProcessGroup = ALONE,
    *,
    anew: bool = False,
    stop=None,
) -> Training:
    names = ("checkpoints", "metrics", "validation", "checks", "job_cards", "samples", "tensorboard", "forced")
    files = Files(**{name: folder / "train" / f"{name}" for name in names})
    said: list[str] = []
    talk = Talk(say=said.append, stop_requested=stop or (lambda: False))
    index = json.loads((shards / "index.json").read_text())
    identity = Identity(config={"lr": settings.lr}, inputs={"shards": "abc"})
    made = Training(shards, index, settings, files, identity, group, talk, anew=anew)
    made.said = said
    return made


def seen(path: Path) -> list[int]:
    return [row["seen"] for row in logs.rows(path)]


def checkpoints(made: Training) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in checkpoint.saved(made.files.checkpoints))


class Clock:
    """A clock that goes by hand, for the loop and its logs."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        for module in (loop, logs):
            monkeypatch.setattr(module, "time", self)
        monkeypatch.setattr(loop.awake, "of_process", loop.awake.Clock)  # the other knows of gaps in earlier tests

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def slow(self, made: Training, seconds: float) -> None:
        """Steps that take so long."""
        gradient = made.state.step.gradient

        def slowly(samples, batch):
            self.now += seconds
            return gradient(samples, batch)

        made.state.step.gradient = slowly


# --- a whole training --------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_what_is_done_after_which_share(shards, tmp_path):
    made = training(shards, tmp_path, replace(PLAIN, samples=80))
    outputs, facts = made.run()
    files, looks = made.files, made.held_out
    assert looks.given == (4, 16, False)
    assert seen(files.checks) == [4, 8, 20, 40, 80]
    assert [share for _, share in looks.faults_after] == [0.05, 0.1, 0.25, 0.5, 1.0]
    last, _ = looks.faults_after[-1]
    assert last is not made.state.network  # a copy of it as it is trained
    assert torch.equal(last.stem.weight, made.state.network.stem.weight)
    assert seen(files.validation) == [8, 16, 24, 32, 40, 48, 56, 64, 72, 80]
    assert logs.rows(files.validation)[0] == {"seen": 8, "loss": 0.5}
    assert made.state.network not in looks.validated  # averaged
    last = looks.validated[-1].stem.weight
    assert torch.equal(last, made.state.averages["0.05"].average["stem.weight"])  # the one that was chosen
    assert checkpoints(made) == [20, 40, 60, 80]
    assert seen(files.metrics) == [80]
    assert [(row["event"], row["seen"]) for row in logs.rows(files.job_cards)] == [("start", 0), ("end", 80)]
    assert outputs == [files.checkpoints / "step-00000080.pt"]
    assert facts == {"checkpoint": "step-00000080.pt", "seen": 80, "triplets": 16}
    assert "train: WARNING: at 0.05" in made.said


@pytest.mark.slow
def test_the_last_checkpoint_has_the_chosen_average_and_its_calibration(shards, tmp_path):
    made = training(shards, tmp_path)
    made.run()
    saved = [checkpoint.load(made.files.checkpoints / f"step-000000{number}.pt") for number in ("04", "08", "12", "16")]
    assert [(each.chosen, each.calibration) for each in saved] == [("0.10", {})] * 3 + [("0.05", {"factors": [2.0]})]
    ((before, narrow), calibrated) = made.held_out.averages
    assert before == "0.10"
    for network in (narrow, calibrated):
        assert torch.equal(network.stem.weight, made.state.averages["0.05"].average["stem.weight"])
    facts = checkpoint.facts(made.files.checkpoints / "step-00000016.pt")
    assert set(facts) == {"seen", "seconds", "energy_kwh", "co2_g", "energy"}
    assert facts["seen"] == 16


def test_the_process_is_measured_and_the_step_rehearsed_on_triplets_of_the_training_split(
    shards, tmp_path, monkeypatch
):
    asked, some = [], loop.data.some

    def spy(split, number, device, **options):
        asked.append((split, number, options))
        return some(split, number, device, **options)

    monkeypatch.setattr(loop.data, "some", spy)
    made = training(shards, tmp_path)
    assert asked == [(made.triplets, 64, {}), (made.triplets, 2, {"donors": True})]
    process = made.state.recipe.process
    assert process == made.state.recipe.measure(some(made.triplets, 64, CPU)).process
    assert process.spread != Residual.spread
    assert torch.get_num_threads() == 1


@pytest.mark.slow
def test_a_training_that_goes_on_takes_the_spread_that_was_measured_when_it_began(shards, tmp_path, monkeypatch):
    made = training(shards, tmp_path, stop=lambda: True)
    measured = made.state.recipe
    with pytest.raises(InterruptedJob):
        made.run()

    def other(recipe, batch):
        raise AssertionError("measured again")

    monkeypatch.setattr(Recipe, "measure", other)
    again = training(shards, tmp_path)
    assert again.state.recipe == again.state.step.alone.recipe == measured


# --- by the clock ------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_checkpoints_and_logs_come_by_the_clock(shards, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    made = training(shards, tmp_path, replace(PLAIN, samples=32, checkpoint_s=12, log_s=22))
    clock.slow(made, 5)
    saves, save = [], made.state.save
    made.state.save = lambda *args, **kw: saves.append(made.state.seen) or save(*args, **kw)
    made.run()
    # every third step, counted anew from the milestones at 8, 16 and 24
    assert saves == [6, 8, 14, 16, 22, 24, 30, 32]
    assert seen(made.files.metrics) == [10, 20, 30, 32]
    rows = logs.rows(made.files.metrics)
    assert [row["samples_per_s"] for row in rows] == [0.4] * 4
    assert [row["seconds"] for row in rows] == [25, 50, 75, 80]


def test_an_interval_that_loses_the_least_follows_from_what_a_save_takes():
    assert _interval(PLAIN, 3.0) == 1e9
    assert _interval(replace(PLAIN, checkpoint_s=None, failure_h=2.0), 3.0) == pytest.approx((2 * 3 * 7200) ** 0.5)


@pytest.mark.slow
def test_waiting_for_data_is_counted(shards, tmp_path, monkeypatch):
    clock, batches = Clock(monkeypatch), loader.batches

    def late(*args, **kw):
        for each in batches(*args, **kw):
            clock.now += 1
            yield each

    monkeypatch.setattr(loader, "batches", late)
    made = training(shards, tmp_path)
    clock.slow(made, 3)
    made.run()
    assert logs.rows(made.files.metrics)[-1]["data_wait_pct"] == 25.0


def test_batches_are_those_from_the_samples_seen_on(shards, tmp_path, monkeypatch):
    made, asked = training(shards, tmp_path, replace(PLAIN, seed=3, loader_threads=5), SECOND), []
    monkeypatch.setattr(loader, "batches", lambda split, **kw: asked.append((split, kw)) or iter([]))
    made.state.seen = 6
    for synthetic in (0.0, 0.5):
        made.state.settings = replace(made.state.settings, synthetic_clouds=synthetic)
        assert list(loop._batches(made.triplets, made.state, SECOND)) == []
    expected = {"seed": 3, "start": 6, "stop": 16, "batch": 2, "rank": 1, "size": 2, "threads": 5, "allocate": np.empty}
    expected["in_use"] = 1
    assert asked == [(made.triplets, expected | {"donors": False}), (made.triplets, expected | {"donors": True})]


# --- stop and go on ----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_outcomes_that_come_a_step_later_change_no_bit_of_what_is_learned(shards, tmp_path, never_stopped, monkeypatch):
    """As on a GPU: a stop takes effect a step later, a bad step is skipped on the device and counted afterwards."""
    monkeypatch.setattr(loop, "Agreement", functools.partial(Agreement, late=True))
    for name in ("VALIDATIONS", "DIAGNOSES"):  # before which nothing is left open
        monkeypatch.setattr(loop, name, ())
    settings, asked = replace(PLAIN, synthetic_clouds=0.5), itertools.count(1)
    made = training(shards, tmp_path / "stopped", settings, stop=lambda: next(asked) == 5)
    with pytest.raises(InterruptedJob, match="stopped at 12 of 16 samples"):
        made.run()
    (path,), _ = training(shards, tmp_path / "stopped", settings).run()
    assert path.read_bytes() == never_stopped
    weights = []
    for late in (True, False):
        monkeypatch.setattr(loop, "Agreement", functools.partial(Agreement, late=late))
        made = bad_third_step(training(shards, tmp_path / f"{late}"))
        (path,), _ = made.run()
        weights.append(path.read_bytes())
        assert sum("not finite after 4 samples; that step is skipped" in line for line in made.said) == 1
    assert weights[0] == weights[1]


def bad_third_step(made: Training) -> Training:
    gradient = made.state.step.gradient

    def sometimes(samples, batch):
        loss, norm = gradient(samples, batch)
        return (loss * torch.nan if samples[0] == 4 else loss), norm

    made.state.step.gradient = sometimes
    return made


@pytest.fixture(scope="module")
def never_stopped(shards, tmp_path_factory) -> bytes:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(networks.SIZES, "speck", networks.Size(widths=(8, 8), blocks=1))
        monkeypatch.setattr(networks, "PRESETS", (*networks.PRESETS, "speck"))
        monkeypatch.setattr(loop, "HeldOut", Looks)
        made = training(shards, tmp_path_factory.mktemp("plain"), replace(PLAIN, synthetic_clouds=0.5))
        return made.run()[0][0].read_bytes()


@pytest.mark.slow
def test_asked_to_stop_it_saves_and_leaves_and_goes_on_from_there(shards, tmp_path, never_stopped):
    settings, asked = replace(PLAIN, synthetic_clouds=0.5), itertools.count(1)
    made = training(shards, tmp_path, settings, stop=lambda: next(asked) in (3, 5))
    for samples in (6, 10):
        with pytest.raises(InterruptedJob) as stopped:
            made.run()
        assert str(stopped.value) == (
            f"train: stopped at {samples} of 16 samples (asked to), saved; run the same command again"
        )
        assert stopped.value.exit_code == 75
        assert stopped.value.on_all_ranks
        assert checkpoints(made)[-1] == samples
        assert seen(made.files.metrics)[-1] == samples
        card = logs.rows(made.files.job_cards)[-1]
        assert (card["event"], card["seen"]) == ("stop", samples)
        assert {"seconds", "energy_kwh", "co2_g", "energy"} <= set(card)
        made = training(shards, tmp_path, settings, stop=lambda: next(asked) in (3, 5))
        assert made.said[0] == f"train: goes on from step-{samples:08d}.pt, {samples} of 16 samples seen"
    (path,), _ = made.run()
    assert path.read_bytes() == never_stopped
    assert seen(made.files.metrics) == [6, 10, 16]
    assert seen(made.files.checks) == [2, 4, 8, 16]


def written(made: Training) -> list:
    """All that looks at held-out triplets leave, and the last checkpoint."""
    rows = [logs.rows(path) for path in (made.files.checks, made.files.validation)]
    pictures = {path.name: path.read_bytes() for path in made.files.samples.iterdir()}
    return [*rows, pictures, checkpoint.newest(made.files.checkpoints).read_bytes()]


@pytest.mark.slow
def test_a_stop_is_heard_in_every_look_which_is_made_when_the_training_goes_on(shards, tmp_path, monkeypatch):
    """Before any layer: in a diagnosis, a validation, the choice of the average, the calibration, the last looks."""
    monkeypatch.setattr(loop, "HeldOut", HeldOut)
    monkeypatch.setattr(sharing, "_ASK_S", 0.0)
    settings = replace(PLAIN, process="residual", members=2, steps=2, samples=8)
    asked, inside = [], set()  # how often it was asked, and which times it was in a look
    plain = training(shards, tmp_path / "plain", settings, stop=lambda: bool(asked.append(1)))
    for name in ("_looked", "_choose"):
        whole = getattr(plain, name)

        def noted(whole=whole):
            before = len(asked)
            found = whole()
            inside.update(range(before, len(asked)))
            return found

        monkeypatch.setattr(plain, name, noted)
    plain.run()
    assert len(inside) > 400
    moments = [random.Random(7).choice(sorted(inside)), max(inside), max(inside) - 300]
    for number, moment in enumerate(moments):
        times = itertools.count()
        stop = functools.partial(lambda times, moment: next(times) >= moment, times, moment)
        made = training(shards, tmp_path / str(number), settings, stop=stop)
        with pytest.raises(InterruptedJob, match="while it looked at held-out triplets"):
            made.run()
        assert next(times) < moment + 4  # and not much later: after the step that follows
        made = training(shards, tmp_path / str(number), settings)
        made.run()
        assert written(made) == written(plain)
        assert seen(made.files.metrics)[-1] == 8
        assert len(set(seen(made.files.metrics))) == len(seen(made.files.metrics))


@pytest.mark.slow
def test_a_job_that_ends_while_it_looks_stops_too(shards, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(loop, "HeldOut", HeldOut)
    monkeypatch.setattr(sharing, "_ASK_S", 0.0)
    made = training(shards, tmp_path)
    clock.slow(made, 5)
    validate = made.held_out.validate

    def long(network):
        monkeypatch.setenv("CLOUDJOB_DEADLINE", str(clock.now + 10))
        return validate(network)

    monkeypatch.setattr(made.held_out, "validate", long)
    with pytest.raises(InterruptedJob, match="stopped at 2 of 16 samples"):
        made.run()
    assert (seen(made.files.checks), seen(made.files.validation)) == ([2], [])


def test_the_time_that_a_job_was_suspended_is_added_to_its_end(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setenv("CLOUDJOB_DEADLINE", str(clock.now + 40))
    assert not _late(10, suspended_s=0)
    clock.now += 600
    assert _late(10, suspended_s=0)
    assert _late(10, suspended_s=599)
    assert not _late(10, suspended_s=600)


@pytest.mark.slow
def test_with_force_it_begins_anew(shards, tmp_path):
    first = training(shards, tmp_path, replace(PLAIN, samples=2))
    first.run()
    made = training(shards, tmp_path, replace(PLAIN, samples=2), anew=True)
    assert made.state.seen == 0
    assert "starts anew (--force)" in made.said[0]


def test_asked_in_the_last_step_it_is_done(shards, tmp_path):
    made = training(shards, tmp_path, replace(PLAIN, samples=2), stop=lambda: True)
    assert made.run()[1]["seen"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["CLOUDJOB_DEADLINE", "SLURM_JOB_END_TIME"])
def test_before_the_job_ends_it_stops_by_itself(shards, tmp_path, monkeypatch, variable):
    """Steps of 5 s; needed are twice a step and a save, and 30 s. The job has 44 s left after step 2, then 39 s."""
    clock = Clock(monkeypatch)
    monkeypatch.setenv(variable, str(clock.now + 54))
    made = training(shards, tmp_path, stop=lambda: clock.now > 1016)
    clock.slow(made, 5)
    with pytest.raises(InterruptedJob, match=r"stopped at 6 of 16 samples \(the job's time is nearly over\), saved"):
        made.run()
    assert checkpoints(made) == [4, 6]


@pytest.mark.slow
def test_a_job_that_lasts_is_not_stopped(shards, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setenv("CLOUDJOB_DEADLINE", str(clock.now + 1e6))
    made = training(shards, tmp_path)
    clock.slow(made, 5)
    assert made.run()[1]["seen"] == 16


def test_late_is_when_what_is_left_does_not_fit(monkeypatch):
    clock = Clock(monkeypatch)
    assert not _late(1e9)  # nobody says when it ends
    for needed, left, late in ((12, 42, False), (12, 41.9, True), (12, 100, False), (0, 30, False), (0, 29.9, True)):
        monkeypatch.setenv("CLOUDJOB_DEADLINE", str(clock.now + left))
        assert _late(needed) is late


# --- bad steps --------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_bad_step_is_skipped_and_its_loss_left_out(shards, tmp_path):
    made = training(shards, tmp_path)
    gradient, losses = made.state.step.gradient, []

    def sometimes(samples, batch):
        loss, norm = gradient(samples, batch)
        losses.append(float(loss))
        return (loss * torch.nan if samples[0] == 4 else loss), norm

    made.state.step.gradient = sometimes
    made.run()
    (row,) = logs.rows(made.files.metrics)
    assert row["skipped"] == 1
    assert row["loss"] == pytest.approx(np.mean([loss for number, loss in enumerate(losses) if number != 2]), abs=2e-6)
    assert row["grad_norm"] > 0
    assert sum("is skipped" in line for line in made.said) == 1


# --- another rank ------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_another_rank_writes_nothing_and_meets_rank_0_and_looks_as_often(shards, tmp_path, monkeypatch):
    met = []
    monkeypatch.setattr(distributed, "barrier", lambda: met.append(1))
    made = training(shards, tmp_path / "0", replace(PLAIN, checkpoint_s=1e9))
    made.run()
    alone = len(met)
    other = training(shards, tmp_path / "1", group=SECOND)
    monkeypatch.setattr(other.journal, "lacks", lambda path: True)  # as rank 0 says
    assert other.run() == ([], {})
    assert len(met) == 2 * alone
    assert not (tmp_path / "1").exists()
    for name in ("faults_after", "validated", "averages"):
        assert len(getattr(other.held_out, name)) == len(getattr(made.held_out, name)) > 0
    assert other.said == []


def test_energy_of_a_node_is_counted_by_its_first_rank(shards, tmp_path, monkeypatch):
    asked, energy = [], loop.Energy

    def spy(device, **kw):
        asked.append((device, kw))
        return energy(device, **kw)

    monkeypatch.setattr(loop, "Energy", spy)
    monkeypatch.setattr(distributed, "cores", lambda: 2)
    training(shards, tmp_path, replace(PLAIN, threads=None))
    training(shards, tmp_path, group=SECOND)
    assert asked == [(CPU, {"cores": 2, "first_on_node": True}), (CPU, {"cores": 1, "first_on_node": False})]
