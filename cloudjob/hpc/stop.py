"""A stop request: a flag that a signal or a STOP file sets and that the stages poll between two steps.

Nothing is saved inside a signal handler. A second Ctrl-C interrupts at once.
"""

import os
import signal
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_state: dict = {"signalled": False, "file": None}


def install(stop_file: Path | None = None) -> None:
    """Installs the signal handlers, in the main thread. A second call changes the file and keeps signals received."""
    _state["file"] = stop_file
    for number in _SIGNALS:
        signal.signal(number, _note)


def requested() -> bool:
    """Whether this process has been asked to stop cleanly."""
    return _state["signalled"] or (
        _state["file"] is not None and os.path.exists(_state["file"])
    )  # a file system in trouble asks for no stop


def _note(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and _state["signalled"]:
        raise KeyboardInterrupt
    _state["signalled"] = True
