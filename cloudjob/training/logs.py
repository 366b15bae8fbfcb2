"""What a training writes down while it runs: rows of JSON, for TensorBoard too where that is wanted, and its lines."""

import math
import resource
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from cloudjob import __version__
from cloudjob.diffusion import checkpoint
from cloudjob.errors import ConfigError
from cloudjob.files import append_jsonl, split_jsonl, write_bytes, write_jsonl
from cloudjob.hpc import distributed, machine, slurm
from cloudjob.hpc.distributed import ProcessGroup
from cloudjob.hpc.energy import JOULES_PER_KWH, Energy, carbon
from cloudjob.sentinel2.render import encode_png
from cloudjob.training import precision
from cloudjob.training.settings import Files, Identity, Talk
from cloudjob.training.state import State

T = TypeVar("T")
NOT_MEASURED = "not measured"  # where a GPU has no counter that can be read


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows written so far; what a kill cut short is left out."""
    return split_jsonl(path)[0] if path.exists() else []


def trim(path: Path, seen: int) -> None:
    """Leaves out the rows that a training which goes on from `seen` samples will write again."""
    if path.exists():
        write_jsonl(path, [row for row in rows(path) if row["seen"] <= seen])


class Meter:
    """Loss, speed, waiting, memory and energy since the last row of metrics.jsonl."""

    def __init__(self, device: torch.device, energy: Energy, metrics: Path, *, grid_co2: float):
        """`metrics` is metrics.jsonl: what the training's earlier jobs used is not forgotten."""
        earlier = rows(metrics)  # the last row may be of samples that will be seen again
        before = earlier[-1] if earlier else {}
        self.device, self.energy, self.grid_co2 = device, energy, grid_co2
        self.joules_before = (before.get("energy_kwh") or 0.0) * JOULES_PER_KWH
        self.seconds_before = before.get("seconds", 0.0)
        self.joules, self.kind = 0.0, "estimated"  # of this job, all ranks, as of the last row
        self.started = time.monotonic()
        self._restart()

    def _restart(self) -> None:
        self.begun, self.waited, self.samples = time.monotonic(), 0.0, 0
        self.losses: Tensor | float = 0.0
        self.steps: Tensor | float = 0.0

    def waiting(self, source: Iterable[T]) -> Iterator[T]:
        """The elements of the source; the time that they are waited for is counted."""
        elements = iter(source)
        while True:
            begun = time.monotonic()
            try:
                element = next(elements)
            except StopIteration:
                return
            self.waited += time.monotonic() - begun
            yield element

    def note(self, loss: Tensor, samples: int, skip: Tensor) -> None:
        """A step that was issued; its loss counts where `skip`, on the device, is not 1."""
        self.samples += samples
        self.losses = self.losses + torch.where(skip > 0, 0.0, loss)
        self.steps = self.steps + (1 - skip)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    def row(self) -> dict:
        """What was measured since the last row, of all ranks together. A collective call.

        loss is the mean; data_wait_pct, memory_gib (of a process) and gpu_memory_gib (None without one) are those of
        the rank with the most; seconds, energy_kwh and co2_g are of the whole training so far.
        """
        elapsed, cuda = self.elapsed, self.device.type == "cuda"
        own: dict[str, Any] = {
            "loss": float(self.losses) / max(float(self.steps), 1),
            "wait": self.waited / elapsed,
            "joules": self.energy.joules(),
            "measured": self.energy.measured,
            "lacking": self.energy.lacking,
            "memory": _resident_gib(),
            "gpu": torch.cuda.max_memory_allocated(self.device) / 2**30 if cuda else None,
        }
        every = distributed.gather(own)
        joules = sum(each["joules"] for each in every)
        watts, self.joules = (joules - self.joules) / elapsed, joules
        self.kind = "measured" if all(each["measured"] for each in every) else "estimated"
        if any(each["lacking"] for each in every):  # most of it: no figure is better than that of the rest
            self.kind = NOT_MEASURED
        samples = self.samples
        self._restart()
        return {
            "time": round(time.time(), 3),
            "loss": round(sum(each["loss"] for each in every) / len(every), 6),
            "samples_per_s": round(samples / elapsed, 2),
            "data_wait_pct": round(100 * max(each["wait"] for each in every), 2),
            "memory_gib": round(max(each["memory"] for each in every), 3),
            "gpu_memory_gib": round(max(each["gpu"] for each in every), 3) if cuda else None,
            "watts": None if self.kind == NOT_MEASURED else round(watts, 1),
            **self.used(),
            "energy": self.kind,
        }

    def used(self) -> dict:
        """{"seconds", "energy_kwh", "co2_g"} of the whole training, as of the last row; None where not measured."""
        seconds = self.seconds_before + time.monotonic() - self.started
        if self.kind == NOT_MEASURED:
            return {"seconds": round(seconds, 1), "energy_kwh": None, "co2_g": None}
        return {"seconds": round(seconds, 1)} | carbon(self.joules_before + self.joules, self.grid_co2)


