"""Which device and how many cores a rank has, from what all ranks say of themselves."""

import os
from types import SimpleNamespace

import pytest

from cloudjob.files import HOST
from cloudjob.hpc import machine
from cloudjob.hpc.placement import Place

MINE = sorted(os.sched_getaffinity(0))


def ranks(number: int, others: list) -> SimpleNamespace:
    """Rank `number` of a world in which the ranks have said this; its own word comes from itself."""
    heard = []

    def gather(value):
        heard.append(value)
        return [*others[:number], value, *others[number + 1 :]]

    return SimpleNamespace(rank=number, size=len(others), gather=gather, bcast=lambda value: value)


@pytest.mark.parametrize(
    ("number", "others", "local", "sharing"),
    [
        (0, [None], 0, 1),
        (1, [(HOST, MINE), None], 1, 2),
        (2, [("a", MINE), ("a", MINE), None, (HOST, MINE)], 0, 2),  # the first of its node
        (3, [(HOST, [999]), ("b", MINE), (HOST, [998]), None], 2, 1),  # bound to cores of its own
    ],
)
def test_a_rank_shares_its_node_with_those_that_are_there(monkeypatch, number, others, local, sharing):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert Place.of(ranks(number, others)) == Place(local, 8 // sharing)


def test_threads_that_were_asked_for_are_each_ranks_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Place.of(ranks(1, [(HOST, MINE), None])).cores == 3


def test_no_rank_is_without_a_core(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "cores", lambda: 1)
    assert Place.of(ranks(1, [(HOST, MINE), None])).cores == 1
