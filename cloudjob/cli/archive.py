"""The embedded archive: makes its products, serves them, and stands in for the Data Space while stages need it."""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob.cli.context import open_run, overrides, stage_module
from cloudjob.cli.progress import say
from cloudjob.errors import ConfigError, InputError, ItemError
from cloudjob.leases import Lease
from cloudjob.run import fetching, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.history import Entry

if TYPE_CHECKING:
    from cloudjob.archive.server import ArchiveServer
    from cloudjob.config.models import ArchiveConfig, Config

_KINDS = ("synthetic", "rasters", "places", "series")  # of products that are made
_NETWORK = ("search", "preview", "download")  # stages that ask the Data Space


def command(arguments: argparse.Namespace) -> int:
    """cloudjob archive make, cloudjob archive serve."""
    return {"make": _make, "serve": _serve}[arguments.action](arguments)


@contextlib.contextmanager
def data_space(config: "Config", folder: RunFolder, stages: Sequence[str]) -> Iterator["Config"]:
    """The configuration to run these stages with.

    With an embedded archive it names a server on this machine, which runs as long as the context. Missing products are
    made first. Nothing is made or served if no item needs the network.
    """
    if config.archive is None or not _network_needed(config, folder, stages):
        yield config
        return
    from cloudjob.archive.server import ArchiveServer

    products = config.archive.path or folder.archive
    _fill(config.archive, products, folder)
    with ArchiveServer(products, said=folder.say) as server, tempfile.TemporaryDirectory(prefix="cloudjob-") as own:
        here = config.copernicus.model_copy(
            update={
                "stac": f"{server.url}/v1",
                "catalogue": f"{server.url}/odata/v1",
                "download": f"{server.url}/odata/v1",
                "token": f"{server.url}/auth/realms/CDSE/protocol/openid-connect/token",
                "account_folder": Path(own),
            }
        )
        for name in ("CDSE_TOTP", "CDSE_TOTP_SECRET", "CDSE_TOKEN_FILE"):  # they are for the real one
            os.environ.pop(name, None)
        os.environ.update(CDSE_USERNAME="embedded", CDSE_PASSWORD="embedded")
        yield config.model_copy(update={"copernicus": here})


def sign_in(config: "Config", folder: RunFolder, stages: Sequence[str]) -> None:
    """Signs in to the Data Space before anything long starts, where one of these stages will fetch files. ConfigError,
    with what to do, where the credentials are missing or refused; a service that does not answer is said alone."""
    fetchers = [stage for stage in _NETWORK[1:] if stage in stages]
    if config.archive or config.copernicus.source != "https" or not fetchers:
        return
    if not _network_needed(config, folder, stages, unknown=stages[0] not in fetchers):
        return
    try:
        fetching.open_account(folder, config.copernicus).check()
    except ItemError as error:
        folder.say(f"cloudjob: {error}")


def _network_needed(config: "Config", folder: RunFolder, stages: Sequence[str], *, unknown: bool = True) -> bool:
    """Whether there is anything to ask for; `unknown` is the answer while an earlier stage has not made its list."""
    try:
        items = [item for stage in _NETWORK if stage in stages for item in stage_module(stage).items(config, folder)]
    except InputError:
        return unknown
    items = [item for item in items if not folder.only or item.name in folder.only]
    again = "search" in stages and any(records.left_out(folder, *each) for each in _fetched(folder))
    return bool(items) and (folder.force or again or any(records.why(folder, item) for item in items))


def _fetched(folder: RunFolder) -> list[tuple[str, str]]:
    """(stage, product) of what has been asked for; search asks again for what is left out."""
    stages = ("preview", "download")
    return [(stage, path.stem) for stage in stages for path in (folder.records / stage).glob("[!.]*.json")]


def _fill(archive: "ArchiveConfig", target: Path, folder: RunFolder) -> list[str]:
    """Makes the missing products of those that the configuration describes; returns the names of all of them.

    Several runs may share an archive elsewhere, so its lease lies there; where nothing can be written, none is needed.
    Nothing is written where it describes none: the folder holds products that others made. ConfigError where there is
    no such folder.
    """
    if not any(getattr(archive, kind) for kind in _KINDS):
        if not target.is_dir():
            raise ConfigError(f"archive: no such folder: {target}; name one in archive.path, or products to make")
        return []
    with contextlib.ExitStack() as stack:
        if not target.exists() or os.access(target, os.W_OK):
            place = target / ".leases" if archive.path else folder.leases
            lease = Lease(place, "archive", "products", patience=folder.patience, job=folder.job)
            stack.enter_context(next(folder.wait([lease])))
        return _filled(archive, target, folder.say)


def _filled(archive: "ArchiveConfig", target: Path, said: Callable[[str], None]) -> list[str]:
    from cloudjob.archive import make

    begun, products = time.monotonic(), []
    if scenes := archive.synthetic:
        products += make.make_synthetic(target, **scenes.model_dump())
    if archive.rasters:
        products += make.make_from_rasters(target, pairs=[dict(pair) for pair in archive.rasters], said=said)
    if archive.places:
        products += make.make_from_places(target, places=[dict(place) for place in archive.places])
    if archive.series:
        products += make.make_from_series(target, places=[dict(place) for place in archive.series])
    said(f"archive: {len(products)} products in {target}, {time.monotonic() - begun:.1f} s")
    return products


def _make(arguments: argparse.Namespace) -> int:
    config, folder, _ = open_run(arguments)
    if config.archive is None:
        raise ConfigError(f"{arguments.config}: has no section archive, so there is nothing to make")
    with Entry(folder, "archive make", overrides(arguments)) as entry:
        entry.begin()
        products = _fill(config.archive, config.archive.path or folder.archive, folder)
    for product in products:
        print(product)
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    if not arguments.folder.is_dir():
        raise ConfigError(f"{arguments.folder}: no such folder; make one with cloudjob archive make")
    try:
        server = _server(arguments)
    except (OSError, OverflowError) as error:  # OverflowError: a number above 65535
        if getattr(error, "filename", None):
            raise
        words = getattr(error, "strerror", None) or error
        raise ConfigError(f"--port {arguments.port}: {words}; name another, or 0 for a free one") from None
    with server:
        say(f"serving {arguments.folder} at {server.url}; stop with Ctrl-C")
        while True:
            time.sleep(3600)


def _server(arguments: argparse.Namespace) -> "ArchiveServer":
    from cloudjob.archive.hostile import HostileServer
    from cloudjob.config.faults import FaultsConfig
    from cloudjob.config.source import load_section

    faults = load_section(arguments.faults, FaultsConfig) if arguments.faults else FaultsConfig()
    return HostileServer(
        arguments.folder,
        rates=faults.rates(),
        rules=faults.rules(),
        seed=arguments.seed,
        journal=arguments.journal,
        port=arguments.port,
        said=say,
    )
