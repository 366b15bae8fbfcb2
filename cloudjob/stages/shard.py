"""shard: measures the accepted pairs, cuts them into triplets, one HDF5 shard a pair, and writes shards/index.json."""

from cloudjob.pixels import CLEAR, NO_DATA
import os

from cloudjob import __version__
from cloudjob.config.models import Config
from cloudjob.errors import ConfigError, CorruptFileError, InputError, InterruptedJob, ItemError, RejectedError
from cloudjob.run import decisions, records
from cloudjob.run.records import Item, Summary
from cloudjob.run.folder import RunFolder
from cloudjob.files import atomic, digest, file_sha256, write_json

STAGE = "shard"
ROLES = ("cloudy", "clear", "reference")
GROUND = "ground"  # of the cloudy day, as the target; else the clear date is


def items(config: Config, folder: RunFolder) -> list[Item]:
    from cloudjob.patches import splits

    pairs = decisions.accepted_pairs(folder)
    grouped = [{"pair": pair["pair"], "tile": _tile(pair), "acquisitions": _acquisitions(pair)} for pair in pairs]
    assigned = splits.assign(grouped, seed=config.seed, **dict(config.shard.split))
    conflicts = splits.conflicts(grouped, assigned)
    settings = config.section("shard", "masks")
    found = []
    for pair in pairs:
        split = assigned[pair["pair"]]
        above = {"train": ("val", "test"), "val": ("test",), "test": ()}[split]
        taken = sorted({_tile(other) for other in pairs if assigned[other["pair"]] in above})
        place = {"split": split, "number": pair["number"], "taken_tiles": taken} | conflicts[pair["pair"]]
        inputs = {pair[role]: records.output_digest(folder, "download", pair[role]) for role in ROLES if pair[role]}
        truth = _truth(folder, pair["cloudy"]) if config.shard.truth and split != "train" else {}
        place["target"] = GROUND if truth else "clear date"
        found.append(Item(STAGE, pair["pair"], settings | place, inputs | truth | {"pair": pair["version"]}))
    return found


def _tile(pair: dict) -> str:
    return pair["pair"].split("_")[0]


def _truth(folder: RunFolder, product: str) -> dict[str, str]:
    """The digest of the ground of the day of a product, as an input; nothing where it is not known."""
    path = folder.truth(product)
    if not path.exists():
        return {}
    fetched = (records.record(folder, "download", product) or {}).get("outputs", {})
    kept = fetched.get(str(path.relative_to(folder.root)))
    return {"truth": kept["sha256"] if kept else file_sha256(path)}


def _acquisitions(pair: dict) -> dict[str, str]:
    """Role -> datatake (satellite and start of sensing): what two tiles of one overpass share."""
    return {role: "_".join(pair[role].split("_")[0:3:2]) for role in ROLES if pair[role]}


def run(config: Config, folder: RunFolder) -> Summary:
    every = items(config, folder)
    pairs = {pair["pair"]: pair for pair in decisions.accepted_pairs(folder)}
    products = {pair[role] for pair in pairs.values() for role in ROLES if pair[role]}
    records.require(folder, "download", sorted(products), reader=STAGE)
    if unknown := set(config.shard.split.test_tiles) - {_tile(pair) for pair in pairs.values()}:
        folder.say(f"shard.split.test_tiles: no accepted pair is of {', '.join(sorted(unknown))}")

    summary = records.work(folder, STAGE, every, lambda item: _make(config, folder, item, pairs[item.name]))
    if summary.failed or any(records.why(folder, item) for item in every):
        return summary
    counts = _write_index(config, folder, every)
    summary.note = ", ".join(f"{count} {split}" for split, count in counts.items()) + " triplets"
    return summary


