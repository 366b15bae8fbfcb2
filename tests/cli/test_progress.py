"""What people see while a command works: on a terminal, and in a log."""

import io
import os
import sys

import pytest

from cloudjob.cli import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_on_a_terminal_a_bar_that_a_line_takes_the_place_of(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    show = progress.Progress()
    show(0.25, "shard: 1 of 4")
    progress.say("a line")
    show(1.0, "x" * 200)
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((40, 24)))
    monkeypatch.setattr(screen, "fileno", lambda: 2)
    show(0.5, "shard: 2 of 4 (S2A_MSIL2A_20240301T222541_N0510)")
    first, said, wide, narrow = screen.getvalue().split("\r\x1b[K")[1:]
    assert first == f"{'█' * 5}{'░' * 15} shard: 1 of 4"
    assert said == "a line\n"
    assert wide.startswith(f"{'█' * 20} xxx")
    assert len(wide) == 79, "a terminal that does not tell its width"
    assert narrow == " 50% shard: 2 of 4 (S2A_MSIL2A_20240301"


def test_elsewhere_a_line_every_half_minute_and_no_codes(monkeypatch, clock):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    show = progress.Progress()
    for now in (1001, 1030, 1031, 1032, 1061, 1062):
        clock[0] = float(now)
        show(0.5, f"at {now}")
    progress.say("end")
    assert log.getvalue() == "at 1031\nat 1062\nend\n"


def test_a_quiet_command_says_what_goes_wrong_and_a_verbose_one_when(monkeypatch, capsys, clock):
    progress.speak(quiet=True)
    for line in ("cloudjob 0.1.0: shard", "cloudjob: no", "  failed a: why", "shard: WARNING: odd", "  rejected b: x"):
        progress.say(line)
    show = progress.Progress()
    clock[0] += 60
    show(0.5, "half")
    assert capsys.readouterr().err.splitlines() == ["cloudjob: no", "  failed a: why", "shard: WARNING: odd"]
    progress.speak(verbose=True)
    show = progress.Progress()
    clock[0] += 2
    show(0.5, "half")
    progress.speak()
    progress.say("end")
    timed, end = capsys.readouterr().err.splitlines()
    assert timed.endswith("  half")
    assert timed[2:6:3] == "::"
    assert end == "end"


def test_when_the_work_ends_is_told_once_it_can_be(monkeypatch, clock):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    show = progress.Progress()
    for seconds, share, stage in ((0, 0.1, "shard"), (4, 0.3, "shard"), (20, 0.5, "shard"), (21, 0.2, "infer")):
        clock[0] = 1000.0 + seconds
        show(share, f"{stage}: on")
    _, first, early, told, other = screen.getvalue().split("\r\x1b[K")
    assert [line.endswith("░ shard: on") for line in (first, early)] == [True, True]
    assert " ends in 25 s, " in told, "40 % took 20 s"
    assert other.endswith("░ infer: on"), "another stage begins anew"
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    clock[0] = 1100.0
    show(0.6, "infer: on")
    assert log.getvalue().startswith("infer: on, ends in 1 min, ")
