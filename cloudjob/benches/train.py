"""bench train: what a step costs, against the 2025 notebook's; what the loader gives; how ranks add up."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from cloudjob.benches import notebook
from cloudjob.config.models import TrainConfig
from cloudjob.diffusion import networks
from cloudjob.diffusion.batch import Batch, pinned
from cloudjob.diffusion.conditions import channel_count
from cloudjob.diffusion.recipe import Recipe
from cloudjob.errors import ConfigError, ItemError
from cloudjob.files import check_room, file_sha256, write_json
from cloudjob.hpc import distributed, machine
from cloudjob.patches import loader, shard_writer, shards
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made
from cloudjob.training import ahead, logs, precision
from cloudjob.training.settings import Settings
from cloudjob.training.step import Step

SHARDS = {"pair-a": ("train", 32), "pair-b": ("train", 32), "pair-c": ("val", 2)}  # looks at so few are short
TRIPLETS = sum(count for _, count in SHARDS.values())
NOTEBOOK_EPOCH = 37_661  # triplets that the notebook cut
BATCHES = {"cpu": (1, 2, 4, 8), "cuda": (32, 128)}  # each shape is compiled on a GPU, which takes most of a minute
STEPS = {"cpu": 6, "cuda": 400}  # of a whole training
PRESETS = {"cpu": ("small",), "cuda": ("small", "base")}


def run(
    folder: Path,
    *,
    window: int = 256,
    presets: tuple[str, ...] | None = None,
    rounds: int = 3,
    say: Callable[[str], None] = print,
) -> dict:
    """Figures of one run in a new folder below `folder`, which is removed at the end (300 MB with windows of 256)."""
    work = Path(folder) / f"bench-train-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        check_room(work, 4 * TRIPLETS * window**2 * 17, "bench train", "try --dir elsewhere")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        presets = presets or PRESETS[device.type]
        if device.type == "cpu":
            torch.set_num_threads(1)
        bench = Bench(make_run(work, window, presets[0]), device, rounds)
        say(f"steps of {', '.join(presets)} by precision and batch, on {machine.device_name(device)}")
        steps = [bench.steps(preset) for preset in presets]
        say("the notebook's way and ours in turn")
        plain = bench.against_notebook(presets[0])
        say("the loader alone")
        reading = {threads: bench.reading(threads) for threads in (1, 2, 4)}
        best = max(steps[0]["by_precision_and_batch"], key=lambda row: row["samples_per_s"])
        say("whole trainings by 1, 2, ... ranks")
        scaling = bench.scaling(presets[0], best)
        for found in steps:
            found |= _on_gpu(found, device)
        return {
            "ratios": {
                "ranks2_vs_1": _ratio(scaling, 2),
                "step_vs_notebook": round(plain["ours_samples_per_s"] / plain["notebook_samples_per_s"], 2),
            },
            "figures": {
                "device": machine.device_name(device),
                "window": window,
                "steps": steps,
                "against_notebook": plain,
                "loader_triplets_per_s": reading,
                "training_by_ranks": scaling,
                "for_this_node": _advice(best, reading, len(scaling)),
            },
            **machine.describe(),
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)


class Bench:
    """The parts of a training, each alone, on the triplets of a run folder."""

    def __init__(self, folder: RunFolder, device: torch.device, rounds: int):
        self.folder, self.device, self.rounds = folder, device, rounds
        self.index = folder.index()
        self.shards = shards.ShardSet(folder.shards, self.index, "train")

    def batch(self, size: int) -> tuple[list[int], dict[str, np.ndarray]]:
        """The first samples of the training, in memory that the device reads."""
        return next(self._batches(size, threads=1, stop=size))

    def step(self, preset: str, **settings: Any) -> Step:
        """The product's own step, with the process as the configuration has it by default, weights freshly drawn,
        compiled anew where it is compiled."""
        torch._dynamo.reset()
        precision.settle(self.device)
        process = settings.get("process", TrainConfig().process)
        options = TrainConfig(process=process).options()
        chosen = Settings(preset=preset, options=options, **settings)
        recipe = Recipe.of(preset, process, **(self.index["normalisation"] | options))
        some = Batch.of(self.batch(8)[1], self.device)
        recipe = recipe.measure(some)
        network = recipe.network().to(self.device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        step = Step(recipe, network, chosen)
        step.connect(Batch.of(self.batch(step.rehearsed)[1], self.device))
        return step

    def steps(self, preset: str) -> dict:
        """Samples per second of the step alone, by precision and batch; and the operations of a sample."""
        fast = distributed.fast_bfloat16(self.device)
        found = []
        both = ("float32", "bfloat16") if self.device.type == "cpu" else ("bfloat16",)
        for kind in both if fast else ("float32",):
            for size in BATCHES[self.device.type]:
                try:
                    found.append(self._row(preset, kind, size))
                except ConfigError as error:  # of the memory
                    found.append({"precision": kind, "batch": size, "samples_per_s": 0.0, "error": str(error)})
                    torch.cuda.empty_cache()
                    break
        with FlopCounterMode(display=False) as counter:
            samples, arrays = self.batch(1)
            step = self.step(preset, precision="float32", batch_size=1, compile=False)
            step.gradient(samples, Batch.of(arrays, self.device))
        return {"preset": preset, "flop_per_sample": counter.get_total_flops(), "by_precision_and_batch": found}

    def _row(self, preset: str, kind: str, size: int) -> dict:
        """Samples per second of one precision and batch, and whether they were compiled or why not."""
        step = self.step(preset, precision=kind, batch_size=size)
        samples, arrays = self.batch(size)
        seconds = min(self._timed(lambda: self._whole(step, samples, arrays)) for _ in range(self.rounds + 1))
        row = {"precision": kind, "batch": size, "samples_per_s": round(size / seconds, 3)}
        row["compiled"] = step.compilation.active
        return row | ({"fallback": step.compilation.fallback} if step.compilation.fallback else {})

    def _whole(self, step: Step, samples: list[int], arrays: dict) -> None:
        loss, _ = step.gradient(*next(ahead.sent([(samples, arrays)], self.device)))
        step.update(1e-4)
        float(loss)

    def _timed(self, way: Callable[[], Any]) -> float:
        """Seconds, on a CPU those of its one thread: whatever else the machine does is left out."""
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        begun = clock()
        way()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - begun

    def against_notebook(self, preset: str) -> dict:
        """Reading and training on batches of 8 of the same triplets with the same network, both ways in turn. The best
        of some steps each: cores are seldom left alone by their neighbours."""
        files = self.folder.root / "npy"
        files.mkdir()
        for number in range(16):
            triplet = self.shards[number]
            notebook.write_one(files, number, triplet["cloudy"], triplet["clear"], triplet["mask"])
        network = networks.build(preset, condition_channels=channel_count("similar")).to(self.device)
        network.fold = torch.nn.PixelUnshuffle(networks.CELL)  # all of it contiguous, as the notebook's
        plain = notebook.Trainer(network, notebook.Loader(files), channels=channel_count("similar"))
        step = self.step(preset, process="residual", batch_size=8)
        ours = iter(self._batches(8, threads=1))
        seconds: dict[str, list[float]] = {"notebook": [], "ours": []}
        for number in range(2 * self.rounds + 1):
            numbers = [(8 * number + i) % 16 for i in range(8)]
            seconds["notebook"].append(self._timed(partial(plain.step, numbers)))
            seconds["ours"].append(self._timed(lambda: self._whole(step, *next(ours))))
        return {"batch": 8, "bfloat16": step.bfloat16} | {
            f"{name}_samples_per_s": round(8 / min(times[1:]), 3) for name, times in seconds.items()
        }

    def _batches(self, size: int, threads: int, stop: int = 10**6) -> Iterator[tuple[list[int], dict]]:
        allocate: Callable = pinned if self.device.type == "cuda" else np.empty
        return loader.batches(self.shards, seed=0, start=0, stop=stop, batch=size, threads=threads, allocate=allocate)

    def reading(self, threads: int, number: int = 2048) -> int:
        """Triplets per second from shards that are in memory to buffers that the device reads."""

        def read() -> float:
            begun = time.perf_counter()
            for _ in self._batches(16, threads, stop=number):
                pass
            return time.perf_counter() - begun

        return round(number / min(read() for _ in range(self.rounds)))

    def scaling(self, preset: str, best: dict) -> list[dict]:
        """Whole trainings (`cloudjob train`) by 1, 2, 4, ... ranks: one per GPU, or one with one thread per core. In
        turn, so that a change of the load meets all of them; the best step of each."""
        most = torch.cuda.device_count() if self.device.type == "cuda" else machine.cores()
        sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= most]
        found: dict[int, list[dict]] = {size: [] for size in sizes}
        for _ in range(self.rounds):
            for size in sizes:
                found[size].append(self._train(preset, best, size))
        return [max(runs, key=lambda row: row["samples_per_s"]) for runs in found.values()]

    def _train(self, preset: str, best: dict, ranks: int) -> dict:
        """A training that is stopped as soon as it has done enough steps, long before it first looks at images. By
        the batch that is the default, or a larger one where the ranks want more to be busy."""
        batch, steps = max(Settings(options={}).batch_size, best["batch"] * ranks), STEPS[self.device.type]
        settings = {"preset": preset, "precision": best["precision"], "batch_size": batch}
        settings |= {"micro_batch": best["batch"], "samples": batch * steps * 100, "log_s": 1.0}
        settings |= {"threads": 1, "loader_threads": 1, "log_s": 0.001} if self.device.type == "cpu" else {}
        space = RunFolder(self.folder.root)
        shutil.rmtree(space.root / "train", ignore_errors=True)
        shutil.rmtree(space.root / "records" / "train", ignore_errors=True)
        options = [part for key, value in settings.items() for part in ("--set", f"train.{key}={value}")]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--no-python"]
        launcher = [sys.executable, *launcher] if ranks > 1 else []
        command = [*launcher, sys.executable, "-m", "cloudjob", "train", str(space.root), *options]
        rows = _rows_of(command, space, steps * batch)[1:]  # the first steps prepare much
        return {
            "ranks": ranks,
            "batch": batch,
            "samples_per_s": max(row["samples_per_s"] for row in rows),  # without neighbours
            "data_wait_pct": round(median(row["data_wait_pct"] for row in rows), 2),
            "watts": None if rows[-1]["watts"] is None else median(row["watts"] for row in rows),
            "energy": rows[-1]["energy"],
        }


def _rows_of(command: list[str], space: RunFolder, seen: int) -> list[dict]:
    """The metrics of a training until it has seen so many samples; then it is asked to stop."""
    rows: list[dict] = []
    stop, said = space.root / "STOP", space.root / "train.log"
    environment = os.environ | {"CLOUDJOB_STOP_FILE": str(stop)}
    with open(said, "wb") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as training:
        try:
            while not rows or rows[-1]["seen"] < seen:
                if training.poll() is not None:
                    text = said.read_text(encoding="utf-8", errors="replace")
                    raise ItemError(f"{shlex.join(command)} ended with {training.returncode}: {text[-2000:]}")
                time.sleep(0.2)
                rows = logs.rows(space.metrics)
        finally:
            stop.touch()
    stop.unlink()
    return rows


def make_run(work: Path, window: int, preset: str) -> RunFolder:
    """A run folder as the stage shard leaves it: smooth ground of random shape, under a cloud of random place."""
    space, files, results = RunFolder(work / "run"), [], []
    config = {
        "search": {
            "polygon": [[-180, -80], [-180, 80], [180, 80], [180, -80], [-180, -80]],
            "clear": {"start": "2024-03-01", "end": "2024-03-31", "cloud": [0, 1]},
            "cloudy": {"start": "2024-03-01", "end": "2024-03-31", "cloud": [1, 60]},
        },
        "train": {"preset": preset},
    }
    space.root.mkdir(parents=True)
    space.config.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    for number, (pair, (split, count)) in enumerate(SHARDS.items()):
        path = space.shard(split, number)
        path.parent.mkdir(exist_ok=True)

        def make(item: Item, path: Path = path, number: int = number, count: int = count) -> Made:
            results.append(_write(path, window, count, number))
            return [path], None

        records.work(space, "shard", [Item("shard", pair, {}, {})], make)
        entry = {"file": path.name, "count": count, "pair": pair, "split": split}
        files.append(entry | {"size": path.stat().st_size, "sha256": file_sha256(path)})
    write_json(
        space.shard_index, {"files": files, "window": window, "normalisation": shard_writer.normalisation(results)}
    )
    return space


def _write(path: Path, window: int, count: int, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[:window, :window]
    with shard_writer.Writer(path, count, window=window, pair={}, attributes={}) as writer:
        for number in range(count):
            waves = rng.uniform(0.02, 0.2, (4, 2, 1, 1))
            clear = (3000 + 800 * np.sin(waves[:, 0] * row + waves[:, 1] * col)).astype(np.uint16)
            mask = (np.hypot(*(axis - rng.uniform(0, window) for axis in (row, col))) < window / 4).astype(np.uint8)
            cloudy = np.where(mask, 8000, clear).astype(np.uint16)
            fraction = float(mask.mean())
            writer.add(cloudy=cloudy, clear=clear, mask=mask, row=number, col=0, cloud_fraction=fraction)
    return writer.result


def _ratio(scaling: list[dict], ranks: int) -> float | None:
    rates = {row["ranks"]: row["samples_per_s"] for row in scaling}
    return round(rates[ranks] / rates[1], 2) if ranks in rates else None


def _on_gpu(steps: dict, device: torch.device) -> dict:
    """Of the fastest step: the share of the bfloat16 matrix products of this GPU, and an epoch of the notebook."""
    if device.type != "cuda":
        return {}
    rate = max(row["samples_per_s"] for row in steps["by_precision_and_batch"])
    peak = _matmul_flops(device)
    return {
        "matmul_bfloat16_tflops": round(peak / 1e12, 1),
        "utilisation": round(rate * steps["flop_per_sample"] / peak, 3),
        "epoch_of_the_notebook_s": round(NOTEBOOK_EPOCH / rate, 1),
    }


def _matmul_flops(device: torch.device, size: int = 8192) -> float:
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return 2 * size**3 / min(seconds)


def _advice(best: dict, reading: dict[int, int], ranks: int) -> dict:
    """The fastest step, and the fewest threads that read one and a half times what it takes."""
    enough = [threads for threads, rate in reading.items() if rate > 1.5 * best["samples_per_s"]]
    found = {"precision": best["precision"], "micro_batch": best["batch"]}
    return found | {"loader_threads": enough[0] if enough else max(reading), "ranks_measured": ranks}


def table(found: dict) -> str:
    """What a person wants to see of `run`."""
    figures, ratios = found["figures"], found["ratios"]
    lines = [f"{figures['device']}, windows of {figures['window']} pixels", ""]
    for steps in figures["steps"]:
        lines.append(f"step alone, {steps['preset']} ({steps['flop_per_sample'] / 1e9:.0f} GFLOP a sample)")
        for row in steps["by_precision_and_batch"]:
            said = "compiled" if row.get("compiled") else f"WARNING: not compiled: {row.get('fallback', '')}"
            said = row.get("error", said if row.get("compiled") or "fallback" in row else "")
            line = f"  {row['precision']:9} batch {row['batch']:4}  {row['samples_per_s']:10.2f} samples/s  {said}"
            lines.append(line.rstrip())
        if "utilisation" in steps:
            lines.append(
                f"  {steps['utilisation']:.0%} of {steps['matmul_bfloat16_tflops']} TFLOP/s of bfloat16 products; "
                f"{NOTEBOOK_EPOCH} triplets in {steps['epoch_of_the_notebook_s']} s"
            )
    plain = figures["against_notebook"]
    lines.append("read and step, batch 8")
    for name in ("notebook", "ours"):
        lines.append(f"  {name:20} {plain[f'{name}_samples_per_s']:14.2f} samples/s")
    lines.append("loader alone")
    for threads, rate in figures["loader_triplets_per_s"].items():
        lines.append(f"  {threads} threads {rate:25.0f} triplets/s")
    lines.append("cloudjob train")
    for row in figures["training_by_ranks"]:
        lines.append(
            f"  {row['ranks']:2} ranks, batch {row['batch']:4} {row['samples_per_s']:15.2f} samples/s, "
            f"{row['data_wait_pct']:.1f} % waiting for data, "
            + (f"{row['watts']:.0f} W {row['energy']}" if row["watts"] is not None else "energy not measured")
        )
    advice = figures["for_this_node"]
    lines += ["", f"2 ranks over 1: {ratios['ranks2_vs_1']}; ours over the notebook: {ratios['step_vs_notebook']}"]
    lines.append(
        f"use train.precision={advice['precision']}, train.micro_batch={advice['micro_batch']}, "
        f"train.loader_threads={advice['loader_threads']}"
    )
    return "\n".join(lines)
