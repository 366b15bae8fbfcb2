"""How long a service is waited for: one request by itself, and a host that answers nobody by all threads together."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cloudjob.errors import InterruptedJob, ItemError
from cloudjob.files import HOST

PACE = 30.0  # seconds between two lines about one host
LOOK = 0.2  # seconds between two looks for a wish to stop
_SHORT = 5.0  # seconds; no word is lost about shorter waits


@dataclass(frozen=True)
class Patience:
    """How often a request is repeated, and how long a service that answers nobody is waited for.

    All other times follow from `seconds`, so a test that makes it small makes all of them small.
    """

    retries: int = 5  # of a request that fails while the service answers others
    seconds: float = 1800.0

    @property
    def first(self) -> float:
        """Seconds before the first retry; each further wait is twice as long."""
        return min(2.0, self.seconds / 900)

    @property
    def longest(self) -> float:
        """Seconds between two tries at most, unless the service asks for more."""
        return min(60.0, self.seconds / 30)

    @property
    def unknown(self) -> float:
        """Seconds that a host is waited for that has never answered this process: this node may not reach it at all."""
        return min(8.0, self.seconds / 20)

    @property
    def answer(self) -> float:
        """Seconds until the whole of a short answer must be there."""
        return min(300.0, self.seconds / 2)

    @property
    def silence(self) -> float:
        """Seconds between two bytes."""
        return min(60.0, self.seconds / 4)

    def wait(self, tries: int, *, limited: bool = False, asked: float = 0.0) -> float:
        """Seconds to wait after so many tries, with jitter, lest all clients come back at once.

        At least the seconds that the service `asked` for; four times as long where it has `limited` the rate.
        """
        backoff = min(self.first * 2.0 ** min(tries - 1, 30) * (4 if limited else 1), self.longest)
        return max(backoff * random.uniform(0.5, 1), asked + random.uniform(0, self.first) if asked else 0)


def steps(seconds: float, stopped: Callable[[], bool], why: str) -> Iterator[float]:
    """Waits in short steps, and yields before each how many seconds are left; InterruptedJob, with `why`, on a wish to
    stop."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if stopped():
            raise InterruptedJob(f"{why}; run the same command again")
        yield left
        time.sleep(min(left, LOOK))


class Weather:
    """What the threads of this process know together about one host: whether it answers anybody."""

    def __init__(self, host: str):
        self.host = host
        self._lock = threading.Lock()
        self._answered = False  # ever
        self._since: float | None = None  # when it answered nobody any more
        self._clock = self._why = ""
        self._looked = self._told = float("-inf")
        self._over = ""  # why it was given up

    @property
    def down(self) -> bool:
        return self._since is not None

    def good(self, said: Callable[[str], None]) -> None:
        """The host has answered."""
        with self._lock:
            back, self._since, self._over, self._answered = self.down, None, "", True
        if back:
            said(f"{self.host}: answers again")

    def bad(self, why: str, patience: Patience, said: Callable[[str], None], *, reached: bool = False) -> None:
        """The host answers nobody, or all with errors (`reached`). Says so once; ItemError when it has been waited for
        long enough."""
        with self._lock:
            self._answered |= reached
            self._looked, self._why = time.monotonic(), why
            begins = not self.down
            if self._since is None:
                self._since, self._clock, self._told = self._looked, time.strftime("%H:%M"), self._looked
            limit = patience.seconds if self._answered else patience.unknown
            if self._looked - self._since > limit:
                self._over = self._given_up()
                raise ItemError(self._over)
        if begins:
            said(f"{self.host}: no answer since {self._clock} ({why}); waiting up to {duration(limit)}")

    def _given_up(self) -> str:
        if self._answered:
            return f"{self.host}: no answer since {self._clock} ({self._why}); run the same command later"
        return (
            f"{self.host}: cannot be reached from {HOST} ({self._why}). Compute nodes often have no internet: run this "
            "on a login or transfer node. Otherwise see the addresses in the section copernicus, or the proxy of your "
            "site (https_proxy)"
        )

    def ask_first(self, patience: Patience) -> None:
        """ItemError at once where the host was given up; but now and then one request may try it again."""
        with self._lock:
            if self._over and time.monotonic() - self._looked < patience.longest:
                raise ItemError(self._over)
            self._looked = time.monotonic()

    def pause(self, seconds: float, why: str, stopped: Callable[[], bool], said: Callable[[str], None]) -> None:
        """Waits; ends early where a host that was down answers again. InterruptedJob on a wish to stop."""
        was_down = self.down
        for left in steps(seconds, stopped, f"{self.host}: stopped while waiting ({why})"):
            if was_down and not self.down:
                return
            if seconds >= _SHORT:
                since = f"no answer since {self._clock}" if was_down else f"again in {left:.0f} s"
                self.tell(f"{why}; {since}", said)

    def tell(self, line: str, said: Callable[[str], None]) -> None:
        """Says a line about the host, unless there was one of late: all threads meet the same."""
        with self._lock:
            if time.monotonic() - self._told < PACE:
                return
            self._told = time.monotonic()
        said(f"{self.host}: {line}")


_known: dict[str, Weather] = {}
_lock = threading.Lock()


def weather(host: str) -> Weather:
    """The one of a host (and port)."""
    with _lock:
        return _known.setdefault(host, Weather(host))


def duration(seconds: float) -> str:
    """45 s, 30 min, 26 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
