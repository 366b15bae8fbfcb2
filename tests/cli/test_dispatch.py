"""The front door: what went wrong becomes one message and an exit code."""

import errno
import subprocess
import sys

import pytest

from cloudjob import errors
from cloudjob.cli import dispatch


@pytest.fixture
def command(monkeypatch):
    """A function that runs `cloudjob plan` with this error raised in it, and returns its exit code."""

    def run(error: BaseException | None) -> int:
        def plan(arguments):
            if error is not None:
                raise error
            return 0

        def leave(code: int):
            raise SystemExit(code)

        monkeypatch.setitem(dispatch.COMMANDS, "plan", plan)
        monkeypatch.setattr(dispatch, "_leave", leave)
        return dispatch.main(["plan", "a.yaml"])

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("wrong key"), 2),
        (errors.InputError("search first"), 3),
        (errors.ItemError("broken"), 4),
        (errors.InterruptedJob("stopped"), 75),
        (errors.LostRankError("rank 1"), 76),
    ],
)
def test_an_error_of_ours_is_one_line_and_its_code(command, capsys, error, code):
    assert command(error) == code
    assert capsys.readouterr().err == f"cloudjob: {error}\n"


def test_what_another_rank_has_said_is_not_said_again(command, capsys):
    error = errors.ConfigError("wrong key")
    error.said = True
    assert command(error) == 2
    assert capsys.readouterr().err == ""


def test_an_interrupt_says_how_to_go_on(command, capsys):
    assert command(KeyboardInterrupt()) == 75
    assert "run the same command again" in capsys.readouterr().err


def test_a_full_disk_ends_the_process_at_once_with_4(command, capsys):
    for error, words in (
        (errors.DiskFullError("no room for a.h5"), "no room for a.h5"),
        (OSError(errno.ENOSPC, "No space left on device", "b.h5"), "b.h5: no space left on the disk"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "no space left on the disk ("),
    ):
        with pytest.raises(SystemExit) as caught:
            command(error)
        assert caught.value.code == 4
        assert words in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(command):
    with pytest.raises(ValueError, match="a bug"):
        command(ValueError("a bug"))


def test_an_error_of_the_system_that_nobody_caught_is_one_line_and_4(command, capsys):
    for error, words in (
        (OSError(errno.EIO, "Input/output error", "a.h5"), "cloudjob: a.h5: Input/output error: "),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "cloudjob: Broken pipe: "),  # of a helper, not of our output
    ):
        assert command(error) == 4
        said = capsys.readouterr().err
        assert said.startswith(words)
        assert said.count("\n") == 1


def test_answers_that_were_lost_are_not_0_but_files_that_were_made_are(command, capsys, monkeypatch):
    monkeypatch.setattr(dispatch.streams, "unsaid", lambda: OSError(errno.EIO, "Input/output error"))
    assert command(None) == 4
    assert "standard output: Input/output error" in capsys.readouterr().err
    monkeypatch.setitem(dispatch.COMMANDS, "run", lambda arguments: 0)
    assert dispatch.main(["run", "a.yaml"]) == 0


def test_good_is_0(command, capsys):
    assert command(None) == 0
    assert capsys.readouterr() == ("", "")


def test_help_waits_for_no_library():
    code = (
        "import sys; from cloudjob.cli.dispatch import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print([m for m in ('pydantic', 'pydantic_core', 'yaml', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("name", "looks"), [("plan", True), ("items", True), ("run", False)])
def test_only_who_makes_something_collects_garbage(name, looks, monkeypatch):
    done = []
    monkeypatch.setattr(dispatch.gc, "disable", lambda: done.append("disable"))
    monkeypatch.setattr(dispatch.atexit, "register", done.append)
    monkeypatch.setitem(dispatch.COMMANDS, name, lambda arguments: 0)
    assert dispatch.main([name, *["infer"] * (name == "items"), "a.yaml"]) == 0
    assert done == (["disable", dispatch.gc.freeze] if looks else [])
