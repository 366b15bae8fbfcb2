"""Runs the variants: the data are made once in the run folder `base`, and a variant's run folder links to them."""

import contextlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from cloudjob.comparison.variants import BASE, Comparison, Variant
from cloudjob.config.models import newer
from cloudjob.errors import CloudjobError, ConfigError, InputError, InterruptedJob, ItemError
from cloudjob.files import file_sha256, link, split_jsonl, write_bytes
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

STAGE = "compare"
DATA: tuple[str, ...] = ("search", "preview", "pair", "review", "download")
_SHARDS = ("seed", "masks", "shard")  # what a triplet depends on, beside the products


def base_item(comparison: Comparison) -> Item:
    """The data that all variants share."""
    settings = comparison.config.section("archive", "search", "masks", "pair", "shard")
    return Item(STAGE, BASE, settings, {}, newer=newer("search", "masks", "pair", "shard"))


def items(comparison: Comparison, folder: RunFolder) -> dict[str, Item]:
    """One item per variant. InputError while the data of the base are not complete."""
    if why := records.why(folder, base_item(comparison)):
        again = _command(comparison, folder, BASE)
        raise InputError(f"the data that all variants share are not complete ({why}). Run: {again}")
    base = _run(folder, BASE)
    inputs = {path.name: file_sha256(path) for path in (base.shard_index, base.pairs, base.decisions)}
    found = {}
    for variant in comparison.variants.values():
        settings = variant.config.section("masks", "shard", "train", "infer", "evaluate")
        settings |= {"from": variant.source}
        younger = newer("masks", "shard", "infer")
        if variant.like:  # another network of those, another time
            settings |= {
                name: comparison.variants[name].config.section("masks", "shard", "train") for name in variant.needs
            }
            younger |= {name: newer("masks", "shard") for name in variant.needs}
        found[variant.name] = Item(STAGE, variant.name, settings, inputs, newer=younger)
    return found


def run(comparison: Comparison, folder: RunFolder) -> Summary:
    """Makes what is missing of the variants in `folder.only` (all when empty). The data are made only with all
    variants or when asked for by name, so that no two tasks of an array make them at once."""
    chosen, folder.only = folder.only, []
    if not chosen or BASE in chosen:
        records.path(folder, STAGE, BASE).unlink(missing_ok=True)  # not complete until it has been looked through
        summary = records.work(folder, STAGE, [base_item(comparison)], lambda item: _make_base(comparison, folder))
        if summary.failed or chosen == [BASE]:
            return summary
    every = items(comparison, folder)
    wanted = [variant for variant in comparison.variants.values() if not chosen or variant.name in chosen]
    wanted.sort(key=lambda variant: (variant.source is not None, variant.like is not None))  # who needs nobody first

    def make(item: Item) -> Made:
        variant = comparison.variants[item.name]
        for other in variant.needs:
            if not records.why(folder, every[other]):
                continue
            waits = f"takes the {'network' if other == variant.source else 'time'} of {other}, which is not finished"
            if comparison.variants[other] in wanted:  # it has just failed; others go on
                raise ItemError(waits)
            raise InputError(f"{item.name} {waits}. Run: {_command(comparison, folder, other)}")
        return _make(comparison, folder, variant)

    return records.work(folder, STAGE, [every[variant.name] for variant in wanted], make)


def plan(comparison: Comparison, folder: RunFolder) -> dict[str, str | None]:
    """Name -> why it would be made, None where it is done; of those in `folder.only`. Touches nothing."""
    why = records.why(folder, base_item(comparison))
    if why:
        rest: dict[str, str | None] = dict.fromkeys(comparison.variants, f"waits for {BASE}")
    else:
        rest = {name: records.why(folder, item) for name, item in items(comparison, folder).items()}
    reasons: dict[str, str | None] = {BASE: why, **rest}
    return {name: reason for name, reason in reasons.items() if not folder.only or name in folder.only}


def _command(comparison: Comparison, folder: RunFolder, name: str) -> str:
    return f"cloudjob compare {shlex.quote(str(comparison.file))} --run-dir {folder.quoted} --only {name}"


def _run(folder: RunFolder, name: str) -> RunFolder:
    found = RunFolder(folder.root / name)
    found.say = folder.say
    return found


def _make_base(comparison: Comparison, folder: RunFolder) -> Made:
    base = _run(folder, BASE)
    code = _cloudjob(folder, "run", comparison.base, base.root, comparison.common, "--until", "shard")
    if code:
        kind = {2: ConfigError, 3: InputError, 4: ItemError}.get(code, CloudjobError)
        raise kind(f"{BASE}: cloudjob run --until shard ended with {code}, for what it says above")
    return [base.shard_index], None


