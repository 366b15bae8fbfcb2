"""Every reader on a disk that refuses: the system's error is told, and a whole file is never called corrupt.

All readers of the house, one after the other in one process, on a disk that answers with errors (`strange_disk`).
"""

import errno
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import strange_disk

REFUSALS = [(call, name) for call in ("open", "read") for name in ("ESTALE", "EIO")] + [("open", "EACCES")]
REFUSALS += [("open", name) for name in ("EMFILE", "ENOTCONN", "ENOLCK")]


def readers(folder: Path) -> dict:
    """Name of a reader -> (a part of the path of the file that it reads, what calls it)."""
    import numpy as np
    import rasterio
    import small_runs
    import torch
    from affine import Affine

    from cloudjob.archive import rasters
    from cloudjob.archive.make import make_synthetic
    from cloudjob.diffusion import checkpoint
    from cloudjob.files import file_sha256, troubles, write_json, write_jsonl, write_text
    from cloudjob.patches import loader, pairs, shards
    from cloudjob.restoration import output
    from cloudjob.run import decisions, products, records
    from cloudjob.run.folder import RunFolder
    from cloudjob.sentinel2 import decode, masks, product, scene_masks
    from cloudjob.stages import evaluate

    asked = {"tiles": ["06WVC"], "size": 96, "seed": 2, "cloud": (0.4, 0.4)}
    (name,) = make_synthetic(folder, clear=[date(2024, 3, 1)], cloudy=[], **asked)
    safe = folder / f"{name}.SAFE"
    opened = product.Product.open(safe)
    manifest = product.read_manifest(safe / "manifest.safe")
    (band,) = (each for each in manifest if each.path.endswith("B04_10m.jp2"))
    red = product._band(opened, "B04")
    own = scene_masks.Settings(source="raster", folder=folder)

    run = RunFolder(folder / "run")
    raster = folder / f"{name}.tif"
    grid = {"crs": opened.crs, "transform": opened.transform, "width": 96, "height": 96}
    with rasterio.open(raster, "w", driver="GTiff", count=4, dtype="uint16", **grid) as image:
        image.write(np.ones((4, 96, 96), np.uint16))
    seen = scene_masks.Preview.open(opened, masks.Settings())
    found = scene_masks.SceneMasks(seen.core, seen.core, seen.factor)
    (folder / f"{opened.name.tile}.tif").write_bytes(raster.read_bytes())

    shard = folder / "train-0.h5"
    small_runs.write_shard(shard, 1, 2, reference=False)
    entry = {"file": shard.name, "count": 2, "split": "train", "sha256": file_sha256(shard), "size": 1}
    index = {"files": [entry], "window": small_runs.WINDOW}
    weights = run.checkpoints / "step-00000008.pt"
    state = {each: {} for each in ("averages", "calibration", "optimizer", "config", "recipe")}
    state |= {"model": {"w": torch.zeros(3)}, "bands": [], "skipped": [0, 0], "key": "", "cloudjob_version": ""}
    checkpoint.save(run.checkpoints, checkpoint.Checkpoint(seen=8, total=8, chosen="none", **state))
    scene = output.Restored(
        name, np.ones((4, 9, 9), "u2"), np.zeros((9, 9), "u1"), None, "EPSG:32606", Affine(10, 0, 0, 0, -10, 0), "", {}
    )
    output.write_h5(folder / "scene.h5", scene)
    write_jsonl(run.pairs, [{"pair": "a"}])
    write_json(run.shard_index, index)
    write_text(run.decisions, "pair,decision,version\na,accept,1\n")
    records.work(run, "shard", [records.Item("shard", "a", {}, {})], lambda item: ([], None))

    def hashed(path):
        products._hashed.clear()  # else it is not read
        return products._sha256(path)

    def front(call):
        with troubles():  # as the front door and `records.work` do
            return call()

    return {
        "metadata": ("MTD_MSIL2A", lambda: product.Product.open(safe)),
        "tile metadata": ("MTD_TL", lambda: product.Product.open(safe)),
        "manifest": ("manifest.safe", lambda: product.read_manifest(safe / "manifest.safe")),
        "digest": ("B04_10m", lambda: product.check_file(safe, band)),
        "recorded file": ("B04_10m", lambda: hashed(safe / band.path)),
        "band": ("B04_10m", red.read),
        "reduced band": ("B04_10m", lambda: red.reduced(4)),
        "band by another process": ("B04_10m", lambda: list(decode._side_by_side([red], 96, 1))),
        "classification": ("SCL_20m", lambda: product.read_scl(opened)),
        "mask of one's own": (raster.name, lambda: scene_masks.Preview.open(opened, own)),
        "drift": (f"/{opened.name.tile}.tif", lambda: scene_masks.still(found, opened, folder)),
        "ground": (raster.name, lambda: pairs._ground(raster, (96, 96), slice(0, 96))),
        "raster of the archive": (raster.name, lambda: rasters.read_raster(raster)),
        "truth": (raster.name, lambda: evaluate._read(raster)),
        "shard": (shard.name, lambda: shards.ShardSet(folder, index, "train")[0]),
        "columns": (shard.name, lambda: shards.columns(shard)),
        "checksum": (shard.name, lambda: loader.verify(folder, index, "train")),
        "checkpoint": (weights.name, lambda: checkpoint.load(weights)),
        "newest checkpoint": (weights.name, lambda: checkpoint.load_newest(run.checkpoints)),
        "output": ("scene.h5", lambda: output.read_h5(folder / "scene.h5")),
        "pairs": ("pairs.jsonl", lambda: front(lambda: run.rows(run.pairs, stage="pair"))),
        "rows to look at": ("pairs.jsonl", lambda: front(lambda: run.whole_rows(run.pairs, stage="pair"))),
        "index": ("index.json", lambda: front(run.index)),
        "decisions": ("decisions.csv", lambda: decisions.read(run.decisions)),
        "record": ("shard/a.json", lambda: front(lambda: records.record(run, "shard", "a"))),
    }


