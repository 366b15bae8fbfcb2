"""How what people read is drawn on standard output: the terminal's width, bars, a table, a few colours."""

import os
import sys
from collections.abc import Sequence

_CODES = {"good": "32", "bad": "31", "dim": "2"}
_ELSEWHERE = 100  # columns where there is no terminal
_BAR = (8, 32)  # columns of a bar
_GAP = "  "


def width() -> int:
    """Columns of the terminal; of `COLUMNS`, where somebody set it; 100 elsewhere."""
    try:
        return int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return _ELSEWHERE


def painted(text: str, look: str) -> str:
    """The text in a colour, on a terminal alone, and not where NO_COLOR is set (no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return text if plain or not look else f"\x1b[{_CODES[look]}m{text}\x1b[0m"


def bar(share: float, columns: int, encoding: str | None) -> str:
    """So much of a bar is full: in eighths of a column, or in # where the output takes no such characters."""
    try:
        "█▏░".encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return f"{'#' * int(share * columns):-<{columns}}"
    eighths = int(share * columns * 8)
    full, part = divmod(eighths, 8)
    return f"{'█' * full}{' ▏▎▍▌▋▊▉'[part] if part else ''}".ljust(columns, "░")


def table(rows: Sequence[tuple[str, float | None, str, str, str]], looks: Sequence[str]) -> list[str]:
    """Lines of (name, share done, counts, rate, end) as wide as the terminal. A row without a share has no bar. What
    does not fit goes: the rate, then the bar."""
    names, _, *texts = zip(*rows, strict=True)
    wide = [max(map(len, column)) for column in texts]
    left = width() - max(9, *map(len, names)) - sum(part + len(_GAP) for part in wide if part) - len(_GAP)
    if left < _BAR[0]:
        left, wide[1] = left + wide[1] + len(_GAP), 0
    columns = 0 if left < _BAR[0] else min(left, _BAR[1])
    lines = []
    for (name, share, *cells), look in zip(rows, looks, strict=True):
        parts = [f"{name:9}"]
        if columns:
            parts.append(" " * columns if share is None else painted(bar(share, columns, sys.stdout.encoding), look))
        parts += [f"{cell:{size}}" for cell, size in zip(cells, wide, strict=True) if size]
        lines.append(_GAP.join(parts).rstrip())
    return lines
