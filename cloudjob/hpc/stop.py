"""The wish to stop: a flag, set by a signal or by a STOP file, polled by the stages between two steps.

Nothing is saved inside a signal handler. A second Ctrl-C does interrupt at once.
"""

import signal
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_state: dict = {"signalled": False, "file": None}


def install(stop_file: Path | None = None) -> None:
    """Listen from now on, in the main thread. Again: looks for another file, and forgets no signal."""
    _state["file"] = stop_file
    for number in _SIGNALS:
        signal.signal(number, _note)


def requested() -> bool:
    """Whether somebody asked this process to stop in good order."""
    return _state["signalled"] or (_state["file"] is not None and _state["file"].exists())


def _note(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and _state["signalled"]:
        raise KeyboardInterrupt
    _state["signalled"] = True
