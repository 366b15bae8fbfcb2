"""Requests to the Copernicus Data Space: addresses, retries with back-off, time-outs, redirects, errors."""

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import astuple, dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import InvalidHeader, NewConnectionError
from urllib3.util.retry import Retry

from cloudjob.copernicus.patience import LOOK, PACE, Patience, duration, weather
from cloudjob.errors import ConfigError, InterruptedJob, ItemError

_CONNECT = 10.0  # seconds
_HOPS = 5  # redirects that are followed
_PASSING = (429, 500, 502, 503, 504)  # HTTP statuses that another try may cure
_MOMENTS = 2  # further tries where the caller says that a status may be one of a moment
_UNSENT = (
    requests.ConnectTimeout,
    requests.exceptions.ProxyError,
    requests.exceptions.SSLError,
    NewConnectionError,
)
_thread = threading.local()  # `ends`: what ends the request that this thread has under way
_NO_ADDRESS = (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema)


@dataclass(frozen=True)
class Endpoints:
    """Base addresses of the four services, without a slash at the end."""

    stac: str
    catalogue: str
    download: str
    token: str


class Session(requests.Session):
    """What its requests have in common beside the connections: see `open_session`."""

    patience: Patience
    stopped: Callable[[], bool]
    said: Callable[[str], None]
    trusted: frozenset[tuple]  # scheme, host and port of the services


def open_session(
    endpoints: Endpoints | None = None,
    *,
    patience: Patience | None = None,
    stopped: Callable[[], bool] = lambda: False,
    said: Callable[[str], None] = lambda line: None,
) -> Session:
    """A session for one thread; `ask` says what becomes of its requests.

    A redirect is followed to the hosts of `endpoints` alone. It uses the proxies of the environment, but no passwords
    of a .netrc file.
    """
    session = Session()
    session.patience, session.stopped, session.said = patience or Patience(), stopped, said
    session.trusted = frozenset(map(_origin, astuple(endpoints))) if endpoints else frozenset()
    session.auth = lambda request: request  # without an auth, requests replaces our token by the one of .netrc
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter())
    session.headers.update({"User-Agent": "cloudjob", "Accept-Encoding": "identity"})
    return session


def host_of(url: str) -> str:
    """Host and port, which error messages name instead of the long address."""
    return urlsplit(url).netloc


def ask(
    session: Session,
    method: str,
    url: str,
    *,
    stopped: Callable[[], bool] | None = None,
    moment: Collection[int] = (),
    **arguments: Any,
) -> requests.Response:
    """The response, whatever its status; ItemError if there is none, InterruptedJob on a wish to stop.

    After HTTP 429, 5xx and broken connections it tries again, `patience.retries` times, as late as Retry-After says,
    otherwise with growing waits; twice after the statuses `moment`. A host that answers nobody is waited for together
    with all other threads (`Weather`). `data` may be a function, called anew for each try.
    """

    def trouble(response: requests.Response, tries: int) -> str:
        return _status(response, (*_PASSING, *(moment if tries <= _MOMENTS else ())))

    return _persist(session, method, url, stopped or session.stopped, trouble, arguments)


def ask_json(session: Session, method: str, url: str, *, holding: str = "", **arguments: Any) -> requests.Response:
    """As `ask`; and an answer that is not a JSON object, with the key `holding`, is asked for again: the page of a
    portal in between, a message instead of what was asked for."""

    def trouble(response: requests.Response, tries: int) -> str:
        if not response.ok:
            return _status(response, _PASSING)
        return "" if _json_object(response, holding) is not None else "an answer of another kind"

    return _persist(session, method, url, arguments.pop("stopped", None) or session.stopped, trouble, arguments)


