"""A server that behaves as the Data Space does on its worst days: with the faults and rules that it is given.

It keeps a journal of every request. A second server, on another port, is where its wrong redirects and links lead.
"""

import contextlib
import hashlib
import io
import json
import logging
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

from cloudjob.archive import faults, oddities
from cloudjob.archive.accounts import Accounts
from cloudjob.archive.catalogue import Entry
from cloudjob.archive.faults import DEFAULTS, Draws, Rules, chance
from cloudjob.archive.journal import Journal, Secrets
from cloudjob.archive.server import ArchiveServer, Handler, Refusal, has_left

_LOG = logging.getLogger(__name__)
_STEP_S = 0.02  # what is sent at a time where the speed is limited
_HTML = b"<!DOCTYPE html><title>Maintenance</title><p>We will be back soon."
_MESSAGE = b'{"code":"DAT-ZIP-500","message":"Please try again later"}'


class HostileServer(ArchiveServer):
    """An archive server with faults: `rates` says how often each of `faults.ALL` is drawn (0 where it is not named),
    `rules` how long they last and what accounts may do. `journal` is a file that gets a line per request.
    """

    def __init__(
        self,
        archive: Path,
        *,
        rates: Mapping[str, float],
        rules: Rules = DEFAULTS,
        seed: int = 0,
        journal: Path | None = None,
        port: int = 0,
        host: str = "127.0.0.1",
        said: Callable[[str], object] = _LOG.debug,
    ):
        super().__init__(archive, port=port, host=host, handler=HostileHandler, said=said)
        self.rules, self.seed = rules, seed
        self.draws = Draws(rates, seed=seed, times=rules.times)
        self.secrets, self.journal = Secrets(), Journal(journal)
        self.secrets.add([rules.password, rules.totp_secret])
        self.accounts = Accounts(rules)
        self.dark_until = 0.0  # on the monotonic clock
        self.numbers = count(1)  # of connections
        self._folder = tempfile.TemporaryDirectory(prefix="cloudjob-twins-")
        self.twins = {twin.name: kind for twin, kind in self._make_twins(Path(self._folder.name))}
        self.elsewhere = _Elsewhere(host, self.secrets, self.journal)

    def _make_twins(self, folder: Path) -> Iterator[tuple[Entry, str]]:
        for entry in list(self.entries):
            for kind in self.draws.of(entry.name, faults.TWINS):
                twin = oddities.make_twin(entry, kind, folder)
                self.entries.append(twin)
                yield twin, kind
        self.entries.sort(key=lambda entry: (entry.sensing, entry.name))

    def __enter__(self) -> "HostileServer":
        threading.Thread(target=self.elsewhere.serve_forever, args=(0.05,), daemon=True).start()
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.elsewhere.shutdown()
        self.elsewhere.server_close()
        self.journal.close()
        self._folder.cleanup()

    def lifetimes(self) -> tuple[float, float]:
        return self.rules.token_s, self.rules.refresh_s

    def allowed(self, account: str) -> int:
        return self.accounts.connections(account)


