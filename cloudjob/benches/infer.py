"""bench infer: what restoring a scene costs by phase, against decoding it alone and the 2025 notebook's way."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cloudjob import __version__
from cloudjob.benches import shard
from cloudjob.config.models import TrainConfig
from cloudjob.diffusion import checkpoint
from cloudjob.diffusion.average import GAMMAS
from cloudjob.diffusion.checkpoint import Checkpoint
from cloudjob.diffusion.conditions import channel_count
from cloudjob.diffusion.recipe import Recipe
from cloudjob.errors import ItemError
from cloudjob.files import check_room
from cloudjob.hpc import machine
from cloudjob.pixels import BANDS
from cloudjob.restoration import output
from cloudjob.restoration.blend import BLENDED_EDGE, RECONSTRUCTED
from cloudjob.restoration.tiles import tiles
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import record

CLOUD = 0.3  # of the scene
PRESET, PROCESS = "tiny", TrainConfig().process
NOTEBOOK_STEPS, NOTEBOOK_STRIDE = 1000, 64  # of the notebook of 2025: DDPM's, and between its windows of 256 pixels
_NETWORK = ("first guess", "tiles")  # the phases that are not a matter of reading and writing
_PATCH, _PASSES = 256, 5
_GIB_NEEDED = 10  # of a whole scene


def run(folder: Path, *, size: int = 5490, say: Callable[[str], None] = print) -> dict:
    """Figures of a scene of `size` x `size` pixels, which is made once in `folder` and kept there."""
    work = Path(folder) / f"bench-infer-{size}"
    check_room(Path(folder), 2**30 * _GIB_NEEDED * (size / 10980) ** 2, "bench infer", "try --dir elsewhere")
    run_folder = _made(work, size, say)
    say("decoding alone")
    decode_s = _decode_alone(run_folder)
    found: dict[str, dict] = {}
    for ranks in (0, 2):
        if ranks and not _mpiexec():
            say("no mpiexec: one process alone")
            break
        say(f"cloudjob infer by {f'{ranks} ranks' if ranks else 'one process'}, with one thread each")
        found[str(ranks or 1)] = restored(run_folder, work / "step.pt", ranks)
    say(f"{_PASSES} passes of the network, one patch at a time")
    plain = _notebook(run_folder)
    return {
        "ratios": _ratios(found, decode_s, plain),
        "figures": {"size": size, "preset": PRESET, "decode_cpu_s": decode_s, "by_ranks": found, "notebook": plain},
        **machine.describe(),
    }


def _made(work: Path, size: int, say: Callable[[str], None]) -> Path:
    """The run folder of the scene, with all before `shard` done, and a network of weights that nobody has trained."""
    done = work / "made"
    if not done.exists():
        shutil.rmtree(work, ignore_errors=True)
        say(f"making a scene of {size} x {size} pixels in {work}, for this time and later ones")
        shard.make_pair(work / "archive", size, cloud=CLOUD, every=1)
        shard.fetch(work, size)
        done.touch()
    checkpoint.save(work, untrained(_recipe())).rename(work / "step.pt")  # of today's network, whenever the scene is of
    return work / "run"


def _recipe() -> Recipe:
    """As a training has it by default."""
    return Recipe.of(PRESET, PROCESS, mean=[0.2] * 4, std=[0.1] * 4, **TrainConfig(process=PROCESS).options())


def untrained(recipe: Recipe, **facts: Any) -> Checkpoint:
    """A network of weights that nobody has trained, always the same ones. `facts` replace fields of the checkpoint."""
    torch.manual_seed(0)
    weights = recipe.network().state_dict()
    kept = Checkpoint(
        seen=0,
        total=0,
        skipped=[0, 0],
        model=weights,
        averages=dict.fromkeys(GAMMAS, weights),
        chosen="none",
        calibration={},
        optimizer={},
        config={},
        recipe=recipe.facts(),
        bands=list(BANDS),
        cloudjob_version=__version__,
        key="",
    )
    return replace(kept, **facts)


def _mpiexec() -> str | None:
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def restored(run_folder: Path, network: Path, ranks: int) -> dict[str, Any]:
    """Figures of `cloudjob infer`, every rank with one thread; 0 ranks: without MPI."""
    launcher = [_mpiexec(), "-n", str(ranks)] if ranks else []
    options = ["--force", "--set", f"infer.checkpoint={network}", "--set", "infer.reference=nearest"]
    command = [*launcher, sys.executable, "-m", "cloudjob", "infer", str(run_folder), *options]
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    kept = record(RunFolder(run_folder), "infer", _product(run_folder))
    if done.returncode or kept is None or not kept["result"]:
        raise ItemError(f"bench infer: cloudjob infer ended with {done.returncode}:\n{done.stderr}")
    every = kept["result"]["ranks"]
    phases = {
        phase: {
            "cpu_s": round(sum(rank["seconds"].get(phase, {}).get("cpu_s", 0.0) for rank in every), 2),
            "wall_s": every[0]["seconds"][phase]["wall_s"],
        }
        for phase in every[0]["seconds"]
    }
    count = kept["result"]["tiles"]
    return {
        "wall_s": round(sum(phase["wall_s"] for phase in phases.values()), 2),
        "cpu_s": round(sum(phase["cpu_s"] for phase in phases.values()), 2),
        "phases": phases,
        "peak_gib": [round(rank["peak_bytes"] / 2**30, 3) for rank in every],
        "tiles": count,
        "tiles_per_s": round(count / phases["tiles"]["wall_s"], 2),
    }


def _product(run_folder: Path) -> str:
    """The one cloudy product of the run."""
    (pair,) = RunFolder(run_folder).rows(RunFolder(run_folder).pairs, stage="pair")
    return pair["cloudy"]


def _decode_alone(run_folder: Path) -> float:
    """CPU seconds of GDAL for the bands of both dates, in one thread, without anything around it."""
    folders = [str(path) for path in sorted((run_folder / "scenes").glob("*.SAFE"))]
    done = subprocess.run(
        [sys.executable, "-c", _DECODE, *folders], stdout=subprocess.PIPE, encoding="utf-8", check=True
    )
    return round(float(done.stdout), 2)


_DECODE = """
import sys, time
from pathlib import Path
from cloudjob.sentinel2.product import Product, bands_of
bands = [band for folder in sys.argv[1:] for band in bands_of(Product.open(Path(folder)))]
begun = time.process_time()
for band in bands:
    band.read()
