"""Messages and progress on standard error while a command works."""

import os
import sys
import time

from cloudjob.cli import looks, story

PACE = 30.0  # seconds between lines where there is no terminal
_VERBOSE_PACE = 1.0
_KNOWN = 5.0  # seconds of work before its end is told
_WRONG = ("cloudjob: ", "  failed ")  # how a line begins that a quiet command says too, beside any WARNING
_quiet = _verbose = False


def speak(*, quiet: bool = False, verbose: bool = False) -> None:
    """How much this process says: only what goes wrong, or each step with the time."""
    global _quiet, _verbose
    _quiet, _verbose = quiet, verbose


def is_quiet() -> bool:
    return _quiet


def say(line: str) -> None:
    """Prints a line; on a terminal it replaces the bar, which the next update draws again below it."""
    if _quiet and not line.startswith(_WRONG) and "WARNING" not in line:
        return
    clock = time.strftime("%H:%M:%S  ") if _verbose else ""
    print(f"{_clear()}{clock}{line}", file=sys.stderr, flush=True)


class Progress:
    """Shows the share of the work that is done: a live bar on a terminal, elsewhere one line every 30 seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()
        self._first = ("", 0.0, self._said)  # the work that is shown: what, the share at first, when that was

    def __call__(self, share: float, line: str) -> None:
        if _quiet:
            return
        end = self._end(share, line.partition(":")[0])
        if sys.stderr.isatty():
            width = _width()
            shown = looks.bar(share, 20, sys.stderr.encoding) if width >= 60 else f"{share:4.0%}"
            print(f"{_clear()}{f'{shown} {end}{line}'[:width]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._said > (_VERBOSE_PACE if _verbose else PACE):
            self._said = time.monotonic()
            say(f"{line}{f', {end[:-2]}' if end else ''}")

    def _end(self, share: float, what: str) -> str:
        """When the work ends if it goes on as it has since it was first seen; "" before that can be told."""
        now = time.monotonic()
        if what != self._first[0] or share < self._first[1]:
            self._first = what, share, now
        _, first, since = self._first
        if share <= first or now - since < _KNOWN or share >= 1:
            return ""
        return f"ends {story.end((now - since) * (1 - share) / (share - first))}; "


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
