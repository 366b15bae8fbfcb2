"""preview: fetches metadata, masks and the 60 m picture of every product: 1 to 3 % of its bytes (see `masks.b11`)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cloudjob.config.models import Config
from cloudjob.errors import LeftOutError
from cloudjob.files import digest
from cloudjob.run import fetching, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

if TYPE_CHECKING:
    from cloudjob.copernicus.checks import Wanted
    from cloudjob.copernicus.queue import Order

STAGE = "preview"
EXCLUDED = "named in search.exclude"


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item per product that the search found; an excluded one is left out, and one that the catalogue lacks."""
    rows = folder.rows(folder.scenes, stage="search")
    excluded = {row["product"]: {"left_out": row["left_out"]} for row in rows if row.get("left_out")}
    excluded |= {name: {"left_out": EXCLUDED} for name in config.search.exclude}
    fetched = {} if config.masks.b11 == 60 else {"b11": config.masks.b11}
    return [
        Item(STAGE, row["product"], excluded.get(row["product"], fetched), {"scene": digest(row["id"])}) for row in rows
    ]


def run(config: Config, folder: RunFolder) -> Summary:
    """Fetches the small files of each product. Where the archive has none at all, it is not they that are gone."""
    from cloudjob.copernicus import checks
    from cloudjob.copernicus.queue import Order
    from cloudjob.copernicus.sources import Remote
    from cloudjob.sentinel2 import product as safe
    from cloudjob.sentinel2 import zipped

    every = items(config, folder)
    products = {row["product"]: Remote.of(row) for row in folder.rows(folder.scenes, stage="search")}

    def steps(product: Remote) -> Iterator[list["Wanted"]]:
        if fetching.link_whole(folder, queue.source, product):
            return
        yield [checks.known("manifest.safe", product.checksums)]
        manifest = safe.read_manifest(folder.safe(product.name) / "manifest.safe")
        yield checks.wanted(safe.preview_files(manifest, b11=config.masks.b11), product.checksums)

    def order(item: Item) -> "Order":
        return Order(products[item.name], folder.safe(item.name), steps(products[item.name]))

    wanted = [item for item in records.wanted(folder, every) if "left_out" not in item.config]
    with fetching.open_queue(folder, config.copernicus, stage=STAGE, products=len(wanted)) as queue:
        queue.plan(order(item) for item in wanted if records.why(folder, item) is not None)

        def make(item: Item) -> Made:
            if "left_out" in item.config:
                raise LeftOutError(item.config["left_out"])
            files = queue.get(order(item))
            product = safe.Product.open(folder.safe(item.name))
            result: dict = {"offsets": product.offsets, "sun_elevation": product.sun_elevation}
            if fetching.in_place(folder, item.name):
                files, result["archive"] = safe.preview_in_place(product), zipped.fingerprint(product.folder)
            return files, result

        summary = records.work(folder, STAGE, every, make)
        summary.note = queue.tally.note()
    named = {item.name for item in every if "left_out" in item.config}
    gone = {name: why for name, why in summary.left_out.items() if name not in named}
    if gone and not folder.only and not summary.done and not summary.skipped:
        summary.left_out = {name: why for name, why in summary.left_out.items() if name in named}
        summary.failed |= {name: f"{why}; is copernicus.download right?" for name, why in gone.items()}
        for name in gone:
            records.path(folder, STAGE, name).unlink()
    return summary
