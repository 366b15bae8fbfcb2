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


def row(stage: str, *states: str, **options) -> dict:
    return {"stage": stage, "waits": None, "items": items(*states, **options)}


def test_a_finished_stage_is_one_row():
    assert story.cells(row("preview", "done", "done")) == ("preview", 1.0, "2 done", "", "")
    assert story.cells(row("preview")) == ("preview", None, "no items", "", "")
    assert story.notes(row("preview", "done", "done"), ROOT) == []
    assert [story.look(row("pair", *states)) for states in (["done"], ["done", "missing"], ["missing", "failed"])] == [
        *("good", "", "bad")
    ]


def test_the_first_reason_stands_for_the_others_of_its_kind():
    found = row("download", "failed", "rejected", "failed", "failed")
    assert story.cells(found) == ("download", 0.25, "1 rejected, 3 failed", "", "")
    assert story.notes(found, ROOT) == [
        "            failed failed0: why 0 (and 2 more)",
        "            rejected rejected1: why 1",
        "            again: cloudjob download runs/a",
    ]


def test_what_is_missing_takes_as_long_as_what_was_made():
    found = row("infer", "done", "missing", "missing", "missing", seconds=600)
    _, share, counts, each, end = story.cells(found)
    assert (share, counts, each) == (0.25, "1 done, 3 missing", "10 min each")
    assert end.startswith("in 30 min, ")
    held = [
        {"stage": stage, "item": f"a{n}", "pid": n, "job": "7_1", "host": "n1", "since": 0}
        for n, stage in enumerate(("infer", "pair", "infer"))
    ]
    assert story.cells(found, held)[4].startswith("in 15 min, "), "two are at work"
    assert [line.partition(" since ")[0] for line in story.notes(found, ROOT, held)[:2]] == [
        "            at work on a0: process 0 of job 7_1 on n1",
        "            at work on a2: process 2 of job 7_1 on n1",
    ]
    assert story.cells(row("infer", "done", "missing", seconds=None))[3:] == ("", "")
    assert story.cells(row("infer", "missing", "missing"))[1:] == (0.0, "2 missing", "", "")


def test_a_training_shows_its_samples_as_its_share():
    going = {"seen": 96, "of": 320, "samples_per_s": 8.0, "seconds_left": 28}
    _, share, counts, speed, end = story.cells(row("train", "missing"), training=going)
    assert (share, counts, speed) == (0.3, "96 of 320 samples", "8.0 samples/s")
    assert end.startswith("in 28 s, ")
    assert story.cells(row("train", "done"), training=going)[1:3] == (1.0, "1 done")


def test_what_to_do_next():
    rows = [row("search", "done"), row("pair", "done", "missing"), row("infer", "missing")]
    assert story.go_on(rows, "runs/a", at_work=0, submitted=False) == "cloudjob run runs/a --from pair"
    assert story.go_on(rows[1:], "runs/a", at_work=0, submitted=False) == "cloudjob run runs/a"
    assert story.go_on(rows, "runs/a", at_work=0, submitted=True) == "slurm/pipeline.sh runs/a"
    assert story.go_on(rows, "runs/a", at_work=1, submitted=True) == ""
    assert story.go_on(rows[:1], "runs/a", at_work=0, submitted=False) == ""
    waits = {"stage": "train", "waits": "shard first", "items": []}
    assert story.go_on([*rows[:1], waits], "runs/a", at_work=0, submitted=False) == "cloudjob run runs/a --from train"


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
    assert said.startswith("training  10 of 20 samples, loss 0.1235, 3.0 samples/s, ends in 3 h 0 min, ")
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
