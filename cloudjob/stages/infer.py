"""infer: restores the ground under the clouds of every cloudy product, all of it shared out over MPI ranks.

MPI carries the names of products and the ranks' answers, never pixels: what ranks make lies as .npy files in a hidden
folder beside the outputs, from which a killed job also resumes.
"""

import shutil
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob.config.models import Config, newer
from cloudjob.files import ask_guards, digest, file_sha256
from cloudjob.names import ProductName
from cloudjob.patches.splits import CLEAR_DATE, dates_of
from cloudjob.pixels import REFERENCES
from cloudjob.run import collection, decisions, labels, products, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

if TYPE_CHECKING:
    from cloudjob.hpc.mpi import Communicator
    from cloudjob.restoration.crew import Crew
    from cloudjob.restoration.dates import Dates
    from cloudjob.restoration.network import Model
    from cloudjob.restoration.team import Team, Unit
    from cloudjob.sentinel2.product import Product

STAGE = "infer"


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item per accepted pair: its cloudy product, restored by the network of this run or of `infer.checkpoint`;
    where `infer.unpaired`, then one per cloudy product without an acceptable clear date."""
    settings = config.section("infer", "masks")
    settings["infer"]["unpaired"] = True  # it says which items there are, and changes none of them
    checkpoint = {"checkpoint": records.checkpoint_digest(folder, config.infer.checkpoint)}
    drifts = cache(partial(records.drifting_digest, folder))  # once a tile
    found = []
    for pair in _restored(config, folder):
        inputs = {name: records.output_digest(folder, "download", name) for name in _products(config, pair)}
        drifting = drifts(ProductName.parse(pair["cloudy"]).tile)
        more = checkpoint | drifting | {"pair": pair["version"]}
        more |= labels.digests(folder, [name for name, _ in _dates_of(pair).values()])
        found.append(Item(STAGE, pair["cloudy"], settings, inputs | more, newer=newer("masks", "infer")))
    return found


def _restored(config: Config, folder: RunFolder) -> list[dict]:
    """The accepted pairs, and what looks like them of products without a clear date."""
    pairs = decisions.accepted_pairs(folder)
    return pairs + (decisions.unpaired(folder, **config.pair.of_cloudy()) if config.infer.unpaired else [])


def _products(config: Config, pair: dict) -> list[str]:
    dates = _dates_of(pair)
    return [dates[role][0] for role in ("cloudy", *_references(config, pair))]


def _dates_of(pair: dict) -> dict[str, tuple[str, float]]:
    """Role -> product and signed days from the cloudy date, of the dates that a pair has: their masks are read."""
    return {role: date for role, date in dates_of(pair, CLEAR_DATE).items() if date[0]}


def _references(config: Config, pair: dict) -> list[str]:
    """Roles of the clear dates given to the model, in order of preference."""
    dates = _dates_of(pair)
    roles = {"other": REFERENCES, "nearest": ("clear", *REFERENCES), "none": ()}[config.infer.reference]
    found = [role for role in roles if role in dates]
    if config.infer.reference == "nearest":
        found.sort(key=lambda role: abs(dates[role][1]))
    return found[: len(REFERENCES)]


def run(config: Config, folder: RunFolder) -> Summary:
    """Restores what is missing. Under MPI every rank calls this; rank 0's summary counts."""
    from cloudjob.hpc import mpi

    every = items(config, folder)
    if config.infer.checkpoint is None:
        records.require(folder, "train", ["run"], reader=STAGE)
    with mpi.communicator() as ranks:
        crew = _crew(config, folder, ranks)
        summary = crew.run(lambda: _lead(config, folder, every, crew)) or Summary(STAGE)
    if not ranks.rank:
        collection.write(folder)
        summary.note = f"{ranks.size} rank{'s' if ranks.size > 1 else ''}"
    return summary


def _crew(config: Config, folder: RunFolder, ranks: "Communicator") -> "Crew":
    from cloudjob.restoration.crew import Crew

    def prepare(team: "Team", pair: dict) -> None:
        from cloudjob.restoration import dates

        team.do("checking", lambda: _checks(config, folder, pair))
        dates.make_conditions(team, lambda: _dates(config, folder, pair))

    settings = config.infer
    return Crew(
        ranks,
        partial(_open_model, config, folder),
        size=settings.tile,
        overlap=settings.overlap,
        members=settings.members,
        prepare=prepare,
        stopped=folder.stop_requested,
    )


