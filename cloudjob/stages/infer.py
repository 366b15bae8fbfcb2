"""infer: restores the ground under the clouds of every cloudy product, all of it shared out over MPI ranks.

MPI carries the names of products and the ranks' answers, never pixels: what ranks make lies as .npy files in a hidden
folder beside the outputs, from which a killed job also resumes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob import __version__
from cloudjob.config.models import Config, newer
from cloudjob.errors import CloudjobError
from cloudjob.files import ask_guards, atomic, digest, file_sha256
from cloudjob.names import ProductName
from cloudjob.run import decisions, labels, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Made, Summary

if TYPE_CHECKING:
    from cloudjob.hpc.mpi import Communicator
    from cloudjob.restoration.dates import Dates
    from cloudjob.restoration.restorer import Restorer
    from cloudjob.restoration.team import Team, Unit

STAGE = "infer"
_MASKED = ("cloudy", "clear", "reference")  # the dates of a pair whose masks are read
_SHARES = {  # of a scene that its phases take, from and until
    "decoding": (0.0, 0.2),
    "matching": (0.2, 0.22),
    "first guess": (0.22, 0.25),
    "tiles": (0.25, 0.9),
    "blending": (0.9, 0.95),
}


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
        found.append(Item(STAGE, pair["cloudy"], settings, inputs | more, newer=newer("masks")))
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
        worker = _Worker(config, folder, ranks)
        if ranks.rank:
            return worker.follow()
        try:
            summary = worker.lead(every)
        except CloudjobError as error:
            failure = error  # raised only after the bcast, which ends the ranks that wait for a name
        ranks.bcast(None)
    if failure:
        raise failure
    summary.note = f"{ranks.size} rank{'s' if ranks.size > 1 else ''}"
    return summary


class _Worker:
    """One rank: all of them prepare, restore and blend each scene together; rank 0 then writes its outputs."""

    def __init__(self, config: Config, folder: RunFolder, ranks: "Communicator"):
        from cloudjob.hpc.placement import Place

        self.config, self.folder, self.ranks = config, folder, ranks
        self.place = Place.of(ranks)
        self._model: _Model | None = None

    @property
    def model(self) -> "_Model":
        """Not opened before there is something to do."""
        self._model = self._model or _Model.open(self.config, self.folder, self.ranks.rank, self.place.local_rank)
        return self._model

    def lead(self, every: list[Item]) -> Summary:
        """Rank 0: names each product to the others."""
        pairs = {pair["cloudy"]: pair for pair in decisions.accepted_pairs(self.folder)}
        names = [item.name for item in records.wanted(self.folder, every)]

        def make(item: Item) -> Made:
            pair = pairs[item.name]
            records.need(self.folder, "download", _products(self.config, pair), own=item.name)
            work = self.folder.output(item.name, "").parent / f".work-{digest([item.config, item.inputs])[:8]}"
            team = self._team(work, names.index(item.name), names)
            if not work.exists():
                for old in work.parent.glob(".work-*"):
                    self._team(old).discard()
            team.begin()
            self.ranks.bcast({"pair": pair, "work": str(work)})
            _, *others = self._restore(team, pair) or []
            with team.timed("writing"):
                outputs = _write(self.config, self.folder, item, pair, self.model, work)
            tiles = len(list(work.glob("tile-*.npy")))
            ask_guards()
            team.discard()
            return outputs, {"tiles": tiles, "ranks": [team.figures(), *others]}

        return records.work(self.folder, STAGE, every, make)

    def follow(self) -> Summary:
        """Ranks above 0: take part in every product that rank 0 names."""
        while told := self.ranks.bcast(None):
            team = self._team(Path(told["work"]))
            try:
                self._restore(team, told["pair"])
            except CloudjobError:  # rank 0 has it too, and says it
                continue
        return Summary(STAGE)

    def _team(self, work: Path, number: int = 0, names: Sequence[str] = ()) -> "Team":
        from cloudjob.restoration.team import Team

        def progress(phase: str, share: float) -> None:
            begin, end = _SHARES[phase]
            past = (number + begin + share * (end - begin)) / len(names)
            self.folder.progress(past, f"{STAGE}: {number} of {len(names)} ({names[number]}: {phase} {share:.0%})")

        ranks, threads = self.ranks, self.place.cores
        return Team(work, ranks, threads=threads, stopped=lambda: self.folder.stop_requested(), progress=progress)

    def _open(self) -> list["Unit"]:
        """No work, but for the network, which all ranks open at once: an error of one is then one of all."""
        assert self.model
        return []

    def _restore(self, team: "Team", pair: dict) -> list[dict] | None:
        """On every rank: the restored scene lies in the working folder. Figures of all ranks, on rank 0."""
        from cloudjob.restoration import dates, scene

        settings = self.config.infer
        layout = scene.Layout(settings.tile, settings.overlap, settings.members)
        team.do("opening", self._open)
        dates.make_conditions(team, lambda: _dates(self.config, self.folder, pair))
        factors = self.model.factors if settings.members > 1 else None
        scene.restore(team, self.model.restorer, layout, factors=factors)
        return team.all_figures()


def _dates(config: Config, folder: RunFolder, pair: dict) -> "Dates":
    from cloudjob.restoration.dates import Dates
    from cloudjob.sentinel2 import masks
    from cloudjob.sentinel2.product import Product

    roles = _references(config, pair)
    return Dates(
        {role: Product.open(folder.safe(pair[role])) for role in _MASKED if pair[role]},
        shown=tuple(roles),
        days=pair["days" if roles[0] == "clear" else "reference_days"] if roles else None,
        masks=masks.Settings(**dict(config.masks)),
        labels=folder.labels,
        drifting=folder.drifting,
    )


@dataclass(frozen=True)
class _Model:
    """The trained network as its checkpoint has it, and the factors on its members' deviation."""

    restorer: "Restorer"
    sha256: str
    factors: list[float]

    @classmethod
    def open(cls, config: Config, folder: RunFolder, rank: int, local_rank: int) -> "_Model":
        import torch

        from cloudjob.diffusion import checkpoint
        from cloudjob.hpc import launch
        from cloudjob.restoration.restorer import Restorer
        from cloudjob.scoring import ensembles

        # One thread, and always as many tiles at a time: bytes must not depend on how many ranks share the tiles.
        torch.set_num_threads(1)
        torch.backends.cudnn.deterministic = True
        gpus = torch.cuda.device_count()
        launch.check_gpu(bool(gpus))
        device = torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")
        settings = config.infer
        path = settings.checkpoint or checkpoint.newest(folder.checkpoints)
        recipe, network, calibration = checkpoint.open_network(path, device)
        restorer = Restorer(recipe, network, seed=config.seed, sampler=settings.sampler, steps=settings.steps)
        if gpus:
            torch.cuda.set_device(device)
            restorer.quicken()
        factors = ensembles.factors(calibration, restorer.sampling)
        if rank == 0 and factors is None and settings.members > 1:
            folder.say(
                "infer: WARNING: /uncertainty is the members' bare deviation: the checkpoint was calibrated for "
                "other steps than {steps} of {sampler}".format(**restorer.sampling)
            )
        return cls(restorer, file_sha256(path), factors or [1.0] * 4)


