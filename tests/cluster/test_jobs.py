"""The scripts of slurm/ on a real SLURM, without and within the image: the chain, and all that can befall a job."""

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import Home, sets


def weights(run: Path) -> bytes:
    return max((run / "train" / "checkpoints").glob("step-*.pt")).read_bytes()


def outputs(run: Path) -> dict[str, bytes]:
    files = sorted((run / "outputs").rglob("*.*"))
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.is_file()}


def same(run: Path, other: Path) -> None:
    assert weights(run) == weights(other)
    ours, theirs = outputs(run), outputs(other)
    assert [name for name in ours if ours[name] != theirs.get(name)] == []
    assert sorted(ours) == sorted(theirs)


def job_ids(text: str) -> list[str]:
    return re.findall(r"^job (\d+):", text, re.M)


# --- the chain -------------------------------------------------------------------------------------------------
def chained(home: Home) -> Path:
    """The run folder of slurm/pipeline.sh configs/test.yaml, from search to report."""
    first = home.call("slurm/pipeline.sh", "configs/test.yaml", *sets()).stdout
    print(first)
    jobs = job_ids(first)
    assert len(jobs) == 5
    assert home.cluster.wait(*jobs) == ["COMPLETED"] * 5, home.log(jobs[-1])
    rest = job_ids(home.log(jobs[-1]))
    assert len(rest) == 6
    states = home.cluster.wait(*rest)
    assert states == ["COMPLETED"] * 6, "".join(home.log(job) for job in rest)[-6000:]
    return home.folder / "runs" / "test"


@pytest.fixture(scope="module")
def chain(home) -> Path:
    return chained(home)


@pytest.fixture(scope="module")
def image_chain(image_home) -> Path:
    return chained(image_home)


def ends_as(run: Path, plain: Path, home: Home) -> str:
    """Weights of 2 nodes x 2 tasks as of 4 plain ranks; scenes restored by 2 MPI ranks as by one process. The job cards
    of the training."""
    same(run, plain)
    assert (run / "evaluation" / "summary.json").read_bytes() == (plain / "evaluation" / "summary.json").read_bytes()
    assert (run / "report" / "index.html").exists()
    text = home.status("runs/test")
    assert "job " not in text
    assert "again" not in text
    cards = "".join(path.read_text() for path in home.folder.glob("cloudjob-train-*.out"))
    assert "4 tasks on n[1-2]" in cards
    tasks = list(home.folder.glob("cloudjob-infer-*_*.out"))
    assert len(tasks) == len(list((run / "outputs").glob("*/")))
    assert all("2 ranks" in task.read_text() for task in tasks)
    return cards


def test_the_chain_ends_in_the_bytes_of_the_plain_run(chain, home, plain):
    assert "apptainer exec" not in ends_as(chain, plain, home)


def test_the_chain_in_the_image_ends_in_the_bytes_of_the_plain_run(image_chain, image_home, plain):
    assert "apptainer exec" in ends_as(image_chain, plain, image_home)


def test_a_failing_stage_cancels_what_follows_and_status_says_why(chain, home, cluster):
    home.copy(chain, "failing", without=("train", "infer", "evaluate", "report"))
    text = home.call("slurm/pipeline.sh", "runs/failing", "--set", "train.lr=1e30", "--set", "train.warmup=0").stdout
    jobs = job_ids(text)
    states = cluster.wait(*jobs)
    assert states == ["COMPLETED"] * 2 + ["FAILED"] + ["CANCELLED"] * 3
    status = home.status("runs/failing")
    print(status)
    assert re.search(r"^train .* 1 failed", status, re.M)
    assert "was not finite" in status
    assert f"job {jobs[2]} train: FAILED" in status or f"job {jobs[2]} train: exit code 4" in status
    assert re.search(rf"job {jobs[4]} evaluate: CANCELLED \(Dependency", status)


