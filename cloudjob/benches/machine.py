"""What was measured on: the machine and the versions, beside every figure."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("cloudjob", "torch", "numpy", "rasterio", "h5py", "hdf5plugin", "mpi4py")


def describe() -> dict:
    """{"machine": processor, cores of this process, memory; "versions": Python and packages}."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": {"processor": model, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory, 1)},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
