"""Messages and progress on standard error while a command works."""

import sys
import time

WIDTH = 120  # of the bar with its line
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
            bar = f"{_clear()}[{'#' * round(20 * share):20}] {line}"
            print(bar[:WIDTH], end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._said > PACE:
            self._said = time.monotonic()
            say(line)


def _clear() -> str:
    """The escape sequence that erases the bar on a terminal, "" elsewhere."""
    return "\r\x1b[K" if sys.stderr.isatty() else ""
