"""A clock that does not count the time for which its process stood still."""

import pytest

from cloudjob.hpc import awake


@pytest.mark.parametrize(
    ("looks", "lived", "suspended"),
    [
        ([0.2, 0.4, 0.6], 0.6, 0),
        ([0.2, 0.4, 300.4, 300.6], 1.6, 300),
        ([3.0, 6.0], 2.0, 0),  # a busy machine: nobody is judged sooner
        ([100.0, 100.5, 180.5], 2.5, 180),
    ],
)
def test_a_gap_counts_as_a_second_at_most(monkeypatch, looks, lived, suspended):
    now = [0.0]
    monkeypatch.setattr(awake.time, "monotonic", lambda: now[0])
    clock = awake.Clock()
    for now[0] in looks:
        clock.tick()
    assert (clock.now, clock.suspended) == (pytest.approx(lived), pytest.approx(suspended))
