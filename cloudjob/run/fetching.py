"""The account and the queue of files that a stage fetches with, as the configuration and the run folder have it."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from cloudjob.run.folder import RunFolder

if TYPE_CHECKING:
    from cloudjob.copernicus.account import Account
    from cloudjob.copernicus.queue import Queue
    from cloudjob.copernicus.sources import Source


def open_account(folder: RunFolder, settings: Any) -> "Account":
    """The account of the environment's credentials; `settings` is the section copernicus of the configuration."""
    from cloudjob.copernicus import account
    from cloudjob.copernicus.session import Endpoints

    return account.open_account(
        Endpoints(**settings.urls()),
        folder=settings.account(),
        patience=settings.waiting(),
        stopped=folder.stop_requested,
        said=folder.say,
        job=folder.job,
        lease_patience=folder.patience,
    )


@contextlib.contextmanager
def open_queue(folder: RunFolder, settings: Any, *, stage: str, products: int) -> Iterator["Queue"]:
    """A queue for so many products; `settings` is the section copernicus of the configuration."""
    from cloudjob.copernicus.queue import Queue
    from cloudjob.copernicus.tally import Tally
    from cloudjob.copernicus.transfer import Limits

    waiting = settings.waiting()
    with Queue(
        _source(folder, settings),
        connections=settings.connections,
        lease=lambda name: folder.lease("file", name),
        limits=Limits(
            retries=settings.retries,
            slowest=settings.slowest,
            window=waiting.longest,
            longest=settings.longest,
            pause=waiting.first,
        ),
        tally=Tally(products, folder.say),
        stopped=folder.stop_requested,
        progress=lambda share, line: folder.progress(share, f"{stage}: {line}"),
    ) as queue:
        yield queue


def _source(folder: RunFolder, settings: Any) -> "Source":
    from cloudjob.copernicus.session import Endpoints, open_session
    from cloudjob.copernicus.sources.folder import Folder
    from cloudjob.copernicus.sources.https import Https
    from cloudjob.copernicus.sources.s3 import S3

    if settings.source == "path":
        return Folder(settings.folder)
    if settings.source == "s3":
        return S3(settings.s3)
    endpoints = Endpoints(**settings.urls())
    session = partial(
        open_session, endpoints, patience=settings.waiting(), stopped=folder.stop_requested, said=folder.say
    )
    return Https(endpoints, open_account(folder, settings), session)
