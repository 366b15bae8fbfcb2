"""The state of a run, for people and batch scripts: cloudjob plan, cloudjob status, cloudjob items."""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudjob.cli.context import open_run, stage_module
from cloudjob.cli.parser import STAGES
from cloudjob.errors import DamagedInputError, InputError
from cloudjob.run import records
from cloudjob.run.folder import RunFolder

if TYPE_CHECKING:
    from cloudjob.config.models import Config
    from cloudjob.hpc.queue import Job

_STATES = ("done", "rejected", "failed", "missing")
_ARRAYS = {"shard": "prepare.sh", "infer": "infer.sh"}  # the batch scripts whose tasks are a stage's items


def plan(arguments: argparse.Namespace) -> int:
    """cloudjob plan: what would run, and why."""
    config, folder, _ = open_run(arguments)
    if arguments.json:
        rows = overview(config, folder, STAGES)
        print(json.dumps({"run": str(folder.root), "stages": rows}, indent=1))
    else:
        print_plan(config, folder, STAGES)
    return 0


def status(arguments: argparse.Namespace) -> int:
    """cloudjob status: progress of the stages, the training and the jobs, and the commands that repeat what failed."""
    from cloudjob.hpc import queue

    config, folder, _ = open_run(arguments)
    rows = overview(config, folder, STAGES)
    training, jobs = _training(folder), queue.unfinished(folder.jobs)
    if arguments.json:
        document = {"run": str(folder.root), "stages": rows, "training": training}
        print(json.dumps(document | {"jobs": [asdict(job) for job in jobs]}, indent=1))
        return 0
    said = None
    for row in rows:
        _print_stage(row, folder.root)
        if row["waits"] not in (None, said):
            print(f"{'':9}   {row['waits']}")
        said = row["waits"]
    if training:
        print("training  " + ", ".join(f"{key} {value}" for key, value in training.items()))
    _print_jobs(jobs)
    return 0


def items(arguments: argparse.Namespace) -> int:
    """cloudjob items: the items of a stage with their indices, either all or those still to do."""
    config, folder, _ = open_run(arguments)
    chosen = []
    for index, item in enumerate(stage_module(arguments.stage).items(config, folder)):
        why = records.why(folder, item) if arguments.missing or arguments.failed else ""
        if why is None or (arguments.failed and not why.startswith("failed")):
            continue
        chosen.append((index, item.name))
    if arguments.as_array:
        print(as_array([index for index, _ in chosen]))
    else:
        for index, name in chosen:
            print(f"{index}\t{name}")
    return 0


def overview(config: "Config", folder: RunFolder, stages: Iterable[str]) -> list[dict]:
    """One row per stage: its items with state and reason, or what it waits for. Later stages wait for the same, but for
    a damaged file of one stage: who does not read it is shown all the same."""
    rows: list[dict] = []
    waits: str | None = None
    for stage in stages:
        states, waiting = [], waits
        try:
            found = stage_module(stage).items(config, folder) if waits is None else []
            states = [_state(folder, item) for item in found]
        except DamagedInputError as error:
            waiting = str(error)
        except InputError as error:
            waiting = waits = str(error)
        rows.append({"stage": stage, "waits": waiting, "items": states})
    return rows


def _state(folder: RunFolder, item: records.Item) -> dict[str, str | None]:
    why = records.why(folder, item)
    if why is None:
        state = (records.record(folder, item.stage, item.name) or {}).get("status", "done")
    else:
        state = "failed" if why.startswith("failed") else "missing"
    return {"item": item.name, "state": state, "why": why}


def print_plan(config: "Config", folder: RunFolder, stages: Iterable[str]) -> None:
    """Prints per stage how many items are done, and why the others would run."""
    for row in overview(config, folder, stages):
        if row["waits"]:
            print(f"{row['stage']:9} waits: {row['waits']}")
            continue
        states = [state["state"] for state in row["items"]]
        counts = ", ".join(f"{states.count(state)} {state}" for state in _STATES if state in states)
        print(f"{row['stage']:9} {counts or 'no items'}")
        reasons: dict[str, list[str]] = {}
        for state in row["items"]:
            if state["why"]:
                reasons.setdefault(state["why"], []).append(state["item"])
        for why, names in reasons.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            print(f"{'':9}   would run {names[0]}{more}: {why}")


def _print_stage(row: dict, root: Path) -> None:
    done = sum(state["why"] is None for state in row["items"])
    failed = [state for state in row["items"] if state["state"] == "failed"]
    text = "waits for an earlier stage" if row["waits"] else f"{done} of {len(row['items'])}"
    print(f"{row['stage']:9} {text}" + (f", {len(failed)} failed" if failed else ""))
    damaged = [state for state in row["items"] if (state["why"] or "").startswith("its record")]
    for state in failed[:3] + damaged[:3]:
        print(f"{'':9}   {state['item']} {state['why']}")
    if again := _again(row, root, done=done, failed=bool(failed)):
        print(f"{'':9}   again: {again}")


def _print_jobs(jobs: Iterable["Job"]) -> None:
    for job in jobs:
        print(f"job {job.id} {job.name}: {job.state}" + (f", {job.log}" if job.log else ""))
        if job.said:
            print(f"{'':9}   {job.said}")


def _again(row: dict, root: Path, *, done: int, failed: bool) -> str:
    """The command that repeats what failed, and makes what is missing if the stage's items are tasks of a job array."""
    script = _ARRAYS.get(row["stage"])
    left = [index for index, state in enumerate(row["items"]) if state["why"]]
    if script and left and (done or failed):
        return f"sbatch --array={as_array(left)} slurm/{script} {root}"
    return f"cloudjob {row['stage']} {root}" if failed else ""


def _training(folder: RunFolder) -> dict[str, Any] | None:
    """Progress, speed, time left and time since the last report of the training, from the last line of the metrics."""
    rows = folder.whole_rows(folder.metrics, stage="train")
    if not rows:
        return None
    last = rows[-1]
    left = last["total"] - last["seen"]
    return {
        "step": last["step"],
        "seen": last["seen"],
        "of": last["total"],
        "loss": last["loss"],
        "samples_per_s": last["samples_per_s"],
        "seconds_left": round(left / last["samples_per_s"]) if last["samples_per_s"] else None,
        "last_sign_of_life_s": round(time.time() - last["time"]),
    }


def as_array(indices: Sequence[int]) -> str:
    """Ascending indices as sbatch --array takes them: 0-3,7."""
    parts: list[str] = []
    start: int | None = None
    for index in indices:
        start = index if start is None else start
        if index + 1 not in indices:
            parts.append(str(index) if index == start else f"{start}-{index}")
            start = None
    return ",".join(parts)
