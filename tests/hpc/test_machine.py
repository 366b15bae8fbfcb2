"""The commit that is recorded is that of this code, and of no repository that it merely lies in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cloudjob

PROGRAM = "from cloudjob.hpc import machine; print(machine.commit())"
FILES = ("__init__.py", "hpc/__init__.py", "hpc/machine.py")


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository of somebody's own with a commit."""
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


def test_a_users_repository_is_not_ours(repository, tmp_path_factory):
    assert said(repository / ".venv/lib/site-packages") == "None"
    assert said(tmp_path_factory.mktemp("nowhere")) == "None"


def test_our_own_says_whether_it_is_changed(repository):
    assert said(repository) == "None"
    git(repository, "add", "cloudjob")
    git(repository, "commit", "-q", "-m", "ours")
    head = git(repository, "rev-parse", "--short", "HEAD")
    assert said(repository) == head
    assert said(repository, GIT_DIR="/nowhere") == head  # as a hook of git sets it
    (repository / "cloudjob" / "more.py").touch()
    assert said(repository) == f"{head}+"
