"""How fast the product is on one GPU: what the GPU gives at most, the training step, the loader, a whole training."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from findings import Findings
from machine import CPU, WORK, device, free
from measure import TrainingStep, flop, inside, preparing, speed, timed
from trainings import progress, said, small_run, train

from cloudjob.benches.train import NOTEBOOK_EPOCH, Bench
from cloudjob.training import logs, precision

PRODUCTS = "matrix product, bfloat16, TFLOP/s"  # the measurement that others are shares of
WINDOW = 64 if CPU else 256


def warm(found: Findings) -> None:
    """Compiles what the next steps measure, side by side, so that they find it in the cache."""
    compile_all(
        found,
        [
            ("base", 64, 256, "corrective"),
            ("small", 32, 256, "corrective"),
            ("small", 128, 256, "corrective"),
            ("small", 8, 256, "residual"),
            ("base", 128, 256, "corrective"),
        ],
    )


def compile_all(found: Findings, shapes: list[tuple]) -> None:
    """A process for each (preset, batch, window, process)."""
    if CPU:
        return
    begun, program = time.monotonic(), Path(__file__).with_name("warm.py")
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "4", "OMP_NUM_THREADS": "1"}
    commands = {shape: [sys.executable, program, *map(str, shape)] for shape in shapes}
    children = {shape: subprocess.Popen(command, env=environment) for shape, command in commands.items()}
    for shape, child in children.items():
        facts = {"exit": child.wait(), "done after, s": round(time.monotonic() - begun, 1)}
        found.keep(**{" ".join(map(str, shape)): facts})
    if any(child.returncode for child in children.values()):
        raise RuntimeError("something does not compile: see the log")


def ceilings(found: Findings) -> None:
    """What this GPU gives at most."""
    here, size = device(), 512 if CPU else 8192
    for name, kind in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a, b = (torch.randn(size, size, device=here, dtype=kind) for _ in range(2))
        found.attempt(f"matrix product, {name}, TFLOP/s", _tera, 2 * size**3, lambda a=a, b=b: a @ b)
    if here.type == "cpu":
        return
    _copies(found)
    one = torch.zeros(1, device=here)

    def launches() -> None:
        for _ in range(1000):
            one.add_(1)

    found.attempt("launch of a kernel, us", lambda: round(timed(launches) * 1e3, 2))
    options = {"device": here, "dtype": torch.bfloat16}
    for channels, side in ((64, 128), (96, 128), (192, 64), (256, 32), (384, 16)):
        x = torch.randn(32, channels, side, side, **options).to(memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3, **options).to(memory_format=torch.channels_last)
        operations = 2 * 9 * channels**2 * 32 * side**2
        name = f"convolution {channels} at {side}, TFLOP/s"
        found.attempt(name, _tera, operations, lambda x=x, w=w: torch.nn.functional.conv2d(x, w, padding=1))


def _copies(found: Findings) -> None:
    """Copies within the GPU and to it."""
    count, part = 2**30, 2**28
    a, b = (torch.empty(count, device=device(), dtype=torch.uint8) for _ in range(2))
    a.random_()
    found.attempt("copy, GB/s read and written", lambda: round(2 * count / timed(lambda: b.copy_(a)) / 1e9))
    for name, pin in (("pinned", True), ("pageable", False)):
        host = torch.empty(part, dtype=torch.uint8, pin_memory=pin).random_()

        def copied(host: torch.Tensor = host) -> float:
            return round(part / timed(lambda: b[:part].copy_(host, non_blocking=True)) / 1e9, 1)

        found.attempt(f"host to device, {name}, GB/s", copied)


def _tera(operations: int, way) -> float:
    return round(operations / timed(way) / 1e12, 1 if not CPU else 4)


def step_base(found: Findings) -> None:
    """The training step of the network `base`."""
    _step_of(found, "tiny" if CPU else "base", (2, 4) if CPU else (64, 128))


def step_small(found: Findings) -> None:
    """The training step of the network `small`."""
    _step_of(found, "tiny" if CPU else "small", (2, 4) if CPU else (32, 128))


def _step_of(found: Findings, preset: str, batches: tuple[int, int]) -> None:
    window, (first, second) = 32 if CPU else 256, batches
    auto = {"precision": "float32" if CPU else "bfloat16", "compile": not CPU}
    operations = found.attempt("flop of a sample", flop, preset, window) or 0
    last: list[TrainingStep] = []
    precision.settle(device())  # as a training does

    def one(name: str, batch: int, *, steps: int = 20, **settings) -> None:
        def measured() -> dict:
            last.clear()
            free()
            last.append(TrainingStep(preset, batch, window, **settings))
            return _shared(speed(last[0], 3 if CPU else steps), operations)

        found.attempt(name, measured)

    one(f"compiled, bfloat16, batch {first}", first, **auto)
    found.attempt("inside it", lambda: inside(last[0]))
    one(f"eager, bfloat16, batch {first}", first, **auto | {"compile": False})
    found.attempt("inside eager", lambda: inside(last[0]))
    found.attempt("preparing a batch", preparing, preset, first, window, 0.0)
    found.attempt("preparing one with synthetic clouds", preparing, preset, first, window, 0.5)
    one(f"compiled, synthetic clouds for half, batch {first}", first, share=0.5, **auto)
    one(f"compiled, bfloat16, batch {second}", second, **auto)
    one(f"eager, float32 (TF32), batch {first}", first, precision="float32", compile=False, steps=8)
    torch.backends.cudnn.benchmark = True
    one(f"compiled, cudnn.benchmark, batch {first}", first, **auto)
    torch.backends.cudnn.benchmark = False
    precision.settle(device(), exact=False)
    one(f"compiled, not exact, batch {first}", first, **auto)
    precision.settle(device())


def _shared(speed: dict, operations: int) -> dict:
    """With the share of this GPU's matrix products; those of the step `ceilings` where it has run."""
    path = WORK / "result-ceilings.json"
    seen = json.loads(path.read_text())["result"] if path.exists() else {}
    most = seen.get(PRODUCTS) or (0.1 if CPU else 790.0)
    rate = speed["samples/s"] * operations / 1e12
    return speed | {"TFLOP/s": round(rate, 1), "share of the matrix product": round(rate / most, 3)}


