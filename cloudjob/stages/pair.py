"""pair: pairs every cloudy product with the nearest good clear one of its tile, and writes pairs.jsonl."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING

from cloudjob.config.models import Config, newer
from cloudjob.errors import ConfigError, CorruptFileError, DamagedProductError, OwnFileError, RejectedError
from cloudjob.files import digest, file_sha256, write_jsonl
from cloudjob.names import ProductName
from cloudjob.run import decisions, labels, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.products import open_product
from cloudjob.run.records import Item, Made, Summary

if TYPE_CHECKING:
    from cloudjob.sentinel2.scene_masks import Preview

STAGE = "pair"
MEMORY = 10**9  # bytes of previews that are kept: 32 whole scenes, more than the clear dates of a tile in a season


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item per cloudy product, tile by tile, so that the previews of a tile's clear products are opened once."""
    rows = folder.rows(folder.scenes, stage="search")
    settings = config.section("pair", "masks")
    own = cache(partial(_inputs, config, folder))
    clear: dict[str, dict[str, str]] = {}  # of each tile
    for row in rows:
        if "clear" in row["roles"]:
            clear.setdefault(row["tile"], {}).update(own(row["product"]))
    found = []
    for cloudy in sorted(rows, key=lambda row: (row["tile"], row["product"])):
        if "cloudy" in cloudy["roles"]:
            inputs = own(cloudy["product"]) | clear.get(cloudy["tile"], {})
            found.append(Item(STAGE, cloudy["product"], settings, inputs, newer=newer("pair", "masks")))
    return found


def _inputs(config: Config, folder: RunFolder, product: str) -> dict[str, str]:
    """What the pairs of a product are made of."""
    preview = {product: _preview_digest(folder, product)}
    return preview | _raster(config, product) | labels.digests(folder, [product])


def _preview_digest(folder: RunFolder, product: str) -> str:
    """The digest of a preview; '' without one, or where the bands of the product are gone."""
    return "" if records.left_out(folder, "download", product) else records.output_digest(folder, "preview", product)


def _raster(config: Config, product: str) -> dict[str, str]:
    """The digest of a user's own mask of a product, as an input; nothing where ESA's masks are used."""
    if config.masks.folder is None:
        return {}
    path = config.masks.folder / f"{product}.tif"
    return {path.name: file_sha256(path) if path.is_file() else ""}


def run(config: Config, folder: RunFolder) -> Summary:
    """Measures and judges the candidates of each cloudy product. ConfigError where none of them is acceptable, and
    nothing else can be made of the products."""
    from cloudjob.sentinel2 import masks, pairing

    every = items(config, folder)
    unread: dict[str, str] = {}  # clear product -> why its masks cannot be read
    settings = masks.Settings(**dict(config.masks))
    rules = pairing.Rules(**dict(config.pair))

    def opened(name: str) -> "Preview":
        found = pairing.open_preview(open_product(folder, name, bands=False), settings, labels=folder.labels)
        if found.note:
            folder.say(f"pair: {found.note}")
        return found

    granules = Counter(ProductName.parse(row["product"]).granule for row in folder.rows(folder.scenes, stage="search"))
    halves = {granule for granule, number in granules.items() if number > 1}
    preview = _kept(opened, MEMORY)

    def clear(item: Item) -> "Iterator[Preview]":
        """The clear products that can be read. One that cannot must not keep its neighbours from each other."""
        for name, known in item.inputs.items():
            if name == item.name or not known or name.endswith(".tif"):
                continue
            try:
                if name not in unread:
                    yield preview(name)
            except CorruptFileError as error:
                unread[name] = records.spoil(folder, "preview", name, error)
            except (DamagedProductError, OwnFileError) as error:
                unread[name] = str(error)
            if name in unread:
                item.inputs[name] = _preview_digest(folder, name)  # none, until it has been fetched again

    def make(item: Item) -> Made:
        gone = records.left_out(folder, "download", item.name)
        records.need(folder, "download" if gone else "preview", [item.name], own=item.name)
        cloudy = preview(item.name)
        rows = pairing.candidates(cloudy, clear(item), rules, settings, halves) or [pairing.alone(cloudy)]
        rows = [row | {"version": _version(row, item.inputs)} for row in rows]
        if not any(row["accepted"] for row in rows):
            best = next((row for row in rows if row["shown"]), rows[0])
            why = "; ".join(best["reasons"])
            raise RejectedError(f"{best['clear']}: {why}" if best["clear"] else why, rows)
        return [], rows

    summary = records.work(folder, STAGE, every, make)
    summary.failed |= {name: f"no clear date: {why}" for name, why in unread.items()}
    _join(config, folder, summary)
    return summary


def _join(config: Config, folder: RunFolder, summary: Summary) -> None:
    """Writes the rows of all items that are settled. ConfigError where none of them is acceptable."""
    every = items(config, folder)  # anew: other stages may have failed what they cannot read
    rows = _numbered(every, {item.name: records.results(folder, [item])[0] for item in records.settled(folder, every)})
    if not rows and summary.failed:
        folder.pairs.unlink(missing_ok=True)
        return
    accepted, candidates = sum(row["accepted"] for row in rows), sum(row["clear"] is not None for row in rows)
    write_jsonl(folder.pairs, rows)
    alone = decisions.stand_alone(rows, **config.pair.of_cloudy()) if config.infer.unpaired else []
    if not accepted and not summary.failed and not folder.only and not (alone and _has_network(config, folder)):
        gone = f", and {len(summary.left_out)} cloudy products are left out" if summary.left_out else ""
        other = ", or restore products without one: --set infer.checkpoint=PATH of a trained network" if alone else ""
        raise ConfigError(
            f"pair: none of {candidates} candidates is acceptable{gone}; {folder.pairs} says why for each. "
            "Loosen the rules in the section pair, search other dates, or accept some by eye: "
            f"cloudjob review {folder.quoted}{other}"
        )
    summary.note = f"{accepted} pairs of {candidates} candidates accepted"
    if alone:
        summary.note += f", {len(alone)} products that no clear date suits"


def _has_network(config: Config, folder: RunFolder) -> bool:
    """Whether `infer` needs no pair to be trained on."""
    trained = (records.record(folder, "train", "run") or {}).get("status") == "done"
    return config.infer.checkpoint is not None or trained


def _numbered(every: list[Item], results: dict[str, list | None]) -> list[dict]:
    """The rows of all pairs. A shown one is numbered by its place, which nobody need write down as long as no item
    before it has failed or is left out: that one keeps a number for the day when it comes."""
    rows, number, place = [], 0, 0
    for item in every:
        own = results.get(item.name)
        for row in own or []:
            rows.append(row | ({"number": number} if row["shown"] and number != place else {}))
        shown = sum(row["shown"] for row in own or [])
        place += shown
        number += 1 if own is None else shown
    return rows


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
    """A digest that changes with the measures, with the decision, and with a user's own or corrected mask of one of the
    products."""
    further = [each["product"] for name in ("further", "further_of_ground") for each in row.get(name, [])]
    products = [row[role] for role in ("cloudy", "clear", "reference")] + further
    rasters = [inputs.get(f"{product}.tif") for product in products]
    corrected = labels.among(inputs, products)
    return digest([row, rasters, corrected] if corrected else [row, rasters])
