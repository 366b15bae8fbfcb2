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
        ("rack[0-1]_blade[0-41]", "rack0_blade0"),
        ("r1i[0-1]n[2,5-7],login", "r1i0n2"),
        ("a[001-004]b[2]c[3,4]-ib,gpu1", "a001b2c3-ib"),
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


def test_a_step_is_told_from_any_other(monkeypatch):
    for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    found = {slurm.step()}
    for name, value in (("JOB_ID", "77"), ("STEP_ID", "1"), ("RESTART_COUNT", "2"), ("RESTART_COUNT", "3")):
        monkeypatch.setenv(f"SLURM_{name}", value)
        found.add(slurm.step())
    assert len(found) == 5


@pytest.mark.parametrize(
    ("found", "cores", "own"), [("8", 8, True), ("8", 9, False), ("16", 8, True), ("", 1, False), ("8(x2)", 4, False)]
)
def test_cores_are_the_steps_own_where_slurm_gave_as_many(monkeypatch, found, cores, own):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", found)
    assert slurm.owns(cores) is own
