"""cloudjob as it is called from a shell, and run folders that have come as far as a test needs them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "test.yaml"
STAGES = ("search", "preview", "pair", "review", "download", "shard", "train", "infer", "evaluate", "report")
CLOUDJOB = (sys.executable, "-m", "cloudjob")
_FOLDERS = {"review": "review", "shard": "shards", "train": "train", "infer": "outputs", "evaluate": "evaluation"}
_FOLDERS |= {"report": "report"}


def call(*arguments, launcher=(), env=None, timeout: float = 300) -> subprocess.CompletedProcess:
    """`cloudjob` with these arguments; with a launcher in real processes."""
    command = [*map(str, launcher), *CLOUDJOB, *map(str, arguments)]
    environment = {**os.environ, **(env or {})}
    if launcher:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    return forked.run(command, env=environment, timeout=timeout)


def good(*arguments, **options) -> subprocess.CompletedProcess:
    done = call(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done


def clean_message(done: subprocess.CompletedProcess, code: int, *words: str) -> None:
    """The right exit code, the words that help, and no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def forget(run: Path, *stages: str) -> None:
    """As if these stages had never run; but downloaded bands stay where they are."""
    for stage in stages:
        shutil.rmtree(run / "records" / stage)
        if stage in _FOLDERS:
            shutil.rmtree(run / _FOLDERS[stage])


def copied(run: Path, target: Path, *, until: str = "report") -> Path:
    """A copy of a finished run that has come as far as `until`."""
    shutil.copytree(run, target)
    forget(target, *STAGES[STAGES.index(until) + 1 :])
    return target


def results(run: Path) -> dict[str, bytes]:
    """The bytes of all that a run is for: shards, the last checkpoint, outputs, scores."""
    newest = max((run / "train" / "checkpoints").glob("step-*.pt"))
    files = [*(run / "shards").iterdir(), newest, *(run / "outputs").rglob("*.*"), *(run / "evaluation").iterdir()]
    files += [run / "scenes.jsonl", run / "pairs.jsonl"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.is_file()}


def same(a: Path, b: Path) -> None:
    one, other = results(a), results(b)
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []
