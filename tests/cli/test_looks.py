"""How status is drawn: as wide as the terminal, in colours on a terminal alone."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.cli import looks

ROWS = [
    ("stage", None, "items", "one takes", "the rest is made"),
    ("preview", 0.5, "2 done, 2 missing", "4.2 s each", "in 8.4 s, Sun 06:28"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_without_no_color(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert looks.painted("a", "bad") == "\x1b[31ma\x1b[0m"
    assert looks.painted("a", "") == "a"
    monkeypatch.setenv("NO_COLOR", "1")
    assert looks.painted("a", "bad") == "a"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert looks.painted("a", "bad") == "a"


@given(st.floats(0, 1), st.integers(8, 40))
def test_a_bar_has_its_width_and_grows(share, columns):
    text = looks.bar(share, columns, "utf-8")
    assert len(text) == columns
    assert text.count("█") == int(share * columns)


def test_a_bar_of_ascii_where_the_output_takes_no_more():
    assert looks.bar(0.5, 8, "ascii") == "####----"
    assert looks.bar(0.5, 8, None) == "████░░░░"


@pytest.mark.parametrize("columns", [60, 70, 79, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal_and_the_counts_always_stay(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = looks.table(ROWS, ["", ""])
    assert max(map(len, lines)) <= columns
    assert "2 done, 2 missing" in lines[1]
    assert ("4.2 s each" in lines[1]) == (columns > 78)
    assert lines[0].index("items") == lines[1].index("2 done")
