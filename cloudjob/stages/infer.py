"""infer: restores the ground under the clouds of every cloudy product; tiles are distributed over MPI ranks.

MPI carries the names of products and the ranks' answers, never pixels: inputs and restored tiles lie as .npy files in
a hidden folder beside the outputs, from which a killed job also resumes.
"""

import shutil
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob import __version__
from cloudjob.config.models import Config, newer
from cloudjob.errors import CloudjobError, DiskFullError, InterruptedJob, ItemError
from cloudjob.files import ask_guards, digest, file_sha256
from cloudjob.hpc import machine
from cloudjob.names import ProductName
from cloudjob.run import collection, decisions, labels, products, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

if TYPE_CHECKING:
    from cloudjob.hpc.mpi import Communicator
    from cloudjob.restoration.conditions import SceneConditions
    from cloudjob.restoration.restorer import Restorer
    from cloudjob.sentinel2.product import Product

STAGE = "infer"
_MASKED = ("cloudy", "clear", "reference")  # the dates of a pair whose masks are read
_KINDS = {kind.__name__: kind for kind in (InterruptedJob, DiskFullError, ItemError)}  # what a rank may answer with


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item per accepted pair: its cloudy product, restored by the network of this run or of `infer.checkpoint`."""
    settings = config.section("infer", "masks")
    checkpoint = {"checkpoint": records.checkpoint_digest(folder, config.infer.checkpoint)}
    drifts = cache(partial(records.drifting_digest, folder))  # once a tile
    found = []
    for pair in decisions.accepted_pairs(folder):
        inputs = {name: records.output_digest(folder, "download", name) for name in _products(config, pair)}
        drifting = drifts(ProductName.parse(pair["cloudy"]).tile)
        more = checkpoint | drifting | {"pair": pair["version"]}
        more |= labels.digests(folder, [pair[role] for role in _MASKED if pair[role]])
        found.append(Item(STAGE, pair["cloudy"], settings, inputs | more, newer=newer("masks", "infer")))
    return found


def _products(config: Config, pair: dict) -> list[str]:
    return [pair["cloudy"], *(pair[role] for role in _references(config, pair))]


def _references(config: Config, pair: dict) -> list[str]:
    """Roles of the clear dates given to the model, in order of preference."""
    roles = {"other": ["reference"], "nearest": ["clear", "reference"], "none": []}[config.infer.reference]
    return [role for role in roles if pair[role]]


def run(config: Config, folder: RunFolder) -> Summary:
    """Restores what is missing. Under MPI every rank calls this; rank 0's summary counts."""
    from cloudjob.hpc import mpi

    every = items(config, folder)
    if config.infer.checkpoint is None:
        records.require(folder, "train", ["run"], reader=STAGE)
    failure = None
    with mpi.communicator() as ranks:
        if ranks.rank:
            return _follow(config, folder, ranks)
        try:
            summary = _lead(config, folder, every, ranks)
        except CloudjobError as error:
            failure = error  # raised only after the bcast, which ends the ranks that wait for a name
        ranks.bcast(None)
    if failure:
        raise failure
    collection.write(folder)
    summary.note = f"{ranks.size} rank{'s' if ranks.size > 1 else ''}"
    return summary


def _lead(config: Config, folder: RunFolder, every: list[Item], ranks: "Communicator") -> Summary:
    """Rank 0: prepares each product, restores its share with the others, and writes the outputs."""
    pairs = {pair["cloudy"]: pair for pair in decisions.accepted_pairs(folder)}
    model = None

    def make(item: Item) -> Made:
        nonlocal model
        records.need(folder, "download", _products(config, pairs[item.name]), own=item.name)
        model = model or _Model.open(config, folder, ranks.rank)  # not before there is something to do
        work = folder.output(item.name, "").parent / f".work-{digest([item.config, item.inputs])[:8]}"
        conditions = _prepare(config, folder, pairs[item.name], work)
        ranks.bcast(str(work))
        for rank, answer in enumerate(ranks.gather(_share(config, folder, model, work, ranks)) or []):
            if answer is not None:
                kind, message = answer
                raise _KINDS[kind](f"{item.name}, rank {rank}: {message}")
        outputs = _write(config, folder, item, pairs[item.name], model, conditions, work)
        ask_guards()
        shutil.rmtree(work, ignore_errors=True)  # a rank of a job that lost its lease may still write there
        return outputs, None

    return records.work(folder, STAGE, every, make)


def _follow(config: Config, folder: RunFolder, ranks: "Communicator") -> Summary:
    """Ranks above 0: restore their share of every product that rank 0 names."""
    model = None
    while (work := ranks.bcast(None)) is not None:
        model = model or _Model.open(config, folder, ranks.rank)
        ranks.gather(_share(config, folder, model, Path(work), ranks))
    return Summary(STAGE)


def _share(
    config: Config, folder: RunFolder, model: "_Model", work: Path, ranks: "Communicator"
) -> tuple[str, str] | None:
    """Restores this rank's share. It returns an error instead of raising it, which would deadlock the other ranks."""
    from cloudjob.restoration import scene
    from cloudjob.restoration.conditions import SceneConditions

    try:
        scene.restore_tiles(
            SceneConditions.load(work),
            model.restorer,
            work,
            size=config.infer.tile,
            overlap=config.infer.overlap,
            members=config.infer.members,
            rank=ranks.rank,
            ranks=ranks.size,
            stopped=folder.stop_requested,
        )
    except (CloudjobError, OSError) as error:
        kind = type(error).__name__
        return (kind if kind in _KINDS else ItemError.__name__), str(error)
    return None


