"""What a training writes down: rows that go on where the training does, what a meter counts, and by whom it is said."""

import json
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cloudjob import __version__
from cloudjob.diffusion import checkpoint
from cloudjob.errors import ConfigError
from cloudjob.files import append_jsonl
from cloudjob.hpc import distributed, machine, slurm
from cloudjob.training import logs
from cloudjob.training.logs import Board, Journal, Meter
from cloudjob.training.settings import Files, Identity, Settings, Talk

CPU = torch.device("cpu")
GOOD, BAD = torch.zeros(()), torch.ones(())  # whether a step is skipped


# --- rows --------------------------------------------------------------------------------------------------------
def test_rows_are_appended_and_a_half_written_one_is_left_out(tmp_path):
    path = tmp_path / "train" / "metrics.jsonl"
    assert logs.rows(path) == []
    append_jsonl(path, {"seen": 8, "loss": 0.5})
    append_jsonl(path, {"seen": 16, "name": "µ"})
    assert path.read_bytes().decode("utf-8").count("\n") == 2
    with open(path, "a") as file:
        file.write('{"seen": 24, "lo')
    assert logs.rows(path) == [{"seen": 8, "loss": 0.5}, {"seen": 16, "name": "µ"}]


def test_rows_that_will_be_written_again_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logs.trim(path, 8)
    assert not path.exists()
    for seen in (8, 16, 24):
        append_jsonl(path, {"seen": seen})
    with open(path, "a") as file:
        file.write('{"seen": 16, "half')
    logs.trim(path, 16)
    assert path.read_text() == '{"seen": 8}\n{"seen": 16}\n'


