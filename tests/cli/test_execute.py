"""Running stages: what is said, written and returned, with stages made up."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudjob.cli import execute
from cloudjob.cli.dispatch import main
from cloudjob.config import source
from cloudjob.errors import InputError, InterruptedJob
from cloudjob.files import HOST
from cloudjob.hpc import stop
from cloudjob.run.records import Item, Summary

CONFIG = """search:
  polygon: [[-162.0, 68.5], [-162.0, 71.5], [-140.0, 71.5], [-162.0, 68.5]]
  clear: {start: 2024-03-01, end: 2024-03-30, cloud: [0, 1]}
  cloudy: {start: 2024-02-01, end: 2024-04-30, cloud: [5, 50]}
"""
RUN = ("a.yaml", "--run-dir", "run")


class Stages:
    """Stages with the items a, b and c, which do nothing but note that they ran."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, list[str]]] = []  # stage, items that were asked for
        self.outcome: dict[str, Summary | Exception] = {}
        self.stop_files: list[Path] = []

    def module(self, stage: str) -> SimpleNamespace:
        def run(config, folder):
            self.ran.append((stage, list(folder.only)))
            outcome = self.outcome.get(stage, Summary(stage))
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return SimpleNamespace(
            items=lambda config, folder: [Item(stage, name, {}, {}) for name in "abc"],
            run=run,
            stats=lambda config, folder: "the figures",
            apply=lambda config, folder, path: [f"took {path.name}"],
        )


