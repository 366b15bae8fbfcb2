"""cloudjob doctor: whether what a run needs is there, and what to do where it is not."""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob import __version__
from cloudjob.cli import looks
from cloudjob.cli.context import open_run
from cloudjob.cli.progress import is_quiet, say
from cloudjob.errors import CloudjobError, ConfigError, ItemError
from cloudjob.hpc import probes
from cloudjob.hpc.probes import FAIL, OK, WARN, Finding

if TYPE_CHECKING:
    from cloudjob.config.acquisition import CopernicusConfig
    from cloudjob.config.models import Config

_PATIENCE = 90.0  # seconds
_VISIT = 30.0  # seconds at most for each service
_LOOKS = {OK: "good", WARN: "dim", FAIL: "bad"}
_KEYS = ("CDSE_S3_ACCESS_KEY", "CDSE_S3_SECRET_KEY")


def command(arguments: argparse.Namespace) -> int:
    """cloudjob doctor: a line for each thing that a run needs, ok, warn or fail, with what to do; 4 where one fails."""
    found = []
    for finding in _findings(arguments):
        found.append(finding)
        if not arguments.json and (finding.state != OK or not is_quiet()):
            mark = looks.painted(f"{finding.state:4}", _LOOKS[finding.state])
            cure = f"; {finding.cure}" if finding.cure else ""
            print(f"{mark}  {finding.topic:12}  {finding.words}{cure}", flush=True)
    if arguments.json:
        from cloudjob.hpc import machine

        document = machine.describe() | {"cloudjob": __version__, "findings": [asdict(finding) for finding in found]}
        print(json.dumps(document, indent=1))
    return ItemError.exit_code if any(finding.state == FAIL for finding in found) else 0


def _findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    config, root = None, arguments.run_dir or Path("runs")
    if arguments.config:
        config, folder, _ = open_run(arguments)
        root = folder.root
    yield from probes.quick(root)
    yield _coordinates()
    if config:
        yield from _paths(config)
    yield _credentials(config)
    if not arguments.quick:
        yield from probes.thorough()
    if arguments.online:
        yield from _online(config)


def _coordinates() -> Finding:
    """Whether PROJ and GDAL are ours, with their data, and read JPEG 2000."""
    cure = "make setup anew, or the image; unset PROJ_LIB, PROJ_DATA and GDAL_DATA of other programs"
    try:
        import rasterio
        from rasterio.warp import transform

        (east,), (north,) = transform("EPSG:4326", "EPSG:32605", [-153.0], [70.0])
        with rasterio.Env() as environment:
            drivers = environment.drivers()
    except Exception as error:  # whatever a broken library raises is what is to be told
        return Finding("PROJ, GDAL", FAIL, str(error).splitlines()[0], cure)
    if abs(east - 500_000) > 1 or abs(north - 7_765_000) > 5_000:
        return Finding("PROJ, GDAL", FAIL, f"153 W, 70 N lies at {east:.0f}, {north:.0f} in UTM zone 5", cure)
    if "JP2OpenJPEG" not in drivers:
        return Finding("PROJ, GDAL", FAIL, f"GDAL {rasterio.__gdal_version__} cannot read JPEG 2000", cure)
    return Finding("PROJ, GDAL", OK, f"GDAL {rasterio.__gdal_version__}, PROJ finds its data, JPEG 2000 is read")


def _paths(config: "Config") -> Iterator[Finding]:
    """Whether the paths of the configuration are there: in a container, whether they are bound."""
    named = {
        "copernicus.folder": config.copernicus.folder,
        "infer.checkpoint": config.infer.checkpoint,
        "train.init_from": config.train.init_from,
        "masks.folder": config.masks.folder,
        "search.area": config.search.area if config.search else None,
        "public.folder": config.public.folder if config.public else None,
    }
    missing = {key: path for key, path in named.items() if path and not path.exists()}
    inside = os.environ.get("APPTAINER_CONTAINER")
    cure = "bind its disk into the container: SITE_BINDS in the site file" if inside else "correct it, or put it there"
    for key, path in missing.items():
        yield Finding("paths", WARN, f"{key}: {path} is not there, and what reads it will fail", cure)
    if not missing:
        there = [key for key, path in named.items() if path]
        yield Finding("paths", OK, f"{', '.join(there)}: there" if there else "the configuration names none")


def _credentials(config: "Config | None") -> Finding:
    """Whether those that the source needs are set; whether they are accepted, `--online` asks."""
    from cloudjob.copernicus.credentials import Credentials

    source = config.copernicus.source if config else "https"
    if config and (config.archive or config.public or source == "path"):
        return Finding("credentials", OK, "none are needed: nothing is fetched from the Data Space")
    if source == "s3":
        missing = [name for name in _KEYS if not os.environ.get(name)]
        words = f"{' and '.join(missing or _KEYS)} {'not set' if missing else 'set'}"
        cure = "make keys at https://eodata-s3keysmanager.dataspace.copernicus.eu" if missing else ""
        return Finding("credentials", WARN if missing else OK, words, cure)
    try:
        return Finding("credentials", OK, f"{Credentials.of_environment().said} set; --online asks whether accepted")
    except ConfigError as error:
        return Finding("credentials", WARN, str(error), "search, training and restoring need none")


def _online(config: "Config | None") -> Iterator[Finding]:
    """A finding for each service of the Data Space."""
    from cloudjob.config.acquisition import CopernicusConfig

    settings = config.copernicus if config else CopernicusConfig()
    try:
        yield from _visits(settings)
    except CloudjobError as error:
        yield Finding("online", FAIL, str(error))


def _visits(settings: "CopernicusConfig") -> Iterator[Finding]:
    from cloudjob.copernicus import checkup
    from cloudjob.copernicus.account import open_account
    from cloudjob.copernicus.patience import Patience
    from cloudjob.copernicus.session import Endpoints, open_session

    endpoints, patience, end = Endpoints(**settings.urls()), Patience(retries=2, seconds=_PATIENCE), 0.0

    def late() -> bool:
        return time.monotonic() > end

    account = open_account(endpoints, folder=settings.account(), patience=patience, stopped=late, said=say)
    session = open_session(endpoints, patience=patience, stopped=late)
    end = time.monotonic() + _VISIT
    for visit in checkup.examine(session, endpoints, account, settings.s3):
        yield Finding(visit.service, OK if visit.good else FAIL, f"{visit.host} {visit.words}")
        end = time.monotonic() + _VISIT
