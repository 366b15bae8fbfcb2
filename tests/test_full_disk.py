"""Every writer on a disk that fills up while it writes: one kind of error, nothing under the final name, nothing left.

How much a writer had written when the disk refused matters: at the end of a file some libraries keep silent.
"""

import json
import os
from pathlib import Path

import pytest

NAMES = ("outputs", "tile", "shard", "conditions", "raster", "checkpoint", "lines")
SHARES = (0, 0.1, 0.4, 0.7, 0.95, 1)  # of the blocks that the file needs; the last but one block is never there
BLOCK = 4096


def writers() -> dict:
    """Name of a writer -> a function that writes into a folder, and returns what it has written."""
    import numpy as np
    import small_runs
    import torch
    from affine import Affine

    from cloudjob import files
    from cloudjob.archive import make
    from cloudjob.diffusion import checkpoint
    from cloudjob.restoration import output
    from cloudjob.restoration.conditions import SceneConditions

    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 9000, (4, 160, 160)).astype(np.uint16)
    flags, place = np.zeros((160, 160), np.uint8), Affine(10, 0, 500000, 0, -10, 7700000)
    facts = {"cloudjob_version": "1", "source_products": "a"}
    header = output.Header(
        name="a",
        shape=(160, 160),
        crs="EPSG:32606",
        transform=place,
        sensing_time="2024-03-10T22:20:35Z",
        attributes=facts,
        uncertainty=False,
    )
    state = {each: {} for each in ("averages", "calibration", "optimizer", "config", "recipe")}
    state |= {"model": {"w": torch.rand(40000)}, "bands": [], "skipped": [0, 0], "key": "", "cloudjob_version": ""}
    kept = checkpoint.Checkpoint(seen=8, total=8, chosen="none", **state)

    def atomically(name: str, write):
        def call(folder: Path) -> Path:
            with files.atomic(folder / name) as temporary:
                write(temporary)
            return folder / name

        return call

    def shard(temporary: Path) -> None:
        small_runs.write_shard(temporary, 1, 8, reference=False)

    def outputs(folder: Path) -> Path:
        with output.Writer(folder / "a", header) as writer:
            writer.rows(0, pixels, flags)
        return folder / "a.json"

    def conditions(folder: Path) -> Path:
        SceneConditions(pixels, flags, flags, (), None, ()).save(folder / "work")
        return folder / "work" / "mask.npy"

    def raster(folder: Path) -> Path:
        make._write_raster(folder / "truth.tif", pixels, "EPSG:32606", place, nodata=0)
        return folder / "truth.tif"

    def lines(folder: Path) -> Path:
        files.write_jsonl(folder / "a.jsonl", [{"value": "x" * 100000}] * 2)
        return folder / "a.jsonl"

    return {
        "outputs": outputs,
        "tile": atomically("tile.npy", lambda path: np.save(path, pixels)),
        "shard": atomically("a-0.h5", shard),
        "conditions": conditions,
        "raster": raster,
        "checkpoint": lambda folder: checkpoint.save(folder, kept),
        "lines": lines,
    }


def attempt(write, folder: Path) -> list[str]:
    """What a writer raises, or the path that it has written. In a process that ends as the front door does on a full
    disk: HDF5 would crash at exit."""
    read, tell = os.pipe()
    if not (child := os.fork()):
        try:
            told = ["nothing", str(write(folder))]
        except BaseException as error:
            told = [type(error).__name__, str(error)]
        os.write(tell, json.dumps(told).encode())
        os._exit(0)
    os.close(tell)
    with open(read) as answer:
        told = answer.read()
    assert os.waitpid(child, 0)[1] == 0, "it crashed"
    return json.loads(told)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_writer_says_that_the_disk_is_full(disk, name):
    folder, write = disk(16) / "in", writers()[name]
    folder.mkdir()
    kind, target = attempt(write, folder)
    assert kind == "nothing", target
    found = [path for path in folder.rglob("*") if path.is_file()]
    blocks = sum(-(-path.stat().st_size // BLOCK) for path in found) - 1
    for share in SHARES:
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            path.unlink()
        disk(max(int(share * blocks), 1) * BLOCK / 2**20)
        kind, said = attempt(write, folder)
        assert kind == "DiskFullError", (share, said)
        assert "no space left" in said or "MiB free" in said, said
        assert not Path(target).exists(), share
        assert list(folder.rglob(".tmp-*")) == [], share
        disk(16)
