"""bench read: batches ready for the device, from shards against the 2025 notebook's files and against plain memory."""

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from cloudjob.benches import notebook
from cloudjob.files import check_room
from cloudjob.hpc import machine
from cloudjob.patches import loader, shard_writer, shards

WINDOW, BATCH, SHARDS, ROUNDS = 256, 32, 4, 9
_TRIPLET = WINDOW * WINDOW * (2 * 4 * 2 + 1)  # bytes: two images of 4 bands uint16, one mask uint8
# Triplets per second that one H200 trains on, bfloat16 with fused elementwise operations: an estimate (roofline of
# 790 TFLOP/s and 4.3 TB/s), not measured.
H200_NEEDS = {"seed": 2324, "diffusers 32-64-128-256": 1868, "DiffCR": 709, "NAF w64": 4327}


def run(folder: Path, *, triplets: int = 960, say: Callable[[str], None] = print) -> dict:
    """Figures of one run in a new folder below `folder`, which is removed at the end (2 GB for 960 triplets)."""
    triplets = max(triplets // SHARDS, 1) * SHARDS
    work = Path(folder) / f"bench-read-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        check_room(work, 2.2 * triplets * _TRIPLET, "bench read", "try --dir elsewhere")
        say(f"writing {triplets} triplets twice: {SHARDS} shards, and three .npy files each")
        readers = Readers(work, triplets)
        say(f"reading them from memory, {ROUNDS} rounds of each reader in turn")
        warm = _rounds(
            {name: getattr(readers, name) for name in ("memcpy", "memcpy_two", "notebook", "one", "two")}, ROUNDS
        )
        say("reading them from the disk, 2 rounds of each reader in turn")
        cold = _rounds({name: getattr(readers, name) for name in ("notebook", "one", "eight")}, 2, readers.forget)
        found = _report(triplets, warm, cold)
        found["figures"]["same_pixels"] = readers.same_pixels
        return found | machine.describe()
    finally:
        shutil.rmtree(work, ignore_errors=True)


class Readers:
    """Readers of every triplet once, in the order of a training, as batches of 32; one method per reader."""

    def __init__(self, work: Path, triplets: int):
        self.work, self.triplets = work, triplets
        self.notebook_loader, self.shard_set = _write(work, triplets)
        self.order = [loader.position(0, sample, triplets) for sample in range(triplets)]
        self.same_pixels = self._same_pixels()
        self.memory = _touched((triplets, _TRIPLET), np.uint8)
        self.copies = _touched((3, BATCH, _TRIPLET), np.uint8)
        self.buffers: list[np.ndarray] = []

    def memcpy(self) -> None:
        """The same bytes in the same order from memory to batches."""
        self._copy(0, 1)

    def memcpy_two(self) -> None:
        """The same by two threads: what this memory gives to more than one core."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._copy, range(2), [2, 2]))

    def _copy(self, part: int, parts: int) -> None:
        for place in range(part, self.triplets, parts):
            np.copyto(self.copies[place // BATCH % 3, place % BATCH], self.memory[self.order[place]])

    def notebook(self) -> None:
        """Three np.load per triplet, float32, scaled, bands first, stacked."""
        for first in range(0, self.triplets, BATCH):
            self.notebook_loader.batch(self.order[first : first + BATCH])

    def one(self) -> None:
        """The loader of `train` with one thread."""
        self._ours(1)

    def two(self) -> None:
        self._ours(2)

    def eight(self) -> None:
        """More threads than cores, which is what keeps a disk busy."""
        self._ours(8)

    def _ours(self, threads: int) -> None:
        unused = iter(self.buffers)  # as in a training, where they are made once for hundreds of epochs

        def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            if (buffer := next(unused, None)) is None:
                self.buffers.append(buffer := _touched(shape, dtype))
            return buffer

        for _ in loader.batches(
            self.shard_set, seed=0, start=0, stop=self.triplets, batch=BATCH, threads=threads, allocate=allocate
        ):
            pass

    def _same_pixels(self) -> bool:
        """Whether the first batch is, but for the conversion left to the device, what the notebook's loader gives."""
        _, ours = next(loader.batches(self.shard_set, seed=0, start=0, stop=BATCH, batch=BATCH))
        cloudy, clear, mask = self.notebook_loader.batch(self.order[:BATCH])
        images = zip((ours["cloudy"], ours["clear"]), (cloudy, clear), strict=True)
        same = all(np.array_equal((dn.astype("f4") / 255 - 0.5) / 0.5, image) for dn, image in images)
        return same and np.array_equal(ours["mask"][:, None], mask)

    def forget(self) -> None:
        """Takes the files out of memory, so that the next reader meets the disk."""
        for path in self.work.rglob("*.*"):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write(work: Path, triplets: int) -> tuple[notebook.Loader, shards.ShardSet]:
    """The same windows of two scenes of random pixels, in both formats."""
    rng = np.random.default_rng(0)
    cloudy, clear = rng.integers(1000, 9000, (2, 4, 1024, 1024), np.uint16)
    mask = (cloudy[0] % 5 == 0).astype(np.uint8)
    places = rng.integers(0, 1024 - WINDOW, (triplets, 2)).tolist()
    (work / "npy").mkdir()
    notebook.write(work / "npy", places, cloudy, clear, mask, window=WINDOW)
    files: list[dict] = []
    each = triplets // SHARDS
    for number in range(SHARDS):
        name = f"train-{number:05d}.h5"
        with shard_writer.Writer(work / name, each, window=WINDOW, pair={}, attributes={}) as writer:
            for row, col in places[number * each : (number + 1) * each]:
                here = np.s_[..., row : row + WINDOW, col : col + WINDOW]
                images = {"cloudy": cloudy[here], "clear": clear[here], "mask": mask[here]}
                writer.add(**images, row=row, col=col, cloud_fraction=0.2)
        files.append({"file": name, "count": each, "split": "train"})
    return notebook.Loader(work / "npy"), shards.ShardSet(work, {"window": WINDOW, "files": files}, "train")


def _touched(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Memory that the system has really allocated."""
    array = np.empty(shape, dtype)
    array.fill(1)
    return array


def _rounds(
    readers: dict[str, Callable[[], None]], number: int, before: Callable[[], None] = lambda: None
) -> dict[str, dict]:
    """Name -> CPU and wall seconds of each round. All readers are tried once unmeasured, then in turn, so that a change
    of the machine's load meets all of them."""
    spent: dict[str, dict[str, list[float]]] = {name: {"cpu_s": [], "wall_s": []} for name in readers}
    for round_number in range(number + 1):
        for name, read in readers.items():
            before()
            cpu, wall = time.process_time(), time.perf_counter()
            read()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if round_number:
                spent[name]["cpu_s"].append(cpu)
                spent[name]["wall_s"].append(wall)
    return spent


def _report(triplets: int, warm: dict, cold: dict) -> dict:
    def rates(spent: dict) -> dict:
        return {
            name: {
                "triplets_per_cpu_s": round(triplets / median(times["cpu_s"])),
                "triplets_per_wall_s": round(triplets / min(times["wall_s"])),
            }
            for name, times in spent.items()
        }

    figures: dict[str, Any] = {
        "triplets": triplets,
        "triplet_bytes": _TRIPLET,
        "warm": rates(warm),
        "cold": rates(cold),
    }
    per_core = figures["warm"]["one"]["triplets_per_cpu_s"]
    disk = max(rate["triplets_per_wall_s"] for rate in figures["cold"].values())
    figures["for_a_node"] = {
        network: {
            "h200_needs_triplets_per_s_estimated": needed,
            "cores_of_this_kind": round(needed / per_core, 2),
            "h200_fed_by_this_disk": round(disk / needed, 2),
        }
        for network, needed in H200_NEEDS.items()
    }
    figures["seconds"] = {"warm": warm, "cold": cold}
    ratios = {
        "vs_notebook_loader": _cpu_ratio(warm["notebook"], warm["one"]),
        "vs_memcpy": _cpu_ratio(warm["memcpy"], warm["one"]),
        "threads2_vs_1": _wall_ratio(warm["one"], warm["two"]),
        "threads2_vs_1_of_memcpy": _wall_ratio(warm["memcpy"], warm["memcpy_two"]),
    }
    return {"ratios": ratios, "figures": figures}


def _cpu_ratio(other: dict, ours: dict) -> float:
    """How many times less CPU `ours` takes: the median over the rounds."""
    return round(median(a / b for a, b in zip(other["cpu_s"], ours["cpu_s"], strict=True)), 2)


def _wall_ratio(other: dict, ours: dict) -> float:
    """How many times faster `ours` is, by the best round of each: other work on the machine only slows them."""
    return round(min(other["wall_s"]) / min(ours["wall_s"]), 2)
