"""The queue of files that a stage fetches with, as the configuration and the run folder have it."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from cloudjob.run.folder import RunFolder

if TYPE_CHECKING:
    from cloudjob.copernicus.queue import Queue
    from cloudjob.copernicus.session import Endpoints
    from cloudjob.copernicus.sources import Source
    from cloudjob.copernicus.token import TokenSource


@contextlib.contextmanager
def open_queue(folder: RunFolder, settings: Any, *, stage: str, products: int) -> Iterator["Queue"]:
    """A queue for so many products; `settings` is the section copernicus of the configuration."""
    from cloudjob.copernicus.queue import Queue
    from cloudjob.copernicus.tally import Tally
    from cloudjob.copernicus.transfer import Limits

    with Queue(
        _source(settings),
        connections=settings.connections,
        lease=lambda name: folder.lease("file", name),
        limits=Limits(slowest=settings.slowest, longest=settings.longest),
        tally=Tally(products, folder.say),
        stopped=folder.stop_requested,
        progress=lambda share, line: folder.progress(share, f"{stage}: {line}"),
    ) as queue:
        yield queue


def _source(settings: Any) -> "Source":
    from cloudjob.copernicus.session import Endpoints, open_session
    from cloudjob.copernicus.sources.folder import Folder
    from cloudjob.copernicus.sources.https import Https
    from cloudjob.copernicus.sources.s3 import S3

    if settings.source == "path":
        return Folder(settings.folder)
    if settings.source == "s3":
        return S3(settings.s3)
    endpoints = Endpoints(**settings.urls())
    return Https(endpoints, _Account(endpoints), open_session)


class _Account:
    """The account of the environment's credentials, which are needed for the first file alone."""

    def __init__(self, endpoints: "Endpoints"):
        self._endpoints, self._lock = endpoints, threading.Lock()
        self._token: TokenSource | None = None

    def bearer(self, *, rejected: str = "") -> str:
        from cloudjob.copernicus.session import open_session
        from cloudjob.copernicus.token import from_environment

        with self._lock:
            self._token = self._token or from_environment(self._endpoints, open_session())
        return self._token.bearer(rejected=rejected)

    def slot(self) -> AbstractContextManager:
        return contextlib.nullcontext()
