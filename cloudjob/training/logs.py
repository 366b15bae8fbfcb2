"""What a training writes down while it runs: rows of JSON, for TensorBoard too where that is wanted."""

import json
import resource
import time
from pathlib import Path

import torch

from cloudjob.errors import ConfigError
from cloudjob.hpc import distributed
from cloudjob.hpc.energy import JOULES_PER_KWH, Energy, carbon
from cloudjob.files import write_jsonl


def rows(path: Path) -> list[dict]:
    """The rows written so far; a last one cut short by a kill is left out."""
    if not path.exists():
        return []
    *whole, _ = path.read_text().split("\n")
    return [json.loads(line) for line in whole]


def trim(path: Path, seen: int) -> None:
    """Leaves out the rows that a training which goes on from `seen` samples will write again."""
    if path.exists():
        write_jsonl(path, [row for row in rows(path) if row["seen"] <= seen])


def append(path: Path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


class Meter:
    """Loss, speed, waiting, memory and energy since the last row of metrics.jsonl."""

    def __init__(self, device: torch.device, energy: Energy, *, before: dict, grid_co2: float):
        """`before` is the last row of the training's earlier sessions: what they used is not forgotten."""
        self.device, self.energy, self.grid_co2 = device, energy, grid_co2
        self.joules_before = before.get("energy_kwh", 0.0) * JOULES_PER_KWH
        self.seconds_before = before.get("seconds", 0.0)
        self.joules, self.kind = 0.0, "estimated"  # of this session, all ranks, as of the last row
        self.started = time.monotonic()
        self._restart()

    def _restart(self) -> None:
        self.begun, self.waited, self.samples, self.losses, self.steps = time.monotonic(), 0.0, 0, 0.0, 0

    def note(self, loss: torch.Tensor | None, samples: int) -> None:
        """A step that was done, or with no loss one that was skipped."""
        self.samples += samples
        if loss is not None:
            self.losses, self.steps = self.losses + loss, self.steps + 1

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    def row(self) -> dict:
        """What was measured since the last row, of all ranks together. A collective call.

        loss is the mean; data_wait_pct, memory_gib (of a process) and gpu_memory_gib (None without one) are those of
        the rank with the most; seconds, energy_kwh and co2_g are of the whole training so far.
        """
        elapsed, cuda = self.elapsed, self.device.type == "cuda"
        own = {
            "loss": float(self.losses) / max(self.steps, 1),
            "wait": self.waited / elapsed,
            "joules": self.energy.joules(),
            "measured": self.energy.measured,
            "memory": _resident_gib(),
            "gpu": torch.cuda.max_memory_allocated(self.device) / 2**30 if cuda else None,
        }
        every = distributed.gather(own)
        joules = sum(each["joules"] for each in every)
        watts, self.joules = (joules - self.joules) / elapsed, joules
        self.kind = "measured" if all(each["measured"] for each in every) else "estimated"
        samples = self.samples
        self._restart()
        return {
            "time": round(time.time(), 3),
            "loss": round(sum(each["loss"] for each in every) / len(every), 6),
            "samples_per_s": round(samples / elapsed, 2),
            "data_wait_pct": round(100 * max(each["wait"] for each in every), 2),
            "memory_gib": round(max(each["memory"] for each in every), 3),
            "gpu_memory_gib": round(max(each["gpu"] for each in every), 3) if cuda else None,
            "watts": round(watts, 1),
            **self.used(),
            "energy": self.kind,
        }

    def used(self) -> dict:
        """{"seconds", "energy_kwh", "co2_g"} of the whole training, as of the last row."""
        seconds = self.seconds_before + time.monotonic() - self.started
        return {"seconds": round(seconds, 1)} | carbon(self.joules_before + self.joules, self.grid_co2)


def _resident_gib() -> float:
    """Memory of this process as it is now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**30


class Board:
    """The same figures as TensorBoard reads them, over the samples seen."""

    def __init__(self, folder: Path, seen: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError("train.tensorboard: not installed; pip install 'cloudjob[tensorboard]'") from None
        self.writer = SummaryWriter(str(folder), purge_step=seen + 1)

    def add(self, kind: str, row: dict) -> None:
        for name, value in row.items():
            if isinstance(value, int | float) and name not in ("seen", "total", "time"):
                self.writer.add_scalar(f"{kind}/{name}", value, row["seen"])
        self.writer.flush()
