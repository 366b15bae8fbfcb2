"""What slurm/*.sh submit at three sites, against golden copies; a recording sbatch stands in for SLURM here alone.

To make the copies anew, after looking at the difference: GOLDEN=write pytest tests/slurm
"""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from front_door import copied

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden")
SCRIPTS = ("fetch", "prepare", "train", "infer", "evaluate", "pipeline")
ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN")
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


def test_without_slurm_the_command_that_needs_none_is_named(home):
    tools = home / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "basename", "mkdir", "hostname", "realpath", "sed", "tr"):
        (tools / name).symlink_to(shutil.which(name))
    stubbed(home, "0-1")
    (home / "bin" / "sbatch").unlink()
    commands = {"train": "torchrun --nproc-per-node=gpu -m cloudjob train", "infer": "mpiexec -n 4 cloudjob infer"}
    for script, command in commands.items():
        done = start(home, script, "runs/reviewed", PATH=f"{home}/bin:{tools}")
        assert done.returncode == 2
        assert "no SLURM on " in done.stderr
        assert f"Without SLURM: {command} runs/reviewed" in done.stderr
    said = "fatal: Could not establish a configuration source"
    (home / "bin" / "sbatch").write_text(f"#!/bin/bash\necho '{said}' >&2; exit 1\n")
    (home / "bin" / "sbatch").chmod(0o755)
    assert "belongs to no cluster" in start(home, "train", "runs/reviewed").stderr


@pytest.mark.parametrize("script", ["pipeline", "train"])
def test_what_fails_is_said_before_anything_is_submitted(home, script):
    stubbed(home, "0-1")
    text = '[[ $1 != doctor ]] || { echo "fail  run folder  no"; printf "%s " "$@" >>"$RECORD-doctor"; exit 4; }'
    (home / "bin" / "cloudjob").write_text(f"#!/bin/bash\n{text}\n")
    done = start(home, script, "runs/reviewed", "--set", "seed=1", "--force")
    assert done.returncode == 2
    assert "fail  run folder  no" in done.stderr
    assert "mend what fails above" in done.stderr
    assert not (home / "record").exists()
    asked = (home / "record-doctor").read_text()
    assert asked == "doctor runs/reviewed --run-dir runs/reviewed --quick --quiet --set seed=1 "


