"""plan, status and items: what is said of done, failed, rejected and missing items, and what mends it."""

import builtins
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudjob.cli import context, status
from cloudjob.cli.dispatch import main
from cloudjob.cli.parser import STAGES
from cloudjob.config import source
from cloudjob.errors import DamagedInputError, InputError, ItemError, LeftOutError, RejectedError
from cloudjob.files import digest, write_json, write_jsonl, write_text
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item

DEMO = str(Path(__file__).resolve().parents[2] / "configs" / "demo.yaml")
METRICS = {"step": 2, "seen": 8, "total": 32, "loss": 0.5, "samples_per_s": 2.0, "time": 0.0}
NAMES = ("done", "rejected", "failed", "new", "newer")


def made(stage: str) -> list[Item]:
    return [Item(stage, name, {}, {}) for name in NAMES]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run folder with one item in each state of `infer`; stages after it wait, those before have no items."""
    folder = RunFolder(tmp_path / "run")

    def make(item: Item):
        if item.name == "rejected":
            raise RejectedError("too dark")
        if item.name == "failed":
            raise ItemError("broken")
        write_text(folder.root / "out.txt", "made")
        return [folder.root / "out.txt"], None

    folder.only = ["done", "rejected", "failed"]
    records.work(folder, "infer", made("infer"), make)

    def items(stage: str) -> list[Item]:
        if stage == "evaluate":
            raise InputError("run infer first")
        return made(stage) if stage == "infer" else []

    monkeypatch.setattr(
        status, "stage_module", lambda stage: SimpleNamespace(items=lambda config, folder: items(stage))
    )
    write_text(folder.config, Path(DEMO).read_text())
    return folder.root


def lines(capsys, *arguments: str, code: int = 0) -> list[str]:
    assert main(list(map(str, arguments))) == code
    return capsys.readouterr().out.splitlines()


def place(said: list[str], stage: str, counts: str) -> int:
    """The number of the line with a stage's row."""
    return next(n for n, line in enumerate(said) if line.startswith(f"{stage} ") and counts in line)


