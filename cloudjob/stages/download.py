"""download: fetches the 10 m bands of the products in accepted pairs, verified against their manifests."""

import os
import shutil

from cloudjob.config import Config
from cloudjob.workspace import Item, Summary, Workspace, atomic

STAGE = "download"


def items(config: Config, workspace: Workspace) -> list[Item]:
    pairs = workspace.accepted_pairs()
    products = sorted({pair[key] for pair in pairs for key in ("cloudy", "clear", "reference") if pair[key]})
    return [Item(STAGE, name, {}, {"preview": workspace.output_digest("preview", name)}) for name in products]


def run(config: Config, workspace: Workspace) -> Summary:
    from cloudjob.copernicus.client import Client
    from cloudjob.copernicus.session import Endpoints
    from cloudjob.sentinel2 import product as safe

    every = items(config, workspace)
    workspace.require("preview", [item.name for item in every], reader=STAGE)
    ids = {row["product"]: row["id"] for row in workspace.rows(workspace.scenes, stage="search")}
    client = Client(Endpoints(**config.copernicus.urls()), connections=config.copernicus.connections)

    def make(item: Item):
        folder = workspace.safe(item.name)
        wanted = safe.band_files(safe.read_manifest(folder / "manifest.safe"))
        files = client.files(ids[item.name], item.name, wanted, folder)
        if config.archive:
            files += _truth(config, workspace, item.name)
        return files, None

    return workspace.work(STAGE, every, make)


def _truth(config: Config, workspace: Workspace, product: str) -> list:
    """The ground below synthetic clouds, linked (or copied) from the archive: evaluation needs it, no model sees it."""
    source = (config.archive.path or workspace.archive) / "truth" / f"{product}.tif"
    if not source.exists():
        return []
    target = workspace.truth(product)
    with atomic(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:  # another file system
            shutil.copyfile(source, temporary)
    return [target]
