"""Serves an archive over HTTP on this machine as the Copernicus Data Space does: tokens, STAC and OData search, files.

Routes and error bodies follow recorded responses of stac., catalogue., download. and identity.dataspace.copernicus.eu.
"""

import contextlib
import hashlib
import io
import json
import logging
import re
import secrets
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlencode, urlsplit
from uuid import UUID

from shapely.errors import ShapelyError

from cloudjob.archive import catalogue, queries
from cloudjob.archive.catalogue import COLLECTION, Entry

TOKEN_SECONDS = 600
REFRESH_SECONDS = 3600
MAX_TRANSFERS = 4  # concurrent ones per account
_PIECE = 65536
_LOG = logging.getLogger(__name__)


class ArchiveServer(ThreadingHTTPServer):
    """`with ArchiveServer(folder) as server:` answers at `server.url` until the block ends.

    The SAFE folders are read once, at the start; what is wrong with them is `said` (see `catalogue.entries`). Any user
    name and password that are not empty get a token.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        archive: Path,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        handler: "type[Handler] | None" = None,
        said: Callable[[str], object] = _LOG.debug,
    ):
        self.entries = catalogue.entries(Path(archive), said)
        self.access: dict[str, tuple[str, float]] = {}  # token -> account, expiry on the monotonic clock
        self.refresh: dict[str, tuple[str, float]] = {}
        self.transfers: dict[str, set[socket.socket]] = {}  # account -> the connections that carry its files
        self.lock = threading.Lock()
        self.connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        super().__init__((host, port), handler or Handler)
        self.url = f"http://{host}:{self.server_address[1]}"

    def __enter__(self) -> "ArchiveServer":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def lifetimes(self) -> tuple[float, float]:
        """Seconds that a token and a refresh token live."""
        return TOKEN_SECONDS, REFRESH_SECONDS

    def allowed(self, account: str) -> int:
        """How many transfers of an account may run at a time."""
        return MAX_TRANSFERS

    @contextlib.contextmanager
    def transfer(self, account: str, connection: socket.socket) -> Iterator[int]:
        """One of the account's transfers, for as long as the context; its value is how many run with it.

        One whose client has left ends here, though its thread may not know yet: who is killed and comes back, or gives
        a silent connection up for another, is not counted twice.
        """
        with self.lock:
            running = self.transfers.setdefault(account, set())
            running -= {each for each in running if has_left(each)}
            if len(running) >= self.allowed(account):
                raise _zipper(429, "DAT-ZIP-100", "Max session number exceeded")
            running.add(connection)
            count = len(running)
        try:
            yield count
        finally:
            with self.lock:
                running.discard(connection)

    def server_close(self) -> None:
        """Closes kept-alive connections too; otherwise their threads would go on answering."""
        super().server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _LOG.debug("connection of %s ended", client_address, exc_info=True)


def has_left(connection: socket.socket, seconds: float = 0) -> bool:
    """Whether the client has closed its end, or does so within so many seconds."""
    if connection.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(1000 * seconds))


class Refusal(Exception):
    """An HTTP status other than 200, with the JSON body that goes with it."""

    def __init__(self, status: int, body: dict, headers: dict | None = None):
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


def _zipper(status: int, code: str, message: str) -> Refusal:
    return Refusal(status, {"code": code, "message": message})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are two writes
    timeout = 120
    server: ArchiveServer

    def log_message(self, *args: Any) -> None:
        _LOG.debug(*args)

    def do_GET(self) -> None:
        """Answers GET and POST."""
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)  # always, or the next request on this connection would start inside it
        self.base = f"http://{self.headers['Host']}"  # links use the host that the request named
        self._answer(body)

    do_POST = do_GET

    def _answer(self, body: bytes) -> None:
        try:
            answer = self._route(urlsplit(self.path).query, body)
            if answer is not None:
                self._send_json(200, answer)
        except Refusal as refusal:
            self._send_json(refusal.status, refusal.body, refusal.headers)
        except (KeyError, TypeError, AttributeError, ValueError, ShapelyError) as error:
            self._send_json(400, {"detail": {"message": f"not understood: {error!r}"}})

    def _send_json(self, status: int, body: dict, headers: dict | None = None) -> None:
        data = json.dumps(body).encode()
        geojson = body.get("type") in ("Feature", "FeatureCollection")
        self._send_head(status, "application/geo+json" if geojson else "application/json", len(data), headers)
        self._deliver(io.BytesIO(data), 0, len(data))

    def _send_head(self, status: int, media_type: str, length: int, headers: dict | None) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": media_type, "Content-Length": length, **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()

    def _route(self, query: str, body: bytes) -> dict | None:
        """The JSON of the response; None if a file was sent."""
        entries = self.server.entries
        match self.command, unquote(urlsplit(self.path).path).strip("/").split("/"):
            case "POST", ["auth", "realms", "CDSE", "protocol", "openid-connect", "token"]:
                return self._grant({key: values[0] for key, values in parse_qs(body.decode()).items()})
            case "POST", ["v1", "search"]:
                return _stac_page(entries, json.loads(body or b"{}"), self.base)
            case "GET", ["v1"]:
                return catalogue.stac_catalogue(self.base)
            case "GET", ["v1", "collections", name] if name == COLLECTION:
                return catalogue.stac_collection(entries, self.base)
            case "GET", ["v1", "collections", name, "items", wanted] if name == COLLECTION:
                for entry in entries:
                    if entry.name == wanted:
                        return catalogue.stac_item(entry, self.base)
                raise Refusal(404, {"code": "NotFoundError", "description": f"Item {wanted} does not exist."})
            case "GET", ["odata", "v1", "Products"]:
                return _odata_page(entries, parse_qs(query, keep_blank_values=True), self.base)
            case "GET", ["odata", "v1", product, *steps] if product.startswith("Products("):
                return self._node(product, steps)
        raise Refusal(404, {"detail": "Not Found"})

    def _grant(self, form: dict[str, str]) -> dict:
        """Password and refresh grants, with the error messages of the identity server (Keycloak)."""
        now = time.monotonic()
        if form.get("grant_type") == "password":
            account = form.get("username") if form.get("password") else None
            problem = "Invalid user credentials"
        else:
            account, end = self.server.refresh.get(form.get("refresh_token", ""), (None, 0))
            account, problem = account if now < end else None, "Invalid refresh token"
        if not account:
            raise Refusal(401, {"error": "invalid_grant", "error_description": problem})
        token_seconds, refresh_seconds = self.server.lifetimes()
        access, refresh = secrets.token_urlsafe(48), secrets.token_urlsafe(48)
        self.server.access[access] = account, now + token_seconds
        self.server.refresh[refresh] = account, now + refresh_seconds
        return {
            "access_token": access,
            "expires_in": token_seconds,
            "refresh_expires_in": refresh_seconds,
            "refresh_token": refresh,
            "token_type": "Bearer",
        }

    def _node(self, product: str, steps: list[str]) -> dict | None:
        """Products(<uuid>)/Nodes(<name>)/.../Nodes lists a folder, .../$value sends a file."""
        *steps, last = steps or [""]
        names = [match[1] for step in steps if (match := re.fullmatch(r"Nodes\(([^()'\"]+)\)", step))]
        entry = self._product(product.removeprefix("Products(").removesuffix(")"))
        if len(names) < len(steps) or last not in ("Nodes", "$value") or (last == "$value" and not names):
            raise _zipper(400, "DAT-ZIP-104", "Malformed OData request path")
        if not names:
            return _listing(entry, [entry.product.folder], self.base)
        target = entry.product.folder.joinpath(*names[1:])
        if names[0] != f"{entry.name}.SAFE" or {".", ".."} & set(names) or not target.exists():
            raise _zipper(404, "DAT-ZIP-110", f"Node not found: {'/'.join(names)}")
        if last == "Nodes":
            return _listing(entry, sorted(target.iterdir()) if target.is_dir() else [], self.base)
        if target.is_dir():
            raise _zipper(400, "DAT-ZIP-104", "Folders are not served here: ask for their files")
        self._send_file(entry, "/".join(names[1:]), self._account())
        return None

    def _product(self, text: str) -> Entry:
        try:
            identifier = str(UUID(text))
        except ValueError:
            raise _zipper(422, "DAT-ZIP-111", f"Malformed product identifier: {text}") from None
        for entry in self.server.entries:
            if entry.id == identifier:
                return entry
        raise _zipper(404, "DAT-ZIP-110", f"Product not found: {identifier}")

    def _account(self) -> str:
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        account, end = self.server.access.get(token, (None, 0))
        if scheme != "Bearer" or account is None:
            raise _zipper(401, "DAT-ZIP-604", "Token not found")
        if time.monotonic() >= end:
            raise _zipper(401, "DAT-ZIP-109", "Token expired")
        return account

    def _send_file(self, entry: Entry, path: str, account: str) -> None:
        size, wanted = entry.length(path), self.headers.get("Range")
        first, last = _byte_range(wanted, size)
        headers = {"Accept-Ranges": "bytes"} | ({"Content-Range": f"bytes {first}-{last}/{size}"} if wanted else {})
        with entry.open(path) as file, contextlib.ExitStack() as held:
            held.enter_context(self.server.transfer(account, self.connection))
            self._send_head(206 if wanted else 200, "application/octet-stream", last - first + 1, headers)
            self._deliver(file, first, last + 1, held.close)

    def _deliver(self, file: BinaryIO, first: int, end: int, closing: Callable[[], None] = lambda: None) -> None:
        """Sends the bytes from `first` to before `end`. `closing` comes before the last piece: a client that has it all
        may start its next transfer at once."""
        tail = max(first, end - _PIECE)
        if tail > first:
            self.connection.sendfile(file, first, tail - first)
        closing()
        if end > tail:
            self.connection.sendfile(file, tail, end - tail)


def _byte_range(header: str | None, size: int) -> tuple[int, int]:
    """First and last byte of one range (RFC 9110, 14.1.2); 416 where it lies outside the file."""
    if header is None:
        return 0, size - 1
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    start, end = match.groups() if match else ("", "")
    first = int(start) if start else max(0, size - int(end or 0))
    last = min(int(end), size - 1) if start and end else size - 1
    if first > last:
        raise Refusal(416, {"detail": f"Range {header} not satisfiable"}, {"Content-Range": f"bytes */{size}"})
    return first, last


def _stac_page(entries: list[Entry], body: dict, base: str) -> dict:
    """POST /v1/search: a page of items, and the link to the next one."""
    limit = body.get("limit", 12)
    if not isinstance(limit, int) or not 1 <= limit <= 10_000:
        raise ValueError(f"limit = {limit!r}: expected 1 to 10000")
    query = {key: value for key, value in body.items() if key != "token"}
    stamp = hashlib.sha256(json.dumps(query, sort_keys=True).encode()).hexdigest()[:12]
    start, _, search = (body.get("token") or f"next:0:{stamp}").removeprefix("next:").partition(":")
    if search != stamp:
        raise ValueError("the token belongs to another search")
    found, end = queries.search_stac(entries, query), int(start) + limit
    fields = body.get("fields") or {}
    items = [queries.selected(catalogue.stac_item(entry, base), fields) for entry in found[int(start) : end]]
    url = f"{base}/v1/search"
    links = [catalogue.link("root", f"{base}/v1/"), catalogue.link("self", url)]
    if end < len(found):
        following = {"method": "POST", "body": query | {"token": f"next:{end}:{stamp}"}}
        links.append(catalogue.link("next", url, "application/geo+json") | following)
    return {"type": "FeatureCollection", "links": links, "features": items, "numberReturned": len(items)}


def _odata_page(entries: list[Entry], options: dict[str, list[str]], base: str) -> dict:
    """GET /odata/v1/Products: a page of rows, and the link to the next one."""
    top, skip = _count(options, "$top", 20, 1000), _count(options, "$skip", 0, 10_000)
    order = options.get("$orderby", ["ContentDate/Start asc"])[0]
    found = queries.search_odata(entries, options.get("$filter", [""])[0], order)
    expand = [name for name in ("Attributes", "Assets") if name in ",".join(options.get("$expand", []))]
    members = f"({','.join(f'{name}()' for name in expand)})" if expand else ""
    answer: dict = {"@odata.context": f"$metadata#Products{members}"}
    if options.get("$count") == ["true"]:
        answer["@odata.count"] = len(found)
    answer["value"] = [catalogue.odata_row(entry, base, expand) for entry in found[skip : skip + top]]
    if 0 < top == len(answer["value"]) and skip + 2 * top <= 10_000:  # silently omitted beyond 10,000
        following = urlencode({**options, "$top": top, "$skip": skip + top}, doseq=True)
        answer["@odata.nextLink"] = f"{base}/odata/v1/Products?{following}"
    return answer


def _count(options: dict[str, list[str]], key: str, default: int, highest: int) -> int:
    text = options.get(key, [str(default)])[0]
    if not text.isdigit() or int(text) > highest:
        detail = {"loc": ["query", key], "msg": f"Input should be an integer from 0 to {highest}", "input": text}
        raise Refusal(422, {"detail": [detail]})
    return int(text)


def _listing(entry: Entry, paths: list[Path], base: str) -> dict:
    """The answer of a Nodes listing."""

    def row(path: Path) -> dict:
        inside = path.relative_to(entry.product.folder).as_posix().removeprefix(".")
        return {
            "Id": path.name,
            "Name": path.name,
            "ContentLength": 0 if path.is_dir() else entry.length(inside.strip("/")),
            "ChildrenNumber": len(list(path.iterdir())) if path.is_dir() else 0,
            "Nodes": {"uri": f"{base}{entry.node_path(inside)}/Nodes"},
        }

    return {"result": [row(path) for path in paths]}
