"""preview: fetches metadata, masks and the 60 m picture of every product: 1 to 3 % of its bytes."""

from cloudjob.config.models import Config
from cloudjob.errors import LeftOutError
from cloudjob.files import digest
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

STAGE = "preview"
EXCLUDED = "named in search.exclude"


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item per product that the search found; an excluded one is left out."""
    excluded = {name: {"left_out": EXCLUDED} for name in config.search.exclude}
    rows = folder.rows(folder.scenes, stage="search")
    return [Item(STAGE, row["product"], excluded.get(row["product"], {}), {"scene": digest(row["id"])}) for row in rows]


def run(config: Config, folder: RunFolder) -> Summary:
    """Fetches the small files of each product. Where the archive has none at all, it is not they that are gone."""
    from cloudjob.copernicus.client import Client
    from cloudjob.copernicus.session import Endpoints
    from cloudjob.sentinel2 import product as safe

    every = items(config, folder)
    ids = {row["product"]: row["id"] for row in folder.rows(folder.scenes, stage="search")}
    client = Client(Endpoints(**config.copernicus.urls()), connections=config.copernicus.connections)

    def make(item: Item) -> Made:
        if item.config:
            raise LeftOutError(item.config["left_out"])
        target = folder.safe(item.name)
        manifest = client.file(ids[item.name], item.name, "manifest.safe", target)
        wanted = safe.preview_files(safe.read_manifest(manifest))
        files = client.files(ids[item.name], item.name, wanted, target)
        product = safe.Product.open(target)
        return [manifest, *files], {"offsets": product.offsets, "sun_elevation": product.sun_elevation}

    summary = records.work(folder, STAGE, every, make)
    gone = {name: why for name, why in summary.left_out.items() if name not in config.search.exclude}
    if gone and not folder.only and not summary.done and not summary.skipped:
        summary.left_out = {name: EXCLUDED for name in summary.left_out if name not in gone}
        summary.failed |= {name: f"{why}; is copernicus.download right?" for name, why in gone.items()}
        for name in gone:
            records.path(folder, STAGE, name).unlink()
    return summary