def _open_model(config: Config, folder: RunFolder, rank: int, local_rank: int) -> "Model":
    from cloudjob.diffusion import checkpoint
    from cloudjob.restoration.network import Model

    settings = config.infer
    path = settings.checkpoint or checkpoint.newest(folder.checkpoints)
    model = Model.open(path, local_rank=local_rank, seed=config.seed, sampler=settings.sampler, steps=settings.steps)
    if rank == 0 and settings.members > 1 and model.warning:
        folder.say(f"infer: {model.warning}")
    return model


def _lead(config: Config, folder: RunFolder, every: list[Item], crew: "Crew") -> Summary:
    """Rank 0: restores each product with the other ranks, and writes the outputs."""
    from cloudjob.restoration.crew import within

    pairs = {pair["cloudy"]: pair for pair in _restored(config, folder)}
    names = [item.name for item in records.wanted(folder, every)]

    def make(item: Item) -> Made:
        pair, number = pairs[item.name], names.index(item.name)
        records.need(folder, "download", _products(config, pair), own=item.name)
        if pair["clear"] is None:
            why = "; ".join(pair["reasons"])
            folder.say(f"infer: {item.name} has no acceptable clear date, and is restored from itself alone: {why}")
        work = folder.output(item.name, "").parent / f".work-{digest([item.config, item.inputs])[:8]}"
        team = crew.team(work, within(folder.progress, STAGE, item.name, number, len(names)))
        if not work.exists():
            for old in work.parent.glob(".work-*"):
                crew.team(old).discard()
        _, *others = crew.restore(team, pair)
        with team.timed("writing"):
            outputs = _write(config, folder, item, pair, crew, team)
        tiles = len(list(work.glob("tile-*.npy")))
        ask_guards()
        team.discard()
        return outputs, {"tiles": tiles, "ranks": [team.figures(), *others]}

    return records.work(folder, STAGE, every, make)


def _checks(config: Config, folder: RunFolder, pair: dict) -> list["Unit"]:
    """A unit for each file that is read: it is the recorded one, or is set aside. One that is another file by now is
    another unit."""
    from cloudjob.restoration.team import Unit

    shown = _products(config, pair)
    names = [name for name, _ in _dates_of(pair).values()]
    files = dict.fromkeys(file for name in names for file in products.kept(folder, name, bands=name in shown))
    check = partial(products.check_files, folder)
    return [Unit(f"{number}-{file.state}", partial(check, [file])) for number, file in enumerate(files)]


def _dates(config: Config, folder: RunFolder, pair: dict) -> "Dates":
    from cloudjob.restoration.dates import Dates
    from cloudjob.sentinel2 import masks
    from cloudjob.sentinel2.product import Product

    dates, shown = _dates_of(pair), _references(config, pair)
    return Dates(
        {role: Product.open(folder.safe(name)) for role, (name, _) in dates.items()},
        shown=tuple(shown),
        days=tuple(dates[role][1] for role in shown),
        masks=masks.Settings(**dict(config.masks)),
        labels=folder.labels,
        drifting=folder.drifting,
    )


def _write(config: Config, folder: RunFolder, item: Item, pair: dict, crew: "Crew", team: "Team") -> dict[Path, str]:
    """Writes the files of a restored scene: their paths, and the digests of their content."""
    from cloudjob.restoration import output, scene, written
    from cloudjob.sentinel2.product import Product

    product = Product.open(folder.safe(item.name))
    by_hand = labels.among(item.inputs, [name for name, _ in _dates_of(pair).values()])
    sources = _products(config, pair)
    attributes = written.attributes(
        sources, crew.model, config_sha256=digest(item.config), seed=config.seed, members=config.infer.members
    )
    header = output.Header(
        name=item.name,
        shape=scene.shape(team.folder),
        crs=product.crs,
        transform=product.transform,
        sensing_time=product.sensing_time.isoformat().replace("+00:00", "Z"),
        attributes=attributes | ({"masks_by_hand": " ".join(sorted(by_hand))} if by_hand else {}),
        uncertainty=config.infer.members > 1,
        sources={name: output.data_space(name) for name in sources},
        collection="../collection.json",
    )
    files = written.write(folder.output(item.name, ""), header, scene.stripes(team), gain=config.infer.preview_gain)
    return files | _like_source(config, folder, item.name, product)


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
