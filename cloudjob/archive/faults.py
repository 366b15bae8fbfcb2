"""The faults that a server may be told to have, and which request meets which.

A fault is drawn for what is asked, not for a moment: whether a file, a page, a sign-in or a row meets it is a function
of the seed, of what is asked and of the fault's name. Of several they come one after the other, at the first, second,
third time that the same thing is asked, and then no more. So a run can be repeated, whatever the order of its threads,
and who asks often enough always gets a whole answer.
"""

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

REDIRECTS = ("other_host", "other_port")
REFUSALS = ("rate_limited", "rate_limited_wait", "unavailable", "broken")
MESSAGES = ("html", "message")  # with status 200
BODIES = ("short", "stalled", "dripping")
ANYWHERE = ("reset", "slow", *REFUSALS, *REDIRECTS, *MESSAGES, *BODIES)
RANGES = ("range_error", "range_refused", "range_ignored", "range_wrong")  # of requests for a part of a file
FILES = ("missing", "wrong_bytes", *RANGES)
PAGES = ("page_short", "page_repeats", "page_last", "page_elsewhere", "count_wrong")
ROWS = ("checksum_wrong", "checksum_empty", "checksum_unknown")
TOKENS = ("refresh_lost",)
TWINS = ("no_cloud_cover", "no_size", "no_checksum", "no_geometry", "other_name", "offline", "withdrawn")
BATCHES = ("unauthorized", "outage")  # of a product's files: they come to one of them
ALL = (*ANYWHERE, *FILES, *PAGES, *ROWS, *TOKENS, *TWINS, *BATCHES)


@dataclass(frozen=True)
class Rules:
    """How long faults last and what accounts may do; the defaults are those of the Data Space, where it says."""

    times: int = 1  # how often a fault comes to what it was drawn for; 0: always
    retry_after: int = 1  # seconds, as the header says
    slow_s: float = 10  # before the first byte
    stalled_s: float = 120  # of silence within a body, until the connection ends
    dripping_s: float = 5  # from byte to byte
    outage_s: float = 30  # without an answer for anybody
    latency: float = 0  # seconds before each answer
    speed: float | None = None  # bytes per second and connection
    quota: int | None = None  # bytes of an account, after which it has one connection of 1 MB/s
    connections: int = 4  # of an account at a time
    sessions: int = 100  # of an account; each sign-in with a password is one
    token_s: float = 600
    refresh_s: float = 3600
    rotating: bool = False  # whether a refresh token is good for one use
    password: str = ""  # the only one that is accepted; "": any
    totp_secret: str = ""  # base32; where given, a sign-in needs a code of it, and each code is good for one use
    expired: bool = False  # whether every account is


DEFAULTS = Rules()


def chance(seed: int, *key: str) -> float:
    """A random number in [0, 1) that belongs to the key alone."""
    digest = hashlib.sha256("\0".join((str(seed), *key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class Draws:
    """Which faults come to what is asked, and which of them have come; for any number of threads."""

    def __init__(self, rates: Mapping[str, float], *, seed: int = 0, times: int = 1):
        self._rates, self._seed, self._times = rates, seed, times
        self._met: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._lock = threading.Lock()

    def of(self, what: str, among: Collection[str]) -> list[str]:
        """The faults among these that come to `what`, in the order in which they come."""
        drawn = [fault for fault in among if chance(self._seed, what, fault) < self._rates.get(fault, 0)]
        return sorted(drawn, key=lambda fault: chance(self._seed, what, fault, "order"))

    def next(self, what: str, among: Collection[str]) -> str | None:
        """The fault among these that comes to `what` this time, if any does; it counts as come."""
        with self._lock:
            met = self._met[what]
            left = [fault for fault in self.of(what, among) if not self._times or met[fault] < self._times]
            if left:
                met[left[0]] += 1
            return left[0] if left else None
