"""config.yaml is written when the checks are passed, and stays as it was where a command is refused."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudjob.cli import execute
from cloudjob.cli.dispatch import main
from cloudjob.cli.traces import _shown
from cloudjob.config import source
from cloudjob.errors import ConfigError, InputError
from cloudjob.hpc import stop
from cloudjob.run import records
from cloudjob.run.records import Item

CONFIG = """search:
  polygon: [[-162.0, 68.5], [-162.0, 71.5], [-140.0, 71.5], [-162.0, 68.5]]
  clear: {start: 2024-03-01, end: 2024-03-30, cloud: [0, 1]}
  cloudy: {start: 2024-02-01, end: 2024-04-30, cloud: [5, 50]}
train: {lr: 4.0e-4}
"""
RUN = Path("run")


class Stages:
    """Each stage has the items a and b, which depend on the seed; `raises` is raised before, in or after an item."""

    def __init__(self) -> None:
        self.raises: dict[tuple[str, str], Exception] = {}
        self.during = lambda: None

    def module(self, stage: str) -> SimpleNamespace:
        def items(config, folder):
            return [Item(stage, name, {"seed": config.seed}, {}) for name in "ab"]

        def check(when):
            if error := self.raises.get((stage, when)):
                raise error

        def make(item):
            check("in")
            self.during()
            return [], None

        def run(config, folder):
            check("before")
            summary = records.work(folder, stage, items(config, folder), make)
            check("after")
            return summary

        return SimpleNamespace(items=items, run=run)


@pytest.fixture
def stages(monkeypatch, tmp_path) -> Stages:
    found = Stages()
    monkeypatch.setattr(execute, "stage_module", found.module)
    monkeypatch.setattr(stop, "install", lambda path: None)
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(CONFIG)
    return found


def config() -> bytes | None:
    path = RUN / "config.yaml"
    return path.read_bytes() if path.exists() else None


def codes() -> list[int]:
    path = RUN / "jobs" / "history.jsonl"
    return [json.loads(line)["exit_code"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(("error", "code"), [(ConfigError("no"), 2), (InputError("no"), 3)])
@pytest.mark.parametrize("when", ["before", "in", "after"])
@pytest.mark.parametrize("new", [True, False])
def test_a_command_that_is_refused_leaves_the_configuration_byte_for_byte(stages, error, code, when, new, capsys):
    if not new:
        assert main(["train", "a.yaml", "--run-dir", "run"]) == 0
    before = config()
    stages.raises["train", when] = error
    what = ["run"] if before else ["a.yaml", "--run-dir", "run"]
    assert main(["train", *what, "--set", "seed=9"]) == code
    assert config() == before
    assert codes() == [0] * (not new) + [code] * (when != "before")
    assert ("run/config.yaml is as it was before" in capsys.readouterr().err) == (when != "before")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--only", "c"),
        ("--index", "2"),
        ("--set", "seed=x"),
        ("--set", "infer.checkpoint=missing.pt"),
        ("--set", "infer.checkpoint=$NOT_SET_HERE/a.pt"),
    ],
)
def test_what_can_be_checked_is_checked_before_anything_is_written_or_served(stages, monkeypatch, wrong):
    monkeypatch.setattr(execute, "data_space", lambda *_: pytest.fail("the archive is made"))
    assert main(["infer", "a.yaml", "--run-dir", "run", "--set", "seed=9", *wrong]) in (2, 3)
    assert not RUN.exists()


def test_a_missing_checkpoint_is_said_before_the_stages_that_come_first(stages, capsys):
    assert main(["run", "a.yaml", "--run-dir", "run", "--set", "infer.checkpoint=missing.pt"]) == 3
    assert "missing.pt does not exist" in capsys.readouterr().err
    assert not RUN.exists()


def test_what_takes_effect_is_said_and_kept(stages, capsys):
    assert main(["train", "a.yaml", "--run-dir", "run", "--set", "train.lr=2e-4"]) == 0
    assert "train.lr: 4e-4 -> 2e-4" in capsys.readouterr().err.splitlines()
    assert main(["train", "run", "--set", "seed=9"]) == 0
    said = capsys.readouterr().err
    assert "seed: 0 -> 9" in said.splitlines()
    assert "train.lr" not in said
    found = source.load(RUN / "config.yaml")[0]
    assert (found.train.lr, found.seed) == (2e-4, 9)
    before = (RUN / "config.yaml").stat().st_ino
    assert main(["train", "run"]) == 0
    assert "->" not in capsys.readouterr().err
    assert (RUN / "config.yaml").stat().st_ino == before  # 500 tasks do not write it anew
    assert codes() == [0, 0, 0]


def test_what_an_earlier_stage_made_it_made_with_this_configuration(stages):
    stages.raises["infer", "before"] = InputError("no")
    assert main(["run", "a.yaml", "--run-dir", "run", "--from", "train", "--until", "infer", "--set", "seed=9"]) == 3
    assert source.load(RUN / "config.yaml")[0].seed == 9
    before = config()  # but where the earlier stages had nothing to make
    assert main(["run", "run", "--from", "train", "--until", "infer", "--set", "train.lr=1"]) == 3
    assert config() == before


def test_two_commands_at_once_keep_both_of_their_settings(stages, monkeypatch):
    main(["train", "a.yaml", "--run-dir", "run"])
    nested = iter([["infer", "run", "--set", "infer.steps=7"]])
    # The other one begins while this one has read the configuration, and not yet written it.
    inner = execute._check

    def check(*arguments):
        inner(*arguments)
        for command in nested:
            assert main(command) == 0

    monkeypatch.setattr(execute, "_check", check)
    assert main(["train", "run", "--set", "seed=9"]) == 0
    found = source.load(RUN / "config.yaml")[0]
    assert (found.seed, found.infer.steps) == (9, 7)


def test_what_another_command_has_written_is_not_taken_back(stages):
    main(["train", "a.yaml", "--run-dir", "run"])
    stages.raises["train", "after"] = ConfigError("no")
    stages.during = lambda: (RUN / "config.yaml").write_text("another's")
    assert main(["train", "run", "--set", "seed=9"]) == 2
    assert config() == b"another's"


def test_other_ranks_leave_nothing(stages, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main(["infer", "a.yaml", "--run-dir", "run", "--set", "seed=9"]) == 0
    assert config() is None
    assert codes() == []


def test_a_failed_item_and_a_bug_are_in_the_history(stages):
    def fail():
        raise execute.ItemError("no")

    stages.during = fail
    assert main(["infer", "a.yaml", "--run-dir", "run"]) == 4
    stages.raises["train", "in"] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["train", "run"])
    assert codes() == [4, 1]


@pytest.mark.parametrize(
    ("value", "text"),
    [(4e-4, "4e-4"), (0.05, "0.05"), (1.0, "1.0"), (1.5e-7, "1.5e-7"), (3, "3"), (None, "null"), ("a b", "a b")],
)
def test_values_are_told_as_one_writes_them(value, text):
    assert _shown(value) == text
    assert len(_shown(list(itertools.repeat(0.25, 100)))) == 60
