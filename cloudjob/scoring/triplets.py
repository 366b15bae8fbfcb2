"""Scores of the triplets of the held-out split: an item is a pair; all ways to restore, and how far they are apart."""

from cloudjob.pixels import HIDDEN
import json

from cloudjob.config.models import Config
from cloudjob.errors import InputError
from cloudjob.scoring.tables import DEFINITIONS, METHODS, best_first, finite, picture, table
from cloudjob.run.records import Item, Summary
from cloudjob.run.folder import RunFolder
from cloudjob.files import write_json, write_jsonl

STAGE = "evaluate"


def items(config: Config, workspace: RunFolder) -> list[Item]:
    """A pair of the held-out split an item."""
    settings = config.section("evaluate") | {"infer": {key: getattr(config.infer, key) for key in ("steps", "sampler")}}
    model = {"checkpoint": records.checkpoint_digest(workspace, config.infer.checkpoint)}
    files = _held_out(workspace)
    share = -(-config.evaluate.triplets // max(len(files), 1))
    return [
        Item(STAGE, entry["pair"], settings | {"triplets": share}, model | {"shard": entry["sha256"]})
        for entry in files
    ]


def _held_out(workspace: RunFolder) -> list[dict]:
    """The entries of shards/index.json of the test split; without one those of val, else of train."""
    if not workspace.shard_index.exists():
        raise InputError(f"{workspace.shard_index} is not there yet. Run: cloudjob shard {workspace.root}")
    files = json.loads(workspace.shard_index.read_text())["files"]
    splits = ([entry for entry in files if entry["split"] == split] for split in ("test", "val", "train"))
    return next((chosen for chosen in splits if chosen), [])


def run(config: Config, workspace: RunFolder) -> Summary:
    if config.infer.checkpoint is None:
        records.require(workspace, "train", ["run"], reader=STAGE)
    every = items(config, workspace)
    model = None

    def make(item: Item):
        nonlocal model
        if model is None:  # not before there is something to do
            model = _open(config, workspace)
        return _score_pair(config, workspace, item, *model)

    summary = records.work(workspace, STAGE, every, make)
    if summary.failed or any(records.why(workspace, item) for item in every):
        return summary
    results = records.results(workspace, every)
    write_jsonl(workspace.scores, [row for result in results for triplet in result["rows"] for row in triplet])
    steps = {f"ours_{n}_step{'s' if n > 1 else ''}": f"one member by {n} sampling steps" for n in config.evaluate.steps}
    document = {"definitions": DEFINITIONS, "methods": METHODS | steps}
    document["headline_split"] = _held_out(workspace)[0]["split"]
    document |= _pool(results)
    split = document["headline_split"]
    document |= {"scenes": {split: len(every)}, "changed_clear_pixels": sum(r["changed_clear_pixels"] for r in results)}
    document["scores"] = {split: document["scores"], "all": document["scores"]}
    write_json(workspace.evaluation, document)
    summary.output = table(document["scores"][split], split)
    return summary


def _open(config: Config, workspace: RunFolder):
    """(Restorer, the factors on the members' deviation), calibrated anew where the checkpoint's do not hold."""
    import torch

    from cloudjob.scoring import ensembles
    from cloudjob.scoring.methods import Restorer
    from cloudjob.hpc import distributed
    from cloudjob.diffusion.checkpoint import open_checkpoint

    settings = config.infer
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = settings.checkpoint or workspace.newest_checkpoint()
    recipe, network, calibration = open_checkpoint(path, device)
    options = {"seed": config.seed, "sampler": settings.sampler, "steps": settings.steps}
    restorer = Restorer(recipe, network, **options, low_precision=distributed.fast_bfloat16(device))
    factors = ensembles.factors(calibration, recipe.taken(settings.sampler, settings.steps))
    if factors is None and not restorer.single and config.evaluate.members > 1:
        factors = _calibrate(config, workspace, restorer)
    return restorer, factors or [1.0] * 4


def _calibrate(config: Config, workspace: RunFolder, restorer) -> list[float]:
    """As train does, on the split that is held out from training and from test."""
    from cloudjob.patches.shards import ShardSet
    from cloudjob.diffusion.batch import to_tensors

    held_out = ShardSet(workspace.shard_index.parent, json.loads(workspace.shard_index.read_text()), "val")
    if not len(held_out):
        return [1.0] * 4
    batch = to_tensors(held_out.look(64)[1], restorer.device)
    return restorer.calibrate(batch, config.evaluate.members)["factors"]


def _score_pair(config: Config, workspace: RunFolder, item: Item, restorer, factors: list[float]):
    """Scores of some triplets of a pair, evenly from all of it, and a picture of the first ones."""
    import numpy as np

    from cloudjob.scoring import methods
    from cloudjob.patches.shards import ShardSet
    from cloudjob.sentinel2.radiometry import digital_number

    entry = next(entry for entry in _held_out(workspace) if entry["pair"] == item.name)
    index = json.loads(workspace.shard_index.read_text())
    shards = ShardSet(workspace.shard_index.parent, index | {"files": [entry]}, entry["split"])
    places, arrays = shards.look(item.config["triplets"])
    key = int(entry["sha256"][:8], 16)  # the noise of a triplet: its pair and its place in it
    found, every = _restored(config, restorer, arrays, [key + place for place in places])
    if "reference" in arrays:
        found["nearest_clear"] = _as_it_is(arrays["reference"], _facts(workspace, entry))

    truth, mask = arrays["truth"], arrays["mask"]
    hidden = np.isin(mask, HIDDEN)
    known = {"product": item.name, "split": entry["split"], "truth": entry["target"]}
    rows = []
    for i, triplet in enumerate(methods.score(found, truth, mask)):
        facts = known | {"triplet": places[i], "cloud": hidden[i].mean()}
        facts |= {name: arrays[name][i] for name in ("sun_elevation", "reference_days")}
        rows.append([finite(facts | row) for row in triplet])
    changed = (digital_number(found["ours"]) != arrays["cloudy"]).any(1)[~hidden].sum()
    result = {"rows": rows, "changed_clear_pixels": int(changed)}
    if every is not None:
        result["ensemble"] = finite(methods.score_members(every, truth, hidden, factors))
    shown = [name for name in ("cloudy", "ours", "ours_member", "ours_without_reference") if name in found]
    shown = [digital_number(images[:4]) for images in (*(found[name] for name in shown), truth)]
    return [picture(config, workspace, item.name, list(zip(*shown, strict=True)))], result


def _restored(config: Config, restorer, arrays: dict, numbers: list[int]) -> tuple[dict, object]:
    """(method -> reflectance (N, 4, n, n), the members) of triplets by all methods; arrays get their `truth`."""
    import torch

    from cloudjob.scoring import methods
    from cloudjob.sentinel2.radiometry import reflectance

    images = {name: reflectance(arrays[name]) for name in ("cloudy", "clear", "reference") if name in arrays}
    arrays["truth"] = images.pop("clear")
    batch = images | {name: arrays[name] for name in ("mask", "sun_elevation", "reference_days")}
    batch = {name: torch.from_numpy(array).to(restorer.device) for name, array in batch.items()}
    batch["target_days"] = torch.zeros(len(numbers), device=restorer.device)
    members = 1 if restorer.single else config.evaluate.members
    found, every = methods.ways(restorer, batch, numbers, members=members, more_steps=config.evaluate.steps)
    found |= methods.one_date(images["cloudy"], arrays["mask"])
    if "reference" in images:
        found["nearest_matched"] = images["reference"]
    return found, every


def _facts(workspace: RunFolder, entry: dict) -> dict:
    """What the shard says of its pair."""
    from cloudjob.patches.shards import columns

    return json.loads(columns(workspace.shard_index.parent / entry["file"])["attributes"]["pairs"])[0]


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


def _pool(results: list[dict]) -> dict:
    """Scores of all triplets together, with bootstrap intervals over pairs; by cloud fraction and by elevation of the
    sun; differences to ours; and the scores of the ensemble."""
    from cloudjob.scoring import metrics

    rows = [row for result in results for triplet in result["rows"] for row in triplet]
    scores = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        for on in dict.fromkeys(row["on"] for row in rows):
            chosen = [row for row in rows if (row["method"], row["on"]) == (method, on)]
            if chosen:
                low, high = metrics.bootstrap(_sums(results, on, method), metrics.pooled_psnr)
                pooled = {"triplets": len(chosen)} | metrics.pool(chosen) | {"psnr_interval": [low, high]}
                scores.setdefault(method, {})[on] = finite(pooled)
    scores = best_first(scores)
    strata = {}
    for key, bins in (("cloud", _SHARES), ("sun_elevation", _ELEVATIONS)):
        for name, (low, high) in bins.items():
            inside = [row for row in rows if row["on"] == "cloud" and low <= (row[key] or 0) < high]
            for method in dict.fromkeys(row["method"] for row in inside):
                chosen = [row for row in inside if row["method"] == method]
                pooled = {"triplets": len(chosen)} | metrics.pool(chosen)
                kept = ("triplets", "pixels", "psnr", "ssim", "mae", "high_pass_ratio")
                strata.setdefault(name, {})[method] = finite({measure: pooled[measure] for measure in kept})
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

    from cloudjob.scoring import metrics

    def gain(sums):
        return metrics.pooled_psnr(sums[..., :2]) - metrics.pooled_psnr(sums[..., 2:])

    found = {}
    for method in scores:
        sums = _sums(results, "cloud", "ours", method)
        if method != "ours" and sums:
            low, high = metrics.bootstrap(sums, gain)
            found[method] = finite({"psnr": float(gain(np.sum(sums, 0))), "interval": [low, high]})
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
    return {"ensemble": finite(pooled)}
