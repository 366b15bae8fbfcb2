"""The machine, the package versions and the commit, recorded with every benchmark and every training run."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PACKAGES = ("cloudjob", "torch", "numpy", "rasterio", "h5py", "hdf5plugin", "mpi4py")


def describe() -> dict:
    """{"machine": processor, cores of this process, memory; "versions": Python and packages}."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": {"processor": model, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory, 1)},
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
    """The commit of this code, with a + if it has uncommitted changes; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