class HostileHandler(Handler):
    """Draws a fault for each request, answers with it, and notes what was asked and sent."""

    server: HostileServer

    def setup(self) -> None:
        super().setup()
        self.number = next(self.server.numbers)

    def _answer(self, body: bytes) -> None:
        server, began, asked = self.server, time.time(), self.headers.get("Range")
        self._read(body.decode(errors="replace"))
        try:
            self._pause(server.rules.latency)
            self.fault = self._draw(body)
            if self.fault == "slow":
                self._pause(server.rules.slow_s)
            if self.fault == "reset":
                self._reset()
            else:
                super()._answer(body)
        except ConnectionError:
            self.note["left"] = True
            raise
        finally:
            server.journal.write(
                {
                    "time": round(began, 3),
                    "seconds": round(time.time() - began, 3),
                    "service": self.service,
                    "connection": self.number,
                    "account": self.account,
                    "method": self.command,
                    "path": server.secrets.hide(unquote(self.path)),
                    "range": asked,
                    "fault": self.fault,
                    **self.note,
                }
            )

    def _read(self, body: str) -> None:
        """What is asked, by whom, and which credentials come where they should not."""
        server = self.server
        self.service, self.form, self.fault = _service(self.command, self.path), {}, None
        if self.service == "token":
            self.form = {key: values[0] for key, values in parse_qs(body).items()}
            server.secrets.add([self.form.get("password", ""), self.form.get("refresh_token", "")])
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.account = server.access.get(bearer, ("", 0))[0]
        leaks = server.secrets.misplaced(self.service, self.path, dict(self.headers.items()), body)
        self.note: dict[str, Any] = {"bytes": 0, "rows": {}, "grant": self.form.get("grant_type"), "leaks": leaks}

    def _draw(self, body: bytes) -> str | None:
        """The fault of this request. An outage comes to everybody then, for a while."""
        server, path = self.server, unquote(urlsplit(self.path).path)
        batch = server.draws.next(path.split("/")[3], faults.BATCHES) if self.service == "file" else None
        if batch == "outage":
            server.dark_until = time.monotonic() + server.rules.outage_s
        if time.monotonic() < server.dark_until:
            self.note["outage"] = True
            return "reset"
        if batch:
            return batch
        among, self.what = list(faults.ANYWHERE), path
        match self.service:
            case "token":
                self.what = f"grant {server.accounts.grants}"
                among += faults.TOKENS if self.form.get("grant_type") == "refresh_token" else ()
            case "file":
                ranged = "Range" in self.headers
                among += [fault for fault in faults.FILES if ranged or fault not in faults.RANGES]
            case "search":
                self.what = f"{unquote(self.path)} {hashlib.sha256(body).hexdigest()}"
        return server.draws.next(self.what, among)

    def _route(self, query: str, body: bytes) -> dict | None:
        if self.fault in faults.REFUSALS:
            raise self._refusal(self.fault)
        match self.fault:
            case "other_host" | "other_port":
                base = self.server.elsewhere.urls[self.fault]
                raise Refusal(307, {"detail": "moved"}, {"Location": base + self.path})
            case "html" | "message":
                self._send_message(self.fault)
                return None
            case "unauthorized":
                raise Refusal(401, {"code": "DAT-ZIP-109", "message": "Token expired"})
            case "missing":
                raise Refusal(404, {"code": "DAT-ZIP-110", "message": "Node not found"})
            case "range_error":
                raise Refusal(400, {"detail": "Range is not supported"})
            case "range_refused":
                raise Refusal(416, {"detail": "Range not satisfiable"})
            case "range_ignored":
                del self.headers["Range"]
            case "range_wrong":
                self.headers.replace_header("Range", "bytes=1-")
        answer = super()._route(query, body)
        return self._spoiled(answer) if self.service == "search" else answer

    def _refusal(self, fault: str) -> Refusal:
        match fault:
            case "unavailable":
                return Refusal(503, {"detail": "Service Unavailable"})
            case "broken":
                return Refusal(500, {"detail": {"message": "Internal Server Error"}})
        headers = {"Retry-After": self.server.rules.retry_after} if fault == "rate_limited_wait" else {}
        if self.service == "file":
            return Refusal(429, {"code": "DAT-ZIP-100", "message": "Max session number exceeded"}, headers)
        return Refusal(429, {"error": "WAF", "message": "Rate limit exceeded", "status": 429}, headers)

    def _spoiled(self, answer: dict | None) -> dict | None:
        """The answer of a search with the faults of its page and of its rows."""
        server, key = self.server, oddities.rows_of(answer)
        if answer is None or key is None:
            return answer
        answer = json.loads(json.dumps(answer))  # what it has in common with later answers stays whole
        answer[key] = [self._spoiled_row(row) for row in answer[key]]
        if self.fault is None:
            self.fault = server.draws.next(f"page {self.what}", oddities.page_faults(answer))
        if self.fault not in faults.PAGES:
            return answer
        return oddities.spoiled_page(answer, str(self.fault), server.elsewhere.urls["other_host"])

    def _spoiled_row(self, row: dict) -> dict:
        name = str(row.get("id") or row.get("Name")).removesuffix(".SAFE")
        if kind := self.server.twins.get(name):
            self.note["rows"][name] = kind
            return oddities.as_twin(row, kind)
        if "assets" in row and (fault := self.server.draws.next(f"row {name}", faults.ROWS)):
            self.note["rows"][name] = fault
            return oddities.spoiled_checksums(row, fault, chance(self.server.seed, name))
        return row

    def _product(self, text: str) -> Entry:
        entry = super()._product(text)
        if self.server.twins.get(entry.name) in oddities.GONE:
            raise Refusal(404, {"code": "DAT-ZIP-110", "message": f"Product not found: {entry.id}"})
        return entry

    def _grant(self, form: dict[str, str]) -> dict:
        """A grant under the rules: the password, a code once, an account that lives, so many sessions."""
        server, old = self.server, form.get("refresh_token", "")
        with server.lock:
            if self.fault == "refresh_lost":
                server.refresh.pop(old, None)
                raise _no_grant(400, "Session not active")
            refusal = server.accounts.refusal(form) if form.get("grant_type") == "password" else None
            if refusal:
                raise _no_grant(*refusal)
            answer = super()._grant(form)
            access, refresh = answer["access_token"], answer["refresh_token"]
            account, end = server.refresh[refresh]
            server.accounts.grant(account, old, refresh, end)
            if server.rules.rotating:
                server.refresh.pop(old, None)
        self.account = account
        server.secrets.add([access, refresh])
        return answer

    def _send_head(self, status: int, media_type: str, length: int, headers: dict | None) -> None:
        running = len(self.server.transfers.get(self.account, ())) if self.service == "file" else None
        self.note |= {"status": status, "size": length, "running": running}
        super()._send_head(status, media_type, length, headers)

    def _send_message(self, kind: str) -> None:
        body, media_type = (_HTML, "text/html") if kind == "html" else (_MESSAGE, "application/json")
        self._send_head(200, media_type, len(body), None)
        self._deliver(io.BytesIO(body), 0, len(body))

    def _deliver(self, file: BinaryIO, first: int, end: int, closing: Callable[[], None] = lambda: None) -> None:
        middle, rules = (first + end) // 2, self.server.rules
        match self.fault:
            case "short" | "stalled":
                self._send_part(file, first, middle)
                self._pause(rules.stalled_s if self.fault == "stalled" else 0)
                self._end()
            case "dripping":
                for at in range(first, end):
                    self._send_part(file, at, at + 1)
                    self._pause(rules.dripping_s)
            case "wrong_bytes" if end > first:
                self._send_part(file, first, middle)
                file.seek(middle)
                self.connection.sendall(bytes([file.read(1)[0] ^ 255]))
                self._send_part(file, middle + 1, end, closing)
            case _:
                self._send_part(file, first, end, closing)

    def _send_part(self, file: BinaryIO, first: int, end: int, closing: Callable[[], None] = lambda: None) -> None:
        """Sends bytes, where there is a limit not faster than it allows; counts them."""
        speed = self.server.accounts.speed(self.account)
        if speed is None:
            super()._deliver(file, first, end, closing)
        else:
            began, piece = time.monotonic(), max(1, int(speed * _STEP_S))
            for at in range(first, end, piece):
                if at + piece >= end:
                    closing()
                self.connection.sendfile(file, at, min(piece, end - at))
                self._pause(began + (min(at + piece, end) - first) / speed - time.monotonic())
        self.note["bytes"] += end - first
        if self.service == "file":
            with self.server.lock:
                self.server.accounts.fetch(self.account, end - first)

    def _pause(self, seconds: float) -> None:
        """Waits; ConnectionResetError where the client leaves meanwhile."""
        if seconds > 0 and has_left(self.connection, seconds):
            raise ConnectionResetError("the client has left")

    def _end(self) -> None:
        """Ends the connection within a body."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _reset(self) -> None:
        """Ends the connection without an answer: the client reads "connection reset by peer"."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Elsewhere(ThreadingHTTPServer):
    """The server where nothing should arrive: it answers as an impostor would, and notes what it is given."""

    daemon_threads = True

    def __init__(self, host: str, secrets: Secrets, journal: Journal):
        super().__init__((host, 0), _Impostor)
        hosts = {"other_host": "localhost", "other_port": host}
        self.urls = {fault: f"http://{name}:{self.server_address[1]}" for fault, name in hosts.items()}
        self.secrets, self.journal = secrets, journal


