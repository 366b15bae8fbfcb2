"""Where a rank of an MPI world works: which of its node's devices is its own, and how many cores it has."""

import os
from dataclasses import dataclass

from cloudjob.files import HOST
from cloudjob.hpc import machine
from cloudjob.hpc.mpi import Communicator


@dataclass(frozen=True)
class Place:
    """Of one rank: its number among those of its node, and the cores that it has for itself."""

    local_rank: int
    cores: int

    @classmethod
    def of(cls, ranks: Communicator) -> "Place":
        """Asked on all ranks at once. Ranks of a node that may run on the same cores share them."""
        mine = (HOST, sorted(os.sched_getaffinity(0)))
        every = ranks.bcast(ranks.gather(mine))
        local_rank = sum(host == HOST for host, _ in every[: ranks.rank])
        cores = machine.threads_asked_for() or max(1, machine.cores() // every.count(mine))
        return cls(local_rank, cores)