def _write(
    config: Config,
    folder: RunFolder,
    item: Item,
    pair: dict,
    model: _Model,
    work: Path,
) -> list[Path]:
    """Writes the four files."""
    from cloudjob.restoration import output, scene
    from cloudjob.sentinel2.product import Product

    settings = config.infer
    reflectance, reconstructed, uncertainty = scene.restored(work)
    product = Product.open(folder.safe(item.name))
    by_hand = labels.among(item.inputs, [pair[role] for role in _MASKED])
    restored = output.Restored(
        product=item.name,
        reflectance=reflectance,
        reconstructed=reconstructed,
        uncertainty=uncertainty,
        crs=product.crs,
        transform=product.transform,
        sensing_time=product.sensing_time.isoformat().replace("+00:00", "Z"),
        attributes={
            "source_products": " ".join([item.name, *(pair[role] for role in _references(config, pair))]),
            "checkpoint_sha256": model.sha256,
            "config_sha256": digest(item.config),
            "seed": config.seed,
            **model.restorer.sampling,
            "members": settings.members,
            "uncertainty_factors": " ".join(f"{factor:.4f}" for factor in model.factors),
            "cloudjob_version": __version__,
        }
        | ({"masks_by_hand": " ".join(sorted(by_hand))} if by_hand else {}),
    )
    files = {}
    for key, write in (
        ("h5", output.write_h5),
        ("tif", output.write_cog),
        ("png", partial(output.write_png, gain=settings.preview_gain)),
    ):
        files[key] = folder.output(item.name, f".{key}")
        with atomic(files[key]) as temporary:
            write(temporary, restored)
    with atomic(folder.output(item.name, ".json")) as temporary:
        output.write_item(temporary, restored, files)
    return [*files.values(), folder.output(item.name, ".json")]
