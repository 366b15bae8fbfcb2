"""bench shard: what a pair of whole scenes costs, against the 2025 notebook's loop and against decoding it alone."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np

from cloudjob.benches import notebook
from cloudjob.files import check_room
from cloudjob.hpc import machine

TILE = "05WPS"
CLEAR = datetime(2024, 3, 12, 22, 25, 31, tzinfo=UTC)
CLOUDY = datetime(2024, 3, 8, 22, 35, 29, tzinfo=UTC)
NOISE = 15.0  # DN, standard deviation per pixel: gives about as many bits per pixel as real bands have
_PLACE = 2196  # pixels of 10 m: a fifth of a scene, divided by the pixels of 20 and of 60 m
_GIB_NEEDED = 16
T = TypeVar("T")


def run(folder: Path, *, size: int = 10980, say: Callable[[str], None] = print) -> dict:
    """Figures of one run in a new folder below `folder`, which is removed at the end (16 GiB for whole scenes)."""
    work = Path(folder) / f"bench-shard-{os.getpid()}"
    work.mkdir(parents=True)
    try:
        check_room(work, 2**30 * _GIB_NEEDED * (size / 10980) ** 2, "bench shard", "try --dir elsewhere")
        say(f"making a pair of {size} x {size} pixels")
        make_pair(work / "archive", size)
        run_folder = fetch(work, size)
        say("the whole of a pair: cloudjob shard, and decoding alone")
        whole, decode = shard_stage(run_folder), decode_alone(run_folder)
        say("selection and writing, against the notebook's loop")
        plain = compare(run_folder, work)
        ratios = {
            "selection_vs_loop": plain["loop_s"] / plain["selection_s"],
            "total_vs_loop": (plain["loop_s"] + plain["npy_s"]) / (plain["selection_s"] + plain["write_s"]),
            "pair_vs_decode": whole["cpu_s"] / decode["cpu_s"],
        }
        return {
            "ratios": {name: round(value, 2) for name, value in ratios.items()},
            "figures": {"size": size, "pair": whole, "decode_alone": decode, **plain},
            **machine.describe(),
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)


def make_pair(archive: Path, size: int, *, cloud: float = 0.25, every: int = 12) -> None:
    """Makes two products of one tile: a smaller synthetic place repeated, each pixel with noise of its own. Clouds lie
    over every twelfth place of the cloudy one, unless another number is given, so that about as many windows are
    selected as the notebook found in a pair."""
    archive.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_make_product, [archive] * 2, [CLOUDY, CLEAR], [cloud, 0.0], [size] * 2, [every] * 2))


def _make_product(archive: Path, when: datetime, cloud: float, size: int, every: int) -> None:
    from affine import Affine

    from cloudjob.archive.safe import write_product
    from cloudjob.archive.synthetic import acquire
    from cloudjob.names import product_name
    from cloudjob.sentinel2.geometry import sun_position, tile_centre, tile_corner

    clear, cloudy = (
        acquire(tile=TILE, when=when, size=min(size, _PLACE), seed=11, cloud=share) for share in (0.0, cloud)
    )
    images = {
        name: _repeat(getattr(clear, name), getattr(cloudy, name), -(-size // pixel), every)
        for name, pixel in (("bands", 1), ("scl", 2), ("cloud_probability", 2), ("snow_probability", 2), ("b11", 6))
    }
    rng = np.random.default_rng(int(when.timestamp()))
    for block in (images["bands"][:, top : top + 512] for top in range(0, size, 512)):
        block += np.rint(NOISE * rng.standard_normal(block.shape, np.float32)).astype(np.int16).view(np.uint16)
    crs, left, top = tile_corner(TILE)
    elevation, azimuth = sun_position(when, *tile_centre(TILE))
    write_product(
        archive,
        name=product_name(
            satellite="S2A", sensing=when, baseline="05.10", relative_orbit=29, tile=TILE, processed=when
        ),
        **images,
        crs=crs,
        transform=Affine(10, 0, left, 0, -10, top),
        offset=-1000,
        sun_elevation=elevation,
        sun_azimuth=azimuth,
    )


def _repeat(clear: np.ndarray, cloudy: np.ndarray, size: int, every: int) -> np.ndarray:
    """The clear image repeated southwards and eastwards to `size` x `size` pixels, at times the cloudy one."""
    side = clear.shape[-1]
    out = np.empty((*clear.shape[:-2], size, size), clear.dtype)
    for number, (row, col) in enumerate((r, c) for r in range(0, size, side) for c in range(0, size, side)):
        part = out[..., row : row + side, col : col + side]
        part[:] = (clear if number % every else cloudy)[..., : part.shape[-2], : part.shape[-1]]
    return out


def fetch(work: Path, size: int) -> Path:
    """The run folder in which everything before `shard` is done, from the archive in `work`."""
    window = min(256, size // 4 // 8 * 8)
    days = {"start": "2024-03-01", "end": "2024-03-31"}
    config = {
        "archive": {"path": str(work / "archive")},
        "search": {
            "polygon": [[-180, -80], [-180, 80], [180, 80], [180, -80], [-180, -80]],
            "clear": {**days, "cloud": [0, 1]},
            "cloudy": {**days, "cloud": [1, 60]},
        },
        "shard": {"window": window, "stride": window // 4},
    }
    (work / "bench.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    cloudjob("run", work / "bench.yaml", "--run-dir", work / "run", "--until", "download")
    return work / "run"


def shard_stage(run_folder: Path) -> dict:
    """CPU seconds, wall seconds, peak memory and triplets of `cloudjob shard`, its worker processes included."""
    figures = cloudjob("shard", run_folder)
    index = json.loads((run_folder / "shards" / "index.json").read_text(encoding="utf-8"))
    return figures | {"triplets": sum(index["counts"].values()), "bytes": sum(f["size"] for f in index["files"])}


def decode_alone(run_folder: Path) -> dict:
    """The same figures for reading every file of the pair that `shard` reads, once, and doing nothing with it."""
    return measured([sys.executable, "-c", _DECODE, *map(str, sorted((run_folder / "scenes").glob("*.SAFE")))])


_DECODE = """
import sys
from pathlib import Path
from cloudjob.hpc import machine
from cloudjob.sentinel2 import product as p
if __name__ == "__main__":
    products = [p.Product.open(Path(folder)) for folder in sys.argv[1:]]
    for one in products:
        for read in (p.read_scl, p.read_cloud_probability, p.read_overview, p.read_b11):
            read(one)
    for _ in p.stripes(products, processes=machine.cores()):
        pass
