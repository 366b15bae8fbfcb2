"""The MPI world, or a world of one without an MPI launcher; the only user of mpi4py.

Ranks wait asleep: MPI's own calls look for a message all the time, and would keep a core from the rank that works.
"""

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata
from types import TracebackType
from typing import Any

from cloudjob.errors import ConfigError, LostRankError
from cloudjob.hpc import guard, launch, slurm
from cloudjob.hpc.guard import Guarded

_LAUNCHED = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # that of srun, which may lie around the other, last
_DOWN, _UP = 1, 2  # tags of messages from rank 0, and to it
_PASSING_ON = 50  # calls; one was enough between two ranks of a node
_NAP_S = (0.0002, 0.05)  # between two looks for a message: twice as long each time


def library() -> str:
    """The name of the MPI library that mpi4py finds, in a line; RuntimeError, with why, where it finds none.

    Another process looks: one that does not fit this machine ends who loads it.
    """
    program = (
        "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
        "print(' '.join(MPI.Get_library_version().strip('\\0 \\n').splitlines()[0].split()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    said = done.stdout if done.returncode == 0 else done.stderr
    line = (said.decode(errors="replace").strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    if done.returncode:
        raise RuntimeError(line)
    return line


class Communicator:
    """`with mpi.communicator() as ranks:` - an error that leaves the block aborts the other ranks too, which would
    otherwise deadlock in the next collective call."""

    def __init__(self, communicator: Any = None, guarded: Guarded | None = None):
        self._communicator, self._guarded = communicator, guarded
        self._watched = False
        self.rank = communicator.Get_rank() if communicator else 0
        self.size = communicator.Get_size() if communicator else 1

    def barrier(self) -> None:
        """Not MPI's own, which aborts where a rank is lost meanwhile."""
        self.gather(None)
        self.bcast(None)

    def bcast(self, value: Any) -> Any:
        """Rank 0's (small, picklable) value, on every rank."""
        if self.rank:
            return self._receive(0, _DOWN)
        self._send(value, range(1, self.size), _DOWN)
        return value

    def gather(self, value: Any) -> list | None:
        """Every rank's (small, picklable) value in rank order on rank 0, None on the others."""
        if self.rank:
            self._send(value, [0], _UP)
            return None
        return [value, *(self._receive(rank, _UP) for rank in range(1, self.size))]

    def _send(self, value: Any, ranks: Iterable[int], tag: int) -> None:
        """MPI says that a message is sent when it is still to be passed on, which it then does in this process's next
        calls. So some are made at once: else ranks that work now would work one after the other."""
        requests = [self._communicator.isend(value, rank, tag) for rank in ranks]
        for request in requests:
            self._wait(request.Test)
        for _ in range(_PASSING_ON if requests else 0):
            self._communicator.iprobe(tag=tag)
            time.sleep(_NAP_S[0])

    def _receive(self, rank: int, tag: int) -> Any:
        self._wait(lambda: self._communicator.iprobe(rank, tag))
        return self._communicator.recv(source=rank, tag=tag)

    def abort(self, code: int = 1) -> None:
        """Ends every rank at once with this exit code; returns in a world of one."""
        if self.size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            time.sleep(0.2)  # on an abort, mpiexec drops the output that it has not read yet
            self._communicator.Abort(code)

    def __enter__(self) -> "Communicator":
        if self._guarded and self.size > 1:
            self._meet(self._guarded)
        return self

    def _meet(self, guarded: Guarded) -> None:
        """Connects the guards of all ranks; where a network does not let them, nobody is watched, and that is said."""
        address = self.bcast(guarded.lead(self.size) if self.rank == 0 else None)
        here = self.rank == 0 or guarded.follow(self.rank, self.size, address)
        alone = [rank for rank, found in enumerate(self.gather(here) or []) if not found]
        self._watched = self.bcast(not alone)
        if not self._watched:
            guarded.leave()
        if alone:
            said = f"rank {', '.join(map(str, alone))} cannot reach rank 0 by TCP: a rank that is lost is not noticed"
            print(f"cloudjob: WARNING: {said}", file=sys.stderr, flush=True)

    def _wait(self, arrived: Callable[[], bool]) -> None:
        nap, longest = _NAP_S
        while True:
            if self._watched and self._guarded and (why := self._guarded.verdict()):
                atexit.register(os._exit, LostRankError.exit_code)  # MPI would wait for the lost rank
                self._watched = False
                raise _said(LostRankError(why))
            if arrived():
                return
            time.sleep(nap)
            nap = min(2 * nap, longest)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._watched and self._guarded and kind is None:
            self._guarded.leave()
        if kind is not None and error is not None and self.size > 1 and not isinstance(error, LostRankError):
            sys.excepthook(kind, error, traceback)
            self.abort(getattr(error, "exit_code", 1))


def _said(error: LostRankError) -> LostRankError:
    """Marked as said: a guard does."""
    error.said = True
    return error


def _settle_mpich() -> None:
    """Settings without which MPI_Init of MPICH 5 occasionally fails or hangs; values already set take precedence."""
    # Prevents "Message truncated", probably a shared-memory message that overtakes one over the network: in containers
    # 2 of 108 runs of two ranks failed without this setting, and none of 660 with it.
    os.environ.setdefault("MPIR_CVAR_NOLOCAL", "1")
    # With UCX, each rank publishes its address in 4,096 bytes, mostly uninitialised memory. Where that is dense,
    # one line exceeds the 1,024 bytes that SLURM's pmi2 reads, and the ranks deadlock. A libfabric address is short.
    # MPICH's wheel is known to include libfabric; another MPICH may not, and would reject the setting.
    if "MPI4PY_LIBMPI" not in os.environ and any(metadata.distributions(name="mpich")):
        os.environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")


@cache
def _guarded() -> Guarded:
    """Once in a process, before MPI knows it: see `guard`."""
    return guard.enter()


def communicator() -> Communicator:
    """The world this process was launched into. mpi4py is imported only under mpiexec or an srun that speaks PMI, and
    where there is more than one rank.

    ConfigError where srun started several tasks that MPI does not see: each would do all of the work. What mpiexec
    starts within a step, as in the shell of `srun --pty`, has the step's variables too, which do not count then.
    """
    communicator = guarded = None
    size = next((os.environ[name] for name in _SIZES if name in os.environ), None)
    if any(name in os.environ for name in _LAUNCHED) and size != "1":
        _settle_mpich()
        guarded = _guarded()
        from mpi4py import MPI

        communicator = MPI.COMM_WORLD
    found = Communicator(communicator, guarded)
    launch.check_ranks(found.size)
    task = slurm.task()
    if task and task.size > 1 and found.size == 1:
        raise ConfigError(
            f"srun started {task.size} tasks, but MPI sees {found.size}: use srun --mpi=pmi2 (or pmix), the kind that "
            "the MPI library of this environment speaks (srun --mpi=list), and keep PMI_* in the container"
        )
    return found
