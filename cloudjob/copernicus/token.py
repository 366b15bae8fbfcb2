"""Access tokens of the Copernicus Data Space: one sign-in, then refreshes; never in a log or a URL."""

import json
import os
import threading
import time
from pathlib import Path

import requests

from cloudjob.copernicus.session import Endpoints, ask, host_of, refusal
from cloudjob.errors import ConfigError, ItemError
from cloudjob.files import atomic


class TokenSource:
    """Bearer tokens for any number of threads.

    A token lives 10 minutes and is refreshed at 80 % of that. The password is sent once, and again only when
    the service no longer accepts the refresh token, since every sign-in takes one of the account's 100 sessions.
    Refused credentials are not tried again, as that can lock the account.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        session: requests.Session,
        username: str,
        password: str,
        totp: str | None = None,
    ):
        self._url, self._session = endpoints.token, session
        self._lock = threading.Lock()
        self._password_grant = {"grant_type": "password", "username": username, "password": password}
        if totp:
            self._password_grant["totp"] = totp
        self._access = self._refresh = ""
        self._renew_at = 0.0  # on the monotonic clock
        self._file: Path | None = None
        self._refused: ConfigError | None = None

    @classmethod
    def from_file(cls, endpoints: Endpoints, session: requests.Session, path: Path) -> "TokenSource":
        """From a saved response of the token service (JSON with `refresh_token`); each renewal rewrites the file."""
        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(f"{path}: others can read this token file; do: chmod 600 {path}")
            refresh = json.loads(path.read_text(encoding="utf-8"))["refresh_token"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: no token file (JSON with refresh_token): {type(error).__name__}") from None
        source = cls(endpoints, session, "", "")
        source._file, source._refresh = path, refresh
        return source

    def bearer(self, *, rejected: str = "") -> str:
        """A valid access token; `rejected` is one that the service has just refused with 401.

        ConfigError if the service refuses the credentials, ItemError if it does not answer.
        """
        with self._lock:
            if self._access in ("", rejected) or time.monotonic() >= self._renew_at:
                self._renew()
            return self._access

    def _renew(self) -> None:
        if self._refused:
            raise self._refused
        refresh_grant = {"grant_type": "refresh_token", "refresh_token": self._refresh}
        if self._file:
            grants = [refresh_grant]
        else:
            grants = [refresh_grant, self._password_grant] if self._refresh else [self._password_grant]
        for grant in grants:
            answer = self._request(grant)
            if answer.ok:
                break
        else:
            what = "CDSE_USERNAME, CDSE_PASSWORD, CDSE_TOTP" if self._file is None else str(self._file)
            self._refused = ConfigError(f"credentials refused ({what}): {refusal(answer)}")
            raise self._refused

    def _request(self, grant: dict) -> requests.Response:
        """The response to a grant: a token, which is stored, or a refusal (400, 401); ItemError for other statuses."""
        asked = time.monotonic()
        answer = ask(self._session, "POST", self._url, data={"client_id": "cdse-public", **grant})
        if answer.status_code in (400, 401):
            return answer
        if not answer.ok:
            raise ItemError(refusal(answer))
        try:
            body = answer.json()
            self._access, self._refresh = body["access_token"], body["refresh_token"]
            self._renew_at = asked + 0.8 * body["expires_in"]
        except (ValueError, KeyError, TypeError):
            raise ItemError(f"{host_of(self._url)}: the answer holds no token") from None
        if self._file:
            with atomic(self._file, mode=0o600) as temporary:
                temporary.write_text(json.dumps(body), encoding="utf-8")
        return answer


def from_environment(endpoints: Endpoints, session: requests.Session) -> TokenSource:
    """From CDSE_TOKEN_FILE, or CDSE_USERNAME and CDSE_PASSWORD (and CDSE_TOTP); ConfigError without either."""
    if path := os.environ.get("CDSE_TOKEN_FILE"):
        return TokenSource.from_file(endpoints, session, Path(path))
    username, password = os.environ.get("CDSE_USERNAME"), os.environ.get("CDSE_PASSWORD")
    if not (username and password):
        raise ConfigError(
            "no credentials of the Copernicus Data Space: set CDSE_USERNAME and CDSE_PASSWORD (and CDSE_TOTP, the "
            "second factor, where there is one), or CDSE_TOKEN_FILE, a saved token answer of mode 600"
        )
    return TokenSource(endpoints, session, username, password, os.environ.get("CDSE_TOTP"))