"""


def cloudjob(*arguments: object) -> dict:
    """Figures of `cloudjob` with these arguments: see `measured`."""
    return measured([sys.executable, "-m", "cloudjob", *map(str, arguments)])


def measured(command: list[str]) -> dict:
    """CPU and wall seconds and peak memory (proportional set size of the whole tree, GiB) of a command."""
    begun, before = time.monotonic(), os.times()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8")
    peak = [0]
    watch = threading.Thread(target=_watch, args=(process, peak))
    watch.start()
    _, errors = process.communicate()
    watch.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ended with {process.returncode}:\n{errors}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu_s": round(cpu, 2), "wall_s": round(time.monotonic() - begun, 2), "peak_gib": round(peak[0] / 2**20, 3)}


def _watch(process: subprocess.Popen, peak: list[int]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(_kib, _tree(process.pid))))
        time.sleep(0.25)


def _tree(pid: int) -> list[int]:
    """The process and all below it."""
    try:
        tasks = [path.read_text(encoding="utf-8").split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has just ended
        return []
    return [pid, *(below for children in tasks for child in children for below in _tree(int(child)))]


def _kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def compare(run_folder: Path, work: Path) -> dict:
    """The notebook's selection and its three .npy files per window against ours, on the same decoded arrays."""
    from cloudjob.patches import shard_writer, windows
    from cloudjob.sentinel2 import masks
    from cloudjob.sentinel2.product import Product, read_bands, read_scl

    products = [Product.open(folder) for folder in sorted((run_folder / "scenes").glob("*.SAFE"))]
    cloudy, clear = (read_bands(product, processes=2) for product in products)
    scl, shape = read_scl(products[0]), products[0].shape
    rule = windows.NOTEBOOK_2025 | {"window": min(256, shape[0] // 4 // 8 * 8)}
    rule["stride"] = rule["window"] // 4
    scl10 = scl.repeat(2, 0).repeat(2, 1)[: shape[0], : shape[1]]

    loop_s, slow = _best(lambda: notebook.select(scl10, window=rule["window"], stride=rule["stride"]))

    def select() -> windows.Windows:
        return windows.select(scl, scl, factor=2, shape=shape, **rule)

    selection_s, found = _best(select)
    mask10 = masks.classes(scl10)
    folder = work / "npy"
    folder.mkdir()
    npy_s, _ = _timed(lambda: notebook.write(folder, slow, cloudy, clear, mask10, window=rule["window"]))
    shutil.rmtree(folder)

    def write() -> dict:
        with shard_writer.Writer(
            work / "bench.h5",
            len(found),
            window=found.window,
            compression="none",
            pair={},
            attributes={},
        ) as writer:
            for row, col, fraction in zip(found.row, found.col, found.cloud_fraction, strict=True):
                here = np.s_[..., row : row + found.window, col : col + found.window]
                images = {"cloudy": cloudy[here], "clear": clear[here], "mask": mask10[here]}
                writer.add(**images, row=int(row), col=int(col), cloud_fraction=float(fraction))
        return writer.result

    write_s, result = _timed(write)
    read_back_s, _ = _timed(lambda: shard_writer.read_back(work / "bench.h5", result))
    return {
        "windows": len(found),
        "same_windows": [tuple(window) for window in slow]
        == list(zip(found.row.tolist(), found.col.tolist(), strict=True)),
        "loop_s": loop_s,
        "selection_s": selection_s,
        "npy_s": npy_s,
        "write_s": write_s,
        "read_back_s": read_back_s,
    }


def _best(call: Callable[[], T]) -> tuple[float, T]:
    """The fastest of three `_timed` calls."""
    return min((_timed(call) for _ in range(3)), key=lambda pair: pair[0])


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of this process, and the result."""
    begun = time.process_time()
    result = call()
    return time.process_time() - begun, result
