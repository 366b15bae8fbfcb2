"""How many cores a process takes: what it was told, and what it may run on."""

import os
import subprocess
import sys

import pytest

from cloudjob.hpc import machine


@pytest.mark.parametrize(
    ("omp", "slurm", "expected"),
    [
        (None, None, 6),
        ("2", None, 2),
        ("4,2", None, 4),  # threads by level of nesting
        ("8", None, 8),
        ("0", None, 6),
        ("many", None, 6),
        (None, "2", 2),
        (None, "16", 6),
        (None, "0", 6),
        ("4", "2", 4),
    ],
)
def test_cores_are_those_asked_for_or_those_it_may_run_on(monkeypatch, omp, slurm, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in (("OMP_NUM_THREADS", omp), ("SLURM_CPUS_PER_TASK", slurm)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert machine.cores() == expected


@pytest.mark.slow
@pytest.mark.parametrize(("given", "said"), [(None, "None"), ("1", "1")])
def test_what_torchrun_says_for_want_of_a_user_does_not_count(given, said):
    """It gives each of its ranks one thread, unless the user has set a number."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": given} if given else {}
    program = "import sys; from cloudjob.hpc import machine; sys.stdout.write(f'{machine.threads_asked_for()}\\n')"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command = [sys.executable, *launcher, sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == [said] * 2
