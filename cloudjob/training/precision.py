"""By what rules a GPU makes its sums: set before a training, and written down with it."""

import os
from typing import Any

import torch
import torch._inductor.config


def settle(device: torch.device, *, exact: bool = True) -> None:
    """Sets the rules of a GPU: TF32 for float32 products, convolutions chosen without trials, and, so that a training
    that was stopped goes on with the same bits, deterministic kernels (`exact`).

    What has no deterministic kernel is named by a warning of torch. On a processor there is nothing to set.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else its products may differ between two runs
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = exact
    torch.use_deterministic_algorithms(exact, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time
    if hasattr(torch._inductor.config, "deterministic"):  # torch 2.9
        torch._inductor.config.deterministic = exact  # kernels by rule, not by what was faster at a trial


def facts(device: torch.device) -> dict[str, Any]:
    """The rules that hold now; of a processor none."""
    if device.type != "cuda":
        return {}
    return {
        "tf32": torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic,
    }
