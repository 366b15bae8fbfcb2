"""Real ranks that are killed, stopped, hung and short of a shard: what is lost, and what everybody is told."""

import random
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from small_runs import CLOUDJOB, TORCHRUN, Ranks, configure, last_seen, weights, workspace

from cloudjob.diffusion import checkpoint

pytestmark = pytest.mark.slow
LONG = ("train.epochs=16", "train.log_s=0.001", "train.checkpoint_s=0.3", "evaluate.members=1")  # 32 steps, 256 samples
LOOKING = ("train.epochs=1", "train.log_s=0.001", "train.checkpoint_s=1e6", "infer.steps=50", "evaluate.members=64")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """ranks -> the run folder of a training that nothing happened to, by torchrun where there are several."""
    made = {}

    def get(size: int):
        if size not in made:
            made[size] = workspace(tmp_path_factory.mktemp(f"plain-{size}") / "run")
            configure(made[size], *LONG)
            launcher = (*TORCHRUN, f"--nproc-per-node={size}") if size > 1 else ()
            command = [*launcher, *CLOUDJOB, "train", made[size].root]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr
        return made[size]

    return get


# --- nothing is lost -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "kills"), [(2, 2), pytest.param(1, 5, marks=pytest.mark.long), pytest.param(2, 5, marks=pytest.mark.long)]
)
def test_killed_at_some_moments_and_once_while_saving_it_ends_in_the_same_weights(plain, tmp_path, size, kills):
    space, chance = workspace(tmp_path / "run"), random.Random(size)
    for moment in sorted(chance.sample(range(8, 216), kills)):
        with Ranks(space, size, *LONG) as ranks:
            ranks.until(lambda moment=moment: last_seen(space) >= moment)
            time.sleep(chance.uniform(0, 0.05))
            ranks.signal(signal.SIGKILL)
            assert ranks.wait() == [-signal.SIGKILL] * size
    with Ranks(space, size, *LONG) as ranks:
        half = f".tmp-{ranks.processes[0].pid}-*"
        ranks.until(lambda: any(space.checkpoints.glob(half)))
        ranks.signal(signal.SIGKILL)
        ranks.wait()
    with Ranks(space, size, *LONG) as ranks:
        assert ranks.wait() == [0] * size, ranks.text()
        assert "goes on from step-" in ranks.text()
    assert weights(space) == weights(plain(size))
    assert not list(space.checkpoints.glob(".tmp-*"))


@pytest.mark.parametrize("size", [1, 2])
def test_asked_to_stop_in_every_way_all_ranks_save_and_leave_with_75(plain, tmp_path, size):
    """By a file, by signals to the last rank alone, by the end of the job as the last rank alone knows it; a file of
    before stops nobody."""
    space = workspace(tmp_path / "run")
    (space.root / "STOP").touch()
    for way in ("STOP", signal.SIGTERM, signal.SIGUSR2, "deadline"):
        left = 31 if way == "deadline" else 3600  # a rank leaves half a minute before the end
        with Ranks(space, size, *LONG, own={size - 1: {"SLURM_JOB_END_TIME": time.time() + left}}) as ranks:
            before = last_seen(space)
            if way != "deadline":
                ranks.until(lambda before=before: last_seen(space) > before + 8)
            if way == "STOP":
                (space.root / "STOP").touch()
            elif way != "deadline":
                ranks.processes[-1].send_signal(way)
            assert ranks.wait() == [75] * size, ranks.text()
            assert ranks.text().count("stopped at") == 1
            assert ranks.text().count("STOP was left over") == (way == "STOP")
            assert ("the job's time is nearly over" in ranks.text()) == (way == "deadline")
        (space.root / "STOP").unlink(missing_ok=True)
    with Ranks(space, size, *LONG) as ranks:
        assert ranks.wait() == [0] * size, ranks.text()
    assert weights(space) == weights(plain(size))
    with Ranks(space, size, *LONG) as ranks:
        assert ranks.wait(30) == [0] * size
        assert "0 done, 1 skipped" in ranks.text()


@pytest.mark.parametrize("told", [0, 1])
def test_a_stop_is_heard_in_a_look_by_the_rank_that_works_and_by_the_one_that_waits(tmp_path, told):
    """In a calibration of four triplets, which one rank does while the other waits: half a minute of it."""
    space = workspace(tmp_path / "run")
    with Ranks(space, 2, *LOOKING) as ranks:
        ranks.until(lambda: "held-out loss by width" in ranks.text())
        time.sleep(0.2)
        ranks.processes[told].send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert ranks.wait(60) == [75, 75], ranks.text()
        assert time.monotonic() - asked < 20  # of which most is the end of two processes
        assert "while it looked at held-out triplets), saved" in ranks.text()
    kept = checkpoint.load(checkpoint.newest(space.checkpoints))
    assert (kept.seen, kept.calibration) == (16, {})