def get_json(session: Session, method: str, url: str, *, holding: str = "", **arguments: Any) -> dict:
    """The JSON object of the response; ItemError with the service's own message if it refuses. See `ask_json`."""
    response = ask_json(session, method, url, holding=holding, **arguments)
    if not response.ok:
        raise ItemError(refusal(response))
    if (body := _json_object(response, holding)) is None:
        what = f"a JSON object with {holding}" if holding else "a JSON object"
        raise ItemError(f"{host_of(url)}: the answer is not {what} but {response.text[:100]!r}")
    return body


def refusal(response: requests.Response, text: str | None = None) -> str:
    """Host, status, code and message of an error response, for which the services use four different formats; and what
    to do, where that is known. `text` is the body of one that was asked for as a stream."""
    text = response.text if text is None else text
    try:
        body = json.loads(text)
    except ValueError:
        body = {"message": text[:200]}
    if not isinstance(body, dict):
        body = {"message": body}
    if isinstance(body.get("error"), dict):
        body = body["error"]
    code = body.get("code") or body.get("error") or response.reason
    message = body.get("message") or body.get("error_description") or body.get("detail") or ""
    words = f"{host_of(response.url)}: HTTP {response.status_code} {code} {message}"
    if response.status_code != 429 and "quota" not in words.lower():
        return words
    asked = f"It asks to wait {duration(seconds)}. " if (seconds := _retry_after(response)) else ""
    return (
        f"{words}. {asked}Either another program uses the account, or its quota is used up (dataspace.copernicus.eu, "
        "Quotas): run the same command again later"
    )


def _persist(
    session: Session,
    method: str,
    url: str,
    stopped: Callable[[], bool],
    trouble: Callable[[requests.Response, int], str],
    arguments: dict,
) -> requests.Response:
    """Tries until the `trouble` with (response, number of the try) is "", or there was some too often."""
    patience, host = session.patience, weather(host_of(url))
    host.ask_first(patience)
    data, form = arguments.pop("data", None), None
    tries, unsent = 0, False
    while True:
        tries, was_down = tries + 1, host.down
        if not unsent:
            form = data() if callable(data) else data
        unsent, status, asked = False, 0, 0.0
        try:
            response = _redirected(session, method, url, stopped, {**arguments, "data": form})
        except _NO_ADDRESS as error:
            raise ConfigError(f"{url}: no address that can be asked ({type(error).__name__})") from None
        except requests.RequestException as error:
            why, unsent = _words(error), _is_unsent(error)
        else:
            status, asked = response.status_code, _retry_after(response)
            if status < 500:
                host.good(session.said)
            if not (why := trouble(response, tries)):
                return response
        if was_down and not host.down:
            tries = 1  # what it says now has nothing to do with its silence
        silent = not 0 < status < 500
        last = tries > patience.retries or asked > patience.seconds
        if unsent or (silent and (host.down or (last and not _is_alive(session, url, stopped)))):
            host.bad(why, patience, session.said, reached=bool(status))
        elif last and status:
            return response
        elif last:
            raise ItemError(f"{host.host}: no answer ({why})"[:500])
        if status:
            response.close()
        host.pause(patience.wait(tries, limited=status == 429, asked=asked), why, stopped, session.said)


def _redirected(
    session: Session, method: str, url: str, stopped: Callable[[], bool], arguments: dict
) -> requests.Response:
    """One try. Follows redirects: of what may hold a password or a search (POST) to the same host alone, else to the
    hosts of the configuration; https never becomes http."""
    allowed = {_origin(url)} | (session.trusted if method == "GET" else frozenset())
    for _ in range(_HOPS):
        response = _sent(session, method, url, stopped, dict(arguments))
        if not response.is_redirect:
            return response
        response.close()
        url = urljoin(url, response.headers["location"])
        if _origin(url) not in allowed:
            to = "{}://{}".format(*urlsplit(url)[:2])
            raise requests.TooManyRedirects(f"it redirects to {to}, a host that the configuration does not name")
    raise requests.TooManyRedirects(f"it redirects more than {_HOPS} times")


