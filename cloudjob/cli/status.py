"""The state of a run, for people and batch scripts: cloudjob plan, cloudjob status, cloudjob items."""

import argparse
import json
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cloudjob import leases
from cloudjob.cli import looks, story
from cloudjob.cli.context import open_run, stage_module, stages_of
from cloudjob.cli.parser import STAGES
from cloudjob.errors import DamagedInputError, InputError, ItemError
from cloudjob.run import records
from cloudjob.run.folder import RunFolder

if TYPE_CHECKING:
    from cloudjob.config.models import Config

_WANTED: dict[str, Callable[[dict], bool]] = {  # option of `items` -> whether it lists an item in this state
    "missing": lambda state: state["why"] is not None,
    "failed": lambda state: state["state"] == "failed",
    "left_out": lambda state: state["state"] == records.LEFT_OUT,
}


def plan(arguments: argparse.Namespace) -> int:
    """cloudjob plan: what would run, and why."""
    config, folder = _look(arguments)
    rows = overview(config, folder, stages_of(config, list(STAGES)))
    if arguments.json:
        print(json.dumps({"run": str(folder.root), "stages": rows}, indent=1))
    else:
        print_plan(rows)
    return _code(rows)


def status(arguments: argparse.Namespace) -> int:
    """cloudjob status: progress of the stages, the training and the jobs, and the commands that repeat what failed."""
    from cloudjob.hpc import queue

    config, folder = _look(arguments)
    rows = overview(config, folder, stages_of(config, list(STAGES)))
    training, jobs, held = _training(folder), queue.unfinished(folder.jobs), leases.held(folder.leases)
    at_work = len(held) + sum(job.waits for job in jobs)
    following = story.go_on(rows, _named(arguments, folder), at_work=at_work, submitted=folder.jobs.exists())
    if arguments.json:
        document = {"run": str(folder.root), "stages": rows, "training": training, "leases": held, "next": following}
        print(json.dumps(document | {"jobs": [asdict(job) for job in jobs]}, indent=1))
        return _code(rows)
    print("\n".join(_told(rows, folder, held, training) + story.of_jobs(jobs)))
    print(f"next: {following}" if following else _end(folder, at_work))
    return _code(rows)


def _told(rows: list[dict], folder: RunFolder, held: list[dict], training: dict | None) -> list[str]:
    """The table of the stages, each with its notes, and the training."""
    shown = [("stage", None, "items", "one takes", "the rest is made"), *(story.cells(r, held, training) for r in rows)]
    head, *lines = looks.table(shown, ["", *map(story.look, rows)])
    said, told = None, [looks.painted(head, "dim")]
    for row, line in zip(rows, lines, strict=True):
        told += [line, *story.notes(row, folder.root, held, why=row["waits"] != said)]
        said = row["waits"]
    return told + ([story.of_training(training)] if training else [])


def _named(arguments: argparse.Namespace, folder: RunFolder) -> str:
    """The run as a command takes it: its folder, or the YAML file while that has not been made."""
    if folder.config.exists():
        return folder.quoted
    given = shlex.quote(str(arguments.config))
    return f"{given} --run-dir {folder.quoted}" if arguments.run_dir else given


def _end(folder: RunFolder, at_work: int) -> str:
    return f"next: wait; {at_work} at work or in the queue" if at_work else f"all is made: {folder.report}"


def items(arguments: argparse.Namespace) -> int:
    """cloudjob items: the items of a stage with their indices, either all or those still to do; with the reason those
    that are left out."""
    config, folder = _look(arguments)
    stages_of(config, [arguments.stage])
    wanted = next((_WANTED[name] for name in _WANTED if getattr(arguments, name)), None)
    chosen = []
    for index, item in enumerate(stage_module(arguments.stage).items(config, folder)):
        state = _state(folder, item) if wanted else {}
        if wanted is None or wanted(state):
            chosen.append((index, item.name + (f"\t{state['reason']}" if arguments.left_out else "")))
    if arguments.as_array:
        print(story.as_array([index for index, _ in chosen]))
    else:
        for index, name in chosen:
            print(f"{index}\t{name}")
    return 0


def _look(arguments: argparse.Namespace) -> tuple["Config", RunFolder]:
    """The run, of a command that makes nothing: each record is read once."""
    config, folder, _ = open_run(arguments)
    folder.kept = {}
    return config, folder


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
            waiting = waits = (
                str(error) if folder.config.exists() else f"there is no {folder.root} yet; search comes first"
            )
        rows.append({"stage": stage, "waits": waiting, "items": states})
    return rows


def _state(folder: RunFolder, item: records.Item) -> dict[str, Any]:
    """What is to be told of an item: its state, why it would be made (None if it would not), the reason of a failure or
    rejection, and how long it took."""
    why, found = records.why(folder, item), records.record(folder, item.stage, item.name, result=False) or {}
    state = found["status"] if why is None else "failed" if why.startswith("failed") else "missing"
    reason = found["message"] if state in ("failed", "rejected", records.LEFT_OUT) else ""
    return {"item": item.name, "state": state, "why": why, "reason": reason, "seconds": found.get("seconds")}


def _code(rows: Iterable[dict]) -> int:
    """4 while an item's failure is recorded."""
    return ItemError.exit_code if any(item["state"] == "failed" for row in rows for item in row["items"]) else 0


def print_plan(rows: Iterable[dict]) -> None:
    """Prints per stage how many items are done, and why the others would run; what several stages wait for, once."""
    said = None
    for row in rows:
        if row["waits"]:
            print(f"{row['stage']:9} waits" + (f": {row['waits']}" if row["waits"] != said else ", as the one before"))
            said = row["waits"]
            continue
        print(f"{row['stage']:9} {looks.painted(story.counts(row['items']), story.look(row))}")
        reasons: dict[str, list[str]] = {}
        for state in row["items"]:
            if state["why"]:
                reasons.setdefault(state["why"], []).append(state["item"])
        for why, names in reasons.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            print(f"{'':9}   would run {names[0]}{more}: {why}")
        for line in story.first_reasons(row["items"], records.LEFT_OUT):
            print(line)


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