def test_ranks_meet_whatever_their_memory_holds(cluster):
    """What lay in freed memory once became part of the address that a rank tells SLURM, too long for its pmi2."""
    program = (
        "import os\n"
        "from cloudjob.hpc import mpi\n"
        "junk = [os.urandom(size) for size in range(400, 4000) for _ in range(4)]\n"
        "del junk[::2]\n"
        "with mpi.communicator() as ranks:\n"
        "    print(ranks.gather(ranks.rank))\n"
    )
    python = ("env", "CLOUDJOB_RANKS=2", sys.executable, "-c", program)
    done = cluster.call("srun", "--nodes=2", "--ntasks=2", "--mpi=pmi2", "timeout", "40", *python, check=False)
    assert done.returncode == 0, done.stderr
    assert "[0, 1]" in done.stdout
    assert "mpi/pmi2" not in done.stderr


@pytest.mark.parametrize(
    ("number", "cause"), [("SIGKILL", "was killed by SIGKILL"), ("SIGSTOP", "stood still for 20 s")]
)
def test_a_lost_mpi_rank_ends_a_step_and_is_named(cluster, number, cause):
    program = (
        "import os, signal, sys\n"
        "from cloudjob.cli import dispatch\n"
        "from cloudjob.hpc import mpi\n"
        "def work(arguments):\n"
        "    with mpi.communicator() as ranks:\n"
        "        ranks.barrier()\n"
        f"        ranks.rank == 1 and os.kill(os.getpid(), signal.{number})\n"
        "        ranks.barrier()\n"
        "dispatch.COMMANDS['model'] = work\n"
        "sys.exit(dispatch.main(['model', 'tiny']))\n"
    )
    python = ("env", "CLOUDJOB_RANKS=2", sys.executable, "-c", program)
    options = ("--nodes=2", "--ntasks=2", "--mpi=pmi2", "--kill-on-bad-exit=0", "--wait=30")
    begun = time.monotonic()
    done = cluster.call("srun", *options, *python, check=False)
    assert done.returncode == 76, done.stderr
    assert time.monotonic() - begun < 60
    assert re.search(rf"cloudjob: rank 1 of 2 on \S+: process \d+ {cause}", done.stderr), done.stderr


# --- preemption ------------------------------------------------------------------------------------------------
DISRUPTIONS = ("USR1", "requeue", "down", "crash")


