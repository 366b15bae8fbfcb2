import os
import sys

import pytest

from cloudjob.errors import ConfigError
from cloudjob.hpc import launch


def test_a_lonely_rank_is_noticed(monkeypatch):
    monkeypatch.setenv("CLOUDJOB_RANKS", "4")
    launch.check_ranks(4)
    with pytest.raises(ConfigError, match=r"started 4 ranks, and this one sees 1.*SITE_MPI"):
        launch.check_ranks(1)
    monkeypatch.delenv("CLOUDJOB_RANKS")
    launch.check_ranks(1)


def test_a_gpu_that_torch_does_not_see_is_noticed(monkeypatch):
    monkeypatch.delenv("CLOUDJOB_ON_CPU", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    launch.check_gpu(True)
    with pytest.raises(ConfigError, match=r"CUDA_VISIBLE_DEVICES=0,1.*--nv"):
        launch.check_gpu(False)
    monkeypatch.setenv("CLOUDJOB_ON_CPU", "1")
    launch.check_gpu(False)


@pytest.mark.parametrize("value", [None, "", " ", "-1", "-1,0", ",0", "NoDevFiles", "nodevfiles", "none", "void"])
def test_no_gpu_was_given(monkeypatch, value):
    monkeypatch.delenv("CLOUDJOB_ON_CPU", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    launch.check_gpu(False)


@pytest.mark.parametrize("value", ["0", "1,0", "0,-1", "GPU-8932f937", "MIG-GPU-1/2/3"])
def test_a_gpu_was_given(monkeypatch, value):
    monkeypatch.delenv("CLOUDJOB_ON_CPU", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(ConfigError, match="a GPU was given"):
        launch.check_gpu(False)


# --- threads -----------------------------------------------------------------------------------------------------
@pytest.fixture
def cores(monkeypatch):
    """A process that may run on four cores, before torch is imported."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 7})
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    for name in (*threads, "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", *launch._WAITING):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setitem(os.environ, name, "")  # so that what is set goes back
        monkeypatch.delitem(os.environ, name)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "looks", "threads"),
    [
        ({}, "1000", None),  # other processes may have the same cores
        ({"SLURM_CPUS_ON_NODE": "4"}, None, None),  # they are the job's own
        ({"SLURM_CPUS_ON_NODE": "2"}, "1000", None),  # it was given two, and is not bound to them
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "2"}, None, "2"),
        ({"SLURM_CPUS_PER_TASK": "1"}, None, "1"),  # one thread waits for nobody
        ({"OMP_NUM_THREADS": "1"}, None, "1"),
        ({"OMP_NUM_THREADS": "3"}, "1000", "3"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None, None),
        ({"GOMP_SPINCOUNT": "100"}, "100", None),
    ],
)
def test_threads_that_wait_sleep_where_the_cores_are_not_the_jobs_own(cores, given, looks, threads):
    for name, value in given.items():
        cores.setenv(name, value)
    launch.settle_threads()
    assert os.environ.get("GOMP_SPINCOUNT") == looks
    assert os.environ.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize(("given", "threads"), [(None, "1"), ("3", "3")])
def test_small_systems_are_solved_by_one_thread_unless_a_user_says_otherwise(cores, given, threads):
    if given:
        cores.setenv("OPENBLAS_NUM_THREADS", given)
    launch.settle_threads()
    assert os.environ["OPENBLAS_NUM_THREADS"] == threads


def test_once_torch_is_imported_nothing_of_openmp_is_set(cores):
    cores.setitem(sys.modules, "torch", sys)
    launch.settle_threads()
    assert "GOMP_SPINCOUNT" not in os.environ
