"""evaluate: scores restored scenes, or the held-out triplets, beside the baselines, by kind of pixel and of triplet."""

import json
import math
import os

from cloudjob.config import Config
from cloudjob.errors import InputError
from cloudjob.workspace import Item, Summary, Workspace, write_bytes, write_json, write_jsonl

STAGE = "evaluate"
NO_TRUTH = "none, the clear date was shown to the model"
PIXELS = ("cloud", "clear", "all")
METHODS = {
    "ours": "restored by this run; of triplets the mean of the ensemble",
    "ours_member": "one member of the ensemble",
    "ours_without_reference": "the mean of the ensemble, where no other date is shown",
    "cloudy": "the cloudy input as it is",
    "smooth_fill": "clear pixels kept, the others continued from them smoothly (biharmonic; sees one date)",
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
    return _triplet_items(config, workspace) if config.evaluate.of == "triplets" else _scene_items(config, workspace)


def _triplet_items(config: Config, workspace: Workspace) -> list[Item]:
    """A pair of the held-out split an item."""
    settings = config.section("evaluate") | {"infer": {key: getattr(config.infer, key) for key in ("steps", "sampler")}}
    model = {"train": workspace.output_digest("train", "run")}
    files = _held_out(workspace)
    share = -(-config.evaluate.triplets // max(len(files), 1))
    return [
        Item(STAGE, entry["pair"], settings | {"triplets": share}, model | {"shard": entry["sha256"]})
        for entry in files
    ]


def _held_out(workspace: Workspace) -> list[dict]:
    """The entries of shards/index.json of the test split; without one those of val, else of train."""
    if not workspace.shard_index.exists():
        raise InputError(f"{workspace.shard_index} is not there yet. Run: cloudjob shard {workspace.root}")
    files = json.loads(workspace.shard_index.read_text())["files"]
    splits = ([entry for entry in files if entry["split"] == split] for split in ("test", "val", "train"))
    return next((chosen for chosen in splits if chosen), [])


def _scene_items(config: Config, workspace: Workspace) -> list[Item]:
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
    if config.evaluate.of == "triplets":
        return _run_triplets(config, workspace)
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


def _run_triplets(config: Config, workspace: Workspace) -> Summary:
    import torch

    from cloudjob.diffusion.evaluation import Restorer
    from cloudjob.diffusion.recipe import Recipe
    from cloudjob.hpc import checkpoint

    workspace.require("train", ["run"], reader=STAGE)
    every = items(config, workspace)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = None

    def make(item: Item):
        nonlocal model
        if model is None:  # not before there is something to do
            state = checkpoint.load(workspace.newest_checkpoint())
            options = {"seed": config.seed, "sampler": config.infer.sampler, "steps": config.infer.steps}
            model = Restorer(*Recipe.load(state, device), **options), state["temperature"]
        return _score_pair(config, workspace, item, *model)

    summary = workspace.work(STAGE, every, make)
    if summary.failed or any(workspace.why(item) for item in every):
        return summary
    results = workspace.results(every)
    write_jsonl(workspace.scores, [row for result in results for triplet in result["rows"] for row in triplet])
    steps = {f"ours_{n}_step{'s' if n > 1 else ''}": f"one member by {n} sampling steps" for n in config.evaluate.steps}
    document = {"definitions": DEFINITIONS, "methods": METHODS | steps}
    document["headline_split"] = _held_out(workspace)[0]["split"]
    document |= _pool_triplets(results)
    split = document["headline_split"]
    document |= {"scenes": {split: len(every)}, "changed_clear_pixels": sum(r["changed_clear_pixels"] for r in results)}
    document["scores"] = {split: document["scores"], "all": document["scores"]}
    write_json(workspace.evaluation, document)
    summary.output = table(document["scores"][split], split)
    return summary


def _score_pair(config: Config, workspace: Workspace, item: Item, restorer, temperature: list[float]):
    """Scores of some triplets of a pair, evenly from all of it, and a picture of the first ones."""
    import numpy as np
    import torch

    from cloudjob.diffusion import ensembles, evaluation
    from cloudjob.patches.shards import ShardSet, columns
    from cloudjob.sentinel2.radiometry import digital_number, reflectance
    from cloudjob.sentinel2.render import encode_png, side_by_side, true_colour

    entry = next(entry for entry in _held_out(workspace) if entry["pair"] == item.name)
    index = json.loads(workspace.shard_index.read_text())
    shards = ShardSet(workspace.shard_index.parent, index | {"files": [entry]}, entry["split"])
    number = min(item.config["triplets"], len(shards))
    places = [place * len(shards) // number for place in range(number)]
    arrays = {name: np.stack(values) for name, *values in _transposed([shards[place] for place in places])}
    images = {name: reflectance(arrays[name]) for name in ("cloudy", "clear", "reference") if name in arrays}
    batch = {name: torch.from_numpy(images[name]).to(restorer.device) for name in images if name != "clear"}
    batch["mask"] = torch.from_numpy(arrays["mask"]).to(restorer.device)
    for name in ("sun_elevation", "reference_days"):
        batch[name] = torch.from_numpy(arrays[name]).to(restorer.device)
    batch["target_days"] = torch.zeros(number, device=restorer.device)

    key = int(entry["sha256"][:8], 16)  # the noise of a triplet: its pair and its place in it
    numbers, settings = [key + place for place in places], config.evaluate
    members = 1 if restorer.single else settings.members
    found, every = evaluation.ways(restorer, batch, numbers, members=members, more_steps=settings.steps)
    found |= evaluation.one_date(images["cloudy"], arrays["mask"])
    if "reference" in images:
        facts = json.loads(columns(workspace.shard_index.parent / entry["file"])["attributes"]["pairs"])[0]
        found |= {"nearest_matched": images["reference"], "nearest_clear": _as_it_is(arrays["reference"], facts)}
    rows = evaluation.score(found, images["clear"], arrays["mask"])
    numbers = {name: arrays[name].tolist() for name in ("sun_elevation", "reference_days")}
    shares = np.isin(arrays["mask"], evaluation.HIDDEN).mean((1, 2)).tolist()
    for i, triplet in enumerate(rows):
        known = {"product": item.name, "split": entry["split"], "truth": entry["target"]}
        known |= {"triplet": places[i], "cloud": shares[i]}
        known |= {name: values[i] for name, values in numbers.items()}
        rows[i] = [_finite(known | row) for row in triplet]
    result = {"rows": rows, "changed_clear_pixels": 0}
    clear = ~np.isin(arrays["mask"], evaluation.HIDDEN)
    result["changed_clear_pixels"] = int((digital_number(found["ours"]) != arrays["cloudy"]).any(1)[clear].sum())
    if every is not None:
        parts = []
        for i, mask in enumerate(arrays["mask"]):
            where = np.isin(mask, evaluation.HIDDEN)
            if where.any():
                score = ensembles.score(every[:, i], images["clear"][i], where, temperature=temperature)
                parts.append({"pixels": int(where.sum())} | score)
        result["ensemble"] = _finite(parts)
    shown = [name for name in ("cloudy", "ours", "ours_member", "ours_without_reference") if name in found]
    looks = [[found[name][i] for name in shown] + [images["clear"][i]] for i in range(min(4, number))]
    gain = config.infer.preview_gain
    lines = [side_by_side([true_colour(digital_number(image), gain=gain) for image in line]) for line in looks]
    picture = workspace.evaluation.parent / f"{item.name}.png"
    write_bytes(picture, encode_png(np.concatenate(lines)))
    return [picture], result


def _transposed(triplets: list[dict]) -> list[tuple]:
    """(name, its array of each triplet, ...) for each name."""
    return [(name, *(triplet[name] for triplet in triplets)) for name in triplets[0]]


def _as_it_is(dn, facts: dict):
    """Reflectance of the reference (N, 4, H, W) DN before it was brought to the light of the cloudy date."""
    import numpy as np

    from cloudjob.sentinel2.radiometry import reflectance

    match = facts["radiometric_match"]["clear" if facts["target"] == "ground" else "reference"]
    if facts["radiometry"] == "none":
        return reflectance(dn)
    gain, offset = ([line[key] for line in match["lines"]] for key in ("gain", "offset"))
    gain, offset = (np.array(values)[:, None, None] for values in (gain, offset))
    before = np.where(dn > 0, np.rint((dn - offset) / gain).clip(1, 65535), 0).astype(np.uint16)
    return reflectance(before)


_SHARES = {"below 10 %": (0, 0.1), "10 to 30 %": (0.1, 0.3), "30 to 60 %": (0.3, 0.6), "above 60 %": (0.6, 1.01)}
_ELEVATIONS = {"sun below 15": (-90, 15), "15 to 25": (15, 25), "above 25 degrees": (25, 91)}


def _pool_triplets(results: list[dict]) -> dict:
    """Scores of all triplets together, with bootstrap intervals over pairs; by cloud fraction and by elevation of the
    sun; differences to ours; and the scores of the ensemble."""
    from cloudjob.diffusion import metrics

    rows = [row for result in results for triplet in result["rows"] for row in triplet]
    scores = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        for on in dict.fromkeys(row["on"] for row in rows):
            chosen = [row for row in rows if (row["method"], row["on"]) == (method, on)]
            if chosen:
                low, high = metrics.bootstrap(_sums(results, on, method), metrics.pooled_psnr)
                pooled = {"triplets": len(chosen)} | metrics.pool(chosen) | {"psnr_interval": [low, high]}
                scores.setdefault(method, {})[on] = _finite(pooled)
    scores = _best_first(scores)
    strata = {}
    for key, bins in (("cloud", _SHARES), ("sun_elevation", _ELEVATIONS)):
        for name, (low, high) in bins.items():
            inside = [row for row in rows if row["on"] == "cloud" and low <= (row[key] or 0) < high]
            for method in dict.fromkeys(row["method"] for row in inside):
                chosen = [row for row in inside if row["method"] == method]
                pooled = {"triplets": len(chosen)} | metrics.pool(chosen)
                kept = ("triplets", "pixels", "psnr", "ssim", "mae", "high_pass_ratio")
                strata.setdefault(name, {})[method] = _finite({measure: pooled[measure] for measure in kept})
    return {"scores": scores, "strata": strata, "differences": _differences(results, scores), **_ensemble(results)}


def _sums(results: list[dict], on: str, *methods: str) -> list[list[float]]:
    """For each pair pixels and squared error of each of these methods, of the triplets that all of them have."""
    sums = []
    for result in results:
        total = [0.0] * (2 * len(methods))
        for triplet in result["rows"]:
            found = {row["method"]: row for row in triplet if row["on"] == on}
            if all(method in found for method in methods):
                for i, method in enumerate(methods):
                    total[2 * i] += found[method]["pixels"]
                    total[2 * i + 1] += found[method]["pixels"] * found[method]["rmse"] ** 2
        if total[0]:
            sums.append(total)
    return sums


def _differences(results: list[dict], scores: dict) -> dict:
    """Method -> PSNR of ours on cloud pixels over that of the method, same triplets, with its bootstrap interval."""
    import numpy as np

    from cloudjob.diffusion import metrics

    def gain(sums):
        return metrics.pooled_psnr(sums[..., :2]) - metrics.pooled_psnr(sums[..., 2:])

    found = {}
    for method in scores:
        sums = _sums(results, "cloud", "ours", method)
        if method != "ours" and sums:
            low, high = metrics.bootstrap(sums, gain)
            found[method] = _finite({"psnr": float(gain(np.sum(sums, 0))), "interval": [low, high]})
    return found


def _ensemble(results: list[dict]) -> dict:
    """Means over pixels; spread and skill are pooled before their ratio."""
    parts = [part for result in results for part in result.get("ensemble", [])]
    if not parts:
        return {}
    weight = sum(part["pixels"] for part in parts)

    def mean(key: str, power: int = 1) -> float:
        return (sum(part["pixels"] * part[key] ** power for part in parts) / weight) ** (1 / power)

    pooled = {key: mean(key) for key in ("crps", "coverage_50", "coverage_90")}
    pooled |= {key: mean(key, 2) for key in ("spread", "skill")}
    return {"ensemble": _finite(pooled)}


def _splits(workspace: Workspace) -> dict[str, str]:
    """Product -> the split of its pair; a pair that gave no triplet was not trained on, whatever its tile."""
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
            rows.append({"method": method, "on": pixels} | _finite(score))
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
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value if isinstance(value, int | str) or value is None else round(value, 6) if math.isfinite(value) else None


def _pool(rows: list[dict]) -> dict:
    """method -> pixels -> scores over all pixels of these scenes (without those where a method could not be had)."""
    from cloudjob.diffusion import metrics

    pooled: dict = {}
    for method in METHODS:
        for on in PIXELS:
            chosen = [row for row in rows if row["method"] == method and row["on"] == on and row["pixels"]]
            if chosen:
                pooled.setdefault(method, {})[on] = _finite({"scenes": len(chosen)} | metrics.pool(chosen))
    return _best_first(pooled)


def _best_first(pooled: dict) -> dict:
    """By PSNR on cloud pixels, for the table and for the report."""
    return dict(sorted(pooled.items(), key=lambda pair: -(pair[1].get("cloud", {}).get("psnr") or 0)))


def table(pooled: dict, split: str) -> str:
    """The scores as text."""
    wide = max(map(len, (*pooled, "split: train"))) + 2
    head = f"{'split: ' + split:<{wide}}" + "".join(f"{on + ' pixels':^27}" for on in PIXELS)
    lines = [head, f"{'':<{wide}}" + f"{'PSNR dB':>9}{'SSIM':>9}{'MAE':>9}" * 3]
    for method, scores in pooled.items():
        cells = ""
        for on in PIXELS:
            score = scores.get(on, {"psnr": None, "ssim": None, "mae": None})
            cells += "".join(
                f"{'-' if score[key] is None else format(score[key], form):>9}"
                for key, form in (("psnr", ".2f"), ("ssim", ".4f"), ("mae", ".4f"))
            )
        lines.append(f"{method:<{wide}}{cells}")
    return "\n".join(lines)
