"""Whether the step runs compiled, as was asked; and where it does not, why."""

import logging
from typing import Any

import torch
import torch._inductor.config
from torch import nn
from torch._dynamo.utils import counters

from cloudjob.errors import ConfigError

_SAYS = "torch._dynamo.convert_frame"  # the logger that is told of a part which is left as it is


class Compilation:
    """A module compiled by torch, where that is asked for: "auto" asks for it on a GPU, and goes on without it.

    Each shape has kernels of its own: so they do not depend on which shapes came before, and a training that was
    stopped goes on with the same ones.
    """

    def __init__(self, module: nn.Module, choice: bool | str, device: torch.device):
        self.asked = choice if isinstance(choice, bool) else device.type == "cuda"
        self.required, self.cause, self.before = choice is True, "", _graphs()
        if self.asked:
            torch._dynamo.config.suppress_errors = not self.required
            _hear(self)
            plain_kernels(device)
            module.compile(dynamic=False)

    @property
    def graphs(self) -> int:
        """Graphs compiled since."""
        return _graphs() - self.before

    @property
    def fallback(self) -> str:
        """Why some of it runs as it is, although it was asked to be compiled; "" where nothing does. To be asked after
        a first step."""
        if not self.asked or (self.graphs and not self.cause):
            return ""
        return self.cause or "torch compiled nothing: is TORCHDYNAMO_DISABLE or TORCH_COMPILE_DISABLE set?"

    @property
    def active(self) -> bool:
        return self.asked and not self.fallback

    def filter(self, record: logging.LogRecord) -> bool:
        """Takes down why torch leaves a part as it is, in place of its pages on that."""
        if not (record.levelno >= logging.WARNING and record.exc_info):
            return True
        self.cause = self.cause or reason(record.exc_info[1])
        return False

    def failed(self, error: Exception) -> ConfigError:
        """What to say of an error in the first step of what had to be compiled."""
        return ConfigError(
            f"train.compile: true, but torch cannot compile here: {reason(error)}. Install a C++ compiler (and, for a "
            "GPU, Python's headers), or set train.compile to auto or false"
        )


def reason(error: Any) -> str:
    """The line of an error of torch's compiler that says what is wrong, and what the C++ compiler said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = next(
        (line for line in lines if "Error:" in line or "Compiler:" in line), lines[0] if lines else repr(error)
    )
    detail = next((line.partition(" error: ")[2] for line in lines if " error: " in line), "")
    return f"{first}: {detail}" if detail else first


def plain_kernels(device: torch.device) -> None:
    """Kernels for a processor are made without vectors: with them torch 2.13 makes one that crashes of the preparation
    of a batch. And without precompiled headers: of 132 MB, where the /tmp of an image may hold 64."""
    if device.type == "cpu":
        torch._inductor.config.cpp.simdlen = 1
        torch._inductor.config.cpp_cache_precompile_headers = False


def _graphs() -> int:
    return counters["stats"].get("unique_graphs", 0)


def _hear(listener: Compilation) -> None:
    """Only the newest listens: a process has one training, a test several."""
    log = logging.getLogger(_SAYS)
    for old in [each for each in log.filters if isinstance(each, Compilation)]:
        log.removeFilter(old)
    log.addFilter(listener)
