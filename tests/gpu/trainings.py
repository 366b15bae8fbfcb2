"""Run folders that can be trained on, and `cloudjob train` in them."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from findings import Findings
from machine import CLOUDJOB, CPU, WORK

from cloudjob.benches.train import make_run
from cloudjob.run.folder import RunFolder
from cloudjob.training import logs


def small_run(work: Path, preset: str, window: int) -> RunFolder:
    """A new run folder below `work`, as the stage shard leaves it (that of the project's own bench)."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return make_run(work, window, preset)


def train(
    found: Findings,
    folder: RunFolder,
    settings: dict,
    *,
    stop_at: int | None = None,
    seconds: float | None = None,
    cache: str = "",
) -> dict:
    """`cloudjob train` in this run folder, asked to stop when so many samples are seen or so many seconds are over.

    `cache` names folders of compiled kernels of its own, as on another node.
    """
    stop, begun, why = folder.root / "STOP", time.monotonic(), None
    stop.unlink(missing_ok=True)
    caches = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR") if cache else ()
    own = {name: str(WORK / "caches" / f"{cache}-{name}") for name in caches}
    with open(said(folder), "a") as log:
        environment = os.environ | {"CLOUDJOB_STOP_FILE": str(stop)} | own
        command = [*CLOUDJOB, "train", str(folder.root), *_options(settings)]
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        while child.poll() is None:
            time.sleep(0.01 if stop_at else 0.2)
            if why is None and stop_at and (rows := logs.rows(folder.metrics)) and rows[-1]["seen"] >= stop_at:
                why = "samples"
                stop.touch()
            elif why is None and seconds and time.monotonic() - begun > seconds:
                why = "time"
                stop.touch()
            if found.left < 3:
                child.kill()
                why = "killed"
    stop.unlink(missing_ok=True)
    print(said(folder).read_text()[-6000:], flush=True)
    return {"exit": child.returncode, "seconds": round(time.monotonic() - begun, 1), "stopped": why}


def said(folder: RunFolder) -> Path:
    """Where all that the trainings of a folder printed is."""
    return folder.root / "said.txt"


def _options(settings: dict) -> list[str]:
    settings = settings | ({"threads": 1} if CPU else {})
    return [part for key, value in settings.items() for part in ("--set", f"train.{key}={value}")]


def progress(folder: RunFolder) -> dict:
    """What the metrics of a training come to, and the last of them."""
    rows = logs.rows(folder.metrics)
    rates = sorted(row["samples_per_s"] for row in rows[1:]) or [0]
    waits = sorted(row["data_wait_pct"] for row in rows)
    return {
        "seen": rows[-1]["seen"] if rows else 0,
        "rate": {"median": rates[len(rates) // 2], "best": rates[-1]},
        "data_wait_pct": waits[len(waits) // 2] if waits else None,
        "last": rows[-1:],
        "rows": [[row[key] for key in ("seen", "samples_per_s", "data_wait_pct", "loss")] for row in rows][:120],
    }
