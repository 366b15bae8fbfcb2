"""download: fetches the 10 m bands of the products in accepted pairs, verified against their manifests."""

from cloudjob.config.models import Config
from cloudjob.run import decisions, records
from cloudjob.run.records import Item, Summary
from cloudjob.run.folder import RunFolder
from cloudjob.files import link

STAGE = "download"


def items(config: Config, folder: RunFolder) -> list[Item]:
    pairs = decisions.accepted_pairs(folder)
    products = sorted({pair[key] for pair in pairs for key in ("cloudy", "clear", "reference") if pair[key]})
    return [Item(STAGE, name, {}, {"preview": records.output_digest(folder, "preview", name)}) for name in products]


def run(config: Config, folder: RunFolder) -> Summary:
    from cloudjob.copernicus.client import Client
    from cloudjob.copernicus.session import Endpoints
    from cloudjob.sentinel2 import product as safe

    every = items(config, folder)
    records.require(folder, "preview", [item.name for item in every], reader=STAGE)
    ids = {row["product"]: row["id"] for row in folder.rows(folder.scenes, stage="search")}
    client = Client(Endpoints(**config.copernicus.urls()), connections=config.copernicus.connections)

    def make(item: Item):
        product = folder.safe(item.name)
        wanted = safe.band_files(safe.read_manifest(product / "manifest.safe"))
        files = client.files(ids[item.name], item.name, wanted, product)
        if config.archive:
            files += _truth(config, folder, item.name)
        return files, None

    return records.work(folder, STAGE, every, make)


def _truth(config: Config, folder: RunFolder, product: str) -> list:
    """The ground below synthetic clouds, linked (or copied) from the archive: evaluation needs it, no model sees it."""
    source = (config.archive.path or folder.archive) / "truth" / f"{product}.tif"
    if not source.exists():
        return []
    target = folder.truth(product)
    link(source, target)
    return [target]
