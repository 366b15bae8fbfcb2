"""What all ranks do after a step: the wish of one is that of all, and a step that is bad on one is skipped by all.

The vote is a tensor on the device, and so is its outcome: the optimizer reads there that a step is to be skipped. A GPU
is not waited for: the program reads the outcome of a step when it has issued the next one. A processor is done anyway.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cloudjob.diffusion.device import sent
from cloudjob.hpc import distributed


class Wishes(NamedTuple):
    """What a rank has reason to do after a step: to stop (for one of several reasons), to save, to log."""

    stop: int
    save: bool
    log: bool

    def and_those(self, other: "Wishes") -> "Wishes":
        return Wishes(max(self.stop, other.stop), self.save or other.save, self.log or other.log)


NOTHING = Wishes(0, False, False)


class Verdict(NamedTuple):
    """What all ranks do, and whether the step after `seen` samples was bad: its loss or gradient not finite on some."""

    wishes: Wishes
    bad: bool
    seen: int


class Agreement:
    """The votes of one rank, and their outcomes. To save and to log, rank 0's (`first`) count alone."""

    def __init__(self, device: torch.device, *, first: bool, late: bool | None = None):
        self.device, self.first = device, first
        self.late = device.type != "cpu" if late is None else late
        self.open: deque[tuple[Tensor, torch.cuda.Event | None, int]] = deque()

    def vote(self, wishes: Wishes, loss: Tensor, norm: Tensor, *, seen: int) -> Tensor:
        """() float32 on the device: 1 where all ranks skip this step, that after `seen` samples. A collective call."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        votes = [wishes.stop, self.first and wishes.save, self.first and wishes.log]
        mine = torch.cat([sent(torch.tensor(votes, dtype=torch.int32), self.device), bad.int().view(1)])
        agreed = distributed.max_over_ranks(mine)
        self.open.append((*distributed.asked_for(agreed), seen))
        return agreed[-1].to(torch.float32)

    def verdicts(self, *, every: bool = False) -> Iterator[Verdict]:
        """Those that are known without waiting for the step just issued; with `every` its own too."""
        while len(self.open) > (self.late and not every):
            votes, event, seen = self.open.popleft()
            distributed.wait(event)
            stop, save, log, bad = votes.tolist()
            yield Verdict(Wishes(stop, bool(save), bool(log)), bool(bad), seen)
