import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloudjob.errors import ConfigError, ItemError, LostRankError
from cloudjob.hpc import mpi

MPIEXEC = Path(sys.executable).with_name("mpiexec")
needs_mpiexec = pytest.mark.skipif(not MPIEXEC.exists(), reason=f"no {MPIEXEC}")


def mpiexec(program: str, *arguments: str, ranks: int = 2) -> subprocess.CompletedProcess:
    command = [MPIEXEC, "-n", str(ranks), sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_a_world_of_one_needs_no_mpi():
    program = (
        "import sys\n"
        "from cloudjob.hpc import mpi\n"
        "with mpi.communicator() as ranks:\n"
        "    ranks.barrier()\n"
        "    assert (ranks.rank, ranks.size, ranks.bcast('a'), ranks.gather('b')) == (0, 1, 'a', ['b'])\n"
        "assert 'mpi4py' not in sys.modules\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PMI", "OMPI", "SLURM"))}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@pytest.mark.slow
@needs_mpiexec
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_exchange(tmp_path, ranks):
    done = mpiexec(
        "from pathlib import Path\n"
        "from cloudjob.hpc import mpi\n"
        "with mpi.communicator() as ranks:\n"
        "    word = ranks.bcast(['plan'] if ranks.rank == 0 else None)\n"
        "    ranks.barrier()\n"
        "    found = f'{ranks.size} {word} {ranks.gather(ranks.rank * 10)}'\n"
        f"    Path({str(tmp_path)!r}, str(ranks.rank)).write_text(found)\n",
        ranks=ranks,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "0").read_text() == f"{ranks} ['plan'] {[0, 10, 20][:ranks]}"
    others = [(tmp_path / str(rank)).read_text() for rank in range(1, ranks)]
    assert others == [f"{ranks} ['plan'] None"] * (ranks - 1)


@pytest.mark.slow
@needs_mpiexec
def test_ranks_work_at_once_from_when_they_are_told():
    done = mpiexec(
        "import time\n"
        "from cloudjob.hpc import mpi\n"
        "with mpi.communicator() as ranks:\n"
        "    for _ in range(2):\n"
        "        ranks.bcast(ranks.gather(None) and 'begin')\n"
        "        told, worked = time.time(), time.process_time() + 3\n"
        "        while time.process_time() < worked:\n"
        "            pass\n"
        "        if when := ranks.gather(told):\n"
        "            print(when[1] - when[0])\n"
    )
    assert done.returncode == 0, done.stderr
    assert max(abs(float(late)) for late in done.stdout.split()) < 1.5


@pytest.mark.slow
@needs_mpiexec
def test_one_failing_rank_ends_the_others():
    done = mpiexec(
        "from cloudjob.errors import ItemError\n"
        "from cloudjob.hpc import mpi\n"
        "with mpi.communicator() as ranks:\n"
        "    if ranks.rank == 1:\n"
        "        raise ItemError('tile 7 is broken')\n"
        "    ranks.barrier()\n"
    )
    assert done.returncode == ItemError.exit_code
    assert "tile 7 is broken" in done.stderr


def test_srun_without_its_mpi_is_noticed(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    for name in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="started 4 tasks, but MPI sees 1"):
        mpi.communicator()


STEP = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "n1"}


@pytest.mark.slow
@needs_mpiexec
def test_in_the_shell_of_a_step_mpiexec_counts(monkeypatch):
    """srun --pty bash: a step of one task, whose variables all ranks of mpiexec see."""
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    program = (
        "import sys\nfrom cloudjob.hpc import mpi\nwith mpi.communicator() as ranks: found = ranks.gather(ranks.size)\n"
    )
    program += "sys.stdout.write(f'{found}\\n')"
    command = [MPIEXEC, "-launcher", "fork", "-hosts", "localhost", "-n", "2", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, sorted(done.stdout.split("\n"))) == (0, ["", "None", "[2, 2]"]), done.stderr


def test_one_rank_of_a_launcher_needs_no_mpi(monkeypatch):
    for name, value in (STEP | {"PMI_RANK": "0", "PMI_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with mpi.communicator() as ranks:
        assert (ranks.rank, ranks.size) == (0, 1)


@pytest.mark.slow
@needs_mpiexec
def test_ranks_that_wait_leave_their_core_to_others():
    """For what rank 0 sends, for what the others send, for all to come: each for a second."""
    done = mpiexec(
        "import sys, time\n"
        "from cloudjob.hpc import mpi\n"
        "with mpi.communicator() as ranks:\n"
        "    ranks.barrier()\n"
        "    used = []\n"
        "    waits = [(0, lambda: ranks.bcast('x' * 3000)), (1, lambda: ranks.gather(1)), (0, ranks.barrier)]\n"
        "    for late, wait in waits:\n"
        "        if ranks.rank == late:\n"
        "            time.sleep(1)\n"
        "        begun = time.process_time()\n"
        "        wait()\n"
        "        used.append(time.process_time() - begun)\n"
        "    sys.stdout.write(f'{max(used)}\\n')\n"
    )
    assert done.returncode == 0, done.stderr
    assert max(map(float, done.stdout.split())) < 0.5


LOST = """
import os, signal, sys, threading, time
from cloudjob.cli import dispatch
from cloudjob.errors import LostRankError
from cloudjob.hpc import mpi
lost, number = map(int, sys.argv[1:])
def work(arguments):
    with mpi.communicator() as ranks:
        ranks.barrier()
        if ranks.rank == lost:
            sys.stdout.write(f"{os.getpid()} ")
            sys.stdout.flush()
            if number == signal.SIGSTOP:  # and woken by nobody
                os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        ranks.barrier()
dispatch.COMMANDS["model"] = work
sys.exit(dispatch.main(["model", "tiny"]))
"""


@pytest.mark.slow
@needs_mpiexec
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize(
    ("number", "cause"), [(signal.SIGKILL, "was killed by SIGKILL"), (signal.SIGSTOP, "stood still for 20 s")]
)
def test_a_lost_rank_ends_all_and_is_named_once(lost, number, cause):
    begun = time.monotonic()
    done = mpiexec(LOST, str(lost), str(int(number)), ranks=3)
    assert done.returncode == LostRankError.exit_code, done.stderr
    assert time.monotonic() - begun < 60
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"cloudjob: rank {lost} of 3 on {socket.gethostname()}: process {done.stdout.strip()} {cause}"
    )


@pytest.mark.slow
@needs_mpiexec
def test_a_rank_that_stands_still_for_a_while_or_works_for_long_is_not_lost():
    """Rank 1 is suspended for 5 s; rank 0 holds Python's lock for longer than a rank may be silent."""
    done = mpiexec(
        "import ctypes, os, signal, subprocess, sys, time\n"
        "from cloudjob.hpc import mpi\n"
        "with mpi.communicator() as ranks:\n"
        "    ranks.barrier()\n"
        "    if ranks.rank == 1:\n"
        "        subprocess.Popen(['sh', '-c', f'sleep 5; kill -CONT {os.getpid()}'])\n"
        "        os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    if ranks.rank == 0:\n"
        "        ctypes.PyDLL(None).sleep(25)\n"
        "    ranks.barrier()\n"
        "    sys.stdout.write('well ')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "well well ", "")
