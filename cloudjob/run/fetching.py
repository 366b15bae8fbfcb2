"""The account and the queue of files that a stage fetches with, as the configuration and the run folder have it."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from cloudjob.errors import ItemError
from cloudjob.run.folder import RunFolder

if TYPE_CHECKING:
    from cloudjob.copernicus.account import Account
    from cloudjob.copernicus.queue import Queue
    from cloudjob.copernicus.sources import Remote, Source


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

    with Queue(
        _source(folder, settings),
        connections=settings.connections,
        lease=lambda name: folder.lease("file", name),
        limits=Limits(settings.waiting(), slowest=settings.slowest, longest=settings.longest),
        tally=Tally(products, folder.say),
        stopped=folder.stop_requested,
        progress=lambda share, line: folder.progress(share, f"{stage}: {line}"),
    ) as queue:
        yield queue


def link_whole(folder: RunFolder, source: "Source", product: "Remote") -> bool:
    """Makes the product's folder of the run a link to where the product lies, if it is to be read in place. A link to
    such a product goes where the source is another one by now. ItemError where files of another source lie there."""
    from cloudjob.files import symlink

    place, target = source.whole(product), folder.safe(product.name)
    if place is None:
        if in_place(folder, product.name):
            target.unlink(missing_ok=True)
        return False
    if target.is_dir() and not target.is_symlink():
        raise ItemError(f"{target} holds files of another source; delete it to have {place} read in place")
    if not target.exists() or target.resolve() != place:
        symlink(place, target)
    return True


def in_place(folder: RunFolder, product: str) -> bool:
    """Whether the product's folder of the run is a link to one that is read where it lies."""
    from cloudjob.sentinel2 import layouts

    target = folder.safe(product)
    return target.is_symlink() and not layouts.by_manifest(target)


def _source(folder: RunFolder, settings: Any) -> "Source":
    from cloudjob.copernicus.session import Endpoints, open_session
    from cloudjob.copernicus.sources.folder import Folder
    from cloudjob.copernicus.sources.https import Https
    from cloudjob.copernicus.sources.s3 import S3
    from cloudjob.sentinel2 import layouts

    if settings.source == "path":
        return Folder(settings.folder, products=layouts.named, by_manifest=layouts.by_manifest)
    if settings.source == "s3":
        return S3(settings.s3)
    endpoints = Endpoints(**settings.urls())
    session = partial(
        open_session, endpoints, patience=settings.waiting(), stopped=folder.stop_requested, said=folder.say
    )
    return Https(endpoints, open_account(folder, settings), session)
