"""The history of a run folder: who ran what, and how it ended."""

import getpass
import json
import multiprocessing
from datetime import UTC, datetime

import pytest

from cloudjob import __version__
from cloudjob.errors import ConfigError, InputError, InterruptedJob
from cloudjob.files import HOST
from cloudjob.run.folder import RunFolder
from cloudjob.run.history import Entry


def rows(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in folder.history.read_text().splitlines()] if folder.history.exists() else []


def test_a_line_says_when_who_where_what_and_how_it_ended(tmp_path):
    folder = RunFolder(tmp_path)
    before = datetime.now(UTC).replace(microsecond=0)
    with Entry(folder, "train", ["train.lr=2e-4"]) as entry:
        entry.code = 4
    (row,) = rows(folder)
    assert before <= datetime.fromisoformat(row.pop("time")) <= datetime.now(UTC)
    assert 0 <= row.pop("seconds") < 5
    assert row == {
        "user": getpass.getuser(),
        "host": HOST,
        "version": __version__,
        "command": "train",
        "overrides": ["train.lr=2e-4"],
        "exit_code": 4,
    }


@pytest.mark.parametrize(
    ("error", "begins", "code"),
    [
        (ConfigError("no"), False, None),
        (InputError("no"), False, None),
        (ConfigError("no"), True, 2),
        (InterruptedJob("later"), False, 75),
        (KeyboardInterrupt(), True, 75),
        (ZeroDivisionError(), True, 1),
    ],
)
def test_a_command_that_fails_leaves_a_line_unless_it_was_refused_before_it_began(tmp_path, error, begins, code):
    folder = RunFolder(tmp_path)

    def command():
        with Entry(folder, "infer"):
            if begins:
                folder.begin()
            raise error

    with pytest.raises(type(error)):
        command()
    assert [row["exit_code"] for row in rows(folder)] == ([] if code is None else [code])


def test_no_run_folder_is_made_for_the_history_alone(tmp_path):
    with Entry(RunFolder(tmp_path / "run"), "archive make") as entry:
        entry.begin()
    assert not (tmp_path / "run").exists()


def test_a_history_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "jobs").touch()
    with Entry(RunFolder(tmp_path), "infer"):
        pass


def test_a_user_whom_the_container_does_not_know_has_a_number(tmp_path, monkeypatch):
    def unknown():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", unknown)
    folder = RunFolder(tmp_path)
    with Entry(folder, "infer"):
        pass
    assert rows(folder)[0]["user"].isdecimal()


def _write(root, number):
    for _ in range(20):
        with Entry(RunFolder(root), "infer", [f"seed={number}", "x" * 3000]):
            pass


@pytest.mark.slow
def test_tasks_of_an_array_do_not_mix_their_lines(tmp_path):
    context = multiprocessing.get_context("fork")
    tasks = [context.Process(target=_write, args=(tmp_path, number)) for number in range(4)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    assert len(rows(RunFolder(tmp_path))) == 80
