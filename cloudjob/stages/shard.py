"""shard: measures accepted pairs, cuts them into triplets, one HDF5 shard per pair, and writes shards/index.json."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache, partial
from typing import TYPE_CHECKING

from cloudjob import __version__
from cloudjob.config.acquisition import PublicConfig
from cloudjob.config.models import Config, newer
from cloudjob.errors import ConfigError, DamagedInputError, InterruptedJob, RejectedError
from cloudjob.files import atomic, digest, file_sha256, write_json
from cloudjob.hpc import machine
from cloudjob.names import ProductName, tile_of_pair
from cloudjob.patches import splits
from cloudjob.patches.splits import CLEAR_DATE, GROUND, dates_of
from cloudjob.pixels import REFERENCES
from cloudjob.run import decisions, labels, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.products import check, open_product
from cloudjob.run.records import Item, Made, Summary

if TYPE_CHECKING:
    import numpy as np
    from shapely.geometry.base import BaseGeometry

    from cloudjob.patches.pairs import PreparedPair
    from cloudjob.patches.public.imports import Part
    from cloudjob.sentinel2.product import Product

STAGE = "shard"
_INDEX_VERSION = 1  # of shards/index.json


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item per accepted pair: its split, the ground and acquisitions that it leaves to other splits, its target.
    Of a public data set, one per region or part of one."""
    if public := config.public:
        return _public_items(config, public, folder.once("public", lambda: _parts(public)))
    pairs = decisions.accepted_pairs(folder)
    grouped: list[dict] = [{"pair": pair["pair"], "tile": tile_of_pair(pair["pair"])} for pair in pairs]
    assigned = splits.assign(grouped, seed=config.seed, **dict(config.shard.split))
    for pair, group in zip(pairs, grouped, strict=True):
        asked = config.shard.truth == "everywhere" or (config.shard.truth and assigned[pair["pair"]] != "train")
        group["truth"] = _truth(folder, pair["cloudy"]) if asked else {}
        group["target"] = GROUND if group["truth"] else CLEAR_DATE
        group["dates"] = dates_of(pair, group["target"])
        group["acquisitions"] = {role: ProductName.parse(name).datatake for role, (name, _) in group["dates"].items()}
    conflicts = splits.conflicts(grouped, assigned)
    above = {"train": ("val", "test"), "val": ("test",), "test": ()}
    taken = {
        split: sorted({tile_of_pair(name) for name, other in assigned.items() if other in others})
        for split, others in above.items()
    }
    settings = config.section("shard", "masks")
    drifts = cache(partial(records.drifting_digest, folder))  # once a tile
    found = []
    for pair, group in zip(pairs, grouped, strict=True):
        split = assigned[pair["pair"]]
        place = {"split": split, "number": pair["number"], "taken_tiles": taken[split]} | conflicts[pair["pair"]]
        place["target"] = group["target"]
        names = [name for name, _ in group["dates"].values()]
        inputs = {name: records.output_digest(folder, "download", name) for name in names}
        inputs |= labels.digests(folder, names)
        more = group["truth"] | drifts(group["tile"]) | {"pair": pair["version"]}
        found.append(Item(STAGE, pair["pair"], settings | place, inputs | more, newer=newer("shard", "masks")))
    return found


_USED = {  # by the triplets of a public data set
    "masks": ("cloud_m", "shadow_m", "cirrus_m"),
    "shard": ("window", "cloud", "target_max_cloud", "compression"),
    "pair": ("references", "reference_max_days", "clear_max_cloud"),
}


def _public_items(config: Config, public: PublicConfig, parts: "dict[str, Part]") -> list[Item]:
    settings = config.section(*_USED)
    used = {section: {key: settings[section][key] for key in keys} for section, keys in _USED.items()}
    found = []
    for number, part in enumerate(parts.values()):
        place = {"data_set": public.kind, "split": part.split, "number": number, "target": CLEAR_DATE}
        files = [[path.name for path in sample.files] for sample in part.samples]
        found.append(Item(STAGE, part.name, used | place, {"files": digest(files)}))
    return found


