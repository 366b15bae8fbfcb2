"""evaluate: scores restored scenes, or the triplets of the held-out split, whichever `evaluate.of` names."""

import json
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudjob.config.models import Config, newer
from cloudjob.files import write_bytes, write_json, write_jsonl
from cloudjob.hpc import machine
from cloudjob.names import ProductName
from cloudjob.run import collection, decisions, labels, products, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cloudjob.restoration.restorer import Restorer

STAGE = "evaluate"
_MEASURE = {"measure": 2}  # what earlier versions scored is scored again: on common pixels, by stratum
_UNKNOWN = "unknown"  # the split of a scene where nobody knows what its network was trained on


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item per restored product; for triplets, one per pair of the held-out split."""
    return _scenes(config, folder) if config.evaluate.of == "scenes" else _triplets(config, folder)


def run(config: Config, folder: RunFolder) -> Summary:
    """Scores what is missing, and writes scores.jsonl and summary.json of what is scored."""
    every = items(config, folder)
    if config.evaluate.of == "scenes":
        return _run_scenes(config, folder, every)
    return _run_triplets(config, folder, every)


# --- scenes ------------------------------------------------------------------------------------------------------
def _scenes(config: Config, folder: RunFolder) -> list[Item]:
    settings = _MEASURE | config.section("masks") | {"preview_gain": config.infer.preview_gain}
    settings |= {name: getattr(config.infer, name) for name in ("reference", "tile", "overlap")}
    drifts = cache(partial(records.drifting_digest, folder))  # once a tile
    found = []
    for pair in decisions.accepted_pairs(folder):
        inputs = {"output": records.output_digest(folder, "infer", pair["cloudy"]), "pair": pair["version"]}
        inputs["cloudy"] = records.output_digest(folder, "download", pair["cloudy"])  # and the truth beside it
        for role in ("clear", "reference"):
            if pair[role]:
                inputs[role] = records.output_digest(folder, "download", pair[role])
        inputs |= labels.digests(folder, [pair[role] for role in ("cloudy", "clear", "reference") if pair[role]])
        inputs |= drifts(ProductName.parse(pair["cloudy"]).tile)
        found.append(Item(STAGE, pair["cloudy"], settings, inputs, newer=newer("masks")))
    return found


def _run_scenes(config: Config, folder: RunFolder, every: list[Item]) -> Summary:
    pairs = {pair["cloudy"]: pair for pair in decisions.accepted_pairs(folder)}
    index = records.shard_index(folder, config.infer.checkpoint) or {"split": {"pairs": {}}}
    summary = records.work(folder, STAGE, every, lambda item: _score_scene(config, folder, pairs[item.name]))
    collection.write(folder)  # once more: tasks of an array may have been stopped before they wrote it
    if not (scored := _scored(folder, every)):
        return summary

    from cloudjob.scoring import scenes

    # A pair that gave no triplet was not trained on, whatever its tile.
    split_of = index["split"]["pairs"]
    splits = {item.name: split_of.get(pairs[item.name]["pair"], _UNKNOWN) for item in scored}
    rows = [
        {"product": item.name, "pair": pairs[item.name]["pair"], "split": splits[item.name], **row}
        for item, result in zip(scored, records.results(folder, scored), strict=True)
        for row in result
    ]
    names = sorted(set(splits.values()))
    pooled = {split: scenes.pool([row for row in rows if row["split"] == split]) for split in names}
    headline = next(split for split in ("test", "train", _UNKNOWN, "val") if split in pooled)
    pooled["all"] = scenes.pool(rows)
    facts = {
        "scenes": {split: sum(each == split for each in splits.values()) for split in names},
        "changed_clear_pixels": sum(row.get("changed_clear_pixels", 0) for row in rows),
        "seam_index": scenes.mean_seams([row["seam_index"] for row in rows if "seam_index" in row]),
        "scores": pooled,
        "differences": scenes.differences([row for row in rows if row["split"] == headline]),
    }
    return _finish(config, folder, summary, rows, {}, headline, facts | _lacking(every, scored))


def _scored(folder: RunFolder, every: list[Item]) -> list[Item]:
    """The items with scores. Where there is none, no earlier summary stays."""
    done = [item for item in records.settled(folder, every) if records.results(folder, [item])[0] is not None]
    if not done:
        folder.evaluation.unlink(missing_ok=True)
    return done


def _lacking(every: list[Item], scored: list[Item]) -> dict[str, list[str]]:
    """What the summary does not cover; nothing of a complete one."""
    names = sorted({item.name for item in every} - {item.name for item in scored})
    return {"lacking": names} if names else {}


def _score_scene(config: Config, folder: RunFolder, pair: dict) -> Made:
    from cloudjob.restoration import output
    from cloudjob.scoring import scenes, strata
    from cloudjob.sentinel2 import masks
    from cloudjob.sentinel2.scene import open_pair

    product = pair["cloudy"]
    records.need(folder, "infer", [product], own=product)
    names = [pair[role] for role in ("cloudy", "clear", "reference") if pair[role]]
    records.need(folder, "download", names, own=product)
    products.check_output(folder, product)
    for name in names:
        products.check(folder, name, truth=name == product)
    safes = {role: folder.safe(pair[role]) for role in ("cloudy", "clear", "reference") if pair[role]}
    settings = masks.Settings(**dict(config.masks))
    folders = {"labels": folder.labels, "drifting": folder.drifting}
    load = open_pair(safes, settings, **folders, processes=machine.cores())
    ground, sensed = _read(folder.truth(product)), _read(folder.sensed(product))
    kind = "ground" if ground is not None else scenes.NO_TRUTH if config.infer.reference == "nearest" else "clear date"
    restored, _ = output.read_h5(folder.output(product, ".h5"))
    cloudy, reference = load("cloudy"), load("reference") if pair["reference"] else None
    images, truth = scenes.images_of(cloudy, load("clear"), reference, restored, ground, sensed)
    tiles = {"tile": config.infer.tile, "overlap": config.infer.overlap}
    above = _read(folder.seen(product))
    core = cloudy.core if above is None else strata.core(above)
    rows = scenes.score(images, truth, cloudy.mask, core, kind=kind, **tiles)
    shown = scenes.thumbnail([images["cloudy"], images["ours"], truth])
    return [_picture(config, folder, product, [shown])], rows


# --- triplets ----------------------------------------------------------------------------------------------------
def _triplets(config: Config, folder: RunFolder) -> list[Item]:
    settings = (
        _MEASURE
        | config.section("evaluate")
        | {"infer": {key: getattr(config.infer, key) for key in ("steps", "sampler")}}
    )
    model = {}
    if config.evaluate.members:
        model["checkpoint"] = records.checkpoint_digest(folder, config.infer.checkpoint)
    files = _held_out(folder.index())
    settings |= {"references": number} if (number := _references(files)) > 1 else {}
    share = -(-config.evaluate.triplets // max(len(files), 1))
    cloudy = {pair["pair"]: pair["cloudy"] for pair in decisions.shown_pairs(folder)} if folder.pairs.exists() else {}
    found = []
    for entry in files:
        inputs = model | {"shard": entry["sha256"]}
        if entry["pair"] in cloudy:  # what lies above the ground comes beside the product
            inputs["cloudy"] = records.output_digest(folder, "download", cloudy[entry["pair"]])
        found.append(Item(STAGE, entry["pair"], settings | {"triplets": share}, inputs, newer=newer("evaluate")))
    return found


def _held_out(index: dict) -> list[dict]:
    """The entries of shards/index.json of the test split; if it is empty, those of val, else of train."""
    splits = ([entry for entry in index["files"] if entry["split"] == split] for split in ("test", "val", "train"))
    return next((chosen for chosen in splits if chosen), [])


def _references(files: list[dict]) -> int:
    """The most references that a pair among these entries of the index has; 1 where it does not tell."""
    return max((entry.get("references", 1) for entry in files), default=1)


def _run_triplets(config: Config, folder: RunFolder, every: list[Item]) -> Summary:
    if config.infer.checkpoint is None and config.evaluate.members:
        records.require(folder, "train", ["run"], reader=STAGE)
    entries = {entry["pair"]: entry for entry in _held_out(folder.index())}
    model = None

    def make(item: Item) -> Made:
        nonlocal model
        if model is None:  # not before there is something to do
            model = _open_model(config, folder) if config.evaluate.members else (None, [1.0] * 4)
        return _score_triplets(config, folder, item, entries[item.name], *model)

    summary = records.work(folder, STAGE, every, make)
    if not (scored := _scored(folder, every)):
        return summary

    from cloudjob.scoring import triplets

    results = records.results(folder, scored)
    steps = {f"ours_{n}_step{'s' if n > 1 else ''}": f"one member by {n} sampling steps" for n in config.evaluate.steps}
    split = next(iter(entries.values()))["split"]
    rows = [row for result in results for triplet in result["rows"] for row in triplet]
    pooled = triplets.pool(results)
    facts = {
        **pooled,
        "scenes": {split: len(scored)},
        "changed_clear_pixels": sum(result["changed_clear_pixels"] for result in results),
        "scores": {split: pooled["scores"], "all": pooled["scores"]},
        **_lacking(every, scored),
    }
    return _finish(config, folder, summary, rows, steps, split, facts)


def _open_model(config: Config, folder: RunFolder) -> "tuple[Restorer, list[float]]":
    """The restorer, and the factors on the deviation of independent members, calibrated on the val split."""
    import torch

    from cloudjob.diffusion import checkpoint
    from cloudjob.diffusion.batch import Batch
    from cloudjob.hpc import distributed
    from cloudjob.patches.shards import ShardSet
    from cloudjob.restoration.restorer import Restorer
    from cloudjob.scoring import ensembles

    settings, members = config.infer, config.evaluate.members
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = settings.checkpoint or checkpoint.newest(folder.checkpoints)
    recipe, network, _ = checkpoint.open_network(path, device)
    restorer = Restorer(
        recipe,
        network,
        seed=config.seed,
        sampler=settings.sampler,
        steps=settings.steps,
        low_precision=distributed.fast_bfloat16(device),
    )
    held_out = ShardSet(folder.shards, folder.index(), "val")
    if restorer.single or members < 3 or not len(held_out):
        return restorer, [1.0] * 4
    batch = Batch.of(held_out.evenly(64)[1], device)
    return restorer, ensembles.calibrate(restorer, batch, members, independent=True)["factors"]


def _score_triplets(
    config: Config, folder: RunFolder, item: Item, entry: dict, restorer: "Restorer | None", factors: list[float]
) -> Made:
    """Scores of some triplets of a pair, spread evenly over it, and a picture of the first ones."""
    from cloudjob.patches import shards
    from cloudjob.scoring import triplets

    own = shards.ShardSet(folder.shards, folder.index() | {"files": [entry]}, entry["split"])
    references = item.config.get("references", 1) if own.references else 0
    places, arrays = own.evenly(item.config["triplets"], references=references)
    columns = shards.columns(folder.shards / entry["file"])
    pair = json.loads(columns["attributes"]["pairs"])[0]
    corners = [(columns["row"][place], columns["col"][place]) for place in places]
    found = triplets.score_pair(
        restorer,
        arrays,
        _core_of_windows(config, folder, pair["products"], corners, arrays["mask"]),
        places=places,
        noise_key=int(entry["sha256"][:8], 16),
        pair=pair,
        members=config.evaluate.members,
        more_steps=config.evaluate.steps,
        factors=factors,
        known={
            "product": pair["products"]["cloudy"],
            "pair": item.name,
            "place": entry.get("place") or ProductName.parse(pair["products"]["cloudy"]).tile,
            "split": entry["split"],
            "truth": entry["target"],
        },
        sensed=_windows(folder.sensed(pair["products"]["cloudy"]), corners, arrays["mask"].shape[-1]),
        protocol=config.evaluate.protocol,
    )
    return [_picture(config, folder, item.name, found.shown)], found.result()


def _core_of_windows(
    config: Config, folder: RunFolder, names: dict[str, str], corners: list[tuple[int, int]], mask: "NDArray"
) -> "NDArray":
    """(N, n, n) classes of what lies above the ground in the windows with these upper left pixels, whose masks are
    given: as it is known, or as the products' own masks say; the given masks, grown as they are, where neither lies in
    the run folder."""
    import numpy as np

    from cloudjob.scoring import strata
    from cloudjob.sentinel2 import masks, scene

    folders = {role: folder.safe(name) for role, name in names.items()}
    if folder.seen(names["cloudy"]).exists():
        products.check(folder, names["cloudy"], bands=False, truth=True)
    if (above := _read(folder.seen(names["cloudy"]))) is not None:
        whole = strata.core(above)
    elif all(path.exists() for path in folders.values()):
        opened = {role: products.open_product(folder, name, bands=False) for role, name in names.items()}
        found = scene.open_masks(opened, masks.Settings(**dict(config.masks)), labels=folder.labels)
        whole = found["cloudy"].at_10m("core", opened["cloudy"].shape)
    else:
        return mask
    size = mask.shape[-1]
    return np.stack([whole[row : row + size, col : col + size] for row, col in corners])


# --- both --------------------------------------------------------------------------------------------------------
def _finish(
    config: Config,
    folder: RunFolder,
    summary: Summary,
    rows: list[dict],
    more_methods: dict[str, str],
    headline: str,
    facts: dict[str, Any],
) -> Summary:
    """Writes the rows and the summary, and outputs the table of the headline split."""
    from cloudjob.scoring import protocols, strata
    from cloudjob.scoring.tables import DEFINITIONS, METHODS, judged, table

    write_jsonl(folder.scores, rows)
    document = {"of": config.evaluate.of, "definitions": DEFINITIONS, "strata": strata.STRATA}
    document |= {"methods": METHODS | more_methods} | judged(facts["scores"][headline], facts["differences"])
    write_json(folder.evaluation, document | {"headline_split": headline} | facts)
    summary.output = f"{table(facts['scores'][headline], headline)}\n{document['verdict']}"
    if published := facts.get("published"):
        summary.output += f"\n\n{protocols.table(published)}\n{protocols.SEN12MSCR}"
    return summary


def _read(path: Path) -> "NDArray | None":
    """All bands of a raster, or None where there is none."""
    import rasterio

    from cloudjob.files import reading

    if not path.exists():
        return None
    with reading(path, rasterio.errors.RasterioError), rasterio.open(path) as source:
        return source.read()


def _windows(path: Path, corners: list[tuple[int, int]], size: int) -> "NDArray | None":
    """(N, bands, size, size): windows of a raster with these upper left pixels, or None where there is none."""
    import numpy as np

    whole = _read(path)
    return whole if whole is None else np.stack([whole[:, row : row + size, col : col + size] for row, col in corners])


def _picture(config: Config, folder: RunFolder, item: str, lines: "Sequence[Sequence[NDArray]]") -> Path:
    """Writes evaluation/<item>.png: rows of images (4, H, W) uint16 DN side by side."""
    from cloudjob.sentinel2.render import contact_sheet, encode_png

    path = folder.evaluation_picture(item)
    write_bytes(path, encode_png(contact_sheet(lines, gain=config.infer.preview_gain)))
    return path