def test_a_damaged_file_is_named_and_who_does_not_read_it_is_shown(run, capsys, monkeypatch):
    def items(stage: str) -> list[Item]:
        if stage == "review":
            raise DamagedInputError("pairs.jsonl: line 3 is not JSON. To make it again: cloudjob pair run")
        return made(stage) if stage == "infer" else []

    monkeypatch.setattr(
        status, "stage_module", lambda stage: SimpleNamespace(items=lambda config, folder: items(stage))
    )
    write_jsonl(run / "train" / "metrics.jsonl", [METRICS])
    with open(run / "train" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 3, "se')
    said = lines(capsys, "plan", run, code=4)
    assert "review    waits: pairs.jsonl: line 3 is not JSON. To make it again: cloudjob pair run" in said
    assert "infer     1 done, 1 rejected, 1 failed, 2 missing" in said
    assert main(["status", str(run)]) == 4
    out, err = capsys.readouterr()
    assert "training  8 of 32 samples" in out
    assert out.count("To make it again: cloudjob pair run") == 1
    assert f"metrics.jsonl:2  cannot be read and is left out (lines: 2); cloudjob train {run}" in err


def test_plan_counts_states_and_says_why_the_others_would_run(run, capsys):
    said = lines(capsys, "plan", run, code=4)
    at = said.index("infer     1 done, 1 rejected, 1 failed, 2 missing")
    assert said[:at] == [f"{stage:9} no items" for stage in list(STAGES)[:7]]
    assert said[at + 1 :] == [
        "            would run failed: failed: broken",
        "            would run new and 1 more: missing",
        "evaluate  waits: run infer first",
        "report    waits, as the one before",
    ]
    document = json.loads("\n".join(lines(capsys, "plan", run, "--json", code=4)))
    assert document["run"] == str(run)
    rows = {row["stage"]: row for row in document["stages"]}
    assert [item["state"] for item in rows["infer"]["items"]] == ["done", "rejected", "failed", "missing", "missing"]
    assert [item["why"] for item in rows["infer"]["items"]] == [None, None, "failed: broken", "missing", "missing"]
    assert rows["report"] == {"stage": "report", "waits": "run infer first", "items": []}


def test_status_says_what_failed_and_the_command_that_mends_it(run, capsys):
    said = lines(capsys, "status", run, code=4)
    at = place(said, "infer", "1 done, 1 rejected, 1 failed, 2 missing")
    assert said[at + 1 : at + 4] == [
        "            failed failed: broken",
        "            rejected rejected: too dark",
        f"            again: sbatch --array=2-4 slurm/infer.sh {run}",
    ]
    assert (said[at + 4].split()[0], said[at + 4].split(maxsplit=1)[1]) == ("evaluate", "waits for an earlier stage")
    assert said[-1] == f"next: cloudjob run {run} --from infer"
    (run / "out.txt").unlink()
    assert f"            again: sbatch --array=0,2-4 slurm/infer.sh {run}" in lines(capsys, "status", run, code=4)


def test_who_is_at_work_is_told(run, capsys):
    folder = RunFolder(run)
    with folder.lease("infer", "new") as lease:
        assert lease.take()
        said = lines(capsys, "status", run, code=4)
        (line,) = (line for line in said if "at work on" in line)
        assert line.startswith(f"            at work on new: process {os.getpid()} on ")
        (held,) = json.loads("\n".join(lines(capsys, "status", run, "--json", code=4)))["leases"]
        assert (held["stage"], held["item"], held["pid"]) == ("infer", "new", os.getpid())
    assert "at work" not in "\n".join(lines(capsys, "status", run, code=4))


def test_without_a_failure_both_end_with_0(run, capsys):
    records.path(RunFolder(run), "infer", "failed").unlink()
    for command in (("plan",), ("status",), ("status", "--json")):
        lines(capsys, *command, run)


def test_status_tells_the_training_and_the_unfinished_jobs(run, capsys):
    folder = RunFolder(run)
    row = {"step": 3, "seen": 96, "total": 320, "loss": 0.5, "samples_per_s": 8.0, "time": time.time() - 100}
    write_jsonl(folder.metrics, [row | {"seen": 64}, row])
    write_text(folder.jobs, "1\t7\ttrain\tsubmitted\n2\t7\ttrain\tended 4\n1\t8\tinfer\tended 0\n")
    said = lines(capsys, "status", run, code=4)
    (training,) = (line for line in said if line.startswith("training"))
    assert training.startswith("training  96 of 320 samples, loss 0.5, 8.0 samples/s, ends in 28 s, ")
    assert training.endswith("; last sign of life 2 min ago")
    assert [line for line in said if line.startswith("job")] == ["job 7 train: exit code 4"]
    document = json.loads("\n".join(lines(capsys, "status", run, "--json", code=4)))
    assert set(document) == {"run", "stages", "training", "leases", "next", "jobs"}
    assert 100 <= document["training"]["last_sign_of_life_s"] < 200
    assert [job["id"] for job in document["jobs"]] == ["7"]
    write_jsonl(folder.metrics, [row | {"samples_per_s": 0}])
    assert "samples/s; last" in "\n".join(lines(capsys, "status", run, code=4))


@pytest.mark.parametrize("text", ["", '{"step": 3'])
def test_metrics_that_cannot_be_read_yet_are_no_training(run, capsys, text):
    write_text(RunFolder(run).metrics, text)
    assert not [line for line in lines(capsys, "status", run, code=4) if line.startswith("training")]


@pytest.mark.slow
def test_every_record_is_read_once_and_a_large_result_not_at_all(finished, tmp_path, monkeypatch, capsys):
    """Of every stage. A run of 500 scenes has some 4,000 records, and one of scored triplets takes a megabyte."""
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    read, load = Counter(), records._read

    def counted(folder, stage, item, result=True):
        found = load(folder, stage, item, result)
        read[stage, item, "result" in found] += 1
        return found

    monkeypatch.setattr(records, "_read", counted)
    assert "missing" not in "".join(lines(capsys, "plan", run))
    assert set(read.values()) == {1}
    assert {stage for stage, *_ in read} == set(STAGES)
    assert {whole for stage, _, whole in read if stage == "evaluate"} == {False}


@pytest.fixture(scope="module")
def made_run(tmp_path_factory) -> RunFolder:
    """A finished run of three cloudy products, each of a tile of its own with two clear ones."""
    folder = RunFolder(tmp_path_factory.mktemp("made") / "run")
    write_text(folder.config, Path(DEMO).read_text())
    config, _ = source.load(folder.config)
    rows, pairs = [], []
    for tile in ("05WPS", "05WPT", "05WPU"):
        cloudy, clear, reference = (
            f"S2A_MSIL2A_2024030{day}T222541_N0510_R029_T{tile}_2024030{day}T231122" for day in (1, 2, 3)
        )
        for name in (cloudy, clear, reference):
            rows.append({"product": name, "id": name, "tile": tile, "roles": ["cloudy" if name == cloudy else "clear"]})
        pair = f"{tile}_20240301T222541_20240302T222541"
        pairs.append(
            {"pair": pair, "cloudy": cloudy, "clear": clear, "reference": reference, "days": 1.0, "reference_days": 2.0}
            | {"version": digest(pair), "accepted": True, "shown": True, "reasons": []}
        )
    write_jsonl(folder.scenes, rows)
    write_jsonl(folder.pairs, pairs)
    write_text(folder.decisions, "pair,decision,reason,reviewer,version\n")
    write_json(folder.shard_index, {"files": []})
    write_json(folder.evaluation, {})

    def make(item: Item):
        output = folder.root / "made" / item.stage / item.name
        write_text(output, item.name)
        return [output], {"of": item.name}

    for stage in STAGES:
        records.work(folder, stage, context.stage_module(stage).items(config, folder), make)
    return folder


@pytest.mark.parametrize("command", ["plan", "status"])
def test_no_file_is_looked_at_twice(command, made_run, monkeypatch, capsys):
    """A run of 500 scenes has 4,000 records and 13,000 outputs: what is done for each of them is waited for."""
    kept = list(made_run.records.rglob("*.json"))
    outputs = [path for path in (made_run.root / "made").rglob("*") if path.is_file()]
    assert len(kept) == len(outputs) > 10 * 3
    seen: dict[str, Counter] = {}

    def count(module, name: str) -> None:
        own = getattr(module, name)
        seen[f"{module.__name__}.{name}"] = counter = Counter()

        def counted(path, *arguments, **options):
            if not isinstance(path, int):
                counter[str(path)] += 1
            return own(path, *arguments, **options)

        monkeypatch.setattr(module, name, counted)

    for module, name in ((os, "open"), (os, "stat"), (os, "listdir"), (io, "open"), (builtins, "open")):
        count(module, name)
    digests, own = Counter(), records.digest
    monkeypatch.setattr(records, "digest", lambda value: (digests.update([json.dumps(value)]), own(value))[1])
    assert "missing" not in "".join(lines(capsys, command, made_run.root))
    opened = seen["os.open"] + seen["io.open"] + seen["builtins.open"]
    assert {str(path) for path in kept} <= opened.keys()
    assert {path: times for path, times in opened.items() if path.startswith(str(made_run.root)) and times > 1} == {}
    assert [seen["os.stat"][str(path)] for path in outputs] == [1] * len(outputs)
    assert not [path for path in seen["os.stat"] if path.startswith(str(made_run.records))]
    assert max(seen["os.listdir"].values()) == 1
    assert max(digests.values()) == 1


def test_items_are_listed_for_an_array(run, capsys):
    assert lines(capsys, "items", "infer", run) == [f"{number}\t{name}" for number, name in enumerate(NAMES)]
    assert lines(capsys, "items", "infer", run, "--missing") == ["2\tfailed", "3\tnew", "4\tnewer"]
    assert lines(capsys, "items", "infer", run, "--failed") == ["2\tfailed"]
    assert lines(capsys, "items", "infer", run, "--missing", "--as-array") == ["2-4"]
    assert lines(capsys, "items", "search", run, "--as-array") == [""]


def test_plan_before_anything_says_what_comes_first_and_touches_nothing(tmp_path, capsys):
    run = tmp_path / "run"
    rows = json.loads("\n".join(lines(capsys, "plan", DEMO, "--run-dir", run, "--json")))["stages"]
    assert [item["why"] for item in rows[0]["items"]] == ["missing"] * 4
    assert "search comes first" in rows[1]["waits"]
    assert not run.exists()


@pytest.mark.slow
def test_answers_need_no_heavy_library(tmp_path):
    """Of the stages too: plan and status import them all."""
    code = (
        "import sys; from cloudjob.cli import context, dispatch, parser; "
        f"dispatch.main(['plan', {DEMO!r}, '--run-dir', {str(tmp_path / 'run')!r}]); "
        f"dispatch.main(['status', {DEMO!r}, '--run-dir', {str(tmp_path / 'run')!r}]); "
        "[context.stage_module(stage) for stage in parser.STAGES]; "
        "heavy = 'torch', 'rasterio', 'numpy', 'requests', 'shapely', 'h5py', 'mpi4py', 'subprocess', 'difflib'; "
        "print([module for module in heavy if module in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_is_left_out_is_named_with_its_reason_and_is_not_missing(run, capsys):
    folder = RunFolder(run)

    def gone(item):
        raise LeftOutError("HTTP 404 withdrawn")

    records.work(folder, "infer", made("infer")[3:4], gone)
    said = lines(capsys, "plan", run, code=4)
    at = said.index("infer     1 done, 1 rejected, 1 left out, 1 failed, 1 missing")
    assert "            left out new: HTTP 404 withdrawn" in said[at:]
    said = lines(capsys, "status", run, code=4)
    at = place(said, "infer", "1 done, 1 rejected, 1 left out, 1 failed, 1 missing")
    assert said[at + 2] == "            left out new: HTTP 404 withdrawn"
    assert said[at + 4] == f"            again: sbatch --array=2,4 slurm/infer.sh {run}"
    assert lines(capsys, "items", "infer", run, "--left-out") == ["3\tnew\tHTTP 404 withdrawn"]
    assert lines(capsys, "items", "infer", run, "--left-out", "--as-array") == ["3"]
    assert lines(capsys, "items", "infer", run, "--missing") == ["2\tfailed", "4\tnewer"]
    row = json.loads("\n".join(lines(capsys, "status", run, "--json", code=4)))["stages"][7]["items"][3]
    del row["seconds"]
    assert row == {"item": "new", "state": "left out", "why": None, "reason": "HTTP 404 withdrawn"}
