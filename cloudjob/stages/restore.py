"""restore: images of one's own without clouds, with no run folder, catalogue or batch system.

As in `infer`, tiles are shared out over MPI ranks, and a killed command goes on where it was: records and tiles lie in
`.cloudjob` below the folder of the results.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob.config.models import InferConfig, MasksConfig, of_members
from cloudjob.errors import ConfigError
from cloudjob.files import ask_guards, digest, file_sha256
from cloudjob.restoration.trained import checkpoint_at
from cloudjob.run import records
from cloudjob.run.folder import ResultsFolder
from cloudjob.run.records import Item, Made, Summary

if TYPE_CHECKING:
    from cloudjob.hpc.mpi import Communicator
    from cloudjob.restoration.crew import Crew
    from cloudjob.restoration.network import Model
    from cloudjob.restoration.own_scene import OwnScene
    from cloudjob.restoration.own_source import Options, Source
    from cloudjob.restoration.team import Team

STAGE = "restore"
_ENDINGS = (".zip", ".SAFE", ".tif", ".tiff", ".nc", ".h5", ".vrt", ".jp2", ".img")
_SEED, _GAIN = 0, 2.5  # of the noise; of the preview, as suits land
_WRITTEN = (".h5", ".tif", ".png", ".json")


@dataclass(frozen=True)
class Request:
    """What is asked for: images, a checkpoint (see `checkpoint_at`), clear dates of the same ground, a mask of one
    image, and how their numbers are meant (see `own_scene.Options`)."""

    images: Sequence[Path]
    checkpoint: Path
    clear: Sequence[Path] = ()
    mask: Path | None = None
    values: dict[str, list[int]] | str | None = None
    grown: bool = False
    bands: str | None = None
    scale: float | None = None
    offset: float | None = None
    members: int = 1


def name_of(image: Path) -> str:
    """What an image's results are called: its name without the ending."""
    name = image.resolve().name
    for ending in _ENDINGS:
        if name.lower().endswith(ending.lower()):
            name = name[: -len(ending)]
    return name


def run(request: Request, scenes: dict[str, "OwnScene"], folder: ResultsFolder) -> Summary:
    """Restores what is missing of what `look` found. Under MPI every rank calls this; rank 0's summary counts."""
    from cloudjob.hpc import mpi

    settings = _settings(request)
    with mpi.communicator() as ranks:
        crew = _crew(request, settings, folder, scenes, ranks)
        summary = crew.run(lambda: _lead(request, settings, folder, scenes, crew)) or Summary(STAGE)
        summary.note = f"{ranks.size} rank{'s' if ranks.size > 1 else ''}"
    summary.output = "\n".join(str(folder.output(name, ".tif")) for name in [*summary.done, *summary.skipped])
    return summary


def _settings(request: Request) -> InferConfig:
    return of_members(request.members, said=f"--members {request.members}")


def _options(request: Request) -> "Options":
    from cloudjob.restoration.own_source import Options
    from cloudjob.sentinel2 import masks

    read = {name: getattr(request, name) for name in ("bands", "scale", "offset", "values", "grown")}
    return Options(**read, mask_settings=masks.Settings(**dict(MasksConfig())))


def look(request: Request, folder: ResultsFolder) -> dict[str, "OwnScene"]:
    """The images by name, checked as far as that can be done without decoding them; nothing is written. ConfigError
    where an image, a clear date or the mask cannot be what it is given for."""
    from cloudjob.restoration.own_scene import OwnScene

    _settings(request)
    names: dict[str, Path] = {}
    for image in request.images:
        other = names.setdefault(name_of(image), image)
        if other is not image:
            raise ConfigError(
                f"{other} and {image} would both become {name_of(image)}: rename one, or name another --out"
            )
    if request.mask and len(names) > 1:
        raise ConfigError(f"--mask {request.mask} is the mask of one image: restore {len(names)} images one by one")
    if alike := [path for path in request.clear if path.resolve() in {image.resolve() for image in request.images}]:
        raise ConfigError(f"--clear {alike[0]} is the image itself; name other dates of the same ground")
    checkpoint_at(request.checkpoint)
    read = [path.resolve() for path in (*request.images, *request.clear, request.mask) if path]
    if over := [path for name in names for end in _WRITTEN if (path := folder.output(name, end).resolve()) in read]:
        raise ConfigError(f"{over[0]} is read here, and would be written over: name another --out")
    options = _options(request)
    return {name: OwnScene.open(path, request.clear, request.mask, options) for name, path in names.items()}


