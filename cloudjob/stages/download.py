"""download: fetches the 10 m bands of the products in accepted pairs, verified against their manifests."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob.config.models import Config
from cloudjob.errors import CorruptFileError, ItemError
from cloudjob.files import link
from cloudjob.names import ProductName
from cloudjob.patches.splits import FURTHER
from cloudjob.run import decisions, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

if TYPE_CHECKING:
    from cloudjob.copernicus.client import Client

STAGE = "download"


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item per product of an accepted pair, including its references."""
    pairs = decisions.accepted_pairs(folder)
    products = {pair[key] for pair in pairs for key in ("cloudy", "clear", "reference") if pair[key]}
    products |= {each["product"] for pair in pairs for key in FURTHER.values() for each in pair.get(key, [])}
    return [
        Item(STAGE, name, {}, {"preview": records.output_digest(folder, "preview", name)}) for name in sorted(products)
    ]


def run(config: Config, folder: RunFolder) -> Summary:
    """Fetches the bands, and from an embedded archive the truth below its synthetic clouds."""
    from cloudjob.copernicus.client import Client
    from cloudjob.copernicus.session import Endpoints
    from cloudjob.sentinel2 import product as safe

    every = items(config, folder)
    ids = {row["product"]: row["id"] for row in folder.rows(folder.scenes, stage="search")}
    client = Client(Endpoints(**config.copernicus.urls()), connections=config.copernicus.connections)

    def make(item: Item) -> Made:
        records.need(folder, "preview", [item.name], own=item.name)
        product = folder.safe(item.name)
        wanted = safe.band_files(safe.read_manifest(product / "manifest.safe"))
        try:
            files = client.files(ids[item.name], item.name, wanted, product)
        except CorruptFileError as error:
            if not _changed(client, ids[item.name], item.name, product):
                raise
            (product / "manifest.safe").unlink()  # so that preview fetches the product as it is now
            raise ItemError(f"{error}: the product has changed since its preview, which comes anew next time") from None
        if config.archive:
            files += _truth(config.archive.path or folder.archive, folder, item.name)
        return files, None

    return records.work(folder, STAGE, every, make)


def _changed(client: "Client", product_id: str, name: str, product: Path) -> bool:
    """Whether the archive has another manifest of a product than its folder `product`."""
    served = client.file(product_id, name, "manifest.safe", product / ".served")
    other = served.read_bytes() != (product / "manifest.safe").read_bytes()
    shutil.rmtree(served.parent)
    return other


def _truth(archive: Path, folder: RunFolder, product: str) -> list[Path]:
    """The ground below synthetic clouds, how much of it is seen, and the ground as sensed, linked or copied from the
    archive: evaluation needs them, no model sees them. And where the ground drifts."""
    paths = (folder.truth(product), folder.seen(product), folder.sensed(product))
    drifting = folder.drifting / f"{ProductName.parse(product).tile}.tif"
    found = [path for path in (*paths, drifting) if (archive / path.relative_to(folder.root)).exists()]
    for path in found:
        link(archive / path.relative_to(folder.root), path)
    return found
