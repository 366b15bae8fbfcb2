"""A stop request: a flag that a signal or a STOP file sets and that the stages poll between two steps.

Nothing is saved inside a signal handler. A second Ctrl-C interrupts at once.
"""

import os
import signal
import time
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_LOOK_S = 1.0  # between two looks for the file: a file system that hundreds of ranks ask at each step is slow for all
_state: dict = {"signalled": False, "file": None, "there": False, "looked": -_LOOK_S}


def install(stop_file: Path | None = None) -> None:
    """Installs the signal handlers, in the main thread. A second call changes the file and keeps signals received."""
    _state.update(file=stop_file, there=False, looked=-_LOOK_S)
    for number in _SIGNALS:
        signal.signal(number, _note)


def requested() -> bool:
    """Whether this process has been asked to stop cleanly: by a signal, or within a second by the file."""
    if _state["file"] is not None and time.monotonic() - _state["looked"] >= _LOOK_S:
        # A file system in trouble asks for no stop.
        _state.update(there=os.path.exists(_state["file"]), looked=time.monotonic())
    return _state["signalled"] or _state["there"]


def _note(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and _state["signalled"]:
        raise KeyboardInterrupt
    _state["signalled"] = True
