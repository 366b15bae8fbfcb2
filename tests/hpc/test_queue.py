import os
from pathlib import Path

from cloudjob.hpc import queue

SQUEUE = """#!/bin/sh
cat <<'STATES'
14|CANCELLED|DependencyNeverSatisfied
15_0|CANCELLED|DependencyNeverSatisfied
15_1|CANCELLED|DependencyNeverSatisfied
16|PENDING|Resources
17_2|RUNNING|None
STATES
"""


def read(tmp_path: Path, monkeypatch, *events: str, squeue: str = SQUEUE) -> dict[str, str]:
    """Job -> state, with this answer of squeue, and without sacct."""
    (tmp_path / "squeue").write_text(squeue)
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    log = tmp_path / "log.tsv"
    log.write_text("".join(f"0\t{event}\n" for event in events))
    return {job.id: job.state for job in queue.unfinished(log)}


def test_no_jobs(tmp_path):
    assert queue.unfinished(tmp_path / "log.tsv") == []


def test_states_are_those_of_slurm_and_what_ended_well_is_left_out(tmp_path, monkeypatch):
    events = ["12\ttrain\tsubmitted", "12\ttrain\tstarted a.out", "12\ttrain\tended 0", "13\tsearch\tended 2"]
    events += ["14\tinfer\tsubmitted", "15\tshard\tsubmitted", "16\treport\tsubmitted", "16\treport\trequeued"]
    assert read(tmp_path, monkeypatch, *events) == {
        "13": "exit code 2",
        "14": "CANCELLED (DependencyNeverSatisfied)",
        "15": "CANCELLED (DependencyNeverSatisfied)",
        "16": "PENDING (Resources)",
    }


def test_tasks_of_an_array_speak_for_themselves_and_the_newest_job_of_a_name_counts(tmp_path, monkeypatch):
    events = ["11\tinfer\tsubmitted", "11_2\tinfer\tended 137", "17\tinfer\tsubmitted"]
    events += ["17_2\tinfer\tstarted b.out", "17_1\tinfer\tended 0"]
    assert read(tmp_path, monkeypatch, *events) == {"17_2": "RUNNING"}


def test_without_slurm_the_last_event_is_said(tmp_path, monkeypatch):
    events = ["12\ttrain\tstarted a.out", "13\tinfer\tsubmitted"]
    assert read(tmp_path, monkeypatch, *events, squeue="#!/bin/sh\nexit 1\n") == {"12": "started", "13": "submitted"}


def test_the_last_message_of_a_log(tmp_path, monkeypatch):
    output = tmp_path / "train.out"
    output.write_bytes(b"cloudjob: first\n  J\xf6rn\ncloudjob: train.lr is too high\n--- 12 ended with 4\n")
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    log = tmp_path / "log.tsv"
    log.write_bytes(f"0\t12\ttrain\tstarted {output}\n0\t12\ttrain\tended 4\n\xff0\t13".encode("latin-1"))
    (job,) = queue.unfinished(log)
    assert (job.said, job.log) == ("train.lr is too high", str(output))