def main(folder: Path) -> None:
    """Prints, per reader and refusal, the error; and those that read nothing on a good disk, or do not afterwards."""
    told, mute = {}, []
    every = readers(folder)
    for name, (part, call) in every.items():
        mute += [] if call() is not None or name in ("digest", "checksum") else [name]
        for what, number in REFUSALS:
            os.environ["REFUSED"] = f"{what} {getattr(errno, number)} {part}"
            try:
                call()
                told[f"{name}, {what}, {number}"] = ["nothing", ""]
            except Exception as error:
                told[f"{name}, {what}, {number}"] = [type(error).__name__, str(error)]
            del os.environ["REFUSED"]
        call()
    print(json.dumps({"told": told, "mute": mute, "aside": [str(path) for path in folder.rglob("*.corrupt")]}))


@pytest.mark.slow
def test_no_reader_takes_the_systems_refusal_for_damage(tmp_path):
    program = f"import pathlib, test_refused_files; test_refused_files.main(pathlib.Path({str(tmp_path)!r}))"
    command = [sys.executable, "-c", program]
    options = {"env": strange_disk.environment(), "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["aside"] == []
    assert found["mute"] == []
    assert len(found["told"]) == 25 * len(REFUSALS)
    wrong = {}
    for case, (kind, text) in found["told"].items():
        words = os.strerror(getattr(errno, case.split(", ")[-1]))
        if kind != "SystemTroubleError" or words not in text:
            wrong[case] = f"{kind}: {text}"
    assert wrong == {}


LOCKLESS = """
import pathlib, sys
from cloudjob.cli.dispatch import main
assert main(["config", "schema"]) == 0
import numpy as np
import small_runs
from affine import Affine
from cloudjob.patches.shards import columns
from cloudjob.restoration import output
folder = pathlib.Path(sys.argv[1])
place = Affine(10, 0, 0, 0, -10, 0)
output.write_h5(folder / "a.h5", output.Restored(
    "a", np.ones((4, 9, 9), "u2"), np.zeros((9, 9), "u1"), None, "EPSG:32606", place, "", {}
))
assert output.read_h5(folder / "a.h5")[0].all()
small_runs.write_shard(folder / "b.h5", 1, 2, reference=False)
assert len(columns(folder / "b.h5")["row"]) == 2
"""


@pytest.mark.slow
def test_hdf5_needs_no_locks_whatever_a_module_says_of_them(tmp_path):
    environment = strange_disk.environment(f"lock {errno.ENOLCK} .h5") | {"HDF5_USE_FILE_LOCKING": "TRUE"}
    command = [sys.executable, "-c", LOCKLESS, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
