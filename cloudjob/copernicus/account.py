"""One account of the Copernicus Data Space, shared by all processes and nodes: one token, four connections.

What they share lies in a folder on a disk that all of them see: the token, in a file of mode 600; leases on its renewal
and on each connection. A token lives 10 minutes and is renewed at 80 % of that, by one process for all. The password is
sent once, and again only when the service no longer accepts the refresh token: every sign-in takes one of the account's
100 sessions, and refused ones lock it.
"""

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import requests

from cloudjob import leases
from cloudjob.copernicus.credentials import STEP, Credentials, Ledger
from cloudjob.copernicus.patience import LOOK, PACE, Patience
from cloudjob.copernicus.session import Endpoints, Session, ask_json, host_of, open_session, refusal
from cloudjob.errors import ConfigError, InterruptedJob, ItemError
from cloudjob.files import atomic, is_disk_full, trouble
from cloudjob.leases import Lease

CONNECTIONS = 4  # that the service lets an account have at a time, on all machines together
_SHORT = 2.0  # seconds; no word is lost about shorter waits
_kept: dict[Path, dict] = {}  # token file -> its content, for all accounts of this process


class _NotPrivateError(Exception):
    """Others can read what this process writes."""


class Account:
    """Bearer tokens and connections for any number of threads; see `open_account`. It sends nothing, and reads no
    credentials, before the first use."""

    def __init__(self, session: Session, url: str, folder: Path, lease_facts: dict[str, Any]):
        self._session, self._url, self._folder, self._lease_facts = session, url, folder, lease_facts
        self._lock = threading.Lock()
        self._refused: ConfigError | None = None
        self._told = float("-inf")  # when there was a word about a wait
        self._told_memory = False

    def check(self) -> None:
        """Signs in if need be. ConfigError, with what to do, where the credentials are missing or refused."""
        self.bearer()

    def bearer(self, *, rejected: str = "") -> str:
        """A valid access token; `rejected` is one that the service has just refused with 401.

        ConfigError if the service refuses the credentials, ItemError if it does not answer.
        """
        with self._lock:
            return self._valid(rejected) or self._renew(rejected)

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """One of the account's connections, for as long as the context: for one file, or for a batch of files.

        Waits while processes here and elsewhere have all of them; InterruptedJob on a wish to stop.
        """
        numbers = random.sample(range(1, CONNECTIONS + 1), CONNECTIONS)
        slots = [Lease(self._place / "leases", "connection", str(number), **self._lease_facts) for number in numbers]
        with self._first_free(slots, "one of the account's four connections"):
            yield

    # --- what is shared -----------------------------------------------------------------------------------------------
    @cached_property
    def _credentials(self) -> Credentials:
        return Credentials.of_environment()

    @cached_property
    def _place(self) -> Path:
        """The folder of this account, which nobody else can enter. ConfigError where it cannot be made."""
        place = self._credentials.place(self._folder)
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            (place / "leases").mkdir(exist_ok=True)
        except OSError as error:
            if is_disk_full(error):
                raise
            raise ConfigError(
                f"{place}: cannot be made ({error.strerror}); the account's token and connections are shared there. "
                "Set copernicus.account_folder to a folder that all nodes can write to"
            ) from None
        return place

    def _first_free(self, wanted: Sequence[Lease], what: str) -> Lease:
        """The first of these leases that is to be had. Says who has them, once for all threads, now and then."""
        begun = time.monotonic()
        while True:
            for lease in wanted:
                if lease.take():
                    return lease
            now = time.monotonic()
            if now - begun > _SHORT and now - self._told > PACE:
                self._told = now
                holder = wanted[0].holder
                self._session.said(f"waits for {what}: in use by {leases.said(holder) if holder else 'others'}")
            end = now + min(wanted[0].patience / 20, 1) * random.uniform(0.5, 1)
            while (left := end - time.monotonic()) > 0:
                if self._session.stopped():
                    raise InterruptedJob(f"stopped while waiting for {what}; run the same command again")
                time.sleep(min(left, LOOK))

    # --- the token ----------------------------------------------------------------------------------------------------
    @property
    def _path(self) -> Path:
        return self._credentials.file or self._place / "token.json"

    def _valid(self, rejected: str) -> str:
        """The access token that this process has, or else the file, if its time is not up."""
        for read in (lambda: _kept.get(self._path), self._read):
            token = read() or {}
            age = time.time() - token.get("obtained", 0)  # by the clock of whoever obtained it
            if token.get("access_token", rejected) != rejected and age < 0.8 * token.get("expires_in", 0):
                _kept[self._path] = token
                return token["access_token"]
        return ""

    def _read(self) -> dict | None:
        """What the token file holds, if that is of this service. ConfigError where others can read it, or where a file
        that the user names holds none."""
        try:
            if self._path.stat().st_mode & 0o077:
                raise ConfigError(f"{self._path}: others can read this token file; do: chmod 600 {self._path}")
            token = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(token["refresh_token"], str) and token.get("service", self._url) == self._url:
                return token
            usable = False
        except FileNotFoundError:
            usable = bool(self._credentials.username)  # the password makes it
        except OSError as error:
            raise trouble(error, self._path) from None
        except (ValueError, KeyError, TypeError):
            usable = False
        if self._credentials.file and not usable:
            raise ConfigError(
                f"CDSE_TOKEN_FILE, {self._path}: no token answer of {host_of(self._url)} (JSON with refresh_token)"
            )
        return None

    def _renew(self, rejected: str) -> str:
        """A new token by one process for all: by the refresh token, then by the password."""
        if self._refused:
            raise self._refused
        lease = Lease(self._place / "leases", "sign-in", "token", **self._lease_facts)
        with self._first_free([lease], "another process to sign in"):
            if token := self._valid(rejected):
                return token
            known = [token["refresh_token"] for token in (self._read(), _kept.get(self._path)) if token]
            for refresh in dict.fromkeys(known):
                answer = self._ask({"grant_type": "refresh_token", "refresh_token": refresh}.copy)
                if answer.ok:
                    return self._keep(answer)
            if self._credentials.username:
                return self._sign_in()
        raise self._refuse(refusal(answer))

    def _sign_in(self) -> str:
        ledger = Ledger(self._place, self._credentials)
        if why := ledger.refused():
            raise self._refuse(why)
        answer = self._ask(lambda: self._password_grant(ledger))
        if answer.ok:
            return self._keep(answer)
        ledger.refuse(refusal(answer))
        raise self._refuse(refusal(answer))

    def _refuse(self, why: str) -> ConfigError:
        """The error, which this process raises from now on instead of trying again."""
        self._refused = ConfigError(
            f"credentials refused ({self._credentials.said}): {why}. Sign in by hand: https://dataspace.copernicus.eu "
            "says whether the password is wrong, the account has expired or its terms are to be accepted. With "
            "two-factor sign-in set CDSE_TOTP_SECRET (or CDSE_TOTP to a fresh code), and see that the clock is right"
        )
        return self._refused

    def _password_grant(self, ledger: Ledger) -> dict[str, str]:
        """The form, made anew for each try: no code of the second factor is sent twice."""
        grant = {
            "grant_type": "password",
            "username": self._credentials.username,
            "password": self._credentials.password,
        }
        if not self._credentials.code():
            return grant
        while ledger.is_sent(code := self._credentials.code()):
            if not self._credentials.secret:
                raise ConfigError(
                    "the code in CDSE_TOTP has been sent already, and each is good for one sign-in: set it to a fresh "
                    "one, or set CDSE_TOTP_SECRET instead"
                )
            if self._session.stopped():
                raise InterruptedJob("stopped while waiting for the next code of the second factor")
            time.sleep(min(LOOK, STEP / 10))
        ledger.sends(code)
        return grant | {"totp": code}

    def _ask(self, grant: Callable[[], dict[str, str]]) -> requests.Response:
        """The response to a grant: a token, or a refusal (400, 401); ItemError for other statuses."""
        form = {"client_id": "cdse-public"}
        answer = ask_json(self._session, "POST", self._url, holding="access_token", data=lambda: {**form, **grant()})
        if not answer.ok and answer.status_code not in (400, 401):
            raise ItemError(refusal(answer))
        return answer

    def _keep(self, answer: requests.Response) -> str:
        """The access token of an answer; keeps all of it, in the file too where that is private."""
        try:
            token = answer.json()
            facts = {"obtained": time.time() - answer.elapsed.total_seconds(), "service": self._url}
            token = {**token, **facts, "expires_in": float(token["expires_in"])}
            access, _ = str(token["access_token"]), token["refresh_token"]
        except (ValueError, KeyError, TypeError):
            raise ItemError(f"{host_of(self._url)}: the answer holds no token") from None
        _kept[self._path] = token
        try:
            with atomic(self._path, mode=0o600) as temporary:
                if temporary.stat().st_mode & 0o077:
                    raise _NotPrivateError
                temporary.write_text(json.dumps(token), encoding="utf-8")
        except (_NotPrivateError, OSError, ItemError) as error:
            why = "mode 600 cannot be set here" if isinstance(error, _NotPrivateError) else str(error)
            if not self._told_memory:
                self._session.said(
                    f"{self._path}: {why}; the token is kept in memory, and each process signs in by itself"
                )
            self._told_memory = True
        return access


def open_account(
    endpoints: Endpoints,
    *,
    folder: Path,
    patience: Patience | None = None,
    stopped: Callable[[], bool] = lambda: False,
    said: Callable[[str], None] = lambda line: None,
    job: str | None = None,
    lease_patience: float = leases.PATIENCE,
) -> Account:
    """The account of the environment's credentials: CDSE_USERNAME and CDSE_PASSWORD (and CDSE_TOTP_SECRET or CDSE_TOTP
    with two-factor sign-in), or CDSE_TOKEN_FILE, a saved token answer.

    `folder` is shared by all processes that use the account, on whatever node; `job` and `lease_patience` (seconds) are
    those of its leases.
    """
    session = open_session(endpoints, patience=patience, stopped=stopped, said=said)
    return Account(session, endpoints.token, folder, {"patience": lease_patience, "job": job})