def _resident_gib() -> float:
    """Memory of this process as it is now."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize() / 2**30


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


class Journal:
    """The rows, pictures and lines of a training; rank 0 writes them: those of a validation while the steps go on."""

    def __init__(self, files: Files, identity: Identity, group: ProcessGroup, state: State, meter: Meter, talk: Talk):
        """The logs go on from where the training does. A collective call."""
        self.files, self.group, self.state, self.meter, self.talk = files, group, state, meter, talk
        self.key = checkpoint.key(identity.config, identity.inputs)
        self.places = distributed.gather((socket.gethostname(), machine.device_name(group.device)))
        self.board: Board | None = None
        self.fallbacks: set[str] = set()
        self.writer, self.writing = ThreadPoolExecutor(1), Future[None]()
        self.writing.set_result(None)
        if not group.rank:
            self._begin()
        self.fell_back()

    def _begin(self) -> None:
        files, state = self.files, self.state
        for path in (files.metrics, files.checks, files.validation):
            trim(path, state.seen)
        if state.settings.tensorboard:
            self.board = Board(files.tensorboard, state.seen)
        self.card(
            "start",
            threads=torch.get_num_threads(),
            batch=state.settings.batch_size,
            micro_batch=state.step.micro,
            bfloat16=state.step.bfloat16,
            **self.step_facts(),
            energy_from=self.meter.energy.source,
        )

    def step_facts(self) -> dict[str, Any]:
        """What the step that was rehearsed runs as: `compiled`, and on a GPU by what rules its sums are made."""
        compilation = self.state.step.compilation
        return {"compiled": compilation.active} | precision.facts(self.group.device)

    def fell_back(self) -> None:
        """Says, once each, why the step runs uncompiled on a rank where it was to be compiled. A collective call."""
        every = distributed.gather(self.state.step.compilation.fallback)
        found = {cause: rank for rank, cause in enumerate(every) if cause and cause not in self.fallbacks}
        self.fallbacks.update(found)
        if self.group.rank:
            return
        for cause, rank in found.items():
            self.talk.say(f"train: WARNING: not compiled on rank {rank}, so slower and in more memory: {cause}")
            self.card("not compiled", cause=cause)

    def lacks(self, path: Path) -> bool:
        """Whether no row of the samples seen now was written, as rank 0 finds. A collective call."""
        return distributed.gather(not self.group.rank and all(row["seen"] != self.state.seen for row in rows(path)))[0]

    def log(self, norm: Tensor) -> None:
        """A row of metrics of all ranks, and one line of it. A collective call."""
        measured, state = self.meter.row(), self.state
        self.fell_back()
        if self.group.rank:
            return
        size = float(norm)
        row = {"step": state.seen // state.settings.batch_size, "seen": state.seen, "total": state.total}
        row |= measured | {"lr": state.rate, "grad_norm": round(size, 4) if math.isfinite(size) else None}
        row |= {"skipped": state.skipped, "compiled": state.step.compilation.active and not self.fallbacks}
        self._write("metrics", self.files.metrics, row)
        line = f"train: {row['seen']} of {row['total']} samples, loss {row['loss']:.4f}, lr {row['lr']:.2g}, "
        line += f"{row['samples_per_s']:.1f} samples/s, {row['data_wait_pct']:.1f} % waiting for data, "
        line += "energy not measured" if row["watts"] is None else f"{row['watts']:.0f} W {row['energy']}"
        self.talk.progress(row["seen"] / row["total"], line)

    def diagnosis(self, found: dict[str, Any]) -> None:
        """A row of checks.jsonl; its warnings are said."""
        if self.group.rank:
            return
        append_jsonl(self.files.checks, {"seen": self.state.seen, **found})
        for warning in found["warnings"]:
            self.talk.say(f"train: WARNING: {warning}")

    def validation(self, row: dict[str, Any], picture: Callable[[], NDArray] | None) -> None:
        """The picture beside the others, if there is one, then a row of validation.jsonl, by a thread: see `settle`."""
        if self.group.rank:
            return
        self.settle()
        self.writing = self.writer.submit(self._validation, {"seen": self.state.seen, **row}, picture)

    def _validation(self, row: dict[str, Any], picture: Callable[[], NDArray] | None) -> None:
        if picture:
            write_bytes(self.files.samples / f"seen-{row['seen']:08d}.png", encode_png(picture()))
        self._write("validation", self.files.validation, row)

    def settle(self) -> None:
        """Waits until all is written, and raises what went wrong with it."""
        self.writing.result()

    def card(self, event: str, **facts: Any) -> None:
        """What runs where, or what it used: a row of jobs.jsonl and a line."""
        if self.group.rank:
            return
        nodes, devices = (sorted(set(names)) for names in zip(*self.places, strict=True))
        job, commit, size = slurm.job_id(), machine.commit(), self.group.size
        row = {"event": event, "time": round(time.time(), 3), "job": job}
        row |= {"seen": self.state.seen, "total": self.state.total}
        row |= {"nodes": nodes, "ranks": size, "devices": devices, "commit": commit, "config": self.key}
        append_jsonl(self.files.job_cards, row | facts | machine.describe())
        who = f"{size} rank{'s' if size > 1 else ''} on {', '.join(nodes)} ({', '.join(devices)})"
        code = f"cloudjob {__version__}" + (f" at {commit}" if commit else "")
        used = ", ".join(f"{name} {value}" for name, value in facts.items())
        self.talk.say(f"train: {event}{f' of job {job}' if job else ''}: {who}, {code}, {used}")

    def _write(self, kind: str, path: Path, row: dict[str, Any]) -> None:
        append_jsonl(path, row)
        if self.board:
            self.board.add(kind, row)