def _make(config: Config, folder: RunFolder, item: Item, pair: dict):
    from cloudjob.sentinel2.product import Product

    if item.config["drop"]:
        raise RejectedError(item.config["drop"])
    ground = item.config["target"] == GROUND
    without = ["reference"] if ground else item.config["without"]  # the clear date takes its place
    roles = [role for role in ROLES if pair[role] and role not in without]
    products = {role: Product.open(folder.safe(pair[role])) for role in roles}
    height, width = products["cloudy"].shape
    if min(height, width) < config.shard.window:
        raise RejectedError(f"the scene has {height} x {width} pixels, less than a window of {config.shard.window}")
    covers, matches, kept, chips, measures = _measure(config, folder, item, products)
    facts = {
        "pair": pair["pair"],
        "target": item.config["target"],
        "radiometry": config.shard.radiometry,
        "products": {role: pair[role] for role in roles},
        "baselines": {role: product.baseline for role, product in products.items()},
        "offsets": {role: product.offsets for role, product in products.items()},
        "sun_elevation": {role: product.sun_elevation for role, product in products.items()},
        **measures,
    }
    days = pair["days"] if ground else pair["reference_days"] if "reference" in roles else None
    source = _stripes(config, folder, item, products, covers, matches, chips)
    result = _write(config, folder, item, source, kept, facts, days, chips)
    measures["shift"] = facts["shift"]
    return [folder.shard(item.config["split"], item.config["number"])], result | {"measures": measures}


def _measure(config: Config, folder: RunFolder, item: Item, products: dict) -> tuple:
    """(covers, matches, windows, chips for the shift, measures) from the small files and from quick looks at the bands;
    RejectedError."""
    from cloudjob.sentinel2 import masks, scene
    from cloudjob.sentinel2.scene_masks import Cover, View
    from cloudjob.sentinel2.product import read_scl

    settings = masks.Settings(**dict(config.masks))
    covers = scene.covers({role: View.open(product, settings) for role, product in products.items()}, settings)
    step = scene.reduction(products["cloudy"].shape, window=config.shard.window)
    looks = {role: scene.Look.open(product, covers[role], step) for role, product in products.items()}
    grid = config.shard.radiometry == "grid"
    matches = {role: scene.fit(look, looks["cloudy"], grid=grid) for role, look in looks.items() if role != "cloudy"}
    measures = {"radiometric_match": {role: match.facts() for role, match in matches.items()}}
    if poor := matches["clear"].poor(config.shard.min_r2):
        why = f"the clear date does not fit the cloudy one: {', '.join(poor)}"
        raise RejectedError(why, {"measures": measures})
    if item.config["target"] == GROUND:
        covers["reference"] = covers["clear"]
    if config.shard.preset:  # it selects by the scene classification itself
        scl = read_scl(products["cloudy"])
        covers["cloudy"], covers["clear"] = Cover(scl, masks.classes(scl), 2), Cover(scl, scl, 2)
    kept = _select(config, folder, item, covers, looks, matches, measures)
    return covers, matches, kept, scene.Chips(looks["cloudy"], looks["clear"]), measures


def _judge_shift(config: Config, facts: dict) -> None:
    """RejectedError where the dates do not lie on each other, which only the bands at full resolution tell."""
    shift, most = facts["shift"], config.shard.max_shift
    if shift["row"] is not None and max(abs(shift["row"]), abs(shift["col"])) > most:
        moved = f"{shift['row']:+.2f} rows, {shift['col']:+.2f} columns"
        measures = {key: facts[key] for key in ("radiometric_match", "windows", "shift")}
        raise RejectedError(f"the dates are shifted by {moved}, at most {most} pixels", {"measures": measures})