def _crew(
    request: Request,
    settings: InferConfig,
    folder: ResultsFolder,
    scenes: dict[str, "OwnScene"],
    ranks: "Communicator",
) -> "Crew":
    from cloudjob.restoration.crew import Crew

    def open_model(rank: int, local_rank: int) -> "Model":
        from cloudjob.restoration.network import Model

        path = checkpoint_at(request.checkpoint)
        model = Model.open(path, local_rank=local_rank, seed=_SEED, sampler=settings.sampler, steps=settings.steps)
        if rank == 0 and settings.members > 1 and model.warning:
            folder.say(f"restore: {model.warning}")
        return model

    def prepare(team: "Team", name: str) -> None:
        scenes[name].make(team, say=lambda line: folder.say(f"restore: {line}"))

    return Crew(
        ranks,
        open_model,
        size=settings.tile,
        overlap=settings.overlap,
        members=settings.members,
        prepare=prepare,
        stopped=folder.stop_requested,
    )


def _items(request: Request, settings: InferConfig, scenes: dict[str, "OwnScene"]) -> list[Item]:
    """One item per image, with the digests of all that it is made of."""
    config = {"seed": _SEED, "infer": settings.model_dump(mode="json", exclude={"checkpoint", "reference"})}
    config |= {"masks": MasksConfig().model_dump(mode="json")}
    config |= {name: getattr(request, name) for name in ("values", "grown", "bands", "scale", "offset")}
    first = next(iter(scenes.values()))
    inputs = {"checkpoint": file_sha256(checkpoint_at(request.checkpoint))}
    inputs |= {f"clear {number}": _digest(source) for number, source in enumerate(first.clear, 1)}
    inputs |= {"mask": file_sha256(request.mask)} if request.mask else {}
    return [Item(STAGE, name, config, inputs | {"image": _digest(scene.image)}) for name, scene in scenes.items()]


def _digest(source: "Source") -> str:
    """Of the bytes of an image and of the item beside it, or of the files of a product that may be read."""
    from cloudjob.restoration import sidecar
    from cloudjob.sentinel2 import zipped

    if source.product is None:
        files: Iterable[Path] = (*source.raster.files, sidecar.path_of(source.path))
    else:
        if archive := zipped.fingerprint(source.product.folder):
            return archive
        folder = source.product.folder
        files = [folder / "MTD_MSIL2A.xml", *(folder / name for name in source.product.files.values())]
    return digest([file_sha256(path) for path in files if path.is_file()])


def _lead(
    request: Request, settings: InferConfig, folder: ResultsFolder, scenes: dict[str, "OwnScene"], crew: "Crew"
) -> Summary:
    """Rank 0: prepares each image, restores it with the other ranks, and writes the outputs."""
    from cloudjob.restoration.crew import within

    items = _items(request, settings, scenes)
    names = [item.name for item in records.wanted(folder, items)]

    def make(item: Item) -> Made:
        scene = scenes[item.name]
        _announce(request, folder, item, scene)
        work = folder.tiles / f"{item.name}@{digest([item.config, item.inputs])[:8]}"
        team = crew.team(work, within(folder.progress, STAGE, item.name, names.index(item.name), len(names)))
        if not work.exists():
            for old in folder.tiles.glob(f"{item.name}@*"):
                crew.team(old).discard()
        crew.restore(team, item.name)
        outputs = _write(request, folder, item, scene, crew, team)
        ask_guards()
        team.discard()
        return outputs, None

    return records.work(folder, STAGE, items, make)


def _announce(request: Request, folder: ResultsFolder, item: Item, scene: "OwnScene") -> None:
    """Says why an image is restored again, what was guessed of the files, and where the mask comes from."""
    reason = records.why(folder, item)
    if reason and reason != "missing":
        folder.say(f"restore: {item.name} is made again ({reason})")
    for note in dict.fromkeys(note for source in (scene.image, *scene.clear) for note in source.notes):
        folder.say(f"restore: {note}")
    folder.say(f"restore: {item.name}: cloud by {scene.mask_source}")
    if unseen := request.clear[len(scene.clear) :]:
        left = ", ".join(str(path) for path in unseen)
        folder.say(f"restore: at most {len(scene.clear)} clear dates are shown to the network; left out: {left}")


def _write(
    request: Request, folder: ResultsFolder, item: Item, scene: "OwnScene", crew: "Crew", team: "Team"
) -> dict[Path, str]:
    """Writes the files of a restored image: their paths, and the digests of their content."""
    from cloudjob.restoration import output, written
    from cloudjob.restoration.scene import stripes

    image = scene.image
    attributes = written.attributes(
        [name_of(source.path) for source in (image, *scene.clear)],
        crew.model,
        config_sha256=digest(item.config),
        seed=_SEED,
        members=request.members,
    )
    header = output.Header(
        name=item.name,
        shape=image.grid.shape,
        crs=None if image.grid.crs is None else str(image.grid.crs),
        transform=image.grid.transform,
        sensing_time=None if image.acquired is None else image.acquired.isoformat().replace("+00:00", "Z"),
        attributes=attributes | {"cloud_mask": scene.mask_source},
        uncertainty=request.members > 1,
    )
    return written.write(folder.output(item.name, ""), header, stripes(team), gain=_GAIN)
