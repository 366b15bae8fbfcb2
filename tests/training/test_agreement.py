"""What all ranks do after a step: one's wish is everybody's, and outcomes may come a step later."""

from types import SimpleNamespace

import pytest
import torch

from cloudjob.hpc import distributed
from cloudjob.training.agreement import NOTHING, Agreement, Verdict, Wishes

CPU = torch.device("cpu")
GOOD = torch.tensor(1.0)


@pytest.fixture
def others(monkeypatch):
    """What the other ranks want, and what this one said."""
    made = SimpleNamespace(votes=[0, 0, 0, 0], said=[])

    def most(mine):
        made.said.append(mine.tolist())
        return torch.maximum(mine, torch.tensor(made.votes, dtype=torch.int32))

    monkeypatch.setattr(distributed, "max_over_ranks", most)
    return made


def agree(wishes: Wishes, loss=GOOD, norm=GOOD, *, first: bool = True) -> tuple[Wishes, bool]:
    """What comes of a vote at once, which is what the device is told too."""
    agreement = Agreement(CPU, first=first)
    skip = agreement.vote(wishes, loss, norm, seen=6)
    (verdict,) = agreement.verdicts()
    assert (skip.item(), skip.dtype, verdict.seen) == (float(verdict.bad), torch.float32, 6)
    return verdict.wishes, verdict.bad


@pytest.mark.parametrize(
    ("own", "first", "said"),
    [
        (Wishes(0, False, False), True, [0, 0, 0, 0]),
        (Wishes(2, True, False), True, [2, 1, 0, 0]),
        (Wishes(1, False, True), True, [1, 0, 1, 0]),
        (Wishes(1, True, True), False, [1, 0, 0, 0]),  # to save and to log is rank 0's
        (Wishes(2, True, True), False, [2, 0, 0, 0]),
    ],
)
def test_a_wish_to_stop_is_everybodys_to_save_and_to_log_that_of_rank_0(others, own, first, said):
    assert agree(own, first=first) == (Wishes(said[0], bool(said[1]), bool(said[2])), False)
    assert others.said == [said]


def test_one_ranks_wish_is_what_all_do(others):
    others.votes = [2, 1, 1, 0]
    assert agree(NOTHING, first=False) == (Wishes(2, True, True), False)
    others.votes = [1, 0, 0, 1]
    assert agree(Wishes(2, False, False)) == (Wishes(2, False, False), True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_loss_or_a_gradient_that_is_not_finite_is_bad_for_all(others, value):
    for loss, norm in ((torch.tensor(value), GOOD), (GOOD, torch.tensor(value))):
        assert agree(NOTHING, loss, norm) == (NOTHING, True)
    assert others.said == [[0, 0, 0, 1]] * 2


def test_alone_one_agrees_with_oneself():
    assert agree(Wishes(1, True, False)) == (Wishes(1, True, False), False)


def test_a_device_that_computes_is_asked_a_step_later_unless_all_is_wanted():
    agreement, wish = Agreement(CPU, first=True, late=True), Wishes(1, False, False)
    agreement.vote(wish, GOOD, GOOD, seen=0)
    assert list(agreement.verdicts()) == []
    assert agreement.vote(NOTHING, GOOD * torch.nan, GOOD, seen=8).item() == 1  # known there at once
    assert list(agreement.verdicts()) == [Verdict(wish, False, 0)]
    agreement.vote(NOTHING, GOOD, GOOD, seen=16)
    assert list(agreement.verdicts(every=True)) == [Verdict(NOTHING, True, 8), Verdict(NOTHING, False, 16)]
    assert list(agreement.verdicts(every=True)) == []


def test_wishes_add_up():
    assert Wishes(1, True, False).and_those(Wishes(2, False, False)) == Wishes(2, True, False)
    assert NOTHING.and_those(NOTHING) == NOTHING