@pytest.mark.parametrize(
    ("job", "made", "cancelled"),
    [
        ({"SLURM_JOB_ID": "12"}, "", ["13", "14"]),
        ({"SLURM_JOB_ID": "12"}, "1", None),
        ({"SLURM_JOB_ID": "99", "SLURM_ARRAY_JOB_ID": "12", **dict.fromkeys(ARRAY, "3")}, "", ["13", "14"]),
        ({"SLURM_JOB_ID": "99", "SLURM_ARRAY_JOB_ID": "12", **dict(zip(ARRAY, "43", strict=True))}, "", None),
        ({"SLURM_JOB_ID": "14"}, "", []),
    ],
    ids=["nothing", "something", "first task", "other task", "last"],
)
def test_a_stage_that_made_nothing_ends_the_chain(home, job, made, cancelled):
    """Items 0 to 2, of which those in `made` are done."""
    (home / "chain").write_text("11\n12\n13\n14\n")
    (home / "bin" / "scancel").write_text('#!/bin/sh\necho "$@" >cancelled\n')
    (home / "bin" / "scancel").chmod(0o755)
    program = (
        "source slurm/common.sh\n"
        'items() { if [[ "${2:-}" == --missing ]]; then tr -d "$MADE" <<<012; else echo 012; fi; }\n'
        "look_before pair\n"
        "echo goes on"
    )
    environment = {"PATH": f"{home}/bin:{os.environ['PATH']}", "CLOUDJOB_CHAIN": "chain", "MADE": made or "x", **job}
    done = subprocess.run(
        ["bash", "-c", program], cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    if cancelled is None:
        assert (done.returncode, done.stdout) == (0, "goes on\n"), done.stderr
    else:
        assert (done.returncode, done.stdout) == (3, "")
        assert "pair has made nothing" in done.stderr
    said = home / "cancelled"
    assert (said.read_text().split() if said.exists() else []) == (cancelled or [])


def stubbed(home: Path, items: str, **tools: str) -> None:
    """A cloudjob that lists these items and notes what else it is asked for, and tools of SLURM that say this."""
    (home / ".venv").unlink()
    tools["cloudjob"] = f'[[ "$1" == items ]] && echo {items} || printf "%s\\n" "$@" >>"$RECORD-cloudjob"'
    for name, text in tools.items():
        (home / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (home / "bin" / name).chmod(0o755)


def submitted(home: Path) -> list[list[str]]:
    """The arguments of each call of sbatch."""
    return [shlex.split(line)[2:] for line in (home / "record").read_text().splitlines()]


def indices(text: str) -> set[int]:
    """What SLURM makes of --array, without the throttle."""
    found = set()
    for part in text.removeprefix("--array=").partition("%")[0].split(","):
        first, last, step = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part).groups()
        found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


@pytest.mark.parametrize(
    ("items", "limit", "wanted"),
    [
        ("0-1199", 1001, set(range(1200))),
        ("0-2,7,999-1003,4711", 1000, {0, 1, 2, 7, *range(999, 1004), 4711}),
        ("0-11:5,3-20%4", 7, {0, 5, 10, *range(3, 21)}),
        ("5", 1001, {5}),
        ("3-4", 1, {3, 4}),
    ],
)
def test_an_array_is_submitted_in_parts_that_slurm_takes_each_with_the_offset_of_its_items(home, items, limit, wanted):
    stubbed(home, items, scontrol=f"echo 'MaxArraySize            = {limit}'")
    done = start(home, "prepare", "runs/reviewed", "--set", "seed=1")
    assert done.returncode == 0, done.stderr
    found: set[int] = set()
    calls = submitted(home)
    for array, script, *rest in calls:
        assert script == "slurm/prepare.sh"
        offset = int(rest.pop(0).removeprefix("--offset=")) if rest[0].startswith("--offset=") else 0
        assert rest == ["runs/reviewed", "shard", "--set", "seed=1"]
        assert max(indices(array)) < limit
        assert array.endswith("%4") == items.endswith("%4")
        part = {index + offset for index in indices(array)}
        assert not part & found
        found |= part
    assert found == wanted
    log = [line.split("\t") for line in (home / "runs/reviewed/jobs/log.tsv").read_text().splitlines()]
    assert len({name for _, _, name, _ in log}) == len(calls)  # status tells the parts apart
    ids = " and ".join(str(101 + number) for number in range(len(calls)))
    assert f"as job {ids}\n" in done.stdout


def test_a_site_without_arrays_gets_one_job(home):
    stubbed(home, "0-5", scontrol="echo 'MaxArraySize            = 0'")
    assert start(home, "prepare", "runs/reviewed").returncode == 0
    assert submitted(home) == [["--output=%x-%j.out", "slurm/prepare.sh", "runs/reviewed", "shard"]]


def test_the_array_that_one_asks_for_is_cut_too_and_a_refused_part_ends_it(home):
    stubbed(home, "0-5", scontrol="echo 'MaxArraySize            = 1001'")
    assert start(home, "prepare", "--array=1000-1002%2", "runs/reviewed").returncode == 0
    assert [call[0] for call in submitted(home)] == ["--array=1000%2", "--array=0-1%2"]
    stubbed_sbatch = "echo 'sbatch: error: Invalid account' >&2; exit 1"
    (home / "bin" / "sbatch").write_text(f"#!/bin/bash\n{stubbed_sbatch}\n")
    done = start(home, "prepare", "runs/reviewed")
    assert done.returncode == 2
    assert "sbatch refused: sbatch: error: Invalid account" in done.stderr


JOB = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "5", "SLURM_JOB_NAME": "j"}
JOB |= {"SLURM_JOB_NODELIST": "n1", "SLURMD_NODENAME": "n1", "SLURM_GPUS_ON_NODE": "1"}
FACTS = 'echo "JobId=17 EndTime=2026-01-01T00:00:00 StdErr=/a b/c.out StdIn=/dev/null StdOut=/a b/c.out Power="'


