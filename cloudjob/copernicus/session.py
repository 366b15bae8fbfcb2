"""Requests to the Copernicus Data Space: addresses, retries with back-off, time-outs, errors."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from cloudjob.errors import ItemError

_TIMEOUT = (10, 60)  # seconds to connect, and between two bytes
_LONGEST_WAIT = 300  # seconds, even if Retry-After asks for more: a batch job pays for the wait
_DATA_SPACE = ".dataspace.copernicus.eu"


@dataclass(frozen=True)
class Endpoints:
    """Base addresses of the four services, without a slash at the end."""

    stac: str
    catalogue: str
    download: str
    token: str


class _Retry(Retry):
    def get_backoff_time(self) -> float:
        """Seconds to wait, before the first retry too: urllib3 retries at once, which counts against a rate limit."""
        return min(self.backoff_factor * 2 ** (len(self.history) - 1), _LONGEST_WAIT)

    def parse_retry_after(self, retry_after: str) -> float:
        """Seconds that the service asks for, at most _LONGEST_WAIT."""
        return min(super().parse_retry_after(retry_after), _LONGEST_WAIT)


class _Session(requests.Session):
    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Keeps the token on a redirect within the Data Space (catalogue to download); requests decides on others."""
        old, new = urlsplit(str(response.request.url)), urlsplit(str(prepared_request.url))
        within = new.scheme == "https" and all((url.hostname or "").endswith(_DATA_SPACE) for url in (old, new))
        if not within and self.should_strip_auth(response.request.url, prepared_request.url):
            prepared_request.headers.pop("Authorization", None)


def open_session(*, retries: int = 5, backoff: float = 8.0) -> requests.Session:
    """A session for one thread, which retries a request after HTTP 429, 5xx and broken connections.

    It waits as long as Retry-After says, otherwise `backoff` seconds, then twice as long each time: with the
    defaults four minutes in all. It uses the proxies of the environment, but no passwords of a .netrc file.
    """
    session = _Session()
    session.auth = lambda request: request  # without an auth, requests replaces our token by the one of .netrc
    session.headers.update({"User-Agent": "cloudjob", "Accept-Encoding": "identity"})
    retry = _Retry(
        total=retries,
        backoff_factor=backoff,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,  # POST too: searches and token requests are safe to retry
        raise_on_status=False,
    )
    session.mount("https://", HTTPAdapter(max_retries=retry))
    session.mount("http://", HTTPAdapter(max_retries=retry))
    return session


def host_of(url: str) -> str:
    """Host and port, which error messages name instead of the long address."""
    return urlsplit(url).netloc


def ask(session: requests.Session, method: str, url: str, **arguments: Any) -> requests.Response:
    """The response, whatever its status; ItemError if there is none."""
    try:
        return session.request(method, url, timeout=_TIMEOUT, **arguments)
    except requests.RequestException as error:
        raise ItemError(f"{host_of(url)}: no answer ({type(error).__name__}: {error})"[:500]) from None


def get_json(session: requests.Session, method: str, url: str, **arguments: Any) -> dict:
    """The JSON object of the response; ItemError with the service's own message if it refuses."""
    response = ask(session, method, url, **arguments)
    if not response.ok:
        raise ItemError(refusal(response))
    try:
        body = response.json()
    except requests.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise ItemError(f"{host_of(url)}: the answer is not a JSON object but {response.text[:100]!r}")
    return body


def refusal(response: requests.Response) -> str:
    """Host, status, code and message of an error response, for which the services use four different formats."""
    try:
        body = response.json()
    except requests.JSONDecodeError:
        body = {"message": response.text[:200]}
    if not isinstance(body, dict):
        body = {"message": body}
    if isinstance(body.get("error"), dict):
        body = body["error"]
    code = body.get("code") or body.get("error") or response.reason
    message = body.get("message") or body.get("error_description") or body.get("detail") or ""
    return f"{host_of(response.url)}: HTTP {response.status_code} {code} {message}"