# --- nobody waits ----------------------------------------------------------------------------------------------------
HURRIED = """
import os, sys
from cloudjob.cli.dispatch import main
from cloudjob.hpc import distributed, watch
watch.SILENCE_S, watch.GRACE_S = 6.0, 2.0
"""


def hurried(*lines: str) -> tuple[str, ...]:
    """cloudjob, after these lines, with ranks that are found lost sooner."""
    return sys.executable, "-c", HURRIED + "\n".join((*lines, "sys.exit(main())"))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_ends_all_and_is_named(tmp_path, rank, what):
    space = workspace(tmp_path / "run")
    with Ranks(space, 2, *LONG, "train.epochs=10000", program=hurried()) as ranks:
        ranks.until(lambda: last_seen(space) > 8)
        lost = ranks.processes[rank]
        lost.send_signal(what)
        codes = ranks.wait(60)
        said = ranks.text()
    assert codes[1 - rank] == 76, said
    assert codes[rank] == -signal.SIGKILL  # one that hangs is not left behind
    cause = "killed" if what == signal.SIGKILL else "not answered"
    named = [line for line in said.splitlines() if f"rank {rank} of 2 on " in line and f"process {lost.pid}" in line]
    assert len(named) == 1, said
    assert cause in named[0]
    assert "Traceback" not in said


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_lost_in_a_look_ends_all_and_is_named(tmp_path, rank):
    """The one that works, or the one that waits for it."""
    with Ranks(workspace(tmp_path / "run"), 2, *LOOKING, program=hurried()) as ranks:
        ranks.until(lambda: "held-out loss by width" in ranks.text())
        time.sleep(0.2)
        ranks.processes[rank].send_signal(signal.SIGKILL)
        asked = time.monotonic()
        codes = ranks.wait(60)
        assert time.monotonic() - asked < 20
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 76), ranks.text()
    named = f"rank {rank} of 2 on {socket.gethostname()} (process {ranks.processes[rank].pid})"
    assert ranks.text().count(named) == 1, ranks.text()
    assert "Traceback" not in ranks.text()


@pytest.mark.parametrize(
    ("moment", "number"),
    [("Watch", signal.SIGKILL), ("Watch", signal.SIGSTOP), ("_device", signal.SIGKILL)],  # on its way, on its way, met
)
def test_a_rank_lost_before_the_first_step_ends_all_and_is_named(tmp_path, moment, number):
    struck = f"distributed.{moment} = lambda *_, **__: os.kill(os.getpid(), {int(number)})"
    program = hurried(f"if os.environ['RANK'] == '1': {struck}")
    with Ranks(workspace(tmp_path / "run"), 2, *LONG, program=program) as ranks:
        assert ranks.wait(60) == [76, -signal.SIGKILL], ranks.text()
        named = f"rank 1 of 2 on {socket.gethostname()} (process {ranks.processes[1].pid})"
        assert ranks.text().count(named) == 1, ranks.text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_rank_without_the_gpu_that_it_was_given_ends_all_and_is_named(tmp_path):
    with Ranks(workspace(tmp_path / "run"), 2, *LONG, own={1: {"CUDA_VISIBLE_DEVICES": "0"}}) as ranks:
        assert ranks.wait(60) == [2, 2], ranks.text()
        said = ranks.text()
    assert said.count("rank 1 of 2") == said.count("a GPU was given") == 1, said
    assert "Traceback" not in said


def test_a_missing_shard_of_one_rank_ends_all_and_is_named(tmp_path):
    space = workspace(tmp_path / "run")
    disks = {rank: {"NODE_DISK": str(tmp_path / f"disk-{rank}")} for rank in (0, 1)}
    with Ranks(
        space, 2, *LONG, "train.local_dir=$NODE_DISK", own=disks
    ) as ranks:  # rank 0 copies for its own disk only
        codes = ranks.wait(60)
        said = ranks.text()
    assert codes == [4, 4], said
    assert said.count(": missing") == 1
    assert "rank 1 of 2" in said
    assert str(tmp_path / "disk-1") in said
    assert "Traceback" not in said
