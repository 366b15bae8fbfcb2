"""The MPI world, or a world of one without an MPI launcher; the only user of mpi4py."""

import os
import sys
import time
from importlib import metadata
from types import TracebackType
from typing import Any

from cloudjob.errors import ConfigError
from cloudjob.hpc import launch, slurm

_LAUNCHED = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")


class Communicator:
    """`with mpi.communicator() as ranks:` - an error that leaves the block aborts the other ranks too, which would
    otherwise deadlock in the next collective call."""

    def __init__(self, communicator: Any = None):
        self._communicator = communicator
        self.rank = communicator.Get_rank() if communicator else 0
        self.size = communicator.Get_size() if communicator else 1

    def barrier(self) -> None:
        if self._communicator:
            self._communicator.Barrier()

    def bcast(self, value: Any) -> Any:
        """Rank 0's (small, picklable) value, on every rank."""
        return self._communicator.bcast(value) if self._communicator else value

    def gather(self, value: Any) -> list | None:
        """Every rank's (small, picklable) value in rank order on rank 0, None on the others."""
        return self._communicator.gather(value) if self._communicator else [value]

    def abort(self, code: int = 1) -> None:
        """Ends every rank at once with this exit code; returns in a world of one."""
        if self.size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            time.sleep(0.2)  # on an abort, mpiexec drops the output that it has not read yet
            self._communicator.Abort(code)

    def __enter__(self) -> "Communicator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and error is not None and self.size > 1:
            sys.excepthook(kind, error, traceback)
            self.abort(getattr(error, "exit_code", 1))


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


def communicator() -> Communicator:
    """The world this process was launched into. mpi4py is imported only under mpiexec or an srun that speaks PMI.

    ConfigError where srun started several tasks that MPI does not see: each would do all of the work.
    """
    communicator = None
    if any(name in os.environ for name in _LAUNCHED):
        _settle_mpich()
        from mpi4py import MPI

        communicator = MPI.COMM_WORLD
    found = Communicator(communicator)
    launch.check_ranks(found.size)
    task = slurm.task()
    if task and task.size != found.size:
        raise ConfigError(
            f"srun started {task.size} tasks, but MPI sees {found.size}: use srun --mpi=pmi2 (or pmix), the kind that "
            "the MPI library of this environment speaks (srun --mpi=list), and keep PMI_* in the container"
        )
    return found
