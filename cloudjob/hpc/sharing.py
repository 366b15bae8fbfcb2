"""Work that the ranks share while no step is done, and a wish to stop that one of them tells all meanwhile."""

import math
import time
from collections.abc import Callable
from typing import TypeVar

from cloudjob.errors import InterruptedJob
from cloudjob.hpc import distributed
from cloudjob.hpc.distributed import CollectiveTimeoutError, ProcessGroup

T = TypeVar("T")
_ASK_S = 0.5  # between two looks for a wish to stop: each may ask a file system
_POLL_S = 0.02  # between two looks whether the others are ready
_WISH = "stop"


class Stopped(InterruptedJob):
    """All ranks have heard that it is time to stop."""


class Sharing:
    """How ranks share work that is made of parts. One that waits for others, or that calls `ask` in its work, hears of
    a wish to stop within a second, whichever rank was told of it: `Stopped`, on all ranks."""

    def __init__(self, group: ProcessGroup, stopped: Callable[[], bool] = lambda: False):
        """`stopped` says whether this rank knows of a wish to stop."""
        self.group, self.stopped, self.asked, self.rounds = group, stopped, -math.inf, 0

    def ask(self) -> None:
        """`Stopped` where it is time to stop; to be called in a task, as often as one likes."""
        if time.monotonic() - self.asked >= _ASK_S:
            self.asked = time.monotonic()
            if self._wished():
                raise Stopped("stopped at work that is shared by ranks")

    def _wished(self) -> bool:
        store = self.group.store
        if store is None:
            return self.stopped()
        if self.stopped():
            store.set(_WISH, "")  # for good: after it nobody goes on
        return store.check([_WISH])

    def each(self, task: Callable[[int], T], number: int) -> list[T]:
        """[task(0), ..., task(number - 1)] (small, picklable) on every rank, each of them done by one rank alone: rank
        0 does the first. Where one fails, all raise its error. A collective call."""
        if self.group.store is None:
            return [task(part) for part in range(number)]
        self.rounds += 1
        every = distributed.gather(distributed.run_on_all_ranks(lambda: self._own(task, number)))
        return [every[part % self.group.size][part // self.group.size] for part in range(number)]

    def _own(self, task: Callable[[int], T], number: int) -> list[T]:
        """What is this rank's, when all have done theirs: in a collective call it would hear of nothing."""
        group = self.group
        assert group.store
        ready = f"ready for {self.rounds}"
        try:
            found = [task(part) for part in range(group.rank, number, group.size)]
        finally:
            group.store.add(ready, 1)
        end = time.monotonic() + distributed.COLLECTIVE_S
        while group.store.add(ready, 0) < group.size and (group.watch is None or group.watch.stands):
            self.ask()
            if time.monotonic() > end:
                raise CollectiveTimeoutError(f"shared work has been waited for {distributed.COLLECTIVE_S} s")
            time.sleep(_POLL_S)
        return found