def notebook(found: Findings) -> None:
    """Reading and training, the notebook's way and ours in turn (the project's own bench)."""

    def both(preset: str) -> dict:
        folder = small_run(WORK / f"notebook-{preset}", preset, WINDOW)
        rates = Bench(folder, device(), 1 if CPU else 8).against_notebook(preset)
        return rates | {"ratio": round(rates["ours_samples_per_s"] / rates["notebook_samples_per_s"], 2)}

    for preset in ("tiny",) if CPU else ("small", "base"):
        found.attempt(preset, both, preset)


def loader(found: Findings) -> None:
    """Triplets a second from shards in memory to buffers that the GPU reads."""
    bench = Bench(small_run(WORK / "loader", "tiny", WINDOW), device(), 2)
    for threads in (1, 2, 4, 8):
        found.attempt(f"{threads} threads, triplets/s", bench.reading, threads)


def training(found: Findings) -> None:
    """As many samples as the notebook's epoch by `cloudjob train`, with all looks, saves and the end."""
    settings = {"samples": NOTEBOOK_EPOCH, "batch_size": 128, "preset": "small", "log_s": 2}
    if CPU:
        settings = {"samples": 64, "batch_size": 4, "preset": "tiny", "log_s": 0.01}
    folder = small_run(WORK / "epoch", settings["preset"], WINDOW)
    ran = train(found, folder, settings, seconds=found.left - 10)
    seen = progress(folder)
    cards, kept = logs.rows(folder.job_cards), ("event", "energy_kwh", "energy_from", "energy", "devices")
    lines = said(folder).read_text().splitlines()
    steps = seen["seen"] / seen["rate"]["median"] if seen["rate"]["median"] else 0
    found.keep(
        **ran,
        **seen,
        seconds_besides_steps=round(ran["seconds"] - steps, 1),
        energy=[{key: card[key] for key in kept if key in card} for card in cards],
        said=[line for line in lines if "WARNING" in line or "dynamo" in line.lower()][:10],
    )
    if ran["exit"]:
        raise RuntimeError(f"cloudjob train ended with {ran['exit']}")
