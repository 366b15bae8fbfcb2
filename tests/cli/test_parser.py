"""The command line: what it offers, and what it refuses."""

from pathlib import Path

import pytest

from cloudjob import __version__
from cloudjob.cli import parser
from cloudjob.cli.dispatch import COMMANDS, main
from cloudjob.hpc import machine


def test_help_names_every_stage_and_ends_with_how_to_resume(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"    {stage} " in text for stage in parser.STAGES)
    assert text.rstrip().endswith("To resume, run the same command again: only what is missing is made.")


@pytest.mark.parametrize(("commit", "more"), [("abc+", " (abc+)"), (None, "")])
def test_version_says_the_commit_where_there_is_one(commit, more, monkeypatch, capsys):
    monkeypatch.setattr(machine, "commit", lambda: commit)
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"cloudjob {__version__}{more}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run"],
        ["archive"],
        ["train", "a.yaml", "--index", "x"],
        ["run", "a.yaml", "--from", "x"],
        ["search", "a.yaml", "--apply", "d.csv"],
        ["items", "infer", "a.yaml", "--missing", "--failed"],
        ["compare", "a.yaml", "--only", "ours", "--index", "0"],
        ["restore", "--checkpoint", "c.pt", "--out", "d"],
        ["restore", "a.tif", "--out", "d"],
        ["restore", "a.tif", "--checkpoint", "c.pt"],
        ["restore", "a.tif", "--checkpoint", "c.pt", "--out", "d", "--scale", "x"],
    ],
)
def test_usage_mistakes_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: cloudjob" in capsys.readouterr().err


def test_every_command_has_its_function_and_the_other_way_round():
    assert set(parser.Parser().commands.choices) == set(COMMANDS)


def test_what_a_command_line_says():
    run = parser.parse(["run", "a.yaml"])
    assert (run.command, run.config, run.first, run.last, run.set) == (
        "run",
        Path("a.yaml"),
        "search",
        "report",
        [],
    )
    infer = parser.parse(
        ["infer", "runs/a", "--only", "x", "--only", "y", "--set", "infer.steps=2", "--set", "seed=1", "--force"]
    )
    assert (infer.only, infer.set, infer.force, infer.index) == (["x", "y"], ["infer.steps=2", "seed=1"], True, None)
    assert parser.parse(["train", "a.yaml"]).set == []  # not what an earlier command line gave
    train = parser.parse(["train", "a.yaml", "--init-from", "a.pt", "--index", "3"])
    assert (train.init_from, train.index, train.only) == (Path("a.pt"), 3, [])
    serve = parser.parse(["archive", "serve", "products"])
    assert (serve.command, serve.action, serve.port) == ("archive", "serve", 8765)
    assert parser.parse(["bench", "read"]).dir is None


def test_home_and_variables_are_put_into_paths_and_a_name_that_exists_is_meant(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("NOT_SET", raising=False)
    found = parser.parse(["train", "~/a.yaml", "--run-dir=$HOME/run", "--init-from=~/w.pt"])
    assert [found.config, found.run_dir, found.init_from] == [
        Path("/home/me") / name for name in ("a.yaml", "run", "w.pt")
    ]
    (tmp_path / "$NOT_SET").mkdir()
    assert parser.parse(["plan", "$NOT_SET"]).config == Path("$NOT_SET")
    with pytest.raises(SystemExit) as caught:
        parser.parse(["plan", "a.yaml", "--run-dir", "$NOT_SET/run"])
    assert caught.value.code == 2
    assert "argument --run-dir: $NOT_SET/run: $NOT_SET is not set" in capsys.readouterr().err