def _select(config: Config, folder: RunFolder, item: Item, covers, looks, matches, measures: dict):
    """The windows that become triplets; how many each rule left goes into measures["windows"]."""
    from cloudjob.patches import windows

    rule, product = config.shard, looks["cloudy"].product
    limits = {key: getattr(rule, key) for key in ("stride", "cloud", "target_max_cloud", "max_no_data")}
    limits |= {"window": rule.window} | (windows.NOTEBOOK_2025 if rule.preset else {})
    *cores, factor = _cores(covers, product.shape)
    found = windows.select(*cores, factor=factor, shape=product.shape, **limits)
    left = {"selected by mask": len(found)}
    if rule.min_correlation is not None and not rule.preset:
        cloudy, clear = looks["cloudy"], looks["clear"]
        matched = matches["clear"].apply(clear.bands, height=clear.bands.shape[1])
        value = windows.correlation(cloudy.bands, matched, cloudy.clear & clear.clear, found, step=cloudy.step)
        found = found.take(~(value < rule.min_correlation))  # not measurable is no reason
        left["correlated"] = len(found)
    taken = _taken_ground(folder, item, product.crs)
    found = windows.off_ground(found, transform=product.transform, taken=taken)
    left["on ground of no other split"] = len(found)
    if not rule.preset:
        seed = int(digest([config.seed, item.name])[:12], 16)
        found = windows.balance(found, bins=rule.balance, cloud=rule.cloud, limit=rule.max_per_pair, seed=seed)
    measures["windows"] = left | {"kept": len(found)}
    if not len(found):
        why = ", ".join(f"{count} {name}" for name, count in left.items())
        raise RejectedError(f"no window is usable: {why}", {"measures": measures})
    return found


def _cores(covers: dict, shape: tuple[int, int]) -> tuple:
    """The mask classes of both dates and their factor; masks of one's own may differ in it."""
    cloudy, clear = covers["cloudy"], covers["clear"]
    if cloudy.factor == clear.factor:
        return cloudy.core, clear.core, cloudy.factor
    return *(cover.at_10m("core", shape) for cover in (cloudy, clear)), 1


def _write(config: Config, folder: RunFolder, item: Item, source, kept, facts: dict, days, chips) -> dict:
    """Writes the windows as they come by in the stripes of `source`, and adds the shift of the dates to the facts."""
    from cloudjob.patches import cut, shards

    target = folder.shard(item.config["split"], item.config["number"])
    attributes = {
        "config_sha256": digest(item.config),
        "cloudjob_version": __version__,
        "settings": {"masks": config.masks.model_dump(mode="json"), "shard": config.shard.model_dump(mode="json")},
    }
    with atomic(target) as temporary:
        with shards.Writer(
            temporary,
            len(kept),
            window=kept.window,
            reference=days is not None,
            compression=config.shard.compression,
            pair=facts,
            reference_days=days,
            attributes=attributes,
        ) as writer:
            for number, (*images, mask) in cut.cut(source, kept):
                cloudy, clear, reference = (*images, None)[:3]
                place = (int(kept.row[number]), int(kept.col[number]), float(kept.cloud_fraction[number]))
                writer.add(cloudy, clear, mask, reference, *place)
            facts["shift"] = chips.shift()  # the writer puts the facts down when it closes the file
            _judge_shift(config, facts)
        shards.read_back(temporary, writer.result)
    return {name: value for name, value in writer.result.items() if name != "checksums"}


def _stripes(config: Config, folder: RunFolder, item: Item, products, covers, matches, chips):
    """(first row, [cloudy, clear, (reference,) mask]) of full rows; the clear dates matched, the reference if clear.
    Each JPEG 2000 tile is decoded once; `chips` take theirs on the way.

    Where the ground of the day is the target, it is the second image as it is, and the clear date is the reference.
    """
    from cloudjob.sentinel2 import masks
    from cloudjob.sentinel2.product import stripes

    shape = products["cloudy"].shape
    cores = len(os.sched_getaffinity(0))
    for top, pixels in stripes(list(products.values()), processes=cores):
        if folder.stop_requested():
            raise InterruptedJob(f"{STAGE}: stopped; run the same command again")
        rows = slice(top, top + pixels.shape[-2])
        images = list(pixels)
        chips.take(top, *images[:2])
        if config.shard.radiometry != "none":
            images[1:] = [
                match.apply(image, top=top, height=shape[0])
                for match, image in zip(matches.values(), images[1:], strict=True)
            ]
        if item.config["target"] == GROUND:
            images.insert(1, _ground(folder.truth(products["cloudy"].name.name), shape, rows))
        if "reference" in covers:
            hidden = covers["reference"].at_10m("mask", shape, rows) != CLEAR
            images[2] = images[2].copy() if config.shard.radiometry == "none" else images[2]
            images[2][:, hidden] = 0
        mask = covers["cloudy"].at_10m("mask", shape, rows)
        mask[(images[0] == 0).any(0) | (images[1] == 0).any(0)] = NO_DATA
        yield top, [*images, mask]


