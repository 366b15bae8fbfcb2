"""What a training step costs: its time, the kernels in it, where the host waits, and what preparing a batch takes."""

import collections
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from machine import ROOT, device, synchronize
from samples import make_step, triplets
from torch.utils.flop_counter import FlopCounterMode

from cloudjob.diffusion.average import GAMMAS, PowerAverage
from cloudjob.diffusion.batch import Batch, pinned
from cloudjob.training import ahead
from cloudjob.training.agreement import NOTHING, Agreement

OURS = str(ROOT / "cloudjob") + "/"


class TrainingStep:
    """A step as a training does it: pinned arrays, transfer, preparation, both networks, clipping, the wait for the
    result, optimizer, moving averages."""

    def __init__(self, preset: str, batch: int, window: int, *, share: float = 0.0, **settings: Any):
        """`share` of the samples with synthetic clouds; `settings` of the training."""
        torch._dynamo.reset()
        self.device, self.arrays = device(), triplets(batch, window, donor=share > 0)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.arrays = {name: _pinned(array) for name, array in self.arrays.items()}
        self.step = make_step(preset, self.arrays, self.device, synthetic_clouds=share, batch_size=batch, **settings)
        self.averages = [PowerAverage(self.step.network, gamma=gamma) for gamma in GAMMAS.values()]
        self.samples = list(range(batch))
        self.agreement = Agreement(self.device, first=True)

    def __call__(self, number: int) -> None:
        samples, batch = next(ahead.sent([(self.samples, self.arrays)], self.device))
        loss, norm = self.step.gradient(samples, batch)
        self.step.update(1e-4, self.agreement.vote(NOTHING, loss, norm, seen=number))
        for _ in self.agreement.verdicts():  # of the step before
            pass
        for average in self.averages:
            average.update(self.step.network, step=number + 2)


def _pinned(array: Any) -> Any:
    buffer = pinned(array.shape, array.dtype)
    buffer[...] = array
    return buffer


def timed(way: Callable[[], Any], repeats: int = 10) -> float:
    """Seconds, the median."""
    way(), synchronize()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        way(), synchronize()
        seconds.append(time.perf_counter() - begun)
    return sorted(seconds)[len(seconds) // 2]


def speed(step: TrainingStep, steps: int) -> dict:
    """Samples a second of a step that has not run yet, and how it was compiled."""
    begun, batch = time.perf_counter(), len(step.samples)
    step(0), synchronize()
    first = time.perf_counter() - begun
    for number in range(3):
        step(number)
    synchronize()
    laps = []
    for number in range(steps):
        begun = time.perf_counter()
        step(number)
        laps.append(time.perf_counter() - begun)
    synchronize()
    middle = sorted(laps)[len(laps) // 2]
    counters = torch._dynamo.utils.counters
    inductor = counters["inductor"]
    found = {
        "batch": batch,
        "first step, s": round(first, 1),
        "ms a step": round(middle * 1e3, 2),
        "best": round(min(laps) * 1e3, 2),
        "samples/s": round(batch / middle, 1),
        "compiled": step.step.compilation.active,
        "fallback": step.step.compilation.fallback,
        "bfloat16": step.step.bfloat16,
        "graphs": {
            "compiled": counters["stats"].get("unique_graphs", 0),
            "breaks": sum(counters["graph_break"].values()),
            "inductor": inductor.get("fxgraph_cache_miss", 0) + inductor.get("fxgraph_cache_hit", 0),
        },
    }
    if step.device.type == "cuda":
        found["gpu_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return found


def inside(step: TrainingStep) -> dict:
    """Of a step that has run: kernels and their time, how long the GPU idles, where the host waits for it."""
    found, activities = {}, [torch.profiler.ProfilerActivity.CPU]
    if step.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        with _waits() as spots:
            step(0)
        found["waits of the host"] = {"number": sum(spots.values()), "where": dict(spots.most_common(20))}
    synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        begun = time.perf_counter()
        for number in range(3):
            step(number)
        synchronize()
        wall = (time.perf_counter() - begun) / 3
    events = profile.key_averages()
    print(events.table(sort_by="self_cpu_time_total", row_limit=25)[:9000], flush=True)
    kernels = [event for event in events if str(getattr(event, "device_type", "")).endswith("CUDA")]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    return found | {
        "ms a step, profiled": round(wall * 1e3, 2),
        "ms of kernels": round(sum(event.self_device_time_total for event in kernels) / 3e3, 2),
        "kernels and copies": sum(event.count for event in kernels) // 3,
        "copies": {event.key: event.count // 3 for event in kernels if event.key.startswith("Memcpy")},
        "operators on the host": sum(event.count for event in events if event not in kernels) // 3,
        "the longest, us a step": {event.key[:90]: round(event.self_device_time_total / 3) for event in kernels[:18]},
    }


@contextmanager
def _waits() -> Iterator[collections.Counter]:
    """Counts where the host waits for the GPU, by file and line of the project."""
    spots: collections.Counter = collections.Counter()

    def note(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(OURS)]
        here = f"{frames[-1].filename.removeprefix(OURS)}:{frames[-1].lineno}" if frames else None
        spots[here or f"{Path(filename).name}:{lineno}"] += 1

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            yield spots
    finally:
        torch.cuda.set_sync_debug_mode("default")


def preparing(preset: str, batch: int, window: int, share: float) -> dict:
    """Milliseconds of preparing a batch, alone: the loss with a network that costs nothing."""
    here, arrays = device(), triplets(batch, window, donor=share > 0)
    samples = torch.arange(batch, device=here)
    objective = make_step(preset, arrays, here, compile=False, synthetic_clouds=share, batch_size=batch).alone
    zero = torch.zeros(batch, 8, window, window, device=here)  # of a regression that tells its deviation

    def prepare() -> None:
        objective.recipe.loss(
            lambda x, level, channels: zero if x is None else zero[:, :4],
            Batch.of(arrays, here),
            seed=0,
            samples=samples,
            **objective.options,
        )

    with torch.no_grad():
        return {"batch": batch, "ms": round(timed(prepare) * 1e3, 2)}


def flop(preset: str, window: int) -> int:
    """Floating-point operations of the networks for one sample, forward and backward: without those of the first guess,
    which no utilisation of the networks' products is to count."""
    arrays = triplets(1, window)
    options = {"first_guess": "surroundings", "precision": "float32", "batch_size": 1, "compile": False}
    made = make_step(preset, arrays, "cpu", **options)
    with FlopCounterMode(display=False) as counter:
        made.gradient([0], Batch.of(arrays))
    return counter.get_total_flops()