def in_job(home: Path, script: str, *arguments: str, **env: str) -> tuple[list[str], list[list[str]]]:
    """What a script asks of cloudjob as a job, and what it logs."""
    (home / "record-cloudjob").unlink(missing_ok=True)
    stubbed_srun = 'while [[ "$1" != */cloudjob && "$1" != cloudjob ]]; do shift; done; exec "$@"'
    kinds = '[[ "$1" == --mpi=list ]] && { echo "plugins: pmi2"; exit; }'
    stubs = {"scontrol": FACTS, "squeue": "echo RUNNING", "srun": f"{kinds}\n{stubbed_srun}"}
    for name, text in stubs.items():
        (home / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (home / "bin" / name).chmod(0o755)
    done = start(home, script, *arguments, **JOB, **env)
    assert done.returncode == 0, done.stderr
    log = next(home.glob("runs/*/jobs/log.tsv"))
    return (home / "record-cloudjob").read_text().splitlines(), [line.split("\t")[1:] for line in log.open()]


def test_a_task_of_a_later_part_makes_the_item_of_its_offset(home):
    stubbed(home, "0")
    for script, stage in (("prepare", "shard"), ("infer", "infer")):
        asked, log = in_job(home, script, "--offset=1001", "runs/reviewed", stage)
        assert asked == [stage, "runs/reviewed", "--run-dir", "runs/reviewed", "--index", "1006"]
        assert log[-2:] == [["12_5", f"{stage}+1001", "started /a b/c.out\n"], ["12_5", f"{stage}+1001", "ended 0\n"]]
        asked, _ = in_job(home, script, "runs/reviewed", stage)
        assert asked[-2:] == ["--index", "5"]


@pytest.mark.parametrize(
    "name", ["exp[1]", "a,b", "a b", "#1 100%", "$HOME", "ümläut", "a:b", "it's", '"q"', "-x", "*"]
)
@pytest.mark.slow
def test_a_run_folder_may_be_called_as_one_likes(home, name):
    """In jobs and when they are submitted; and the image sees it."""
    (home / "runs" / "reviewed").rename(home / "runs" / name)
    stubbed(home, "0-1", scontrol="echo 'MaxArraySize = 1001'")
    run = f"runs/{name}"
    assert start(home, "prepare", run).returncode == 0
    assert start(home, "pipeline", run).returncode == 0
    assert submitted(home)[0][1:] == ["slurm/prepare.sh", run, "shard"]
    assert all(run in call for call in submitted(home))
    for script in ("prepare", "infer", "train", "evaluate", "fetch"):
        asked, _ = in_job(home, script, run)
        assert run in asked
        assert asked[asked.index("--run-dir") + 1] == run
    seen = (home / "runs" / name / "jobs" / "restarts-17").read_text()
    (home / "runs" / name / "jobs" / "more").touch()  # a job's own files are no progress
    in_job(home, "prepare", run)
    assert (home / "runs" / name / "jobs" / "restarts-17").read_text() == seen
    (home / "image.sif").touch()
    (home / "bin" / "apptainer").write_text('#!/bin/bash\nprintf "%s\\n" "$@" >"$RECORD-apptainer"\n')
    (home / "bin" / "apptainer").chmod(0o755)
    (home / "record-cloudjob").touch()
    start(home, "evaluate", run, CLOUDJOB_IMAGE="image.sif", HOME=str(home), **JOB)
    words = (home / "record-apptainer").read_text().splitlines()
    mounts = [next(csv.reader([words[at + 1]])) for at, word in enumerate(words) if word == "--mount"]
    assert ["type=bind", f"src={home / run}", f"dst={home / run}"] in mounts
    assert ["type=bind", f"src={home}/.cloudjob", f"dst={home}/.cloudjob"] in mounts  # of the account


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