def _ground(path, shape: tuple[int, int], rows: slice):
    """(4, r, W) uint16 DN: these rows of the ground of a cloudy day, of a scene of `shape` (rows, columns)."""
    import rasterio

    from cloudjob.pixels import BANDS

    try:
        with rasterio.open(path) as image:
            found, expected = (image.count, *image.shape), (len(BANDS), *shape)
            if found != expected or set(image.dtypes) != {"uint16"}:
                raise ItemError(f"{path}: {found} {image.dtypes[0]}, the scene has {expected} uint16")
            return image.read(window=((rows.start, rows.stop), (0, shape[1])))
    except rasterio.RasterioIOError as error:
        raise CorruptFileError(path, f"cannot be read as a raster: {error}") from None


def _taken_ground(folder: RunFolder, item: Item, crs: str) -> list:
    """Footprints (in `crs`) of the tiles whose ground this pair must not use: val leaves test alone, train both."""
    from rasterio.warp import transform_geom
    from shapely.geometry import shape

    tiles = set(item.config["taken_tiles"])
    rows = folder.rows(folder.scenes, stage="search")
    footprints = {str(row["footprint"]): row["footprint"] for row in rows if row["tile"] in tiles}
    return [shape(transform_geom("EPSG:4326", crs, footprint)) for footprint in footprints.values()]


def _write_index(config: Config, folder: RunFolder, every: list[Item]) -> dict[str, int]:
    from cloudjob.patches.shards import SCHEMA_VERSION, normalisation

    files, sums = [], {"train": [], "val": [], "test": []}
    for item in every:
        record = records.record(folder, STAGE, item.name)
        for name, kept in record["outputs"].items():
            split = item.config["split"]
            entry = {"file": name.removeprefix("shards/"), "count": record["result"]["count"], **kept}
            files.append(entry | {"split": split, "pair": item.name, "target": item.config["target"]})
            sums[split].append(record["result"])
    if not files:
        raise ConfigError("shard: no pair gives a triplet; loosen shard.cloud, or add tiles and dates")
    for stray in set(folder.shards.glob("[!.]*.h5")) - {folder.shards / file["file"] for file in files}:
        stray.unlink()  # of an earlier configuration
    counts = {split: sum(part["count"] for part in parts) for split, parts in sums.items()}
    index = {
        "schema_version": SCHEMA_VERSION,
        "window": config.shard.window,
        "counts": counts,
        "files": files,
        "normalisation": normalisation(sums["train"]) if sums["train"] else None,
        "split": {
            **config.shard.split.model_dump(exclude_none=True),
            "seed": config.seed,
            "pairs": {item.name: item.config["split"] for item in every},
        },
    }
    write_json(folder.shard_index, index)
    return counts


def stats(config: Config, folder: RunFolder) -> str:
    """What the shards hold, and what was rejected and why, as text."""
    import json

    from cloudjob.patches.stats import collect, text

    if not folder.shard_index.exists():
        raise InputError(f"{folder.shard_index} is not there yet. Run: cloudjob shard {folder.root}")
    index = json.loads(folder.shard_index.read_text())
    lines = [text(collect(folder.shard_index.parent, index))]
    for item in items(config, folder):
        record = records.record(folder, STAGE, item.name)
        if record and record["status"] == "rejected":
            lines.append(f"rejected {item.name}: {record['message']}")
    return "\n".join(lines)
