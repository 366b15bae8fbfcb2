"""Compares what the batch script promised this process with what the process finds.

With the wrong kind of MPI, or with variables lost on the way into a container, every rank would run as a world of one:
each would do all of the work and overwrite the output of the others.
"""

import os

from cloudjob.errors import ConfigError


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
    """ConfigError where this process was given a GPU that torch does not see, unless CLOUDJOB_ON_CPU is set."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given and not found and not os.environ.get("CLOUDJOB_ON_CPU"):
        raise ConfigError(
            f"a GPU was given (CUDA_VISIBLE_DEVICES={given}), but torch sees none: is its driver too old, is this the "
            "image with CPU wheels, or was it started without --nv? CLOUDJOB_ON_CPU=1 computes on processors"
        )
