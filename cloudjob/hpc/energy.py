"""Energy use of a job: measured where the machine has counters, otherwise estimated; the result names its source.

Sources, in this order: codecarbon (the extra `energy`), offline; the counters of this rank's GPU (NVML) and of the node
(Cray's or RAPL, which SLURM's accounting reads too); an estimate for what has no counter.
"""

import ctypes
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

CORE_W = 10.0  # a busy server core with its share of memory and fans: 200 to 400 W for 24 to 40 cores
_CRAY = Path("/sys/cray/pm_counters/energy")
_RAPL = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6

Counter = Callable[[], float]  # joules since some moment; never decreases


class Energy:
    """Joules used by this rank's share of the machine since creation. The first rank of a node counts the node too."""

    def __init__(self, device: torch.device, *, cores: int, first_on_node: bool):
        sources = []  # (name, counter, whether it counts the whole node, whether it measures)
        if find_spec("codecarbon"):  # it estimates at least the memory
            sources.append(("codecarbon", _codecarbon() if first_on_node else None, True, False))
        elif node := cray():
            sources.append(("node counters", node, True, True))
        else:
            if device.type == "cuda":
                gpu = nvml(device)
                sources.append(("NVML", gpu, False, True) if gpu else ("GPU not counted", None, False, False))
            estimate = (f"{CORE_W:g} W per core", lambda: CORE_W * cores * time.monotonic(), False, False)
            processors = rapl()
            sources.append(("RAPL", processors, True, True) if processors else estimate)
        self.source = ", ".join(name for name, *_ in sources)
        self.measured = all(measures for *_, measures in sources)
        self.lacking = any(counter is None and not whole for _, counter, whole, _ in sources)  # a GPU without a counter
        self.counters = [counter for _, counter, whole, _ in sources if counter and (first_on_node or not whole)]
        self._first = [counter() for counter in self.counters]

    def joules(self) -> float:
        return sum(counter() - first for counter, first in zip(self.counters, self._first, strict=True))


def cray(path: Path = _CRAY) -> Counter | None:
    """Counter of the whole node with its GPUs, from a file that reads `1234567 J 1700000000 us`."""
    return _readable(lambda: float(path.read_bytes().split()[0]))


def rapl(folder: Path = _RAPL) -> Counter | None:
    """Counter of this node's processors. RAPL wraps to 0 at a limit; read it more often than it wraps (minutes)."""
    packages = [path for path in folder.glob("intel-rapl:*") if path.name.count(":") == 1]
    parts = [part for path in packages if (part := _readable(_Wrapping(path)))]
    return (lambda: sum(part() for part in parts)) if parts and len(parts) == len(packages) else None


class _Wrapping:
    def __init__(self, path: Path):
        self.path, self.total = path, 0.0
        self.last: int | None = None

    def __call__(self) -> float:
        now, limit = (int((self.path / name).read_bytes()) for name in ("energy_uj", "max_energy_range_uj"))
        self.total += 0 if self.last is None else (now - self.last) % (limit + 1) / 1e6
        self.last = now
        return self.total


def _readable(counter: Counter) -> Counter | None:
    try:
        counter()
    except (OSError, ValueError, IndexError):
        return None
    return counter


def nvml(device: torch.device) -> Counter | None:
    """Counter of this GPU since its driver was loaded (Volta and later)."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()  # NVML ignores CUDA_VISIBLE_DEVICES
        failed = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(identity, ctypes.byref(handle))
    except (OSError, AttributeError):
        return None

    def counter() -> float:
        if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
            raise OSError("NVML counts no energy of this GPU")
        return millijoules.value / 1e3

    return None if failed else _readable(counter)


def _codecarbon() -> Counter:
    """Counter of the whole node by codecarbon. It requires a country; the configured grid intensity is used instead."""
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output_methods.base_output import BaseOutput

    class Last(BaseOutput):
        kwh = 0.0

        def out(self, total: Any, delta: Any) -> None:
            self.kwh = total.energy_consumed

    last = Last()
    quiet = {"save_to_file": False, "log_level": "critical", "allow_multiple_runs": True}
    tracker = OfflineEmissionsTracker(country_iso_code="USA", output_handlers=[last], **quiet)
    tracker.start()

    def counter() -> float:
        tracker.flush()
        return last.kwh * JOULES_PER_KWH

    return counter


def carbon(joules: float, grams_per_kwh: float) -> dict[str, float]:
    """{"energy_kwh", "co2_g"} of this energy, for a grid that emits `grams_per_kwh` of CO2."""
    kwh = joules / JOULES_PER_KWH
    return {"energy_kwh": round(kwh, 6), "co2_g": round(kwh * grams_per_kwh, 3)}
