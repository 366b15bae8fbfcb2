"""The commit that is recorded is that of this code, and of no repository that it merely lies in; how many cores a
process takes is what it was told, and what it may run on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cloudjob
from cloudjob.hpc import machine

PROGRAM = "from cloudjob.hpc import machine; print(machine.commit())"
FILES = ("__init__.py", "hpc/__init__.py", "hpc/machine.py", "hpc/slurm.py")


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository of somebody's own with a commit."""
    if not shutil.which("git"):
        pytest.skip("no git")
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "mine")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", folder, "-c", "user.name=n", "-c", "user.email=n@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def said(folder: Path, **env: str) -> str:
    """What the code in a folder takes for its commit; it is put there first."""
    for file in FILES:
        target = folder / "cloudjob" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(cloudjob.__file__).parent / file, target)
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **env}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, cwd=folder
    ).stdout.strip()


@pytest.mark.slow
def test_a_users_repository_is_not_ours(repository, tmp_path_factory):
    assert said(repository / ".venv/lib/site-packages") == "None"
    nowhere = tmp_path_factory.mktemp("nowhere")
    assert said(nowhere) == "None"
    assert said(nowhere, CLOUDJOB_COMMIT="abc") == "abc"  # as in the image


@pytest.mark.slow
def test_our_own_says_whether_it_is_changed(repository):
    assert said(repository) == "None"
    git(repository, "add", "cloudjob")
    git(repository, "commit", "-q", "-m", "ours")
    head = git(repository, "rev-parse", "--short", "HEAD")
    assert said(repository) == head
    assert said(repository, CLOUDJOB_COMMIT="abc") == head
    assert said(repository, GIT_DIR="/nowhere") == head  # as a hook of git sets it
    (repository / "cloudjob" / "more.py").touch()
    assert said(repository) == f"{head}+"


@pytest.mark.parametrize(
    ("omp", "slurm", "expected"),
    [
        (None, None, 6),
        ("2", None, 2),
        ("4,2", None, 4),  # threads by level of nesting
        ("8", None, 8),
        ("0", None, 6),
        ("many", None, 6),
        (None, "2", 2),
        (None, "16", 6),
        (None, "0", 6),
        ("4", "2", 4),
    ],
)
def test_cores_are_those_asked_for_or_those_it_may_run_on(monkeypatch, omp, slurm, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in (("OMP_NUM_THREADS", omp), ("SLURM_CPUS_PER_TASK", slurm)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert machine.cores() == expected


@pytest.mark.slow
@pytest.mark.parametrize(("given", "said"), [(None, "None"), ("1", "1")])
def test_what_torchrun_says_for_want_of_a_user_does_not_count(given, said):
    """It gives each of its ranks one thread, unless the user has set a number."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": given} if given else {}
    program = "import sys; from cloudjob.hpc import machine; sys.stdout.write(f'{machine.threads_asked_for()}\\n')"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command = [sys.executable, *launcher, sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == [said] * 2
