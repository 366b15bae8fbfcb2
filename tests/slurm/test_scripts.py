"""What slurm/*.sh submit at three sites, against golden copies; a recording sbatch stands in for SLURM here alone.

To make the copies anew, after looking at the difference: GOLDEN=write pytest tests/slurm
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from front_door import copied

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden")
SCRIPTS = ("fetch", "prepare", "train", "infer", "evaluate", "pipeline")
RECORDER = """#!/bin/bash
# Notes its arguments and the directives that they override, and gives the next number as the id of the job.
number=$(($(wc -l <"$RECORD" 2>/dev/null || echo 0) + 1))
printf 'sbatch' >>"$RECORD"
printf ' %q' "$@" >>"$RECORD"
echo >>"$RECORD"
echo $((100 + number))
"""


@pytest.fixture
def home(tmp_path) -> Path:
    """A checkout with an empty run folder."""
    for name in ("slurm", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "runs" / "reviewed").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(RECORDER)
    (tmp_path / "bin" / "module").write_text("#!/bin/sh\n")
    for tool in (tmp_path / "bin").iterdir():
        tool.chmod(0o755)
    return tmp_path


@pytest.fixture
def reviewed(home, finished) -> Path:
    """The same with a run folder as it is after review: the numbers of its pairs are known."""
    (home / "runs" / "reviewed").rmdir()
    copied(finished, home / "runs" / "reviewed", until="review")
    return home


def start(home: Path, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    """Starts slurm/<script>.sh as on a login node."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "CLOUDJOB_"))}
    environment |= {"PATH": f"{home}/bin:{os.environ['PATH']}", "RECORD": str(home / "record"), **env}
    command = [home / "slurm" / f"{script}.sh", *arguments]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("site", ["generic", "gres", "offline"])
def test_what_is_submitted(reviewed, site):
    home, lines = reviewed, []
    for script, arguments in [
        ("prepare", ["runs/reviewed"]),
        ("train", ["--nodes=2", "runs/reviewed", "--set", "train.lr=2e-4"]),
        ("infer", ["--array=0-1%1", "runs/reviewed"]),
        ("evaluate", ["runs/reviewed"]),
        ("pipeline", ["runs/reviewed"]),
        ("pipeline", ["configs/test.yaml"]),
    ]:
        (home / "record").unlink(missing_ok=True)
        done = start(home, script, *arguments, CLOUDJOB_SITE=site)
        assert done.returncode == 0, done.stderr
        lines += [f"$ slurm/{script}.sh {' '.join(arguments)}", *(home / "record").read_text().splitlines()]
        lines += done.stdout.replace(str(home), "~").splitlines()
    text = "\n".join(lines) + "\n"
    golden = GOLDEN / f"{site}.txt"
    if os.environ.get("GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_head_of_the_script(home, script):
    done = start(home, script, "--help")
    assert done.returncode == 0
    assert f"slurm/{script}.sh" in done.stdout
    assert "SBATCH" not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_appends_to_a_log_with_its_name_and_number(script):
    text = (ROOT / "slurm" / f"{script}.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.M))
    assert options["job-name"] == f"cloudjob-{script}"
    assert options["open-mode"] == "append"
    assert options["output"] == ("%x-%A_%a.out" if script in ("prepare", "infer") else "%x-%j.out")
    if script != "pipeline":
        assert options["signal"].startswith("B:USR1@")
        assert "#SBATCH --requeue" in text


def test_a_mistake_is_one_message_with_its_cure(home):
    for arguments, env, cure in [
        (["configs/nowhere.yaml"], {}, "configs/nowhere.yaml: no such file or run folder"),
        (["runs/reviewed", "shrad"], {}, "shrad: this script does one of: shard pair review"),
        (["runs/reviewed"], {"CLOUDJOB_SITE": "mars"}, "there are: generic.env gres.env offline.env"),
        (["runs/reviewed"], {"CLOUDJOB_IMAGE": "nowhere.sif"}, "build it with containers/build.sh"),
    ]:
        done = start(home, "prepare", *arguments, **env)
        assert done.returncode == 2
        assert cure in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (home / "record").exists()


@pytest.mark.slow
def test_credentials_are_not_in_what_is_submitted(reviewed):
    start(reviewed, "pipeline", "runs/reviewed", CDSE_PASSWORD="hush-hush")
    assert "hush-hush" not in (reviewed / "record").read_text()


def test_locks_are_what_the_constraints_say():
    """The image's packages are those that the tests ran with, but for torch's kind."""
    constraints = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().split())
    for name in ("cpu", "gpu"):
        lock = (ROOT / "containers" / f"{name}.lock").read_text()
        pins = dict(re.findall(r"^(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}$", lock, re.M))
        assert len(pins) == len(lock.splitlines()) - 1
        assert pins["torch"].partition("+")[0] == constraints["torch"]
        for package in pins.keys() & constraints.keys() - {"torch"}:
            assert pins[package] == constraints[package], f"{name}.lock: {package}; run containers/lock.sh"
        declared = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[0]
        needed = re.findall(r'^    "([A-Za-z0-9-]+)[><=]', declared, re.M)
        assert {package.lower() for package in needed} <= pins.keys()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck: apt-get install shellcheck")
def test_shellcheck_has_nothing_to_say():
    files = [path for folder in ("slurm", "containers", "tests/cluster") for path in (ROOT / folder).glob("*.sh")]
    subprocess.run(["shellcheck", "-x", *files, ROOT / ".ci" / "run"], check=True, cwd=ROOT)
    sites = (ROOT / "slurm" / "sites").glob("*.env")
    subprocess.run(["shellcheck", "--shell=bash", "--exclude=SC2034", *sites], check=True)


def noted(home: Path, target: str = "") -> subprocess.CompletedProcess:
    """`note` and `say` of common.sh, into `target` where one is given."""
    program = (
        f"source slurm/common.sh; run_dir=runs/reviewed; {{ note 7 shard 'ended 0'; say --- a job; }} {target}; echo on"
    )
    return subprocess.run(["bash", "-c", program], cwd=home, capture_output=True, text=True, check=False)


def test_a_line_for_status_begins_anew_after_a_torn_one(home):
    log = home / "runs" / "reviewed" / "jobs" / "log.tsv"
    log.parent.mkdir()
    for before in ("", "1\t6\tshard\tended 0\n", "1\t6\tshard\tended 0\n2\t6\tsha"):
        log.write_text(before)
        assert noted(home).stdout == "--- a job\non\n"
        *kept, last = log.read_text().splitlines()
        assert kept == before.splitlines()
        assert last.split("\t")[1:] == ["7", "shard", "ended 0"]


def test_a_full_disk_below_the_logs_ends_no_job(home):
    log = home / "runs" / "reviewed" / "jobs" / "log.tsv"
    log.parent.mkdir()
    log.symlink_to("/dev/full")
    done = noted(home, ">/dev/full")
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")
    shutil.rmtree(log.parent)
    assert noted(home).stdout == "--- a job\non\n"