print(time.process_time() - begun)
"""


def _notebook(run_folder: Path) -> dict[str, Any]:
    """The notebook's way, extrapolated: 1000 passes of the same network for each of its windows with cloud, one at a
    time, from the seconds of a few passes. And the same without the overlap of its windows."""
    recipe = _recipe()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = recipe.network().to(device).eval()
    torch.set_num_threads(1)
    x, level = torch.randn(1, len(BANDS), _PATCH, _PATCH, device=device), torch.ones(1, device=device)
    told = torch.randn(1, channel_count(recipe.first_guess), _PATCH, _PATCH, device=device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = []
    with torch.no_grad():
        for _ in range(_PASSES):
            begun = clock()
            network(x, level, told).cpu()
            seconds.append(clock() - begun)
    _, flags = output.read_h5(RunFolder(run_folder).output(_product(run_folder), ".h5"))
    restored = (flags == RECONSTRUCTED) | (flags == BLENDED_EDGE)
    windows = {stride: _windows(restored, stride) for stride in (NOTEBOOK_STRIDE, _PATCH)}
    return {
        "steps": NOTEBOOK_STEPS,
        "passes_measured": _PASSES,
        "pass_s": round(min(seconds), 4),
        "windows": windows[NOTEBOOK_STRIDE],
        "windows_without_overlap": windows[_PATCH],
    }


def _windows(restored: np.ndarray, stride: int) -> int:
    """How many windows of 256 pixels at this stride have anything to restore."""
    every = tiles(restored.shape, size=_PATCH, overlap=_PATCH - stride)
    return sum(bool(restored[tile.slices].any()) for tile in every)


def _ratios(found: dict[str, dict], decode_s: float, plain: dict[str, Any]) -> dict[str, float | None]:
    one, two = found["1"], found.get("2")
    network = sum(one["phases"][phase]["cpu_s"] for phase in _NETWORK)
    a_window = plain["steps"] * plain["pass_s"]
    ratios = {
        "vs_decode": (one["cpu_s"] - network) / decode_s,
        "vs_notebook": plain["windows"] * a_window / network,
        "vs_notebook_without_overlap": plain["windows_without_overlap"] * a_window / network,
        "ranks2_vs_1": one["wall_s"] / two["wall_s"] if two else None,
    }
    return {name: None if value is None else round(value, 2) for name, value in ratios.items()}


def table(found: dict) -> str:
    """What a person wants to see of `run`."""
    figures, ratios = found["figures"], found["ratios"]
    lines = [f"a scene of {figures['size']} x {figures['size']} pixels, {figures['preset']}", ""]
    for ranks, each in figures["by_ranks"].items():
        peaks = ", ".join(f"{peak:.2f}" for peak in each["peak_gib"])
        lines.append(f"{ranks} rank{'s' if ranks != '1' else ''}{'CPU s':>25} {'wall s':>9}")
        for phase, spent in [*each["phases"].items(), ("all", each)]:
            lines.append(f"  {phase:20} {spent['cpu_s']:9.2f} {spent['wall_s']:9.2f}")
        lines.append(f"  {each['tiles']} tiles, {each['tiles_per_s']} a second; at most {peaks} GiB of memory")
    plain = figures["notebook"]
    lines += [
        f"decoding alone {figures['decode_cpu_s']:17.2f}",
        f"the notebook's way: {plain['windows']} windows x {plain['steps']} steps x {plain['pass_s']} s",
        "",
        *(f"{name:28} {'-' if ratio is None else ratio}" for name, ratio in ratios.items()),
    ]
    return "\n".join(lines)