class _Impostor(BaseHTTPRequestHandler):
    server: _Elsewhere

    def do_GET(self) -> None:
        """Answers GET and POST."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")
        service = _service(self.command, self.path)
        leaks = self.server.secrets.misplaced("else", self.path, dict(self.headers.items()), body)
        path = self.server.secrets.hide(unquote(self.path))
        line = {"time": time.time(), "service": "elsewhere", "method": self.command, "path": path}
        self.server.journal.write(line | {"leaks": leaks + (["search"] if service == "search" else [])})
        token = {"access_token": "stolen", "refresh_token": "stolen", "expires_in": 600, "refresh_expires_in": 3600}
        page = {"type": "FeatureCollection", "features": [], "links": [], "value": [], "@odata.count": 0}
        answer = b"not yours" if service == "file" else json.dumps(token if service == "token" else page).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        """Says nothing: the journal does."""


def _service(command: str, target: str) -> str:
    """Which of the services a request asks: token, search, list (of a folder's files) or file; else for none."""
    match unquote(urlsplit(target).path).strip("/").split("/"):
        case ["auth", *_]:
            return "token" if command == "POST" else "else"
        case ["odata", "v1", product, *steps] if product.startswith("Products("):
            return "file" if steps[-1:] == ["$value"] else "list"
        case ["v1", *_] | ["odata", "v1", "Products"]:
            return "search"
    return "else"


def _no_grant(status: int, words: str) -> Refusal:
    return Refusal(status, {"error": "invalid_grant", "error_description": words})
