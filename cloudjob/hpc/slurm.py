"""What SLURM tells a task about itself; the only reader of SLURM_* variables."""

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task of a job step that `srun` started."""

    rank: int
    size: int
    local_rank: int
    job_id: int
    first_node: str


def task() -> Task | None:
    """This process as a task of an srun step; None outside a step (a batch script has SLURM_PROCID, but is not one)."""
    get = os.environ.get
    if "SLURM_PROCID" not in os.environ or "SLURM_STEP_NUM_TASKS" not in os.environ:
        return None
    return Task(
        rank=int(get("SLURM_PROCID", 0)),
        size=int(get("SLURM_STEP_NUM_TASKS", 1)),
        local_rank=int(get("SLURM_LOCALID", 0)),
        job_id=int(get("SLURM_JOB_ID", 0)),
        first_node=first_host(get("SLURM_STEP_NODELIST", "localhost")),
    )


def job_id() -> str | None:
    return os.environ.get("SLURM_JOB_ID")


def deadline() -> float | None:
    """When this job ends (seconds since 1970): SLURM_JOB_END_TIME of newer SLURM, else CLOUDJOB_DEADLINE, which the
    batch script sets; None without either."""
    for name in ("SLURM_JOB_END_TIME", "CLOUDJOB_DEADLINE"):
        try:
            return float(os.environ[name])
        except (KeyError, ValueError):
            continue
    return None


def first_host(nodelist: str) -> str:
    """`node[07-09,12],gpu1` -> `node07`; scontrol, which parses every form, is not available inside the container."""
    head = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^\[,]*))?", nodelist)
    return "".join(part or "" for part in head.groups()) if head else nodelist