def _parts(public: PublicConfig, say: Callable[[str], None] = lambda line: None) -> "dict[str, Part]":
    """The parts of a public data set, by name; what is left of it is said."""
    from cloudjob.patches.public import imports

    try:
        found, notes = imports.parts(public.kind, public.folder)
    except ConfigError as error:  # who reads the shards can do without
        raise DamagedInputError(str(error)) from None
    for note in notes:
        say(f"{public.kind}: {note}")
    return {part.name: part for part in found}


def _truth(folder: RunFolder, product: str) -> dict[str, str]:
    """The digest of the known ground on the day of a product, as an input; empty if it is unknown."""
    path = folder.truth(product)
    if not path.exists():
        return {}
    fetched = (records.record(folder, "download", product) or {}).get("outputs", {})
    kept = fetched.get(str(path.relative_to(folder.root)))
    return {"truth": kept["sha256"] if kept else file_sha256(path)}


def _shown(pair: dict, target: str, without: list[str]) -> dict[str, tuple[str, float]]:
    """The dates that are decoded, as of `dates_of`: where the pair does without a reference, the next ones move up.

    Where the ground is the target, the clear date is the first reference, and what else would be it is not needed.
    """
    dates = dates_of(pair, target)
    first = target == GROUND
    references = [dates[role] for role in REFERENCES[first:] if role in dates and role not in without]
    found = {role: dates[role] for role in ("cloudy", "clear")}
    return found | dict(zip(REFERENCES[first:], references, strict=False))


def run(config: Config, folder: RunFolder) -> Summary:
    """Makes the shards of the accepted pairs, and the index of those that are made."""
    from cloudjob.patches import shards

    shards.filters(config.shard.compression)  # a missing library is an error now, not after the first pair
    if config.public:
        return _run_public(config, config.public, folder)
    every = items(config, folder)
    pairs = {pair["pair"]: pair for pair in decisions.accepted_pairs(folder)}
    if unknown := set(config.shard.split.test_tiles) - {tile_of_pair(pair) for pair in pairs}:
        folder.say(f"shard.split.test_tiles: no accepted pair is of {', '.join(sorted(unknown))}")

    summary = records.work(folder, STAGE, every, lambda item: _make(config, folder, item, pairs[item.name]))
    return _indexed(config, folder, summary, every, lambda made: _unpaired(folder) | _without(every, made, pairs))


def _without(every: list[Item], made: list[Item], pairs: dict[str, dict]) -> set[str]:
    return {pairs[item.name]["cloudy"] for item in every if item not in made}


def _run_public(config: Config, public: PublicConfig, folder: RunFolder) -> Summary:
    """The same of a public data set."""
    parts = _parts(public, folder.say)
    every = _public_items(config, public, parts)
    summary = records.work(folder, STAGE, every, lambda item: _make_public(config, folder, item, parts[item.name]))
    return _indexed(config, folder, summary, every, lambda made: set())


def _indexed(
    config: Config, folder: RunFolder, summary: Summary, every: list[Item], lacks: Callable[[list[Item]], set[str]]
) -> Summary:
    """Writes the index of what is made, and tells of it."""
    made: list[Item] | None = None
    while made != (now := records.settled(folder, every)):  # another task may have ended meanwhile
        made = now
        lacking = lacks(made)
        counts = _write_index(config, folder, every, made, lacking)
    if not sum(counts.values()):
        if not lacking and not summary.failed:
            raise ConfigError("shard: no pair gives a triplet; loosen shard.cloud, or add tiles and dates")
        return summary
    summary.note = ", ".join(f"{count} {split}" for split, count in counts.items()) + " triplets"
    return summary


