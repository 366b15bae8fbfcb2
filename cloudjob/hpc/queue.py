"""What became of the jobs that slurm/*.sh noted in a run folder, one line an event: time, job, name, event."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    id: str
    name: str
    state: str  # as SLURM says it, or as it was noted
    log: str  # "" while it has not started
    said: str  # the last message of ours in the log


def unfinished(log: Path) -> list[Job]:
    """The jobs that have not ended at 0, in the order of their submission; of each name (and number in its array) only
    the newest."""
    newest: dict[tuple, dict] = {}
    lines = log.read_text().splitlines() if log.exists() else []
    for _, job, name, event in (line.split("\t") for line in lines if line.count("\t") == 3):  # a torn line is none
        entry = newest.setdefault((name, job.partition("_")[2]), {})
        if entry.get("id") != job:
            entry.clear()
        entry |= {"id": job, "name": name, "event": event}
        if event.startswith("started "):
            entry["log"] = event.removeprefix("started ")
    begun = {entry["id"].partition("_")[0] for (_, number), entry in newest.items() if number}
    open_jobs = [entry for entry in newest.values() if entry["event"] != "ended 0" and entry["id"] not in begun]
    states = _states([entry["id"] for entry in open_jobs])
    found = []
    for entry in open_jobs:
        state = states.get(entry["id"], "")
        ended = entry["event"].startswith("ended ")
        if state.startswith("COMPLETED"):
            continue
        text = f"exit code {entry['event'].removeprefix('ended ')}" if ended else state or entry["event"].split()[0]
        log_file = entry.get("log", "")
        found.append(Job(entry["id"], entry["name"], text, log_file, _last_message(log_file) if ended else ""))
    return found


def _states(jobs: list[str]) -> dict[str, str]:
    """What squeue says of these jobs, and sacct of those that it has forgotten; nothing where neither is there."""
    states: dict[str, str] = {}
    for command in (
        ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", "--jobs"],
        ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State,ExitCode", "--jobs"],
    ):
        if missing := [job for job in jobs if job not in states]:
            for line in _lines([*command, ",".join(missing)]):
                job, state, reason = line.split("|")
                states[job] = state if reason in ("None", "0:0") else f"{state} ({reason})"
                states.setdefault(job.partition("_")[0], states[job])  # an array of which no task has started
    return states


def _lines(command: list[str]) -> list[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []


def _last_message(log: str) -> str:
    """The last line in which the program or its batch script says what is wrong."""
    try:
        lines = Path(log).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in reversed(lines) if "cloudjob: " in line), "").partition("cloudjob: ")[2]
