"""evaluate: scores every restored scene, beside the baselines, on cloud pixels, clear pixels and all pixels."""

import math
import os

from cloudjob.config import Config
from cloudjob.workspace import Item, Summary, Workspace, write_bytes, write_json, write_jsonl

STAGE = "evaluate"
NO_TRUTH = "none, the clear date was shown to the model"
PIXELS = ("cloud", "clear", "all")
METHODS = {
    "ours": "restored by this run",
    "cloudy": "the cloudy input as it is",
    "mean_fill": "clear pixels kept, the others set to the mean of the scene's clear pixels (sees one date)",
    "nearest_clear": "nearest clear date, the whole image as it is",
    "nearest_matched": "nearest clear date, each band brought to the light of the cloudy date",
    "other_matched": "the next clear date, each band brought to the light of the cloudy date",
}
DEFINITIONS = (
    "Surface reflectance, data range 1.0, no clipping. cloud: cloud, shadow and cirrus of the dilated mask; "
    "clear: what that mask calls clear; all: all pixels with data, those of unknown state too. Pooled: errors of all "
    "pixels of all scenes together, SSIM (Gaussian 11 x 11) the mean over pixels. truth: the ground of the day, known "
    "for synthetic clouds; else the pair's clear date, matched, which the model did not see."
)


def items(config: Config, workspace: Workspace) -> list[Item]:
    found = []
    for pair in workspace.accepted_pairs():
        inputs = {"output": workspace.output_digest("infer", pair["cloudy"]), "pair": pair["version"]}
        for role in ("clear", "reference"):
            if pair[role]:
                inputs[role] = workspace.output_digest("download", pair[role])
        settings = config.section("masks") | {"preview_gain": config.infer.preview_gain}
        settings["reference"] = config.infer.reference
        found.append(Item(STAGE, pair["cloudy"], settings, inputs))
    return found


def run(config: Config, workspace: Workspace) -> Summary:
    every = items(config, workspace)
    workspace.require("infer", [item.name for item in workspace.wanted(every)], reader=STAGE)
    pairs = {pair["cloudy"]: pair for pair in workspace.accepted_pairs()}
    summary = workspace.work(STAGE, every, lambda item: _score(config, workspace, pairs[item.name]))
    if summary.failed or any(workspace.why(item) for item in every):
        return summary
    splits = _splits(workspace)
    results = zip(every, workspace.results(every), strict=True)
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
            "scores": pooled,
        },
    )
    summary.output = table(pooled[headline], headline)
    return summary


def _splits(workspace: Workspace) -> dict[str, str]:
    """Product -> the split of its pair; a pair that gave no triplet was not trained on, whatever its tile."""
    import json

    splits = json.loads(workspace.shard_index.read_text())["split"]["pairs"]
    return {pair["cloudy"]: splits[pair["pair"]] for pair in workspace.accepted_pairs()}


def _score(config: Config, workspace: Workspace, pair: dict):
    import numpy as np
    import rasterio

    from cloudjob.diffusion import metrics
    from cloudjob.sentinel2 import masks, output, radiometry, render
    from cloudjob.sentinel2.scene import open_pair

    folders = {role: workspace.safe(pair[role]) for role in ("cloudy", "clear", "reference") if pair[role]}
    load = open_pair(folders, masks.Settings(**dict(config.masks)), processes=len(os.sched_getaffinity(0)))
    truth_path = workspace.truth(pair["cloudy"])
    kind = "ground" if truth_path.exists() else NO_TRUTH if config.infer.reference == "nearest" else "clear date"
    scene, clear = load("cloudy"), load("clear")
    cloudy, mask = scene.bands, scene.mask
    restored, _ = output.read_h5(workspace.output(pair["cloudy"], ".h5"))
    images = {"ours": restored, "cloudy": cloudy, "mean_fill": _mean_fill(cloudy, mask)}
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
            rows.append({"method": method, "on": pixels} | {key: _finite(value) for key, value in score.items()})
    changed = int((restored != cloudy).any(0)[~where["cloud"]].sum())
    rows[0] |= {"changed_clear_pixels": changed, "truth": kind}
    picture = workspace.evaluation.parent / f"{pair['cloudy']}.png"
    step = -(-max(mask.shape) // 512)
    thin, gain = np.s_[:, ::step, ::step], config.infer.preview_gain
    looks = [render.true_colour(image[thin], gain=gain) for image in (cloudy, restored, truth)]
    write_bytes(picture, render.encode_png(render.side_by_side(looks)))
    return [picture], rows


def _mean_fill(cloudy, mask):
    import numpy as np

    out = cloudy.copy()
    clear = mask == 0
    for band in out:
        band[np.isin(mask, (1, 2, 3))] = round(float(band[clear].mean())) if clear.any() else 2000
    return out


def _finite(value):
    return value if isinstance(value, int) else round(value, 6) if math.isfinite(value) else None


def _pool(rows: list[dict]) -> dict:
    """method -> pixels -> scores over all pixels of these scenes (without those where a method could not be had)."""
    pooled: dict = {}
    for method in METHODS:
        for on in PIXELS:
            chosen = [row for row in rows if row["method"] == method and row["on"] == on and row["pixels"]]
            if not chosen:
                continue
            total = sum(row["pixels"] for row in chosen)

            def mean(key, power=1, chosen=chosen):
                known = [row for row in chosen if row[key] is not None]
                weight = sum(row["pixels"] for row in known)
                return sum(row["pixels"] * row[key] ** power for row in known) / weight if weight else None

            mse = mean("rmse", 2)
            pooled.setdefault(method, {})[on] = {
                "scenes": len(chosen),
                "pixels": total,
                "psnr": round(-10 * math.log10(mse), 3) if mse else None,
                "ssim": _rounded(mean("ssim")),
                "mae": _rounded(mean("mae")),
                "rmse": round(math.sqrt(mse), 6),
                "sam": _rounded(mean("sam")),
                "high_pass_ratio": _rounded(mean("high_pass_ratio")),
            }
    # Best on cloud pixels first, for the table and for the report.
    return dict(sorted(pooled.items(), key=lambda pair: -(pair[1].get("cloud", {}).get("psnr") or 0)))


def _rounded(value):
    return None if value is None else round(value, 5)


def table(pooled: dict, split: str) -> str:
    """The scores as text."""
    head = f"{'split: ' + split:<17}" + "".join(f"{on + ' pixels':^27}" for on in PIXELS)
    lines = [head, f"{'':<17}" + f"{'PSNR dB':>9}{'SSIM':>9}{'MAE':>9}" * 3]
    for method, scores in pooled.items():
        cells = ""
        for on in PIXELS:
            score = scores.get(on, {"psnr": None, "ssim": None, "mae": None})
            cells += "".join(
                f"{'-' if score[key] is None else format(score[key], form):>9}"
                for key, form in (("psnr", ".2f"), ("ssim", ".4f"), ("mae", ".4f"))
            )
        lines.append(f"{method:<17}{cells}")
    return "\n".join(lines)
