"""Downloads files of a product from the Copernicus Data Space: resumable, and verified before the final rename."""

import hashlib
import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

import requests

from cloudjob.copernicus.session import Endpoints, ask, get_json, host_of, refusal
from cloudjob.copernicus.token import TokenSource
from cloudjob.errors import CorruptFileError, DiskFullError, ItemError, LeftOutError
from cloudjob.files import ask_guards, is_disk_full, rename

_DIGESTS = {"SHA3-256": "sha3_256", "MD5": "md5"}
_CHUNK = 1 << 16  # bytes; at most this much is lost when a connection breaks
_GONE = (404, 410)  # HTTP: a product that was found and is not there has been withdrawn
_BREAKS = 5  # consecutive connections that may break without delivering a byte


def node_url(endpoints: Endpoints, product_id: str, product: str, relative_path: str = "") -> str:
    """Address of a file or folder of the product (name without .SAFE); "" is the SAFE folder itself."""
    parts = [f"{product}.SAFE", *filter(None, relative_path.split("/"))]
    return f"{endpoints.download}/Products({product_id})" + "".join(f"/Nodes({quote(part)})" for part in parts)


def file_url(endpoints: Endpoints, product_id: str, product: str, relative_path: str) -> str:
    """Address of a file's content, for `fetch`."""
    return node_url(endpoints, product_id, product, relative_path) + "/$value"


def list_nodes(
    session: requests.Session, endpoints: Endpoints, product_id: str, product: str, relative_path: str = ""
) -> list[tuple[str, int]]:
    """(name, bytes) of each entry of a folder of the product; needs no token. Folders have 0 bytes."""
    url = node_url(endpoints, product_id, product, relative_path) + "/Nodes"
    body = get_json(session, "GET", url)
    try:
        return [(node["Name"], node["ContentLength"]) for node in body["result"]]
    except (KeyError, TypeError) as error:
        raise ItemError(f"{host_of(url)}: a folder listing of another shape: {error!r}") from None


def fetch(
    session: requests.Session,
    url: str,
    target: Path,
    *,
    size: int | None = None,
    digest: tuple[str, str] | None = None,
    token: TokenSource | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Downloads one file; `target` exists afterwards whole, or not at all.

    Received bytes are kept in `<target>.part`, from which a later call resumes. `size` in bytes and `digest`
    (algorithm "SHA3-256" or "MD5", hexadecimal) are checked; a file that fails is fetched once more from its
    beginning. `progress` gets the number of bytes as they arrive, and a negative number when some are discarded.

    LeftOutError if the file is not there; ItemError if the service refuses (with its own message) or the connection
    keeps breaking; CorruptFileError if the bytes are wrong twice; DiskFullError.
    """
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    tell = progress or (lambda count: None)
    try:
        tell(_length(part))
        for _ in range(2):
            _complete(partial(_get, session, url, token), part, size, tell)
            reason = mismatch(part, size, digest)
            if reason is None:
                rename(part, target)
                return
            tell(-_length(part))
            ask_guards()
            part.unlink()
    except OSError as error:
        if not is_disk_full(error):
            raise
        missing = f"{size - _length(part)} bytes more" if size else "more space"
        raise DiskFullError(f"{target.parent}: no space left, {target.name} needs {missing}") from None
    raise CorruptFileError(target, f"{reason}, twice, from {host_of(url)}")


def _complete(
    get: Callable[[int], requests.Response], part: Path, size: int | None, tell: Callable[[int], None]
) -> None:
    """Retries after a broken connection, as long as that delivers bytes."""
    breaks = 0
    while not size or _length(part) < size:
        before = _length(part)
        try:
            _append(get, part, size, tell)
            return
        except requests.RequestException as error:
            breaks = 0 if _length(part) > before else breaks + 1
            if breaks > _BREAKS:
                raise ItemError(f"{part}: broke off at byte {before}, {breaks} times: {error}") from None
            time.sleep(min(breaks, 1))


def _append(get: Callable[[int], requests.Response], part: Path, size: int | None, tell: Callable[[int], None]) -> None:
    """Requests the missing bytes and appends them to the part file; starts anew if they do not continue it."""
    have = _length(part)
    response = get(have)
    if have and response.status_code in (200, 206, 416) and not _continues(response, have, size):
        tell(-have)
        ask_guards()
        part.unlink()
        if response.status_code != 200:  # 200 sends the file from its beginning, the others are useless
            response.close()
            response = get(0)
    name = part.name.removesuffix(".part")
    with response:
        if not response.ok:
            kind = LeftOutError if response.status_code in _GONE else ItemError
            raise kind(f"{name}: {refusal(response)}")
        if response.headers.get("Content-Type", "").startswith("application/json"):
            raise ItemError(f"{name}: {host_of(response.url)} sent a message instead: {response.text[:200]}")
        with part.open("ab") as file:
            for chunk in response.iter_content(_CHUNK):
                ask_guards()  # whoever has taken the work over goes on in the same file
                file.write(chunk)
                tell(len(chunk))
            file.flush()
            os.fsync(file.fileno())


def _continues(response: requests.Response, have: int, size: int | None) -> bool:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or found is None:
        return False
    return int(found[1]) == have and (size is None or found[2] in ("*", str(size)))


def _get(session: requests.Session, url: str, token: TokenSource | None, start: int) -> requests.Response:
    headers = {"Range": f"bytes={start}-"} if start else {}
    bearer = ""
    for _ in range(2 if token else 1):
        if token:
            bearer = token.bearer(rejected=bearer)
            headers["Authorization"] = f"Bearer {bearer}"
        response = ask(session, "GET", url, headers=headers, stream=True)
        if response.status_code != 401:  # a token can expire earlier than announced: one retry with a new one
            break
    return response


def mismatch(part: Path, size: int | None, digest: tuple[str, str] | None) -> str | None:
    """What is wrong with the size in bytes or the digest (algorithm, hexadecimal) of a file; None if both are right."""
    if size is not None and _length(part) != size:
        return f"{_length(part)} bytes instead of {size}"
    if digest is not None:
        algorithm, expected = digest
        with part.open("rb") as file:
            found = hashlib.file_digest(file, _DIGESTS[algorithm]).hexdigest()
        if found != expected.lower():
            return f"{algorithm} is {found} instead of {expected.lower()}"
    return None


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
