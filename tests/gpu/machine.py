"""Where a check works and what it computes on: folders, the device, and the bounds of a rehearsal on CPUs."""

import gc
import os
import sys
from pathlib import Path

OUT = Path(os.environ.get("OUT", "gpu-out"))  # what comes back
WORK = Path(os.environ.get("WORK", "/tmp/cloudjob-gpu"))  # what stays
ROOT = Path(__file__).resolve().parents[2]  # the checkout
CLOUDJOB = [sys.executable, "-m", "cloudjob"]
CPU = "--cpu" in sys.argv  # a rehearsal: small sizes, nothing compiled, more time
SLOWER = 8 if CPU else 1  # all bounds of time are longer by this
COMPILED = (False,) if CPU else (False, True)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def device():
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() and not CPU else torch.device("cpu")


def synchronize() -> None:
    """Waits for all that the GPU has been told to do."""
    import torch

    if device().type == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    """Gives memory back that nothing refers to any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()