def _sent(session: Session, method: str, url: str, stopped: Callable[[], bool], arguments: dict) -> requests.Response:
    """The response, made in a thread of its own: no time-out of a socket ends on a wish to stop, or where an answer
    arrives byte by byte."""
    outcome: queue.SimpleQueue = queue.SimpleQueue()
    host, timeout = weather(host_of(url)), (_CONNECT, session.patience.silence)

    ends: list[Callable[[], None]] = []  # of what is under way
    stream = arguments.pop("stream", False)

    def work() -> None:
        _thread.ends = ends
        try:
            answer = session.request(method, url, timeout=timeout, allow_redirects=False, stream=True, **arguments)
            ends.append(lambda: answer.raw.shutdown())
            if not stream:
                _ = answer.content  # reads it
            outcome.put(answer)
        except BaseException as error:  # of whatever kind: it is raised where the answer is waited for
            outcome.put(error)

    def give_up() -> None:
        for end in ends:
            with contextlib.suppress(Exception):  # it may be over
                end()

    threading.Thread(target=work, daemon=True, name=f"request to {host.host}").start()
    begun = time.monotonic()
    while True:
        try:
            found = outcome.get(timeout=LOOK)
        except queue.Empty:
            if stopped():
                give_up()
                raise InterruptedJob(f"{host.host}: stopped while waiting for its answer") from None
            waited = time.monotonic() - begun
            if waited > session.patience.answer:
                give_up()
                raise requests.ReadTimeout(f"not whole after {waited:.0f} s") from None
            if waited > PACE:
                host.tell(f"silent for {waited:.0f} s", session.said)
            continue
        if isinstance(found, BaseException):
            raise found
        return found


class _Adapter(requests.adapters.HTTPAdapter):
    """Tells the thread of a request how to end its connection, which another thread may want before any answer."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        if not issubclass(pool.ConnectionCls, _Connection):
            pool.ConnectionCls = type("Connection", (_Connection, pool.ConnectionCls), {})
        return pool


class _Connection:
    def request(self, *args: Any, **kwargs: Any) -> None:
        getattr(_thread, "ends", []).append(lambda: self.sock.shutdown(socket.SHUT_RDWR))  # type: ignore[attr-defined]
        super().request(*args, **kwargs)  # type: ignore[misc]


def _is_alive(session: Session, url: str, stopped: Callable[[], bool]) -> bool:
    """Whether the host answers anything: then a request that it fails is at fault itself."""
    try:
        response = _sent(session, "GET", urljoin(url, "/"), stopped, {})
    except requests.RequestException:
        return False
    return response.status_code < 500


def _origin(url: str) -> tuple:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _status(response: requests.Response, passing: Collection[int]) -> str:
    return f"HTTP {response.status_code} {response.reason}" if response.status_code in passing else ""


def _json_object(response: requests.Response, holding: str) -> dict | None:
    try:
        body = response.json()
    except requests.JSONDecodeError:
        return None
    return body if isinstance(body, dict) and (not holding or holding in body) else None


def _retry_after(response: requests.Response) -> float:
    """Seconds that the service asks to wait (RFC 9110, 10.2.3), 0 where it does not."""
    try:
        return Retry().get_retry_after(response.raw) or 0.0
    except InvalidHeader:
        return 0.0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, which libraries keep in three places."""
    while error is not None:
        yield error
        inner = (getattr(error, "reason", None), *error.args, error.__cause__)
        error = next((each for each in inner if isinstance(each, BaseException)), None)


def _is_unsent(error: requests.RequestException) -> bool:
    """Whether the request cannot have reached the service: no name, no route, nobody listening, another certificate."""
    return any(isinstance(each, _UNSENT) for each in _causes(error))


def _words(error: requests.RequestException) -> str:
    """What happened, in the system's words where there are some. Those about a header may hold a token."""
    *_, first = _causes(error)
    if isinstance(error, requests.exceptions.InvalidHeader):
        return "a header that cannot be sent"
    if isinstance(error, requests.TooManyRedirects):
        return str(error)
    return getattr(first, "strerror", None) or f"{type(first).__name__}: {first}"
