import pytest

from cloudjob.hpc import slurm


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("localhost", "localhost"),
        ("node07", "node07"),
        ("node[07-09,12],gpu1", "node07"),
        ("gpu1,node[1-2]", "gpu1"),
        ("rack[3,5]-ib", "rack3-ib"),
    ],
)
def test_first_host_of_a_node_list(nodelist, host):
    assert slurm.first_host(nodelist) == host


def test_a_batch_script_is_no_step(monkeypatch):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert slurm.task() is None


def test_a_task_of_a_step(monkeypatch):
    variables = {"PROCID": "3", "STEP_NUM_TASKS": "4", "LOCALID": "1", "JOB_ID": "77", "STEP_NODELIST": "n[2-3]"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert slurm.task() == slurm.Task(rank=3, size=4, local_rank=1, job_id=77, first_node="n2")