# --- meter -------------------------------------------------------------------------------------------------------
class Clock:
    """A clock that goes by hand."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now


class Joules:
    source, measured, lacking = "10 W per core", True, False

    def __init__(self):
        self.total = 0.0

    def joules(self) -> float:
        return self.total


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(logs, "time", made)
    return made


def meter(tmp_path, energy: Joules | None = None) -> Meter:
    return Meter(CPU, energy or Joules(), tmp_path / "metrics.jsonl", grid_co2=400.0)


def test_waiting_is_what_the_elements_are_waited_for(clock, tmp_path):
    made = meter(tmp_path)

    def slow():
        for number, seconds in enumerate((3.0, 0.5)):
            clock.now += seconds
            yield number

    found = []
    for element in made.waiting(slow()):
        clock.now += 10  # the step itself
        found.append(element)
    assert found == [0, 1]
    assert made.waited == 3.5
    assert made.elapsed == 23.5


def test_a_row_is_of_the_steps_since_the_last_one(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_resident_gib", lambda: 1.23456)
    energy = Joules()
    energy.total = 0.0
    made = meter(tmp_path, energy)
    clock.now += 4
    made.waited = 1.0
    made.note(torch.tensor(0.25), 8, GOOD)
    made.note(torch.tensor(0.75), 8, GOOD)
    made.note(torch.tensor(torch.nan), 8, BAD)  # skipped: of the samples, not of the losses
    energy.total = 100.0
    row = made.row()
    assert row == {
        "time": 1700001004.0,
        "loss": 0.5,
        "samples_per_s": 6.0,
        "data_wait_pct": 25.0,
        "memory_gib": 1.235,
        "gpu_memory_gib": None,
        "watts": 25.0,
        "seconds": 4.0,
        "energy_kwh": 2.8e-05,
        "co2_g": 0.011,
        "energy": "measured",
    }
    clock.now += 2
    energy.total = 1000.0
    row = made.row()  # nothing was done
    assert (row["loss"], row["samples_per_s"], row["data_wait_pct"]) == (0, 0, 0)
    assert (row["watts"], row["seconds"]) == (450.0, 6.0)
    assert (row["energy_kwh"], row["co2_g"]) == (0.000278, 0.111)
    made.note(torch.tensor(2.0), 8, GOOD)
    clock.now += 1
    assert made.row()["loss"] == 2.0
    assert made.used()["seconds"] == 7.0
    clock.now += 3
    assert made.used() == {"seconds": 10.0, "energy_kwh": 0.000278, "co2_g": 0.111}  # energy as of the last row


def test_a_row_is_of_all_ranks(clock, tmp_path, monkeypatch):
    """The mean of the losses, the sum of the energy, and of what is a burden the rank with most of it."""
    other = {"loss": 1.5, "wait": 0.5, "joules": 300.0, "measured": False, "memory": 9.0, "gpu": None, "lacking": False}
    monkeypatch.setattr(distributed, "gather", lambda own: [own, other])
    energy = Joules()
    made = meter(tmp_path, energy)
    made.note(torch.tensor(0.5), 8, GOOD)
    clock.now += 10
    energy.total = 100.0
    row = made.row()
    assert row["loss"] == 1.0
    assert row["data_wait_pct"] == 50.0
    assert row["memory_gib"] == 9.0
    assert row["watts"] == 40.0
    assert row["energy_kwh"] == round(400 / 3.6e6, 6)
    assert row["samples_per_s"] == 0.8  # `note` is told of the samples of all ranks
    assert row["energy"] == "estimated"  # of one rank at least
    other["lacking"] = True  # a GPU whose counter cannot be read
    clock.now += 1
    row = made.row()
    assert (row["energy"], row["watts"], row["energy_kwh"], row["co2_g"]) == ("not measured", None, None, None)


def test_what_earlier_jobs_of_the_training_used_is_not_forgotten(clock, tmp_path):
    for seen in (8, 16):
        append_jsonl(tmp_path / "metrics.jsonl", {"seen": seen, "energy_kwh": seen / 8, "seconds": 100.0 * seen})
    energy = Joules()
    made = meter(tmp_path, energy)
    assert made.kind == "estimated"
    clock.now += 5
    energy.total = 3.6e6
    row = made.row()
    assert (row["seconds"], row["energy_kwh"], row["co2_g"]) == (1605.0, 3.0, 1200.0)
    assert row["watts"] == 720000.0  # of this job alone


@pytest.mark.slow
def test_memory_is_that_of_this_process():
    before = logs._resident_gib()
    kept = np.ones(2**25)  # 256 MiB
    assert 0.2 < logs._resident_gib() - before < 0.3
    del kept


# --- TensorBoard -------------------------------------------------------------------------------------------------
class Writer:
    def __init__(self, folder: str, purge_step: int):
        self.made, self.scalars, self.flushed = (folder, purge_step), [], 0

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        self.flushed += 1


@pytest.fixture
def tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))


def test_a_board_gets_the_numbers_of_a_row(tensorboard, tmp_path):
    board = Board(tmp_path, 16)
    assert board.writer.made == (str(tmp_path), 17)  # what will be seen again is forgotten
    board.add(
        "metrics", {"seen": 24, "total": 48, "time": 1.5, "loss": 0.25, "energy": "measured", "gpu": None, "step": 3}
    )
    assert board.writer.scalars == [("metrics/loss", 0.25, 24), ("metrics/step", 3, 24)]
    assert board.writer.flushed == 1


def test_without_it_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"train\.tensorboard.*cloudjob\[tensorboard\]"):
        Board(tmp_path, 0)


# --- journal -----------------------------------------------------------------------------------------------------
class Paper:
    """A journal on rank `rank` of two on two nodes, and all that it has said."""

    def __init__(self, folder, monkeypatch, *, rank: int = 0, seen: int = 16, tensorboard: bool = False):
        self.said, self.bars = [], []
        self.files = Files(
            checkpoints=folder / "checkpoints",
            metrics=folder / "metrics.jsonl",
            validation=folder / "validation.jsonl",
            checks=folder / "checks.jsonl",
            job_cards=folder / "jobs.jsonl",
            samples=folder / "samples",
            tensorboard=folder / "tensorboard",
            forced=folder / "forced.json",
        )
        self.state = SimpleNamespace(
            seen=seen,
            total=80,
            skipped=3,
            rate=0.00123,
            settings=Settings(options={}, batch_size=8, tensorboard=tensorboard),
            step=SimpleNamespace(micro=4, bfloat16=True, compilation=SimpleNamespace(active=True, fallback="")),
        )
        self.causes = ["", ""]  # by rank: why its step is not compiled
        self.measured = {
            "loss": 0.51234,
            "samples_per_s": 12.34,
            "data_wait_pct": 5.67,
            "watts": 42.4,
            "energy": "estimated",
        }
        self.metered = []
        meter = SimpleNamespace(
            row=lambda: self.metered.append(1) or dict(self.measured), energy=SimpleNamespace(source="RAPL")
        )
        group = SimpleNamespace(rank=rank, size=2, device=CPU)
        self.identity = Identity(config={"train": {"lr": 1}}, inputs={"shards": "abc"})
        monkeypatch.setattr(distributed, "gather", self.gather)
        monkeypatch.setattr(machine, "describe", lambda: {"versions": {"torch": "2"}})
        monkeypatch.setattr(machine, "commit", lambda: "abc123+")
        monkeypatch.setattr(machine, "device_name", lambda device: "chip")
        monkeypatch.setattr(slurm, "job_id", lambda: "77")
        talk = Talk(say=self.said.append, progress=lambda share, line: self.bars.append((share, line)))
        self.journal = Journal(self.files, self.identity, group, self.state, meter, talk)

    def gather(self, own):
        return self.causes if isinstance(own, str) else [("node-2", "chip"), ("node-1", "chip")]


def test_a_step_that_is_not_compiled_is_said_with_its_cause_once(tmp_path, monkeypatch):
    paper = Paper(tmp_path, monkeypatch)
    paper.journal.log(torch.tensor(1.0))
    paper.causes[1] = "no working C++ compiler"
    for _ in range(2):
        paper.journal.log(torch.tensor(1.0))
    assert [row["compiled"] for row in logs.rows(paper.files.metrics)] == [True, False, False]
    (line,) = [line for line in paper.said if "WARNING" in line]
    assert line == ("train: WARNING: not compiled on rank 1, so slower and in more memory: no working C++ compiler")
    start, card = logs.rows(paper.files.job_cards)
    assert (start["compiled"], card["event"], card["cause"]) == (True, "not compiled", "no working C++ compiler")


def test_the_logs_go_on_from_where_the_training_does(tmp_path, monkeypatch):
    for name in ("metrics", "validation", "checks", "jobs"):
        for seen in (8, 16, 24):
            append_jsonl(tmp_path / f"{name}.jsonl", {"seen": seen})
    Paper(tmp_path, monkeypatch, rank=1)
    assert len(logs.rows(tmp_path / "metrics.jsonl")) == 3  # rank 0 alone writes
    Paper(tmp_path, monkeypatch)
    for name in ("metrics", "validation", "checks"):
        assert [row["seen"] for row in logs.rows(tmp_path / f"{name}.jsonl")] == [8, 16]
    assert [row["seen"] for row in logs.rows(tmp_path / "jobs.jsonl")] == [8, 16, 24, 16]  # and the card of this job


def test_a_card_says_what_runs_where(tmp_path, monkeypatch, clock):
    paper = Paper(tmp_path, monkeypatch)
    (card,) = logs.rows(paper.files.job_cards)
    assert card == {
        "event": "start",
        "time": 1700001000.0,
        "job": "77",
        "seen": 16,
        "total": 80,
        "nodes": ["node-1", "node-2"],
        "ranks": 2,
        "devices": ["chip"],
        "commit": "abc123+",
        "config": checkpoint.key(paper.identity.config, paper.identity.inputs),
        "threads": torch.get_num_threads(),
        "batch": 8,
        "micro_batch": 4,
        "bfloat16": True,
        "compiled": True,
        "energy_from": "RAPL",
        "versions": {"torch": "2"},
    }
    (line,) = paper.said
    assert line.startswith(
        f"train: start of job 77: 2 ranks on node-1, node-2 (chip), cloudjob {__version__} at abc123+, threads "
    )
    assert line.endswith("batch 8, micro_batch 4, bfloat16 True, compiled True, energy_from RAPL")
    monkeypatch.setattr(slurm, "job_id", lambda: None)
    monkeypatch.setattr(machine, "commit", lambda: None)
    paper.journal.group.size = 1
    paper.journal.card("end", seconds=4.0)
    assert paper.said[-1] == f"train: end: 1 rank on node-1, node-2 (chip), cloudjob {__version__}, seconds 4.0"
    assert logs.rows(paper.files.job_cards)[-1]["seconds"] == 4.0


def test_a_log_is_a_row_and_a_line(tmp_path, monkeypatch):
    paper = Paper(tmp_path, monkeypatch)
    paper.journal.log(torch.tensor(1.23456))
    paper.journal.log(torch.tensor(torch.inf))
    first, second = logs.rows(paper.files.metrics)
    own = {"step": 2, "seen": 16, "total": 80, "lr": 0.00123, "grad_norm": 1.2346, "skipped": 3, "compiled": True}
    assert first == own | paper.measured
    assert second["grad_norm"] is None  # JSON has no infinity
    share, line = paper.bars[0]
    assert share == 0.2
    assert line == (
        "train: 16 of 80 samples, loss 0.5123, lr 0.0012, 12.3 samples/s, 5.7 % waiting for data, 42 W estimated"
    )


def test_what_is_not_measured_is_not_0_watts(tmp_path, monkeypatch):
    paper = Paper(tmp_path, monkeypatch)
    paper.measured |= {"watts": None, "energy": "not measured"}
    paper.journal.log(torch.tensor(1.0))
    assert paper.bars[0][1].endswith("5.7 % waiting for data, energy not measured")


def test_other_ranks_count_with_it_and_say_nothing(tmp_path, monkeypatch):
    paper = Paper(tmp_path, monkeypatch, rank=1)
    paper.journal.log(torch.tensor(1.0))
    paper.journal.card("stop")
    assert paper.metered == [1]  # a collective call
    assert list(tmp_path.iterdir()) == []
    assert paper.said == paper.bars == []


def test_a_diagnosis_is_a_row_and_its_warnings_are_said(tmp_path, monkeypatch):
    paper = Paper(tmp_path, monkeypatch)
    paper.journal.diagnosis({"against_zero": [0.5], "warnings": ["a layer of noise", "no look"]})
    assert logs.rows(paper.files.checks) == [
        {"seen": 16, "against_zero": [0.5], "warnings": ["a layer of noise", "no look"]}
    ]
    assert paper.said[1:] == ["train: WARNING: a layer of noise", "train: WARNING: no look"]


def test_a_validation_is_a_row_and_a_picture_if_there_is_one(tmp_path, monkeypatch, tensorboard):
    paper = Paper(tmp_path, monkeypatch, tensorboard=True)
    paper.journal.validation({"loss": 0.5}, lambda: np.zeros((4, 5, 3), np.uint8))
    paper.journal.settle()
    assert (paper.files.samples / "seen-00000016.png").read_bytes().startswith(b"\x89PNG")
    paper.state.seen = 24
    paper.journal.validation({"loss": 0.25}, None)
    paper.journal.settle()
    assert [path.name for path in paper.files.samples.iterdir()] == ["seen-00000016.png"]
    assert logs.rows(paper.files.validation) == [{"seen": 16, "loss": 0.5}, {"seen": 24, "loss": 0.25}]
    paper.journal.log(torch.tensor(1.0))
    writer = paper.journal.board.writer
    assert writer.made == (str(paper.files.tensorboard), 17)
    assert writer.scalars[:2] == [("validation/loss", 0.5, 16), ("validation/loss", 0.25, 24)]
    assert ("metrics/loss", 0.51234, 24) in writer.scalars


def test_without_a_board_only_the_rows_are_written(tmp_path, monkeypatch):
    assert Paper(tmp_path, monkeypatch).journal.board is None
    assert json.loads((tmp_path / "jobs.jsonl").read_text())["event"] == "start"


def test_a_picture_is_drawn_while_the_steps_go_on_and_is_there_before_its_row(tmp_path, monkeypatch):
    paper, drawn = Paper(tmp_path, monkeypatch), threading.Event()

    def draw() -> np.ndarray:
        assert drawn.wait(30)
        return np.zeros((4, 5, 3), np.uint8)

    paper.journal.validation({"loss": 0.5}, draw)
    assert logs.rows(paper.files.validation) == []  # and nobody waits
    paper.state.seen = 24  # which is another step's
    drawn.set()
    paper.journal.settle()
    assert logs.rows(paper.files.validation) == [{"seen": 16, "loss": 0.5}]
    assert [path.name for path in paper.files.samples.iterdir()] == ["seen-00000016.png"]


def test_a_picture_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    paper = Paper(tmp_path, monkeypatch)
    paper.files.samples.write_text("a file where the folder should be")
    paper.journal.validation({"loss": 0.5}, lambda: np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(OSError, match="samples"):
        paper.journal.settle()
    assert logs.rows(paper.files.validation) == []