def _make_public(config: Config, folder: RunFolder, item: Item, part: "Part") -> Made:
    from cloudjob.patches.public import imports, samples
    from cloudjob.sentinel2 import masks

    path, kind = folder.shard(item.config["split"], item.config["number"]), item.config["data_set"]
    rules = samples.Rules(
        window=config.shard.window,
        cloud=config.shard.cloud,
        target_cloud=config.shard.target_max_cloud,
        clear_cloud=config.pair.clear_max_cloud,
        references=config.pair.references,
        reference_days=config.pair.reference_max_days,
    )
    with atomic(path) as temporary:
        result = imports.write(
            temporary,
            kind,
            part,
            rules,
            masks.Settings(**dict(config.masks)),
            compression=config.shard.compression,
            attributes={"config_sha256": digest(item.config), "cloudjob_version": __version__, "settings": item.config},
            stopped=folder.stop_requested,
        )
    return [path], result | {"level": imports.KINDS[kind].level, "place": part.region}


def _make(config: Config, folder: RunFolder, item: Item, pair: dict) -> Made:
    from cloudjob.patches import pairs
    from cloudjob.sentinel2 import masks

    if item.config["drop"]:
        raise RejectedError(item.config["drop"])
    every_date = [name for name, _ in dates_of(pair, item.config["target"]).values()]
    records.need(folder, "download", every_date, own=pair["cloudy"])
    on_the_day = item.config["target"] == GROUND
    dates = _shown(pair, item.config["target"], item.config["without"])
    products = {role: open_product(folder, name) for role, (name, _) in dates.items()}
    if on_the_day:
        check(folder, pair["cloudy"], truth=True)
    prepared = pairs.prepare(
        products,
        masks.Settings(**dict(config.masks)),
        pairs.Rules(**{field.name: getattr(config.shard, field.name) for field in fields(pairs.Rules)}),
        excluded=_excluded_ground(folder, item, products["cloudy"]),
        seed=int(digest([config.seed, item.name])[:12], 16),
        truth=folder.truth(pair["cloudy"]) if on_the_day else None,
        labels=folder.labels,
        drifting=folder.drifting,
    )
    facts = {
        "pair": pair["pair"],
        "target": item.config["target"],
        "radiometry": config.shard.radiometry,
        "products": {role: name for role, (name, _) in dates.items()},
        "baselines": {role: product.baseline for role, product in products.items()},
        "offsets": {role: product.offsets for role, product in products.items()},
        "sun_elevation": {role: product.sun_elevation for role, product in products.items()},
        **prepared.measures,
    }
    masked = every_date[1:] if config.shard.preset else every_date  # the preset takes the cloudy date's from ESA
    by_hand = labels.among(item.inputs, masked)
    facts |= {"masks_by_hand": sorted(by_hand)} if by_hand else {}
    days = [pair["days"]] if on_the_day else []
    days += [dates[role][1] for role in REFERENCES if role in dates]
    result = _write(config, folder, item, prepared, facts, days)
    measures = prepared.measures | {"shift": facts["shift"]}
    return [folder.shard(item.config["split"], item.config["number"])], result | {"measures": measures}


def _excluded_ground(folder: RunFolder, item: Item, cloudy: "Product") -> "list[BaseGeometry]":
    """Footprints, on the map of the cloudy product, of the tiles whose ground this pair must not use: val leaves test
    alone, train both."""
    from cloudjob.sentinel2.geometry import ground_near, tile_centre

    middle = cloudy.middle or tile_centre(cloudy.name.tile)
    tiles = set(item.config["taken_tiles"])
    rows = folder.rows(folder.scenes, stage="search")
    footprints = {str(row["footprint"]): row["footprint"] for row in rows if row["tile"] in tiles}
    return [part for footprint in footprints.values() for part in ground_near(footprint, cloudy.crs, middle)]


