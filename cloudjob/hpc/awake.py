"""Time as a process that may be suspended has lived through it (scontrol suspend, gang scheduling, SIGSTOP).

While it stands still it hears nobody, and SLURM does not count the time against the job's limit.
"""

import functools
import threading
import time

_LONGEST_S = 1.0  # between two looks at a clock that is looked at often
_SUSPENDED_S = 5.0  # a gap that no busy machine makes
_LOOK_S = 0.5


class Clock:
    """Seconds since it was made, of which a gap between two looks counts as one at most."""

    def __init__(self) -> None:
        self.now = 0.0
        self.suspended = 0.0  # seconds of the gaps
        self._last = time.monotonic()

    def tick(self) -> None:
        """A look at the clock; to be called by one thread alone."""
        last, self._last = self._last, time.monotonic()
        gap = self._last - last
        self.now += min(gap, _LONGEST_S)
        if gap > _SUSPENDED_S:
            self.suspended += gap


@functools.cache
def of_process() -> Clock:
    """A clock that a thread of this process looks at all the time, from the first call on."""
    clock = Clock()

    def look() -> None:
        while True:
            time.sleep(_LOOK_S)
            clock.tick()

    threading.Thread(target=look, name="clock", daemon=True).start()
    return clock
