"""One account at the Data Space: a session per thread, one token for all, several files at a time."""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from cloudjob.copernicus.session import Endpoints, open_session
from cloudjob.copernicus.token import TokenSource, from_environment
from cloudjob.copernicus.transfer import fetch, file_url, mismatch
from cloudjob.errors import LeftOutError


class Entry(Protocol):
    """A file as the manifest of a product lists it: path below the folder, size in bytes, digest."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def optional(self) -> bool: ...


class Client:
    """Fetches files. It sends no request, and needs no credentials, before the first file."""

    def __init__(self, endpoints: Endpoints, *, connections: int):
        self.endpoints = endpoints
        self._connections = connections
        self._local = threading.local()
        self._lock = threading.Lock()
        self._token: TokenSource | None = None

    def file(self, product_id: str, product: str, path: str, folder: Path, **expected: Any) -> Path:
        """Fetches `path` of the product (name without .SAFE) into its SAFE `folder`; `expected` is size and digest."""
        with self._lock:
            self._token = self._token or from_environment(self.endpoints, open_session())
        if not hasattr(self._local, "session"):
            self._local.session = open_session()
        target = folder / path
        url = file_url(self.endpoints, product_id, product, path)
        fetch(self._local.session, url, target, token=self._token, **expected)
        return target

    def files(self, product_id: str, product: str, entries: Iterable[Entry], folder: Path) -> list[Path]:
        """Fetches and verifies the files of manifest entries (path, size, algorithm, digest); intact files are kept. An
        optional one that is gone is left out."""

        def one(entry: Entry) -> Path | None:
            expected: dict[str, Any] = {"size": entry.size, "digest": (entry.algorithm, entry.digest)}
            if mismatch(folder / entry.path, **expected) is None:
                return folder / entry.path
            try:
                return self.file(product_id, product, entry.path, folder, **expected)
            except LeftOutError:
                if not entry.optional:
                    raise
                return None

        with ThreadPoolExecutor(self._connections) as pool:
            return [path for path in pool.map(one, entries) if path]
