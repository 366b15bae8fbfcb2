"""The accounts of a server with rules: sessions, second factor, the bytes that they have fetched."""

import base64
import hmac
import time
from collections import Counter, defaultdict

from cloudjob.archive.faults import Rules

_CODE_S = 30  # a code of the second factor lasts so long, and is taken for as long again
_PAST_QUOTA = 1e6  # bytes per second


class Accounts:
    """What each account has done so far. The server holds its lock while it asks or tells."""

    def __init__(self, rules: Rules):
        self._rules = rules
        self._used_codes: set[str] = set()
        self._ends: defaultdict[str, dict[str, float]] = defaultdict(dict)  # account -> session, its end
        self._session_of: dict[str, str] = {}  # refresh token -> session
        self._fetched: Counter[str] = Counter()
        self.grants = 0  # so far, of all accounts

    def refusal(self, form: dict[str, str]) -> tuple[int, str] | None:
        """HTTP status and words for a sign-in that is refused; None for a good one, whose code is then used up."""
        rules, account, now = self._rules, form.get("username", ""), time.monotonic()
        if rules.password and form.get("password") != rules.password:
            return 401, "Invalid user credentials"
        if rules.expired:
            return 400, "Account disabled"
        live = {session: end for session, end in self._ends[account].items() if end > now}
        self._ends[account] = live
        if len(live) >= rules.sessions:
            return 400, "User session limit exceeded"
        if rules.totp_secret:
            valid = {one_time_code(rules.totp_secret, time.time() - age) for age in (0, _CODE_S)}
            if form.get("totp", "") not in valid - self._used_codes:
                return 401, "Invalid user credentials"
            self._used_codes.add(form["totp"])
        return None

    def grant(self, account: str, old: str, new: str, end: float) -> None:
        """A refresh token was given, in place of an old one or ("") in a new session, which lasts until `end`."""
        session = self._session_of.get(old, new)
        self._session_of[new] = session
        self._ends[account][session] = end
        self.grants += 1

    def fetch(self, account: str, size: int) -> None:
        """So many bytes were sent to the account."""
        self._fetched[account] += size

    def connections(self, account: str) -> int:
        """How many the account may have at a time."""
        return 1 if self._exhausted(account) else self._rules.connections

    def speed(self, account: str) -> float | None:
        """Bytes per second of each of its connections; None without a limit."""
        return _PAST_QUOTA if self._exhausted(account) else self._rules.speed

    def _exhausted(self, account: str) -> bool:
        return self._rules.quota is not None and self._fetched[account] >= self._rules.quota


def one_time_code(secret: str, moment: float) -> str:
    """The code of a base32 secret at a Unix time: RFC 6238 with SHA-1, 30 s, six digits, as authenticator apps do."""
    key = base64.b32decode(secret + "=" * (-len(secret) % 8), casefold=True)
    mac = hmac.new(key, int(moment // _CODE_S).to_bytes(8, "big"), "sha1").digest()
    start = mac[-1] & 15  # dynamic truncation, RFC 4226, 5.3
    return f"{(int.from_bytes(mac[start : start + 4], 'big') & 0x7FFFFFFF) % 10**6:06d}"
