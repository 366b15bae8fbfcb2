"""The machine, the package versions and the commit, recorded with every benchmark and every training run."""

import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob.hpc import slurm

if TYPE_CHECKING:
    import torch

_PACKAGES = ("cloudjob", "torch", "numpy", "rasterio", "h5py", "hdf5plugin", "mpi4py")


def cores() -> int:
    """Processor cores for this process: what OMP_NUM_THREADS says, else those that it may run on, of which a task of
    SLURM takes no more than it asked for (SLURM_CPUS_PER_TASK)."""
    return threads_asked_for() or min(len(os.sched_getaffinity(0)), slurm.cpus_per_task() or sys.maxsize)


def threads_asked_for() -> int | None:
    """What OMP_NUM_THREADS says, for each process; None where nobody set it but torchrun, which gives its ranks 1."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if not first.isdecimal() or not int(first) or (first == "1" and _set_by_torchrun()):
        return None
    return int(first)


def _set_by_torchrun() -> bool:
    """Whether torchrun started this process without an OMP_NUM_THREADS of its own."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        return b"\0OMP_NUM_THREADS=" not in b"\0" + Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return False


def describe() -> dict:
    """{"machine": processor, cores of this process, memory; "versions": Python and packages}."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": {"processor": model, "cores": cores(), "memory_gib": round(memory, 1)},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def device_name(device: "torch.device") -> str:
    """A GPU's model, or the processor's."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return describe()["machine"]["processor"]


@cache
def commit() -> str | None:
    """The commit of this code, with a + if it has uncommitted changes; outside a checkout CLOUDJOB_COMMIT, which the
    image sets, or None.

    A repository that the code merely lies in, as in its user's .venv, is not its own: that does not track this file.
    """
    import subprocess  # slow, and every command imports this file

    here = Path(__file__)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        done = subprocess.run(command, capture_output=True, check=True, timeout=10, env=environment)
        return done.stdout.decode(errors="replace").strip()

    try:
        git("ls-files", "--error-unmatch", "--", here.name)
        changed = git("status", "--porcelain", "--", str(here.parents[1]))
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("CLOUDJOB_COMMIT")


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # slow, and every command imports this file

    try:
        return version(package)
    except PackageNotFoundError:
        return None