@pytest.mark.parametrize(
    "ways", [DISRUPTIONS, pytest.param(("USR1", "USR1", *DISRUPTIONS), marks=pytest.mark.long)], ids=["each", "long"]
)
def test_weights_survive_whatever_befalls_the_job(image_chain, image_home, cluster, plain, ways):
    """Warned, requeued by an operator, its node set down, its node crashed: it ends in the same bytes.

    In the image, for what reaches its ranks there reaches those without one too."""
    home = image_home
    run = home.copy(image_chain, f"disturbed-{len(ways)}", without=("train", "infer", "evaluate", "report"))
    job = home.submit("train.sh", f"runs/disturbed-{len(ways)}")

    def newest() -> str:
        return max((path.name for path in (run / "train" / "checkpoints").glob("step-*.pt")), default="")

    for restarts, way in enumerate(ways):
        before = newest()
        cluster.wait_for(lambda before=before: newest() > before, "a step since the start")
        assert cluster.state(job) == "RUNNING", "too few steps for this test"
        nodes = cluster.call("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
        node = cluster.call("scontrol", "show", "hostnames", nodes).stdout.split()[-1]
        if way == "USR1":
            cluster.call("scancel", "--batch", "--signal=USR1", job)
        elif way == "requeue":
            cluster.call("scontrol", "requeue", job)
        elif way == "down":
            cluster.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        else:
            cluster.crash(node)
        cluster.wait_for(lambda wanted=restarts + 1: cluster.restarts(job) == wanted, f"the requeue after {way}")
        if way == "down":
            cluster.call("scontrol", "update", f"nodename={node}", "state=resume", check=False)  # it may be back
        elif way == "crash":
            cluster.start_node(node)
        # Told to stop by SLURM, the requeued job still saves: what it comes to counts from its next start.
        cluster.wait_for(lambda: cluster.state(job) == "RUNNING", f"the restart after {way}")
    assert cluster.wait(job) == ["COMPLETED"], home.log(job)[-5000:]
    assert weights(run) == weights(plain)
    log = home.log(job)
    assert all(f"restart {number}," in log for number in range(len(ways) + 1))
    assert log.count("told to stop") >= ways.count("USR1")
    assert f"--- {job} ended with 0" in log
    cluster.wait_for(lambda: cluster.idle() == cluster.nodes, "all nodes to be back")


def test_restarts_without_progress_come_to_an_end(cluster, tmp_path):
    """The program makes nothing, as one that never gets to its first checkpoint."""
    home = Home(tmp_path, cluster, None)
    home.replace_program('[ "$1" = doctor ] && exit\n[ "$SLURM_PROCID" = 0 ] && echo "it sleeps"\nexec sleep 600')
    job = home.submit("train.sh", "configs/test.yaml")
    for number in range(3):
        # Not the job card: it comes before the script has counted this restart.
        cluster.wait_for(lambda number=number: home.log(job).count("it sleeps") > number, "the program")
        cluster.call("scontrol", "requeue", job)
    assert cluster.wait(job) == ["FAILED"]
    assert "restarted 3 times without progress" in home.log(job)


def test_a_rank_that_cannot_start_is_not_waited_for(cluster, plain, tmp_path):
    """As on a node that lacks the program, or the image: the others wait for it where nothing tells them."""
    home = Home(tmp_path, cluster, None)
    home.replace_program(f'[ "$SLURM_PROCID" = 1 ] && exit 9\nexec {sys.prefix}/bin/cloudjob "$@"')
    home.copy(plain, "silent", without=("train", "infer", "evaluate", "report"))
    options = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--gres=gpu:2")
    job = home.sbatch(*options, "slurm/train.sh", "runs/silent", SLURM_WAIT="5")
    cluster.wait_for(lambda: "Exited with exit code 9" in home.log(job), "the end of rank 1")
    begun = time.monotonic()
    cluster.wait_for(lambda: cluster.restarts(job) == 1, "the end of the others, and the requeue")
    assert time.monotonic() - begun < 30
    cluster.call("scancel", job)
    assert cluster.wait(job) == ["CANCELLED"]
    assert "task 1: Exited with exit code 9" in home.log(job)


def test_one_killed_task_of_an_array_is_run_again_by_the_printed_command(image_chain, image_home, cluster, plain):
    home = image_home
    run = home.copy(image_chain, "killed", without=())
    scenes = sorted(path.name for path in (run / "outputs").glob("*/"))
    items = [line.split("\t")[1] for line in listed(home, run)]
    assert sorted(items) == scenes
    for item in items[:3]:
        shutil.rmtree(run / "outputs" / item)
        (run / "records" / "infer" / f"{item}.json").unlink()
    job = home.submit("infer.sh", "--no-requeue", "runs/killed")  # else the task puts itself back into the queue
    cluster.wait_for(lambda: (run / "outputs" / items[1]).is_dir() and ranks_of(job, 1), "work on scene 1")
    for pid in ranks_of(job, 1):
        os.kill(pid, signal.SIGKILL)
    states = cluster.wait(job)
    assert states == ["COMPLETED FAILED"]
    records = {path: path.stat().st_mtime_ns for path in (run / "records" / "infer").iterdir()}
    status = home.status("runs/killed")
    print(status)
    assert re.search(rf"job {job}_1 infer: exit code (76|137)", status)
    command = re.search(r"again: (sbatch --array=1 slurm/infer.sh runs/killed)", status)[1]
    again = home.call("bash", "-c", command).stdout.split()[-1]
    assert cluster.wait(again) == ["COMPLETED"]
    assert outputs(run) == outputs(plain)
    assert {path: path.stat().st_mtime_ns for path in records} == records
    assert "job " not in home.status("runs/killed")


def listed(home, run: Path) -> list[str]:
    return home.call(Path(home.folder, ".venv/bin/cloudjob"), "items", "infer", run).stdout.splitlines()


def ranks_of(job: str, number: int) -> list[int]:
    """The processes of the MPI ranks of one task of an array."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            program = (entry / "cmdline").read_bytes().split(b"\0")[0]
        except OSError:
            continue
        wanted = {f"SLURM_ARRAY_JOB_ID={job}".encode(), f"SLURM_ARRAY_TASK_ID={number}".encode()}
        if wanted <= set(environment) and b"python" in program and any(e.startswith(b"PMI_RANK=") for e in environment):
            found.append(int(entry.name))
    return found


# --- mistakes --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("script", "arguments", "env", "cure"),
    [
        ("train.sh", ["--partition=nowhere"], {}, "partitions here: compute; set --partition"),
        ("train.sh", ["--gres=gpu:9"], {}, "gpu:4; see SITE_GPU in slurm/sites/here.env"),
        ("train.sh", [], {"CLOUDJOB_IMAGE": "nowhere.sif"}, "build it with containers/build.sh"),
        ("train.sh", [], {"CLOUDJOB_SITE": "nowhere"}, "there are: generic.env gres.env here.env offline.env"),
        ("train.sh", ["configs/nowhere.yaml"], {}, "configs/nowhere.yaml: no such file or run folder"),
        ("infer.sh", ["configs/demo.yaml"], {}, "Run: cloudjob pair"),
    ],
)
def test_mistakes_seen_at_submission(home, script, arguments, env, cure):
    if not any(argument.startswith("configs") for argument in arguments):
        arguments = [*arguments, "configs/demo.yaml"]
    done = home.call(f"slurm/{script}", *arguments, check=False, **env)
    assert done.returncode in (2, 3)
    assert cure in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_mistakes_seen_in_the_job(chain, home, cluster):
    """Each ends with its exit code and the cure in the log."""
    (home.folder / "configs" / "wrong.yaml").write_text("train: {batchsize: 3}\n")
    small = ("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gres=gpu:2")
    site = home.folder / "slurm" / "sites"
    for name, line in (("mpi", "SITE_MPI=mpi9"), ("none", "SITE_MPI=none"), ("scratch", "SITE_SCRATCH=/proc/scratch")):
        (site / f"{name}.env").write_text(line + "\n")
    home.copy(chain, "mistakes", without=("train",))
    home.copy(chain, "scenes", without=("infer",))
    expected = {
        home.sbatch(*arguments, **env): cure
        for arguments, env, cure in [
            ((*small, "--gres=none", "slurm/train.sh", "runs/mistakes"), {"CLOUDJOB_ON_CPU": ""}, "no GPU was given"),
            ((*small, "slurm/train.sh", "runs/mistakes"), {"CLOUDJOB_ON_CPU": ""}, "but torch sees none"),
            ((*small, "slurm/train.sh"), {"CLOUDJOB_IMAGE": "nowhere.sif"}, "build it with containers/build.sh"),
            (
                (*small, "slurm/infer.sh", "runs/scenes"),
                {"CLOUDJOB_SITE": "mpi"},
                "has no such kind; it has: ",
            ),
            (
                (*small, "slurm/infer.sh", "runs/scenes"),
                {"CLOUDJOB_SITE": "none"},
                "started 2 ranks, and this one sees 1",
            ),
            (("slurm/evaluate.sh", "runs/scenes"), {"CLOUDJOB_SITE": "scratch"}, "name another folder in"),
            ((*small, "slurm/train.sh", "configs/wrong.yaml"), {}, "configs/wrong.yaml:1  train.batchsize"),
        ]
    }
    assert cluster.wait(*expected) == ["FAILED"] * len(expected)
    for job, cure in expected.items():
        log = home.log(job)
        assert cure in log
        assert "Traceback" not in log
        assert "ExitCode=2:0" in cluster.call("scontrol", "show", "job", "-o", job).stdout


def test_a_container_that_hides_the_launcher_is_noticed(image_chain, image_home, cluster):
    home = image_home
    (home.folder / "slurm" / "sites" / "clean.env").write_text("SITE_APPTAINER=(--cleanenv)\n")
    home.copy(image_chain, "hidden", without=("train",))
    small = ("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gres=gpu:2")
    job = home.sbatch(*small, "slurm/train.sh", "runs/hidden", CLOUDJOB_SITE="clean")
    assert cluster.wait(job) == ["FAILED"]
    assert "started 2 ranks, and this one sees 1" in home.log(job)


def test_the_scripts_work_as_they_stand(home):
    """sbatch slurm/X.sh without arguments is accepted as it is: the north_slope configuration, no site."""
    for script in ("fetch", "prepare", "train", "infer", "evaluate", "pipeline"):
        done = home.call("sbatch", "--test-only", f"slurm/{script}.sh", CLOUDJOB_SITE="")
        assert "to start at" in done.stderr
