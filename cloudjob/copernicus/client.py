"""One account at the Data Space: a session for each thread, one token for all, several files at a time."""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cloudjob.copernicus.session import Endpoints, open_session
from cloudjob.copernicus.token import from_environment
from cloudjob.copernicus.transfer import fetch, file_url


class Client:
    """Nothing is asked of the service, and no credentials are needed, before the first file is."""

    def __init__(self, endpoints: Endpoints, *, connections: int):
        self.endpoints = endpoints
        self._connections = connections
        self._local = threading.local()
        self._token = None

    def file(self, product_id: str, product: str, path: str, folder: Path, **expected) -> Path:
        """Fetches `path` of the product (name without .SAFE) below its SAFE folder; `expected` is size and digest."""
        if self._token is None:
            self._token = from_environment(self.endpoints, open_session())
        if not hasattr(self._local, "session"):
            self._local.session = open_session()
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        url = file_url(self.endpoints, product_id, product, path)
        fetch(self._local.session, url, target, token=self._token, **expected)
        return target

    def files(self, product_id: str, product: str, entries: Iterable, folder: Path) -> list[Path]:
        """Fetches what these manifest entries (path, size, algorithm, digest) name, verified; whole files are kept."""

        def one(entry) -> Path:
            digest = (entry.algorithm, entry.digest)
            return self.file(product_id, product, entry.path, folder, size=entry.size, digest=digest)

        with ThreadPoolExecutor(self._connections) as pool:
            return list(pool.map(one, entries))
