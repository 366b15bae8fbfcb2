"""A training at full size on one GPU: its data, the training for as long as there is time, the table of its scores."""

import collections
import json
import os
import shutil
import time
from pathlib import Path

import yaml
from bench import compile_all
from findings import Findings
from machine import CLOUDJOB, CPU, OUT, ROOT, WORK, cores

from cloudjob.diffusion import checkpoint
from cloudjob.run.folder import RunFolder
from cloudjob.training import logs

PRESET = os.environ.get("PRESET", "tiny" if CPU else "base")
SAMPLES = int(os.environ.get("SAMPLES", 128 if CPU else 400_000))
AREA = int(os.environ.get("AREA", 256 if CPU else 1024))  # pixels at the edge of a tile
BATCH = 8 if CPU else 128
RUN = WORK / "fit"


def _config() -> Path:
    """The project's benchmark at four times the area, with its `base` network: as configs/comparison-gpu.yaml."""
    config = yaml.safe_load((ROOT / "configs" / "benchmark.yaml").read_text())
    config["archive"]["path"] = str(WORK / "archive")
    config["archive"]["synthetic"]["size"] = AREA
    config["train"] |= {"preset": PRESET, "samples": SAMPLES, "batch_size": BATCH, "lr": 3e-4}
    config["train"] |= {"warmup": 20_000, "log_s": 2}
    config["evaluate"] |= {"triplets": 210, "members": 8}
    if CPU:
        config["archive"]["synthetic"]["tiles"] = ["04WFD", "05WMU", "06WVC", "06WXC"]
        config["archive"]["synthetic"]["other_weather"] = None
        config["shard"]["split"] = {"test_share": 0.3, "val_share": 0.2}
        config["train"] |= {"warmup": 32, "log_s": 0.05}
        config["evaluate"] |= {"triplets": 8, "members": 2}
    path = WORK / "fit.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def warm_fit(found: Findings) -> None:
    """Compiles the training's step while its data are made."""
    compile_all(found, [(PRESET, BATCH, 64, "corrective")])


def data(found: Findings) -> None:
    """Products by one process per tile, the chain until download, then the shards, one process per pair."""
    path, begun = _config(), time.monotonic()
    shutil.rmtree(WORK / "archive", ignore_errors=True)
    scenes, key = yaml.safe_load(path.read_text())["archive"]["synthetic"], "archive.synthetic"
    make, other = [*CLOUDJOB, "archive", "make", path, "--set"], scenes.get("other_weather") or {"tiles": []}
    alone = ["--set", f"{key}.other_weather=null"]
    found.call_all([[*make, f"{key}.tiles=[{tile}]", *alone] for tile in scenes["tiles"]], cores())
    found.call_all(
        [
            [*make, f"{key}.tiles=[{scenes['tiles'][0]}]", "--set", f"{key}.other_weather.tiles=[{tile}]"]
            for tile in other["tiles"]
        ],
        cores(),
    )
    products = len(list((WORK / "archive").glob("*.SAFE")))
    found.keep(archive={"products": products, "size": AREA, "seconds": round(time.monotonic() - begun, 1)})
    shutil.rmtree(RUN, ignore_errors=True)
    code, said, seconds = found.call(*CLOUDJOB, "run", path, "--run-dir", RUN, "--until", "download")
    found.keep(until_download={"exit": code, "seconds": seconds})
    if code:
        raise RuntimeError(said[-1500:])
    begun = time.monotonic()
    _, said, _ = found.call(*CLOUDJOB, "items", "shard", RUN, "--as-array")
    numbers = array_indices(said.strip().splitlines()[-1])
    found.call_all([[*CLOUDJOB, "shard", RUN, "--index", number] for number in numbers], cores())
    code, said, _ = found.call(*CLOUDJOB, "shard", RUN)
    seconds = round(time.monotonic() - begun, 1)
    if code:
        raise RuntimeError(said[-1500:])
    index, counts = RunFolder(RUN).index(), collections.Counter()
    for entry in index["files"]:
        counts[entry["split"]] += entry["count"]
    found.keep(shards={"seconds": seconds, "triplets": dict(counts), "window": index["window"]})


def array_indices(text: str) -> list[int]:
    """The numbers that SLURM's 0-3,7 stands for."""
    spans = [[int(number) for number in part.split("-")] for part in text.split(",")]
    return [number for span in spans for number in range(span[0], span[-1] + 1)]


def fit(found: Findings) -> None:
    """The training, stopped in good order when its time ends."""
    from trainings import progress, train

    folder = RunFolder(RUN)
    ran = train(found, folder, {}, seconds=found.left - 25)
    found.keep(**ran, **progress(folder), validation=logs.rows(folder.validation), checks=logs.rows(folder.checks))
    for picture in sorted(folder.samples.glob("*.png"))[-1:]:
        shutil.copyfile(picture, OUT / "samples.png")
    if ran["exit"] not in (0, 75):
        raise RuntimeError(f"cloudjob train ended with {ran['exit']}")


def table(found: Findings) -> None:
    """The scores of `cloudjob evaluate`, on triplets of tiles that the training has not seen."""
    folder, options = RunFolder(RUN), []
    if not (folder.records / "train" / "run.json").exists():  # a training that was stopped
        options = ["--set", f"infer.checkpoint={checkpoint.newest(folder.checkpoints)}"]
    code, said, seconds = found.call(*CLOUDJOB, "evaluate", RUN, *options)
    summary = json.loads(folder.evaluation.read_text()) if folder.evaluation.exists() else None
    found.keep(exit=code, seconds=seconds, table=said.strip().splitlines()[-40:], summary=summary)
    if code:
        raise RuntimeError(said[-1500:])