@pytest.fixture
def stages(monkeypatch, tmp_path) -> Stages:
    found = Stages()
    monkeypatch.setattr(execute, "stage_module", found.module)
    monkeypatch.setattr(execute.status, "stage_module", found.module)
    monkeypatch.setattr(stop, "install", found.stop_files.append)  # signals belong to the test's own process
    monkeypatch.delenv("CLOUDJOB_STOP_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(CONFIG)
    return found


def test_stages_run_in_order_from_the_first_to_the_last_that_are_named(stages, capsys):
    assert main(["run", *RUN, "--from", "shard", "--until", "infer", "--set", "seed=7"]) == 0
    assert stages.ran == [("shard", []), ("train", []), ("infer", [])]
    assert "shard train infer in run" in capsys.readouterr().err
    assert source.load(Path("run/config.yaml"))[0].seed == 7
    assert stages.stop_files == [Path("run/STOP")]
    assert main(["run", *RUN, "--from", "infer", "--until", "shard"]) == 2
    assert "--from infer comes after --until shard" in capsys.readouterr().err


def test_one_stage_alone_and_of_it_the_items_that_are_asked_for(stages, monkeypatch, capsys):
    monkeypatch.setenv("CLOUDJOB_STOP_FILE", "jobs/STOP-7")
    assert main(["infer", *RUN, "--index", "2"]) == 0
    assert main(["infer", *RUN, "--only", "a", "--only", "b"]) == 0
    assert stages.ran == [("infer", ["c"]), ("infer", ["a", "b"])]
    assert stages.stop_files == [Path("jobs/STOP-7")] * 2
    for index in ("3", "-1"):
        assert main(["infer", *RUN, f"--index={index}"]) == 2
        assert f"--index {index}: infer has 3 items, 0 to 2" in capsys.readouterr().err
    assert len(stages.ran) == 2


def test_a_failed_item_does_not_keep_the_run_from_the_next_stages_and_ends_it_with_4(stages, capsys):
    stages.outcome["shard"] = Summary("shard", done=["a"], rejected={"b": "too dark"}, failed={"c": "broken"})
    stages.outcome["infer"] = Summary("infer", left_out={"d": "withdrawn"}, failed={"c": "shard of c: broken"})
    stages.outcome["evaluate"] = InputError("infer first")
    assert main(["run", *RUN, "--from", "shard"]) == 4
    assert [stage for stage, _ in stages.ran] == ["shard", "train", "infer", "evaluate", "report"]
    said = capsys.readouterr().err.splitlines()
    assert said[1:] == [
        "shard: 1 done, 0 skipped, 1 rejected, 1 failed, 0.0 s",
        "  rejected b: too dark",
        "  failed c: broken",
        "train: 0 done, 0 skipped, 0 rejected, 0 failed, 0.0 s",
        "infer: 0 done, 0 skipped, 0 rejected, 1 failed, 1 left out, 0.0 s",
        "  left out d: withdrawn",
        "  failed c: shard of c: broken",
        "cloudjob: infer first",
        "report: 0 done, 0 skipped, 0 rejected, 0 failed, 0.0 s",
        "cloudjob: shard, infer have failed items; run the same command again to try them once more",
    ]
    stages.outcome["shard"] = Summary("shard", rejected={"b": "too dark"}, left_out={"d": "withdrawn"})
    assert main(["shard", *RUN]) == 0  # neither a rule's no nor what is gone is a failure


@pytest.mark.parametrize(("error", "code"), [(InputError("search first"), 3), (InterruptedJob("stopped"), 75)])
def test_an_error_of_a_stage_is_one_message_and_its_exit_code(stages, capsys, error, code):
    stages.outcome["shard"] = error
    assert main(["run", *RUN, "--from", "shard"]) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"cloudjob: {error}"
    assert stages.ran == [("shard", [])]


def test_results_go_to_standard_output_and_all_else_to_standard_error(stages, capsys):
    stages.outcome["report"] = Summary("report", output="report: here")
    main(["report", *RUN])
    said = capsys.readouterr()
    assert said.out == "report: here\n"
    assert "report: 0 done" in said.err


def test_only_the_first_rank_speaks_and_writes(stages, monkeypatch, capsys):
    stages.outcome["train"] = Summary("train", output="scores", failed={"run": "broken"})
    for name in ("RANK", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.setenv(name, "1")
        assert main(["train", *RUN]) == 4
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert main(["train", *RUN]) == 4
    assert len(stages.ran) == 5
    assert capsys.readouterr() == ("", "")
    assert not Path("run").exists()
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("RANK", "0")
    main(["train", *RUN])
    assert capsys.readouterr().out == "scores\n"
    assert Path("run/config.yaml").exists()


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "1", "PMI_RANK": "0"}, True),  # mpiexec, by a step on each node
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "PMI_RANK": "5"}, False),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMI_RANK": "0", "RANK": "1"}, False),  # torchrun in a step
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, False),
    ],
)
def test_the_launcher_that_was_started_last_says_who_is_first(monkeypatch, environment, first):
    for name in (*execute._RANKS, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert execute.first_rank() is first


def test_a_dry_run_touches_nothing(stages, capsys):
    assert main(["run", *RUN, "--from", "infer", "--dry-run"]) == 0
    assert main(["review", *RUN, "--apply", "decisions.csv", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if not line.startswith(" ")] == [
        f"{stage:9} 3 missing" for stage in ("infer", "evaluate", "report", "review")
    ]
    assert (stages.ran, stages.stop_files) == ([], [])
    assert not Path("run").exists()


def test_figures_of_shards_and_decisions_of_a_person(stages, capsys):
    assert main(["shard", *RUN, "--stats"]) == 0
    assert capsys.readouterr().out == "the figures\n"
    assert stages.ran == []
    assert main(["review", *RUN, "--apply", "my/decisions.csv"]) == 0
    assert "took decisions.csv" in capsys.readouterr().err
    assert stages.ran == [("review", [])]


def test_a_run_removes_what_killed_processes_left_and_a_single_stage_does_not(stages):
    killed = subprocess.Popen(["true"])
    killed.wait()
    left, own = (Path("run") / f".tmp-{pid}-a@{HOST}.h5" for pid in (killed.pid, os.getpid()))
    for path in (left, own):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    main(["shard", *RUN])
    assert left.exists()
    main(["run", *RUN, "--from", "report"])
    assert not left.exists()
    assert own.exists()
