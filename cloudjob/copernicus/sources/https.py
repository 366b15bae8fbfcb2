"""Files from the Data Space's download service: GET of a product's nodes, with the account's token."""

import contextlib
import http.client
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import requests
import urllib3

from cloudjob.copernicus.session import Endpoints, Session, ask, get_json, host_of, refusal
from cloudjob.copernicus.sources import Remote
from cloudjob.copernicus.transfer import Broken
from cloudjob.errors import ItemError, LeftOutError

_GONE = (404, 410)  # HTTP: a product that was found and is not there has been withdrawn
_NO_MATTER_OF_RANGE = (401, 429, *_GONE)
_MESSAGES = ("text/html", "application/json", "application/problem+json")  # media types that no file of a product has
_BLOCK = 1 << 20  # bytes that one read takes at most


class Account(Protocol):
    """Who may fetch: see `account.Account`."""

    def bearer(self, *, rejected: str = "") -> str: ...
    def slot(self) -> AbstractContextManager: ...


class Https:
    """The service at `endpoints.download`. Each thread keeps a session, and so its connection."""

    def __init__(self, endpoints: Endpoints, account: Account, open_session: Callable[[], Session]):
        self._endpoints, self._account, self._open_session = endpoints, account, open_session
        self._local = threading.local()

    def slot(self) -> AbstractContextManager:
        """One of the account's connections."""
        return self._account.slot()

    def whole(self, product: Remote) -> Path | None:
        """Its files are had one by one."""
        return None

    def local(self, product: Remote, path: str) -> Path | None:
        """Nothing of it lies on this site."""
        return None

    def open(self, product: Remote, path: str, start: int) -> "_Body":
        """See `Source`. A refused or wrong range, or an error that comes with one, makes it the whole file."""
        url = file_url(self._endpoints, product.id, product.name, path)
        response = self._get(url, start)
        if start and not (response.status_code in (200, *_NO_MATTER_OF_RANGE) or _continues(response, start)):
            response.close()
            start, response = 0, self._get(url, 0)
        start = 0 if response.status_code == 200 else start
        try:
            _check(response, path.rpartition("/")[2], start)
        except BaseException:
            response.close()
            raise
        return _Body(response, start)

    def _get(self, url: str, start: int) -> requests.Response:
        """A token can expire earlier than announced: after HTTP 401 one more try with a new one."""
        if not hasattr(self._local, "session"):
            self._local.session = self._open_session()
        headers, bearer = {"Range": f"bytes={start}-"} if start else {}, ""
        for second in (False, True):
            bearer = self._account.bearer(rejected=bearer)
            headers["Authorization"] = f"Bearer {bearer}"
            response = ask(self._local.session, "GET", url, headers=headers, stream=True)
            if response.status_code != 401 or second:
                break
            response.close()
        return response


def _continues(response: requests.Response, start: int) -> bool:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return response.status_code == 206 and found is not None and int(found[1]) == start


def _check(response: requests.Response, name: str, start: int) -> None:
    """Raises what is to be raised where the response holds no bytes of the file from `start` on."""
    if response.status_code == 401:
        raise Broken(refusal(response, _beginning(response)))
    if not response.ok:
        kind = LeftOutError if response.status_code in _GONE else ItemError
        raise kind(f"{name}: {refusal(response, _beginning(response))}")
    media = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media in _MESSAGES:
        raise Broken(f"{host_of(response.url)} sent a message instead: {_beginning(response)[:200]}")
    coded = response.headers.get("Content-Encoding", "identity")
    if coded != "identity" or (response.status_code == 206) != bool(start):
        raise Broken(f"{host_of(response.url)}: HTTP {response.status_code}, encoding {coded}: not what was asked for")


def _beginning(response: requests.Response) -> str:
    """What has arrived of a message; the rest may never come."""
    try:
        return response.raw.read1(2000, decode_content=True).decode(errors="replace")
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError):
        return ""


class _Body:
    def __init__(self, response: requests.Response, start: int):
        self.start, self._response, self._raw = start, response, response.raw

    def read(self) -> bytes:
        """What has arrived."""
        try:
            return self._raw.read1(_BLOCK, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Broken(f"{host_of(self._response.url)}: broke off: {error}") from None

    def stop(self) -> None:
        """Ends a read that waits."""
        with contextlib.suppress(ValueError, RuntimeError, OSError):  # all was read
            self._raw.shutdown()

    def close(self) -> None:
        """Keeps the connection for the next file where all was read."""
        self._response.close()


def node_url(endpoints: Endpoints, product_id: str, product: str, relative_path: str = "") -> str:
    """Address of a file or folder of the product (name without .SAFE); "" is the SAFE folder itself."""
    parts = [f"{product}.SAFE", *filter(None, relative_path.split("/"))]
    return f"{endpoints.download}/Products({product_id})" + "".join(f"/Nodes({quote(part)})" for part in parts)


def file_url(endpoints: Endpoints, product_id: str, product: str, relative_path: str) -> str:
    """Address of a file's content."""
    return node_url(endpoints, product_id, product, relative_path) + "/$value"


def list_nodes(
    session: Session, endpoints: Endpoints, product_id: str, product: str, relative_path: str = ""
) -> list[tuple[str, int]]:
    """(name, bytes) of each entry of a folder of the product; needs no token. Folders have 0 bytes."""
    url = node_url(endpoints, product_id, product, relative_path) + "/Nodes"
    body = get_json(session, "GET", url)
    try:
        return [(node["Name"], node["ContentLength"]) for node in body["result"]]
    except (KeyError, TypeError) as error:
        raise ItemError(f"{host_of(url)}: a folder listing of another shape: {error!r}") from None
