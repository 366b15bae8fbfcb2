"""State of the jobs that slurm/*.sh logged in a run folder, one line per event: time, job, name, event."""

from dataclasses import dataclass
from pathlib import Path

_ALIVE = ("PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "REQUEUED", "RESIZING", "STOPPED")


@dataclass(frozen=True)
class Job:
    id: str
    name: str
    state: str  # as SLURM reports it, or as it was logged
    log: str  # path, "" before the job has started
    said: str  # the last error message in the log
    waits: bool = False  # SLURM has it running, or will run it by itself


def unfinished(log: Path) -> list[Job]:
    """The jobs that have not ended with exit code 0, in order of submission; only the newest of each name (and array
    index)."""
    newest: dict[tuple, dict] = {}
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    for _, job, name, event in (line.split("\t") for line in lines if line.count("\t") == 3):  # skips a torn line
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
        message = _last_message(log_file) if ended else ""
        waits = not ended and state.startswith(_ALIVE) and "NeverSatisfied" not in state
        found.append(Job(entry["id"], entry["name"], text, log_file, message, waits))
    return found


def _states(jobs: list[str]) -> dict[str, str]:
    """States of these jobs from squeue, or from sacct if squeue no longer lists them; empty without both commands."""
    states: dict[str, str] = {}
    for command in (
        ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%S", "--jobs"],
        ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State,ExitCode", "--jobs"],
    ):
        if missing := [job for job in jobs if job not in states]:
            for line in _lines([*command, ",".join(missing)]):
                job, state, reason, *start = line.split("|")
                states[job] = state if reason in ("None", "0:0") else f"{state} ({reason})"
                if state == "PENDING" and start and start[0] != "N/A":
                    states[job] += f", expected to start {start[0]}"
                states.setdefault(job.partition("_")[0], states[job])  # an array none of whose tasks has started
    return states


def _lines(command: list[str]) -> list[str]:
    import subprocess  # slow to import, and few runs have an open job

    try:
        said = subprocess.run(command, capture_output=True, timeout=5, check=False).stdout
        return said.decode(errors="replace").splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []


def _last_message(log: str) -> str:
    """The last error message of the program or its batch script in a log; "" if there is none."""
    try:
        lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in reversed(lines) if "cloudjob: " in line), "").partition("cloudjob: ")[2]
