"""shard: cuts the accepted pairs into triplets, one HDF5 shard a pair, and writes shards/index.json."""

from cloudjob import __version__
from cloudjob.config import Config
from cloudjob.errors import ConfigError, RejectedError
from cloudjob.workspace import Item, Summary, Workspace, atomic, digest, write_json

STAGE = "shard"


def items(config: Config, workspace: Workspace) -> list[Item]:
    from cloudjob.patches.splits import split_tiles

    pairs = workspace.accepted_pairs()
    settings = config.section("shard", "masks")
    shares = {"val_share": config.shard.val_share, "test_share": config.shard.test_share}
    splits = split_tiles([_tile(pair) for pair in pairs], seed=config.seed, **shares)
    found = []
    for pair in pairs:
        place = {"split": splits[_tile(pair)], "number": pair["number"], "splits": splits}
        products = [pair[key] for key in ("cloudy", "clear", "reference") if pair[key]]
        inputs = {name: workspace.output_digest("download", name) for name in products}
        found.append(Item(STAGE, pair["pair"], settings | place, inputs | {"pair": pair["version"]}))
    return found


def _tile(pair: dict) -> str:
    return pair["pair"].split("_")[0]


def run(config: Config, workspace: Workspace) -> Summary:
    every = items(config, workspace)
    pairs = {pair["pair"]: pair for pair in workspace.accepted_pairs()}
    workspace.require("download", sorted({n for item in every for n in item.inputs if n != "pair"}), reader=STAGE)

    summary = workspace.work(STAGE, every, lambda item: _cut(config, workspace, item, pairs[item.name]))
    if summary.failed or any(workspace.why(item) for item in every):
        return summary
    counts = _write_index(config, workspace, every)
    summary.note = ", ".join(f"{count} {split}" for split, count in counts.items()) + " triplets"
    return summary


def _cut(config: Config, workspace: Workspace, item: Item, pair: dict):
    import numpy as np

    from cloudjob.patches import shards, windows
    from cloudjob.sentinel2 import radiometry
    from cloudjob.sentinel2.product import Product
    from cloudjob.sentinel2.scene import Scene

    settings = config.shard
    roles = [role for role in ("cloudy", "clear", "reference") if pair[role]]
    products = {role: Product.open(workspace.safe(pair[role])) for role in roles}
    height, width = products["cloudy"].shape
    if min(height, width) < settings.window:
        raise RejectedError(f"the scene has {height} x {width} pixels, less than a window of {settings.window}")
    scenes = {role: Scene.open(product, dilate_m=config.masks.dilate_m) for role, product in products.items()}
    cloudy = scenes["cloudy"]

    found = windows.select(
        cloudy.core,
        scenes["clear"].core,
        (cloudy.bands > 0).all(0) & (scenes["clear"].bands > 0).all(0),
        window=settings.window,
        stride=settings.stride,
        cloud=settings.cloud,
        target_max_cloud=settings.target_max_cloud,
    )
    taken = _ground_of_other_splits(workspace, item, products["cloudy"].crs)
    kept = windows.off_ground(found, window=settings.window, transform=products["cloudy"].transform, taken=taken)
    if not kept:
        where = (
            f"{len(found)} windows lie on ground of another split" if found else f"cloud of {settings.cloud} in none"
        )
        raise RejectedError(f"no window is usable: {where}")

    images, lines = {role: scene.bands for role, scene in scenes.items()}, {}
    for role in roles[1:] if settings.match_radiometry else ():
        lines[role] = cloudy.match(scenes[role])
        images[role] = radiometry.apply_match(images[role], lines[role])
    if pair["reference"]:
        images["reference"] = scenes["reference"].clear_only(images["reference"])

    def triplets():
        for row, col, fraction in kept:
            cut = np.s_[..., row : row + settings.window, col : col + settings.window]
            cuts = {role: image[cut] for role, image in images.items()}
            yield shards.Triplet(
                cuts["cloudy"], cuts["clear"], cloudy.mask[cut], cuts.get("reference"), row, col, fraction
            )

    facts = {
        "pair": pair["pair"],
        "products": {role: pair[role] for role in roles},
        "baselines": {role: product.baseline for role, product in products.items()},
        "offsets": {role: product.offsets for role, product in products.items()},
        "radiometric_match": lines,
    }
    target = workspace.shard(item.config["split"], item.config["number"])
    with atomic(target) as temporary:
        result = shards.write(
            temporary,
            triplets(),
            count=len(kept),
            window=settings.window,
            pair=facts,
            reference_days=pair["reference_days"],
            attributes={"config_sha256": digest(item.config), "cloudjob_version": __version__},
        )
    return [target], result


def _ground_of_other_splits(workspace: Workspace, item: Item, crs: str) -> list:
    """Footprints (in `crs`) of the tiles whose ground this pair must not use: val leaves test alone, train both."""
    from rasterio.warp import transform_geom
    from shapely.geometry import shape

    splits, own = item.config["splits"], item.config["split"]
    above = {"train": ("val", "test"), "val": ("test",), "test": ()}[own]
    tiles = {tile for tile, split in splits.items() if split in above}
    rows = workspace.rows(workspace.scenes, stage="search")
    footprints = {str(row["footprint"]): row["footprint"] for row in rows if row["tile"] in tiles}
    return [shape(transform_geom("EPSG:4326", crs, footprint)) for footprint in footprints.values()]


def _write_index(config: Config, workspace: Workspace, every: list[Item]) -> dict[str, int]:
    from cloudjob.patches.shards import SCHEMA_VERSION, normalisation

    files, sums = [], {"train": [], "val": [], "test": []}
    for item in every:
        record = workspace.record(STAGE, item.name)
        for name, kept in record["outputs"].items():
            split = item.config["split"]
            entry = {
                "file": name.removeprefix("shards/"),
                "count": record["result"]["count"],
                "sha256": kept["sha256"],
            }
            files.append(entry | {"split": split, "pair": item.name})
            sums[split].append(record["result"])
    if not sums["train"]:
        raise ConfigError("shard: no pair gives a training triplet; loosen shard.cloud, or add tiles and dates")
    for stray in set(workspace.shard_index.parent.glob("*.h5")) - {
        workspace.shard_index.parent / f["file"] for f in files
    }:
        stray.unlink()  # of an earlier configuration
    counts = {split: sum(part["count"] for part in parts) for split, parts in sums.items()}
    index = {
        "schema_version": SCHEMA_VERSION,
        "window": config.shard.window,
        "counts": counts,
        "files": files,
        "normalisation": normalisation(sums["train"]),
        "split": {"by": "tile", "seed": config.seed, "tiles": every[0].config["splits"]},
    }
    write_json(workspace.shard_index, index)
    return counts
