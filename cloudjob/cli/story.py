"""What `cloudjob status` says at three in the morning: how far each stage is, what went wrong first, what goes on."""

import shlex
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudjob import leases

if TYPE_CHECKING:
    from cloudjob.hpc.queue import Job

STATES = ("done", "rejected", "left out", "failed", "missing")
MAX_ARRAY_SIZE = 1001  # of SLURM, where a site has not changed it: indices are below it
ARRAYS = {"shard": "prepare.sh", "infer": "infer.sh"}  # the batch scripts whose tasks are a stage's items
_INDENT = " " * 12
_WEEK = 6 * 86400.0  # seconds within which the name of a day says which one


def counts(items: Sequence[dict]) -> str:
    """How many items of a stage are in which state."""
    states = [item["state"] for item in items]
    return ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states) or "no items"


def cells(
    row: dict, held: Sequence[dict] = (), training: dict | None = None
) -> tuple[str, float | None, str, str, str]:
    """A stage as a row of the table: its name, the share that is done, how many items are in which state, how long one
    takes, when the rest is made. `held` has the leases of all stages; a `training` tells its own."""
    items = row["items"]
    if row["waits"]:
        return row["stage"], None, "waits for an earlier stage", "", ""
    if row["stage"] == "train" and training and any(item["state"] == "missing" for item in items):
        share = training["seen"] / training["of"]
        speed, left = f"{training['samples_per_s']} samples/s", training["seconds_left"]
        return row["stage"], share, f"{training['seen']} of {training['of']} samples", speed, end(left)
    missing = sum(item["state"] == "missing" for item in items)
    took = [item["seconds"] for item in items if item["state"] == "done" and item["seconds"] is not None]
    each = sum(took) / len(took) if took else None
    workers = max(1, sum(lease["stage"] == row["stage"] for lease in held))
    settled = sum(item["state"] not in ("missing", "failed") for item in items)
    share = settled / len(items) if items else None
    if each is None or not missing:
        return row["stage"], share, counts(items), "", ""
    return row["stage"], share, counts(items), f"{duration(each)} each", end(missing * each / workers)


def look(row: dict) -> str:
    """The colour of a stage: red with a failure, green where all is made."""
    states = {item["state"] for item in row["items"]}
    return "bad" if "failed" in states else "" if row["waits"] or "missing" in states else "good"


def notes(row: dict, root: Path, held: Sequence[dict] = (), *, why: bool = True) -> list[str]:
    """Below a stage: the first reason of those items that are not made, who is at work, and the command that goes on;
    and `why` it waits, if it does."""
    if row["waits"]:
        return [f"{_INDENT}{row['waits']}"] if why else []
    lines = first_reasons(row["items"], "failed", "left out", "rejected")
    lines += [
        f"{_INDENT}at work on {lease['item']}: {leases.said(lease)}" for lease in held if lease["stage"] == row["stage"]
    ]
    if command := again(row, root):
        lines.append(f"{_INDENT}again: {command}")
    return lines


def go_on(rows: Sequence[dict], command: str, *, at_work: int, submitted: bool) -> str:
    """What to do next: "" where all is made, or it is at work; `command` with the stage to begin with, or the script
    that submits the rest, where jobs were `submitted` before."""
    left = [row["stage"] for row in rows if row["waits"] or {"missing", "failed"} & {i["state"] for i in row["items"]}]
    if not left or at_work:
        return ""
    if submitted:
        return f"slurm/pipeline.sh {command}"
    return f"cloudjob run {command}" + (f" --from {left[0]}" if left[0] != rows[0]["stage"] else "")


def first_reasons(items: Sequence[dict], *states: str) -> list[str]:
    """For each of these states the first item in it, with the reason, and how many more there are."""
    lines = []
    for state in states:
        found = [item for item in items if item["state"] == state]
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            lines.append(f"{_INDENT}{state} {found[0]['item']}: {found[0]['reason']}{more}")
    return lines


def again(row: dict, root: Path) -> str:
    """The command that repeats what failed, and makes what is missing if the stage's items are tasks of a job array;
    "" where all is made, or nobody has begun."""
    left = [index for index, item in enumerate(row["items"]) if item["state"] in ("failed", "missing")]
    begun = len(left) < len(row["items"]) or any(item["state"] == "failed" for item in row["items"])
    if not left or not begun:
        return ""
    script, shown = ARRAYS.get(row["stage"]), shlex.quote(str(root))
    if script and left[-1] >= MAX_ARRAY_SIZE:
        return f"slurm/{script} {shown}"  # which submits several arrays
    return f"sbatch --array={as_array(left)} slurm/{script} {shown}" if script else f"cloudjob {row['stage']} {shown}"


def of_training(found: dict[str, Any]) -> str:
    """A training in a line, from what the last line of its metrics tells."""
    text = f"training  {found['seen']} of {found['of']} samples, loss {found['loss']:.4g}"
    text += f", {found['samples_per_s']} samples/s"
    if found["seconds_left"]:
        text += f", ends {end(found['seconds_left'])}"
    return f"{text}; last sign of life {duration(found['last_sign_of_life_s'])} ago"


def of_jobs(jobs: Iterable["Job"]) -> list[str]:
    """The jobs that have not ended well, with their logs and what they said last."""
    lines = []
    for job in jobs:
        lines.append(f"job {job.id} {job.name}: {job.state}" + (f", {job.log}" if job.log else ""))
        if job.said:
            lines.append(f"{_INDENT}{job.said}")
    return lines


def duration(seconds: float) -> str:
    """A time span as people say it: 0.4 s, 12 s, 4 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 60:
        return f"{seconds:.{0 if seconds >= 10 else 1}f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def end(seconds: float | None) -> str:
    """When something is over that takes so many seconds from now."""
    if not seconds:
        return ""
    form = "%a %H:%M" if seconds < _WEEK else "%d %b"
    return f"in {duration(seconds)}, {time.strftime(form, time.localtime(time.time() + seconds))}"


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
