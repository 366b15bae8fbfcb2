"""download: fetches the 10 m bands of the products in accepted pairs, verified against their manifests."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob.config.models import Config
from cloudjob.errors import CorruptFileError, ItemError
from cloudjob.files import link
from cloudjob.names import ProductName
from cloudjob.patches.splits import FURTHER
from cloudjob.run import decisions, fetching, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

if TYPE_CHECKING:
    from cloudjob.copernicus.checks import Wanted
    from cloudjob.copernicus.queue import Order, Queue
    from cloudjob.copernicus.sources import Remote

STAGE = "download"


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item per product of an accepted pair, including its references, and per product that `infer` restores from
    itself alone."""
    pairs = decisions.accepted_pairs(folder)
    products = {pair[key] for pair in pairs for key in ("cloudy", "clear", "reference") if pair[key]}
    products |= {each["product"] for pair in pairs for key in FURTHER.values() for each in pair.get(key, [])}
    if config.infer.unpaired:
        products |= {row["cloudy"] for row in decisions.unpaired(folder, **config.pair.of_cloudy())}
    return [
        Item(STAGE, name, {}, {"preview": records.output_digest(folder, "preview", name)}) for name in sorted(products)
    ]


def run(config: Config, folder: RunFolder) -> Summary:
    """Fetches the bands, and from an embedded archive the truth below its synthetic clouds."""
    from cloudjob.copernicus import checks
    from cloudjob.copernicus.queue import Order
    from cloudjob.copernicus.sources import Remote
    from cloudjob.sentinel2 import product as safe

    every = items(config, folder)
    products = {row["product"]: Remote.of(row) for row in folder.rows(folder.scenes, stage="search")}

    def steps(product: Remote) -> Iterator[list["Wanted"]]:
        records.need(folder, "preview", [product.name], own=product.name)
        if fetching.in_place(folder, product.name):
            return
        manifest = safe.read_manifest(folder.safe(product.name) / "manifest.safe")
        yield checks.wanted(safe.band_files(manifest), product.checksums)

    def order(name: str) -> "Order":
        return Order(products[name], folder.safe(name), steps(products[name]))

    wanted = records.wanted(folder, every)
    with fetching.open_queue(folder, config.copernicus, stage=STAGE, products=len(wanted)) as queue:
        queue.plan(order(item.name) for item in wanted if records.why(folder, item) is not None)

        def make(item: Item) -> Made:
            records.need(folder, "preview", [item.name], own=item.name)
            try:
                files = queue.get(order(item.name))
            except CorruptFileError as error:
                raise _explained(error, queue, products[item.name], folder) from None
            if fetching.in_place(folder, item.name):
                files = safe.bands_in_place(safe.Product.open(folder.safe(item.name)))
            if config.archive:
                files += _truth(config.archive.path or folder.archive, folder, item.name)
            return files, None

        summary = records.work(folder, STAGE, every, make)
        summary.note = "; ".join(filter(None, (queue.tally.note(), _saved(products, every, folder))))
    return summary


def _explained(error: CorruptFileError, queue: "Queue", product: "Remote", folder: RunFolder) -> ItemError:
    """The error to raise for bytes that are not the expected ones: the archive may have another product by now."""
    from cloudjob.copernicus.checks import Wanted
    from cloudjob.copernicus.queue import Order

    manifest = folder.safe(product.name) / "manifest.safe"
    shutil.rmtree(manifest.parent / ".served", ignore_errors=True)  # of a process that was killed
    (served,) = queue.get(Order(product, manifest.parent / ".served", iter([[Wanted(manifest.name)]])))
    changed = served.read_bytes() != manifest.read_bytes()
    shutil.rmtree(served.parent)
    if not changed:
        return error
    if manifest.name in product.checksums:
        return ItemError(
            f"{error}: the product has changed since the search. Run: cloudjob search {folder.quoted} --force"
        )
    manifest.unlink()  # so that preview fetches the product as it is now
    return ItemError(f"{error}: the product has changed since its preview, which comes anew next time")


def _saved(products: dict[str, "Remote"], every: list[Item], folder: RunFolder) -> str:
    """How many bytes need not be fetched, of the products whose size the catalogue tells."""
    from cloudjob.copernicus.tally import size_of

    taken = {item.name for item in every}
    rest = sum(product.size or 0 for name, product in products.items() if name not in taken)
    bands = 0
    for name in taken:
        if (size := products[name].size) and not fetching.in_place(folder, name):
            found = [records.record(folder, stage, name) for stage in ("preview", STAGE)]
            fetched = sum(file["size"] for record in found if record for file in record["outputs"].values())
            bands += max(size - fetched, 0)
    parts = [f"{size_of(rest)} by previews"] if rest else []
    parts += [f"{size_of(bands)} by fetching four bands alone"] if bands else []
    return f"saved {' and '.join(parts)}" if parts else ""


def _truth(archive: Path, folder: RunFolder, product: str) -> list[Path]:
    """The ground below synthetic clouds, how much of it is seen, and the ground as sensed, linked or copied from the
    archive: evaluation needs them, no model sees them. And where the ground drifts."""
    paths = (folder.truth(product), folder.seen(product), folder.sensed(product))
    drifting = folder.drifting / f"{ProductName.parse(product).tile}.tif"
    found = [path for path in (*paths, drifting) if (archive / path.relative_to(folder.root)).exists()]
    for path in found:
        link(archive / path.relative_to(folder.root), path)
    return found
