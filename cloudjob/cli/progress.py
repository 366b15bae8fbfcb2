"""Messages and progress on standard error while a command works."""

import os
import sys
import time

PACE = 30.0  # seconds between lines where there is no terminal


def say(line: str) -> None:
    """Prints a line; on a terminal it replaces the bar, which the next update draws again below it."""
    print(f"{_clear()}{line}", file=sys.stderr, flush=True)


class Progress:
    """Shows the share of the work that is done: a live bar on a terminal, elsewhere one line every 30 seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, share: float, line: str) -> None:
        if sys.stderr.isatty():
            width = _width()
            bar = f"[{'#' * round(20 * share):20}]" if width >= 60 else f"{share:4.0%}"
            print(f"{_clear()}{f'{bar} {line}'[:width]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._said > PACE:
            self._said = time.monotonic()
            say(line)


def _width() -> int:
    """Characters that fit into a line of the terminal, which would begin a new one after the last."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # a terminal that does not tell
        columns = 0
    return (columns or 80) - 1


def _clear() -> str:
    """The escape sequence that erases the bar on a terminal, "" elsewhere."""
    return "\r\x1b[K" if sys.stderr.isatty() else ""
