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


def step() -> str:
    """What tells this step of a job, as it was started this time, from any other; the same text outside SLURM."""
    return " ".join(os.environ.get(name, "-") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))


def cpus_per_task() -> int | None:
    """Cores that the job asked for each of its tasks; None where it did not say. SLURM may leave a task unbound, which
    then sees the cores of all tasks, or of all jobs."""
    found = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(found) if found.isdecimal() and int(found) else None


def owns(cores: int) -> bool:
    """Whether SLURM gave this step so many cores of its node, so that no other job computes on them."""
    found = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return found.isdecimal() and int(found) >= cores


def first_host(nodelist: str) -> str:
    """`rack[0-1]_node[07-09,12],gpu1` -> `rack0_node07`; scontrol, which parses every form, is not available inside the
    container."""
    head = re.match(r"(?:[^\[,]|\[[^\]]*\])+", nodelist)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", head[0]) if head else nodelist