@dataclass(frozen=True)
class _Model:
    """The trained network as its checkpoint has it, and the factors on its members' deviation."""

    restorer: "Restorer"
    sha256: str
    factors: list[float]

    @classmethod
    def open(cls, config: Config, folder: RunFolder, rank: int) -> "_Model":
        import torch

        from cloudjob.diffusion import checkpoint
        from cloudjob.hpc import launch
        from cloudjob.restoration.restorer import Restorer
        from cloudjob.scoring import ensembles

        # One thread and one tile at a time: the bytes must not depend on how many ranks share the tiles.
        torch.set_num_threads(1)
        torch.backends.cudnn.deterministic = True
        gpus = torch.cuda.device_count()
        launch.check_gpu(bool(gpus))
        device = torch.device("cuda", rank % gpus) if gpus else torch.device("cpu")
        settings = config.infer
        path = settings.checkpoint or checkpoint.newest(folder.checkpoints)
        recipe, network, calibration = checkpoint.open_network(path, device)
        restorer = Restorer(recipe, network, seed=config.seed, sampler=settings.sampler, steps=settings.steps)
        factors = ensembles.factors(calibration, restorer.sampling)
        if rank == 0 and factors is None and settings.members > 1:
            folder.say(
                "infer: WARNING: /uncertainty is the members' bare deviation: the checkpoint was calibrated for "
                "other steps than {steps} of {sampler}".format(**restorer.sampling)
            )
        return cls(restorer, file_sha256(path), factors or [1.0] * 4)


def _prepare(config: Config, folder: RunFolder, pair: dict, work: Path) -> "SceneConditions":
    """Decodes bands and masks of a product once, and leaves them in its working folder for all ranks."""
    from cloudjob.restoration.conditions import SceneConditions
    from cloudjob.sentinel2 import masks
    from cloudjob.sentinel2.scene import open_pair

    if not SceneConditions.saved(work):
        ask_guards()
        for old in work.parent.glob(".work-*"):
            shutil.rmtree(old)
        roles = _references(config, pair)
        for role in (role for role in _MASKED if pair[role]):
            products.check(folder, pair[role], bands=role in ("cloudy", *roles))
        safes = {role: folder.safe(pair[role]) for role in _MASKED if pair[role]}
        settings = masks.Settings(**dict(config.masks))
        folders = {"labels": folder.labels, "drifting": folder.drifting}
        load = open_pair(safes, settings, **folders, processes=machine.cores())
        days = pair["days" if roles[0] == "clear" else "reference_days"] if roles else None
        SceneConditions.of(load("cloudy"), map(load, roles), days=days).save(work)
    return SceneConditions.load(work)


def _write(
    config: Config,
    folder: RunFolder,
    item: Item,
    pair: dict,
    model: _Model,
    conditions: "SceneConditions",
    work: Path,
) -> dict[Path, str]:
    """Puts the tiles together, and writes the product's files: their paths, and the digests of their content."""
    from cloudjob.restoration import output, scene
    from cloudjob.sentinel2.product import Product

    settings = config.infer
    factors = model.factors if settings.members > 1 else None
    reflectance, reconstructed, uncertainty = scene.put_together(
        conditions, work, size=settings.tile, overlap=settings.overlap, factors=factors
    )
    product = Product.open(folder.safe(item.name))
    by_hand = labels.among(item.inputs, [pair[role] for role in _MASKED])
    sources = [item.name, *(pair[role] for role in _references(config, pair))]
    header = output.Header(
        name=item.name,
        shape=reconstructed.shape,
        crs=product.crs,
        transform=product.transform,
        sensing_time=product.sensing_time.isoformat().replace("+00:00", "Z"),
        attributes={
            "source_products": " ".join(sources),
            "checkpoint_sha256": model.sha256,
            "config_sha256": digest(item.config),
            "seed": config.seed,
            **model.restorer.sampling,
            "members": settings.members,
            "uncertainty_factors": " ".join(f"{factor:.4f}" for factor in model.factors),
            "cloudjob_version": __version__,
        }
        | ({"masks_by_hand": " ".join(sorted(by_hand))} if by_hand else {}),
        uncertainty=uncertainty is not None,
        sources={name: output.data_space(name) for name in sources},
        collection="../collection.json",
    )
    stem = folder.output(item.name, "")
    with output.Writer(stem, header, gain=settings.preview_gain, threads=machine.cores()) as writer:
        writer.rows(0, reflectance, reconstructed, uncertainty)
    return writer.files | _like_source(config, folder, item.name, product)


def _like_source(config: Config, folder: RunFolder, name: str, product: "Product") -> dict[Path, str]:
    """Writes the bands as the source has them, if that is wished: their paths and digests. What an earlier scene left
    of them goes in any case."""
    from cloudjob.restoration.output import like_source

    target = folder.output(name, ".SAFE")
    if target.exists():
        ask_guards()
        shutil.rmtree(target)
    if not config.infer.like_source:
        return {}
    if not like_source.is_safe(product):
        folder.say(f"infer: WARNING: infer.like_source: {name} is no SAFE product with JPEG 2000; not written like it")
        return {}
    return {path: file_sha256(path) for path in like_source.write(folder.output(name, ".tif"), product, target)}
