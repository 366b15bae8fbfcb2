"""Scores of restored scenes: an item is a cloudy product; beside the baselines, by kind of pixel and by split."""

import json
import os

from cloudjob.config.models import Config
from cloudjob.scoring.tables import DEFINITIONS, METHODS, PIXELS, best_first, finite, picture, table
from cloudjob.run.records import Item, Summary
from cloudjob.run.folder import RunFolder
from cloudjob.files import write_json, write_jsonl

STAGE = "evaluate"
NO_TRUTH = "none, the clear date was shown to the model"


def items(config: Config, workspace: RunFolder) -> list[Item]:
    found = []
    for pair in decisions.accepted_pairs(workspace):
        inputs = {"output": records.output_digest(workspace, "infer", pair["cloudy"]), "pair": pair["version"]}
        for role in ("clear", "reference"):
            if pair[role]:
                inputs[role] = records.output_digest(workspace, "download", pair[role])
        settings = config.section("masks") | {"preview_gain": config.infer.preview_gain}
        settings |= {name: getattr(config.infer, name) for name in ("reference", "tile", "overlap")}
        found.append(Item(STAGE, pair["cloudy"], settings, inputs))
    return found


def run(config: Config, workspace: RunFolder) -> Summary:
    every = items(config, workspace)
    records.require(workspace, "infer", [item.name for item in records.wanted(workspace, every)], reader=STAGE)
    pairs = {pair["cloudy"]: pair for pair in decisions.accepted_pairs(workspace)}
    summary = records.work(workspace, STAGE, every, lambda item: _score(config, workspace, pairs[item.name]))
    if summary.failed or any(records.why(workspace, item) for item in every):
        return summary
    splits = _splits(workspace)
    results = zip(every, records.results(workspace, every), strict=True)
    rows = [{"product": item.name, "split": splits[item.name], **row} for item, result in results for row in result]
    write_jsonl(workspace.scores, rows)
    pooled = {split: _pool([row for row in rows if row["split"] == split]) for split in sorted(set(splits.values()))}
    headline = "test" if "test" in pooled else "train"
    pooled["all"] = _pool(rows)
    write_json(
        workspace.evaluation,
        {
            "definitions": DEFINITIONS,
            "methods": METHODS,
            "headline_split": headline,
            "scenes": {split: sum(s == split for s in splits.values()) for split in sorted(set(splits.values()))},
            "changed_clear_pixels": sum(row["changed_clear_pixels"] for row in rows if "changed_clear_pixels" in row),
            "seam_index": _mean_seams([row["seam_index"] for row in rows if "seam_index" in row]),
            "scores": pooled,
        },
    )
    summary.output = table(pooled[headline], headline)
    return summary


def _mean_seams(seams: list[dict]) -> dict:
    """Over the scenes where it can be measured: of the restored image, and of the truth at the same edges."""
    known = [seam for seam in seams if None not in seam.values()]
    return {key: round(sum(seam[key] for seam in known) / len(known), 4) for key in ("ours", "truth")} if known else {}


def _splits(workspace: RunFolder) -> dict[str, str]:
    """Product -> the split of its pair; a pair that gave no triplet was not trained on, whatever its tile."""
    splits = json.loads(workspace.shard_index.read_text())["split"]["pairs"]
    return {pair["cloudy"]: splits[pair["pair"]] for pair in decisions.accepted_pairs(workspace)}


def _score(config: Config, workspace: RunFolder, pair: dict):
    import numpy as np
    import rasterio

    from cloudjob.scoring import baselines, metrics
    from cloudjob.sentinel2 import masks, radiometry
    from cloudjob.restoration import output
    from cloudjob.sentinel2.scene import open_pair

    folders = {role: workspace.safe(pair[role]) for role in ("cloudy", "clear", "reference") if pair[role]}
    load = open_pair(folders, masks.Settings(**dict(config.masks)), processes=len(os.sched_getaffinity(0)))
    truth_path = workspace.truth(pair["cloudy"])
    kind = "ground" if truth_path.exists() else NO_TRUTH if config.infer.reference == "nearest" else "clear date"
    scene, clear = load("cloudy"), load("clear")
    cloudy, mask = scene.bands, scene.mask
    restored, _ = output.read_h5(workspace.output(pair["cloudy"], ".h5"))
    filled = radiometry.digital_number(baselines.mean_fill(radiometry.reflectance(cloudy), mask == 0))
    images = {"ours": restored, "cloudy": cloudy, "mean_fill": filled}
    if pair["reference"]:
        other = load("reference")
        images["other_matched"] = scene.matched(other)
    if kind == "ground":
        with rasterio.open(truth_path) as source:
            truth = source.read()
        images |= {"nearest_clear": clear.bands, "nearest_matched": scene.matched(clear)}
    else:
        truth = clear.clear_only(scene.matched(clear))
        if pair["reference"]:
            images |= {"nearest_clear": other.bands, "nearest_matched": images.pop("other_matched")}

    ground = radiometry.reflectance(truth)
    if kind == NO_TRUTH:
        ground[:] = np.nan  # what the model was shown is no judge of it
    where = {"cloud": np.isin(mask, (1, 2, 3)), "clear": mask == 0, "all": mask != 255}
    rows = []
    for method, image in images.items():
        values = radiometry.reflectance(image)
        for pixels, score in metrics.scores(values, ground, where).items():
            rows.append({"method": method, "on": pixels} | finite(score))
    changed = int((restored != cloudy).any(0)[~where["cloud"]].sum())
    seen = {"ours": radiometry.reflectance(restored), "truth": ground}
    seams = {name: _seam_index(config, image, where["cloud"]) for name, image in seen.items()}
    rows[0] |= {"changed_clear_pixels": changed, "truth": kind, "seam_index": finite(seams)}
    step = -(-max(mask.shape) // 512)
    thin = np.s_[:, ::step, ::step]
    return [picture(config, workspace, pair["cloudy"], [[image[thin] for image in (cloudy, restored, truth)]])], rows


def _seam_index(config: Config, image, pixels) -> float:
    """At the edges of the tiles of infer (see metrics.seam_index)."""
    from cloudjob.scoring import metrics
    from cloudjob.restoration.tiles import tiles

    every = tiles(pixels.shape, size=config.infer.tile, overlap=config.infer.overlap)
    rows = {edge for tile in every for edge in (tile.row, tile.row + tile.height)}
    cols = {edge for tile in every for edge in (tile.col, tile.col + tile.width)}
    return metrics.seam_index(image, pixels, rows, cols)


def _pool(rows: list[dict]) -> dict:
    """method -> pixels -> scores over all pixels of these scenes (without those where a method could not be had)."""
    from cloudjob.scoring import metrics

    pooled: dict = {}
    for method in METHODS:
        for on in PIXELS:
            chosen = [row for row in rows if row["method"] == method and row["on"] == on and row["pixels"]]
            if chosen:
                pooled.setdefault(method, {})[on] = finite({"scenes": len(chosen)} | metrics.pool(chosen))
    return best_first(pooled)