def _write(
    config: Config, folder: RunFolder, item: Item, pair: "PreparedPair", facts: dict, reference_days: list[float]
) -> dict:
    """Writes the windows of a pair as they arrive, and adds the shift between its dates to the facts."""
    from cloudjob.patches import cut, pairs, shard_writer

    kept = pair.windows
    attributes = {
        "config_sha256": digest(item.config),
        "cloudjob_version": __version__,
        "settings": {"masks": config.masks.model_dump(mode="json"), "shard": config.shard.model_dump(mode="json")},
    }
    with atomic(folder.shard(item.config["split"], item.config["number"])) as temporary:
        with shard_writer.Writer(
            temporary,
            len(kept),
            window=kept.window,
            compression=config.shard.compression,
            pair=facts,
            reference_days=reference_days,
            attributes=attributes,
        ) as writer:
            for number, images in cut.cut(_stripes(config, folder, pair), kept):
                writer.add(
                    **images,
                    row=int(kept.row[number]),
                    col=int(kept.col[number]),
                    cloud_fraction=float(kept.cloud_fraction[number]),
                )
            facts["shift"] = pairs.measured_shift(
                pair, config.shard.max_shift, config.shard.unmeasured
            )  # written when the writer is closed
        shard_writer.read_back(temporary, writer.result)
    return {name: value for name, value in writer.result.items() if name != "checksums"}


def _stripes(config: Config, folder: RunFolder, pair: "PreparedPair") -> "Iterator[tuple[int, dict[str, np.ndarray]]]":
    """The images of a pair, stripe by stripe; InterruptedJob on a stop request."""
    from cloudjob.patches import pairs

    for stripe in pairs.stripes(pair, radiometry=config.shard.radiometry, processes=machine.cores()):
        if folder.stop_requested():
            raise InterruptedJob(f"{STAGE}: stopped; run the same command again")
        yield stripe


def _unpaired(folder: RunFolder) -> set[str]:
    """The cloudy products that may still get a pair: what they are made of failed, or is gone."""
    rows = folder.rows(folder.scenes, stage="search") if folder.scenes.exists() else []
    cloudy = {row["product"] for row in rows if "cloudy" in row["roles"]}
    states = {name: (records.record(folder, "pair", name) or {}).get("status") for name in cloudy}
    return {name for name, state in states.items() if state not in ("done", "rejected")}


def _write_index(
    config: Config, folder: RunFolder, every: list[Item], made: list[Item], lacking: set[str]
) -> dict[str, int]:
    """Writes shards/index.json of what is made, none where that is nothing; returns the triplets per split. It names
    the cloudy products without a shard (`lacking`).

    Removes shards of an earlier configuration once every pair is made: before, some may be in the making.
    """
    from cloudjob.patches.shard_writer import normalisation

    files: list[dict] = []
    parts: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    for item in made:
        record = records.record(folder, STAGE, item.name) or {"outputs": {}}
        for name, kept in record["outputs"].items():
            split = item.config["split"]
            entry = {"file": name.removeprefix("shards/"), "count": record["result"]["count"], **kept}
            references = record["result"].get("references", 1)
            entry |= {"references": references} if references > 1 else {}
            entry |= {key: record["result"][key] for key in ("level", "place") if key in record["result"]}
            files.append(entry | {"split": split, "pair": item.name, "target": item.config["target"]})
            parts[split].append(record["result"])
    counts = {split: sum(part["count"] for part in found) for split, found in parts.items()}
    if not files:
        folder.shard_index.unlink(missing_ok=True)
        return counts
    if len(made) == len(every):
        for stray in set(folder.shards.glob("[!.]*.h5")) - {folder.shards / file["file"] for file in files}:
            stray.unlink(missing_ok=True)
    index = {
        "schema_version": _INDEX_VERSION,
        "window": config.shard.window,
        "counts": counts,
        "files": files,
        "normalisation": normalisation(parts["train"]) if parts["train"] else None,
        "split": {
            **({"by": "published"} if config.public else config.shard.split.model_dump(exclude_none=True)),
            "seed": config.seed,
            "pairs": {item.name: item.config["split"] for item in every},
        },
    }
    write_json(folder.shard_index, index | ({"lacking": sorted(lacking)} if lacking else {}))
    return counts


def stats(config: Config, folder: RunFolder) -> str:
    """What the shards hold, and what was rejected and why, as text; InputError while there are none."""
    from cloudjob.patches.stats import collect, text

    lines = [text(collect(folder.shards, folder.index()))]
    for item in items(config, folder):
        record = records.record(folder, STAGE, item.name)
        if record and record["status"] == "rejected":
            lines.append(f"rejected {item.name}: {record['message']}")
    return "\n".join(lines)
