"""pair: pairs every cloudy product with the nearest good clear one of its tile, and writes pairs.jsonl."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from cloudjob.config.models import Config, newer
from cloudjob.errors import ConfigError, RejectedError
from cloudjob.files import digest, file_sha256, write_jsonl
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

if TYPE_CHECKING:
    from cloudjob.sentinel2.scene_masks import Preview

STAGE = "pair"
MEMORY = 10**9  # bytes of previews that are kept: 32 whole scenes, more than the clear dates of a tile in a season


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item per cloudy product, tile by tile, so that the previews of a tile's clear products are opened once."""
    rows = folder.rows(folder.scenes, stage="search")
    settings = config.section("pair", "masks")
    raster = cache(lambda product: _raster(config, product))
    clear: dict[str, list[str]] = {}  # of each tile
    for row in rows:
        if "clear" in row["roles"]:
            clear.setdefault(row["tile"], []).append(row["product"])
    found = []
    for cloudy in sorted(rows, key=lambda row: (row["tile"], row["product"])):
        if "cloudy" in cloudy["roles"]:
            inputs: dict[str, str] = {}
            for name in [cloudy["product"], *clear.get(cloudy["tile"], [])]:
                inputs |= {name: records.output_digest(folder, "preview", name)} | raster(name)
            found.append(Item(STAGE, cloudy["product"], settings, inputs, newer=newer("pair", "masks")))
    return found


def _raster(config: Config, product: str) -> dict[str, str]:
    """The digest of a user's own mask of a product, as an input; nothing where ESA's masks are used."""
    if config.masks.folder is None:
        return {}
    path = config.masks.folder / f"{product}.tif"
    return {path.name: file_sha256(path) if path.is_file() else ""}


def run(config: Config, folder: RunFolder) -> Summary:
    """Measures and judges the candidates of each cloudy product. ConfigError where none of them is acceptable."""
    from cloudjob.sentinel2 import masks, pairing
    from cloudjob.sentinel2.product import Product

    every = items(config, folder)
    products = {item.name: [name for name in item.inputs if not name.endswith(".tif")] for item in every}
    records.require(folder, "preview", sorted({name for names in products.values() for name in names}), reader=STAGE)
    settings = masks.Settings(**dict(config.masks))
    rules = pairing.Rules(**dict(config.pair))

    def opened(name: str) -> "Preview":
        found = pairing.open_preview(Product.open(folder.safe(name)), settings)
        if found.note:
            folder.say(f"pair: {found.note}")
        return found

    preview = _kept(opened, MEMORY)

    def make(item: Item) -> Made:
        clear = (preview(name) for name in products[item.name] if name != item.name)
        rows = pairing.candidates(preview(item.name), clear, rules, settings)
        rows = [row | {"version": _version(row, item.inputs)} for row in rows]
        if not any(row["accepted"] for row in rows):
            reasons = [f"{row['clear']}: {'; '.join(row['reasons'])}" for row in rows if row["shown"]]
            raise RejectedError(reasons[0] if reasons else "no clear product of this tile", rows)
        return [], rows

    summary = records.work(folder, STAGE, every, make)
    if summary.failed or any(records.why(folder, item) for item in every):
        return summary
    rows = [row for result in records.results(folder, every) for row in result or []]
    accepted = sum(row["accepted"] for row in rows)
    write_jsonl(folder.pairs, rows)
    if not accepted:
        raise ConfigError(
            f"pair: none of {len(rows)} candidates is acceptable; {folder.pairs} says why for each. "
            "Loosen the rules in the section pair, search other dates, or accept some by eye: "
            f"cloudjob review {folder.root}"
        )
    summary.note = f"{accepted} pairs of {len(rows)} candidates accepted"
    return summary


def _kept(opened: "Callable[[str], Preview]", memory: int) -> "Callable[[str], Preview]":
    """`opened`, whose previews are kept: at most `memory` bytes, those that were used last."""
    kept: dict[str, Preview] = {}  # those used last come last

    def preview(name: str) -> "Preview":
        new = name not in kept
        kept[name] = opened(name) if new else kept.pop(name)
        while new and len(kept) > 1 and sum(each.nbytes for each in kept.values()) > memory:
            del kept[next(iter(kept))]
        return kept[name]

    return preview


def _version(row: dict, inputs: dict[str, str]) -> str:
    """A digest that changes with the measures, with the decision, and with a user's own mask of one of the products."""
    further = [each["product"] for name in ("further", "further_of_ground") for each in row.get(name, [])]
    products = [row[role] for role in ("cloudy", "clear", "reference")] + further
    rasters = [inputs.get(f"{product}.tif") for product in products]
    return digest([row, rasters])