def _make(comparison: Comparison, folder: RunFolder, variant: Variant) -> Made:
    from cloudjob.diffusion import checkpoint

    target, origin, shared = _run(folder, variant.name), _run(folder, variant.source or BASE), DATA
    if variant.source:
        shared += ("shard", "train")
    elif variant.config.section(*_SHARDS) == comparison.config.section(*_SHARDS):
        shared += ("shard",)
    _share(origin, target, shared)
    triplets = variant.config.evaluate.of == "triplets"
    trains = variant.config.infer.checkpoint is None and not (triplets and variant.config.evaluate.members == 0)
    overrides = [*variant.overrides, *_samples(folder, variant)]
    chain = [("run", "--from", "shard", "--until", "train" if trains else "shard"), ("evaluate",)]
    for verb, *limits in chain if triplets else [("run", "--from", "shard", "--until", "evaluate")]:
        if code := _cloudjob(folder, verb, comparison.base, target.root, overrides, *limits):
            raise ItemError(f"cloudjob {verb} ended with {code}, for what it says above")
    if not trains:
        return [target.evaluation], {"samples": 0, "seconds": 0.0, "parameters": 0}
    return [target.evaluation, checkpoint.newest(target.checkpoints)], _training(origin if variant.source else target)


def _samples(folder: RunFolder, variant: Variant) -> list[str]:
    """The override that makes a training last as long as another: the samples, in whole batches, that the variant it is
    like would see in that time. None for a variant that is not timed."""
    if variant.like is None or variant.as_long_as is None:
        return []
    like, other = ((records.record(folder, STAGE, name) or {})["result"] for name in (variant.like, variant.as_long_as))
    batch = variant.config.train.batch_size
    steps = max(round(like["samples"] * other["seconds"] / max(like["seconds"], 1e-9) / batch), 1)
    return [f"train.samples={steps * batch}"]


def _share(origin: RunFolder, target: RunFolder, stages: tuple[str, ...]) -> None:
    """Gives `target` what these stages made in `origin`: links to the outputs, copies of the small files.

    The links are safe because every writer replaces a file and none writes into it. A record comes after its outputs.
    """
    shutil.rmtree(target.labels, ignore_errors=True)
    for path in (origin.scenes, origin.pairs, origin.decisions, *origin.labels.rglob("[!.]*.tif")):
        write_bytes(target.root / path.relative_to(origin.root), path.read_bytes())
    for stage in stages:
        for path in sorted((origin.root / "records" / stage).glob("[!.]*.json")):
            record, own = path.read_bytes(), target.root / path.relative_to(origin.root)
            outputs = (records.record(origin, stage, path.stem) or {"outputs": [""]})["outputs"]
            if not all((origin.root / name).exists() for name in outputs):
                continue  # of an earlier configuration, or damaged: the stage that needs it says so
            same = own.exists() and own.read_bytes() == record
            if stage == "train" and not same:
                _clear(target)
            for name in outputs:
                if not same or not (target.root / name).exists():
                    link(origin.root / name, target.root / name)
            if not same:
                write_bytes(own, record)


def _clear(target: RunFolder) -> None:
    """Removes the links to another network, perhaps of a longer training; a training of the run's own is kept aside."""
    from cloudjob.training.state import set_aside

    if any(path.stat().st_nlink == 1 for path in target.checkpoints.glob("step-*.pt")):
        target.say(f"{STAGE}: the training of {target.root} itself is kept in {set_aside(target.training)}")
    else:
        shutil.rmtree(target.checkpoints, ignore_errors=True)


def _cloudjob(folder: RunFolder, verb: str, path: Path, root: Path, overrides: list[str], *limits: str) -> int:
    """The exit code of a child `cloudjob`, which prints to standard error. A wish to stop is passed on to it;
    InterruptedJob when it has stopped."""
    settings = [part for text in overrides for part in ("--set", text)]
    command = [sys.executable, "-m", "cloudjob", verb, str(path), "--run-dir", str(root), *settings, *limits]
    told = False
    with subprocess.Popen(command, stdout=sys.__stderr__) as child:
        while (code := child.poll()) is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.2)
            if folder.stop_requested() and not told:
                child.terminate()
                told = True
    if code == InterruptedJob.exit_code or (code and told):
        raise InterruptedJob(f"{STAGE}: stopped in {root.name}; run the same command again")
    return code


def _training(run: RunFolder) -> dict:
    """Samples seen, seconds spent on them (over all its sessions) and parameters of a trained network."""
    from cloudjob.diffusion import checkpoint

    seconds, before = 0.0, 0
    for row in split_jsonl(run.metrics)[0]:
        if row["samples_per_s"]:
            seconds += (row["seen"] - before) / row["samples_per_s"]
        before = row["seen"]
    weights = checkpoint.load(checkpoint.newest(run.checkpoints)).model.values()
    return {
        "samples": (records.record(run, "train", "run") or {})["result"]["seen"],
        "seconds": round(seconds, 1),
        "parameters": sum(weight.numel() for weight in weights),
    }
