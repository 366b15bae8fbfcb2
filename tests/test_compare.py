"""A comparison through the front door: killed, stopped, resumed, extended."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import forked
import h5py
import pytest
import yaml
from front_door import CLOUDJOB, CONFIG

pytestmark = pytest.mark.slow

VARIANTS = {
    "ours": {"train": {"epochs": 2}},
    "steps-1": {"from": "ours", "infer.steps": 1},
    "coarse": {"masks.cloud_m": 20, "train.epochs": 2},  # of its own shards
}


def write(path: Path, variants: dict) -> Path:
    base = path.with_name("base.yaml")
    base.write_text(CONFIG.read_text().replace("log_s: 1", "log_s: 0.01"))
    path.write_text(yaml.safe_dump({"base": "base.yaml", "variants": variants}, sort_keys=False))
    return path


def call(code: int, *arguments) -> subprocess.CompletedProcess:
    command = [*CLOUDJOB, "compare", *map(str, arguments)]
    done = forked.run(command)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def end_in(name: str, number: int, root: Path, *arguments) -> int:
    """Starts the comparison, sends the signal as soon as this variant trains, and returns the exit code.
    SIGKILL reaches the children too, as from a scheduler; other signals reach the parent alone."""
    command = [*CLOUDJOB, "compare", *map(str, arguments)]
    process = forked.Forked(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        end = time.monotonic() + 300
        while not (root / name / "train" / "metrics.jsonl").exists():
            assert process.poll() is None, "it ended before it could be stopped"
            assert time.monotonic() < end
            time.sleep(0.01)
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        return process.wait(60)
    finally:
        if process.poll() is None:  # the test has failed: nothing of it goes on
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def records(root: Path) -> dict[Path, int]:
    """All records, but for that of the base's own look-through, and when they were written."""
    found = {path: path.stat().st_mtime_ns for path in root.rglob("records/*/*.json")}
    found.pop(root / "records" / "compare" / "base.json", None)
    return found


def test_a_comparison_killed_goes_on_and_makes_nothing_twice(tmp_path):
    """The short form of the test below."""
    variants = {name: VARIANTS[name] for name in ("ours", "steps-1")}
    root, path = tmp_path / "runs", write(tmp_path / "comparison.yaml", variants)
    arguments = (path, "--run-dir", root)
    assert end_in("ours", signal.SIGKILL, root, *arguments) == -signal.SIGKILL
    before = records(root)
    document = json.loads(call(0, *arguments, "--json").stdout)
    now = records(root)
    assert [path for path in before if now[path] != before[path]] == []
    ours, steps = document["variants"]
    assert ours["training"] == steps["training"]
    assert ours["scores"] != steps["scores"]
    assert document["missing"] == {}
    assert "compare: 0 done, 2 skipped, 0 rejected, 0 failed" in call(0, *arguments).stderr
    assert records(root) == now


@pytest.mark.long
def test_a_comparison_killed_stopped_and_extended_makes_nothing_twice(tmp_path):
    root, path = tmp_path / "runs", write(tmp_path / "comparison.yaml", VARIANTS)
    arguments = (path, "--run-dir", root)
    assert "waits for base" in call(0, *arguments, "--dry-run").stdout
    assert not root.exists()
    assert "--only base" in call(3, *arguments, "--index", 0).stderr
    call(0, *arguments, "--only", "base")
    assert "--only ours" in call(3, *arguments, "--only", "steps-1").stderr

    assert end_in("ours", signal.SIGKILL, root, *arguments) == -signal.SIGKILL
    before = records(root)
    assert end_in("coarse", signal.SIGUSR1, root, *arguments) == 75
    call(0, *arguments, "--index", 0)
    done = call(0, *arguments, "--json")
    now = records(root)
    assert [path for path in before if now[path] != before[path]] == []

    document = json.loads(done.stdout)
    assert json.loads((root / "comparison.json").read_text()) == document
    ours, steps, coarse = document["variants"]
    assert [v["name"] for v in document["variants"]] == list(VARIANTS)
    assert document["missing"] == {}
    assert ours["training"] == steps["training"]
    (shard,) = root.glob("base/shards/train-*.h5")
    with h5py.File(shard) as file:
        assert ours["training"]["samples"] == 8 * round(2 * len(file["mask"]) / 8)  # two epochs, in whole batches
    summary = json.loads((root / "coarse/evaluation/summary.json").read_text())
    assert coarse["scores"]["ours"] == summary["scores"]["test"]["ours"]
    assert ours["scores"] != steps["scores"]
    assert [group["variants"] for group in document["baselines"]] == [["ours", "steps-1"], ["coarse"]]
    assert (root / "comparison.md").read_text().startswith("| variant |")
    assert (root / "comparison.png").stat().st_size > 10_000
    inodes = {name: (root / name / "shards" / shard.name).stat().st_ino for name in VARIANTS}
    assert inodes["ours"] == inodes["steps-1"] == shard.stat().st_ino != inodes["coarse"]

    assert "compare: 0 done, 3 skipped, 0 rejected, 0 failed" in call(0, *arguments).stderr
    wild = {"wild": {"train.lr": 1.0e30}, "of-wild": {"from": "wild", "infer.steps": 1}}
    write(path, wild | VARIANTS)
    extended = call(4, *arguments)
    assert "compare: 0 done, 3 skipped, 0 rejected, 2 failed" in extended.stderr
    assert "failed of-wild: takes the network of wild" in extended.stderr
    assert "Missing: wild (failed" in extended.stdout
    later = records(root)
    assert [path for path in now if later[path] != now[path]] == []
