"""What status says: counts, time left, first reasons, the command that goes on."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.cli import story

ROOT = Path("runs/a")


def items(*states: str, seconds: float | None = 2.0) -> list[dict]:
    return [
        {"item": f"{state}{number}", "state": state, "reason": f"why {number}", "seconds": seconds}
        for number, state in enumerate(states)
    ]


def of(stage: str, *states: str, **options) -> list[str]:
    return story.of_stage({"stage": stage, "waits": None, "items": items(*states, **options)}, ROOT)


def test_a_finished_stage_is_one_line():
    assert of("preview", "done", "done") == ["preview   2 done"]
    assert of("preview") == ["preview   no items"]


def test_the_first_reason_stands_for_the_others_of_its_kind():
    assert of("download", "failed", "rejected", "failed", "failed") == [
        "download  1 rejected, 3 failed",
        "            failed failed0: why 0 (and 2 more)",
        "            rejected rejected1: why 1",
        "            again: cloudjob download runs/a",
    ]


def test_what_is_missing_takes_as_long_as_what_was_made():
    (line, _) = of("infer", "done", "done", "missing", "missing", "missing", seconds=600)
    assert line.startswith("infer     2 done, 3 missing; 3 times 10 min are 30 min for one worker: ")
    held = [
        {"stage": stage, "item": f"a{n}", "pid": n, "job": "7_1", "host": "n1", "since": 0}
        for n, stage in enumerate(("infer", "pair", "infer"))
    ]
    row = {"stage": "infer", "waits": None, "items": items("done", "missing", "missing", "missing", seconds=600)}
    line, *others = story.of_stage(row, ROOT, held)
    assert "are 15 min for the 2 at work: " in line
    assert [other.partition(" since ")[0] for other in others[:2]] == [
        "            at work on a0: process 0 of job 7_1 on n1",
        "            at work on a2: process 2 of job 7_1 on n1",
    ]
    assert of("infer", "done", "missing", seconds=None)[0] == "infer     1 done, 1 missing"
    assert of("infer", "missing", "missing") == ["infer     2 missing"]


@pytest.mark.parametrize(
    ("stage", "states", "command"),
    [
        ("search", ["failed"], "cloudjob search runs/a"),
        ("preview", ["done", "missing"], "cloudjob preview runs/a"),
        ("shard", ["missing"], ""),  # nobody has begun
        ("shard", ["done", "missing"], "sbatch --array=1 slurm/prepare.sh runs/a"),
        ("infer", ["failed", "missing", "rejected", "missing"], "sbatch --array=0-1,3 slurm/infer.sh runs/a"),
        ("infer", ["rejected", "done"], ""),
    ],
)
def test_the_command_that_goes_on(stage, states, command):
    assert story.again({"stage": stage, "items": items(*states)}, ROOT) == command


def test_a_training_says_when_it_ends():
    found = {"seen": 10, "of": 20, "loss": 0.123456, "samples_per_s": 3.0, "last_sign_of_life_s": 5}
    found["seconds_left"] = 3 * 3600
    hour = time.strftime("%H:", time.localtime(time.time() + 3 * 3600))
    said = story.of_training(found)
    assert said.startswith("training  10 of 20 samples, loss 0.1235, 3.0 samples/s, 3 h 0 min left: ")
    assert hour in said
    assert said.endswith("; last sign of life 5.0 s ago")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (12.4, "12 s"),
        (240, "4 min"),
        (12_000, "3 h 20 min"),
        (187_200, "2 d 4 h"),
        (3599, "1 h 0 min"),
    ],
)
def test_durations_as_people_say_them(seconds, text):
    assert story.duration(seconds) == text


@given(st.sets(st.integers(0, 60)))
def test_array_indices_as_slurm_takes_them(indices):
    text = story.as_array(sorted(indices))
    found = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    assert found == indices
    assert text.count(",") + 1 == max(1, sum(index + 1 not in indices for index in indices))  # no part too many
