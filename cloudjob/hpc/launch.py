"""The start of a process: what its threads are told, and whether it finds what the batch script promised.

With the wrong kind of MPI, or with variables lost on the way into a container, every rank would run as a world of one:
each would do all of the work and overwrite the output of the others.
"""

import os
import sys

from cloudjob.errors import ConfigError
from cloudjob.hpc import machine, slurm

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def settle_threads() -> None:
    """Sets what OpenMP and OpenBLAS read when torch and numpy are imported; to be called before that. What a user has
    set is left alone.

    Threads that wait for each other look for the end all the time, for a while. Where another process has the core that
    one of them needs, this takes it away from the work. So they soon sleep, unless SLURM gave the cores to this job
    alone: with another process on one of two cores a training step then took 0.64 of its time, on free ones 1.05.

    numpy and scipy solve small systems alone. Beside other work on two cores, OpenBLAS took 22 ms for one of 500
    unknowns with two threads, and 3.4 ms with one.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "torch" in sys.modules:
        return
    cores, mine = machine.cores(), len(os.sched_getaffinity(0))
    if cores > 1 and not slurm.owns(mine) and not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = "1000"  # looks; GNU's 300,000 are as few only for more threads than cores
    if cores < mine:  # a task that SLURM has not bound to the cores that it asked for
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def check_ranks(seen: int) -> None:
    """ConfigError unless this process sees as many ranks as the batch script started (CLOUDJOB_RANKS)."""
    wanted = int(os.environ.get("CLOUDJOB_RANKS", seen))
    if wanted != seen:
        raise ConfigError(
            f"the batch script started {wanted} ranks, and this one sees {seen}: use the kind of srun --mpi that the "
            "MPI library speaks (SITE_MPI; srun --mpi=list), and start the container without --cleanenv and "
            "--containall, which hide SLURM_* and PMI_* from it"
        )


def check_gpu(found: bool) -> None:
    """ConfigError where this process was given a GPU that torch does not see, unless CLOUDJOB_ON_CPU is set.

    CUDA counts the devices of a list up to the first that is none: -1, NoDevFiles (SLURM's, of a step without a GPU) or
    nothing at the head of the list mean that no GPU was given.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    none = given.startswith(("-", ",")) or given.partition(",")[0].strip().lower() in ("", "nodevfiles", "none", "void")
    if not none and not found and not os.environ.get("CLOUDJOB_ON_CPU"):
        raise ConfigError(
            f"a GPU was given (CUDA_VISIBLE_DEVICES={given}), but torch sees none: is its driver too old, is this the "
            "image with CPU wheels, or was it started without --nv? CLOUDJOB_ON_CPU=1 computes on processors"
        )
