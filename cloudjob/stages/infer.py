"""infer: restores the ground under the clouds of every cloudy product; tiles are shared out over MPI ranks.

MPI carries the names of products and the ranks' answers, never pixels: inputs and restored tiles lie as .npy files in
a hidden folder beside the outputs, which is also what a killed job goes on from.
"""

import json
import os
import shutil
from functools import partial
from pathlib import Path

from cloudjob import __version__
from cloudjob.config.models import Config
from cloudjob.errors import CloudjobError, DiskFullError, InterruptedJob, ItemError
from cloudjob.run.records import Item, Summary
from cloudjob.run.folder import RunFolder
from cloudjob.files import atomic, digest, file_sha256, write_json

STAGE = "infer"


def items(config: Config, workspace: RunFolder) -> list[Item]:
    settings = config.section("infer", "masks")
    checkpoint = {"checkpoint": records.checkpoint_digest(workspace, config.infer.checkpoint)}
    found = []
    for pair in decisions.accepted_pairs(workspace):
        products = [pair["cloudy"], *_references(config, pair)]
        inputs = {name: records.output_digest(workspace, "download", name) for name in products}
        found.append(Item(STAGE, pair["cloudy"], settings, inputs | checkpoint | {"pair": pair["version"]}))
    return found


def _reference_roles(config: Config, pair: dict) -> list[str]:
    """The clear dates that the model is shown, the most wanted first."""
    roles = {"other": ["reference"], "nearest": ["clear", "reference"], "none": []}[config.infer.reference]
    return [role for role in roles if pair[role]]


def _references(config: Config, pair: dict) -> list[str]:
    return [pair[role] for role in _reference_roles(config, pair)]


def run(config: Config, workspace: RunFolder) -> Summary:
    from cloudjob.hpc import mpi

    every = items(config, workspace)
    if config.infer.checkpoint is None:
        records.require(workspace, "train", ["run"], reader=STAGE)
    names = sorted({name for item in every for name in item.inputs if name not in ("checkpoint", "pair")})
    records.require(workspace, "download", names, reader=STAGE)
    failure = None
    with mpi.world() as world:
        if world.rank:
            return _serve(config, workspace, world)
        try:
            summary = _lead(config, workspace, every, world)
        except CloudjobError as error:
            failure = error  # the other ranks wait for a name: send them home before it ends this one
        world.bcast(None)
    if failure:
        raise failure
    summary.note = f"{world.size} rank{'s' if world.size > 1 else ''}"
    return summary


def _lead(config: Config, workspace: RunFolder, every: list[Item], world) -> Summary:
    """Rank 0: prepares each product, restores its share with the others, and writes the outputs."""
    model = None

    def make(item: Item):
        nonlocal model
        model = model or _Model(config, workspace, world.rank)  # not before there is something to do
        work = workspace.output(item.name, "").parent / f".work-{digest([item.config, item.inputs])[:8]}"
        pair = _prepare(config, workspace, item, work)
        world.bcast(str(work))
        for rank, answer in enumerate(world.gather(_share(config, workspace, model, work, world))):
            if answer is not None:
                kind, message = answer
                raise _KINDS[kind](f"{item.name}, rank {rank}: {message}")
        outputs = _write(config, workspace, item, work, pair, model)
        shutil.rmtree(work)
        return outputs, None

    return records.work(workspace, STAGE, every, make)


def _serve(config: Config, workspace: RunFolder, world) -> Summary:
    """Ranks above 0: restore their share of every product that rank 0 names."""
    model = None
    while (work := world.bcast(None)) is not None:
        model = model or _Model(config, workspace, world.rank)
        world.gather(_share(config, workspace, model, Path(work), world))
    return Summary(STAGE)


_KINDS = {kind.__name__: kind for kind in (InterruptedJob, DiskFullError, ItemError)}


def _share(config: Config, workspace: RunFolder, model, work: Path, world) -> tuple[str, str] | None:
    """Restores this rank's share. What goes wrong is an answer: an error would leave the others waiting for it."""
    try:
        _restore(config, workspace, model, work, world)
    except CloudjobError as error:
        kind = type(error).__name__
        return (kind if kind in _KINDS else ItemError.__name__), str(error)
    return None


class _Model:
    """Network with the averaged weights, process and normalisation, as the checkpoint has them."""

    def __init__(self, config: Config, workspace: RunFolder, rank: int):
        import torch

        from cloudjob.scoring import ensembles
        from cloudjob.hpc import launch
        from cloudjob.diffusion.checkpoint import open_checkpoint

        # One thread and one tile at a time: the bytes must not depend on how many ranks share the tiles.
        torch.set_num_threads(1)
        torch.backends.cudnn.deterministic = True
        gpus = torch.cuda.device_count()
        launch.check_gpu(bool(gpus))
        self.device = torch.device("cuda", rank % gpus) if gpus else torch.device("cpu")
        path = config.infer.checkpoint
        if path is None:
            path = workspace.newest_checkpoint()
        self.sha256 = file_sha256(path)
        self.recipe, self.network, calibration = open_checkpoint(path, self.device)
        self.taken = self.recipe.taken(config.infer.sampler, config.infer.steps)
        found = ensembles.factors(calibration, self.taken)
        self.factors = found or [1.0] * 4
        if rank == 0 and found is None and config.infer.members > 1:
            workspace.say(
                f"infer: WARNING: /uncertainty is the members' bare deviation: the checkpoint was calibrated for "
                f"other steps than {self.taken['steps']} of {self.taken['sampler']}"
            )


def _prepare(config: Config, workspace: RunFolder, item: Item, work: Path) -> dict:
    """Decodes bands and masks once, and leaves them as .npy for all ranks: cloudy, core, reference, mask; and the sun's
    elevation (degrees) and the days to the reference in numbers.json."""
    import numpy as np

    from cloudjob.sentinel2 import masks
    from cloudjob.sentinel2.scene import open_pair

    pair = next(pair for pair in decisions.accepted_pairs(workspace) if pair["cloudy"] == item.name)
    if (work / "mask.npy").exists():  # the last one to be written
        return pair
    for old in work.parent.glob(".work-*"):
        shutil.rmtree(old)
    folders = {role: workspace.safe(pair[role]) for role in ("cloudy", "clear", "reference") if pair[role]}
    load = open_pair(folders, masks.Settings(**dict(config.masks)), processes=len(os.sched_getaffinity(0)))
    cloudy = load("cloudy")
    arrays = {"cloudy": cloudy.bands, "core": cloudy.core}
    for role in _reference_roles(config, pair):
        other = load(role)
        bands = other.clear_only(cloudy.matched(other))
        first = arrays.setdefault("reference", bands)
        first[first == 0] = bands[first == 0]  # where the nearer date has clouds of its own
    roles = _reference_roles(config, pair)
    days = pair["days" if roles[0] == "clear" else "reference_days"] if roles else None
    write_json(work / "numbers.json", {"sun_elevation": cloudy.product.sun_elevation, "reference_days": days})
    for name, array in [*arrays.items(), ("mask", cloudy.mask)]:
        with atomic(work / f"{name}.npy") as temporary:
            np.save(temporary, array)
    return pair


def _restore(config: Config, workspace: RunFolder, model: _Model, work: Path, world) -> None:
    """Every `size`-th of the tiles that have cloud, from this rank's number on; finished ones are kept."""
    import numpy as np

    mask = np.load(work / "mask.npy", mmap_mode="r")
    cloudy = np.load(work / "cloudy.npy", mmap_mode="r")
    reference = np.load(work / "reference.npy", mmap_mode="r") if (work / "reference.npy").exists() else None
    numbers = json.loads((work / "numbers.json").read_text())
    for number, tile in enumerate(_cloudy_tiles(config, mask)):
        target = _tile_file(work, tile)
        if number % world.size != world.rank or target.exists():
            continue
        if workspace.stop_requested():
            raise InterruptedJob("stopped; finished tiles are kept, run the same command again")
        scene = (cloudy, mask, reference, numbers)
        members = [_sample(config, model, tile, scene, member) for member in range(config.infer.members)]
        with atomic(target) as temporary:
            np.save(temporary, np.concatenate(members))


def _sample(config: Config, model: _Model, tile, scene: tuple, member: int):
    """One member of one tile, (1, 4, size, size) uint16 DN; where the scene ends before the tile there is no data."""
    import math

    import numpy as np
    import torch

    from cloudjob.diffusion import noise
    from cloudjob.sentinel2.radiometry import digital_number, reflectance

    margin = config.infer.tile  # the first guess of the ground looks as far as the next tile

    def cut(array, fill):
        (top, bottom), (left, right) = ((part.start - margin, part.stop + margin) for part in tile.slices)
        height, width = array.shape[-2:]
        part = array[..., max(top, 0) : bottom, max(left, 0) : right]
        beyond = [(max(-top, 0), max(bottom - height, 0)), (max(-left, 0), max(right - width, 0))]
        return np.pad(part, [(0, 0)] * (part.ndim - 2) + beyond, constant_values=fill)

    def tensor(array):
        return torch.from_numpy(array)[None].to(model.device)

    cloudy, mask, reference, numbers = scene
    batch = {"cloudy": tensor(reflectance(cut(cloudy, 0))), "mask": tensor(cut(mask, 255))}
    if reference is not None:
        batch["reference"] = tensor(reflectance(cut(reference, 0)))
    for name, number in (numbers | {"target_days": 0}).items():
        batch[name] = torch.tensor([math.nan if number is None else number], device=model.device).float()
    rows, cols = range(tile.row, tile.row + tile.height), range(tile.col, tile.col + tile.width)
    ground = model.recipe.restore(
        model.network,
        batch,
        noise=lambda step: noise.field(
            config.seed, rows=rows, cols=cols, bands=4, member=member, step=step, device=model.device
        )[None],
        steps=config.infer.steps,
        sampler=config.infer.sampler,
        margin=margin,
    )
    return digital_number(ground.cpu().numpy())


def _cloudy_tiles(config: Config, mask) -> list:
    import numpy as np

    from cloudjob.restoration.tiles import tiles

    every = tiles(mask.shape, size=config.infer.tile, overlap=config.infer.overlap)
    return [tile for tile in every if np.isin(mask[tile.slices], (1, 2, 3)).any()]


def _tile_file(work: Path, tile) -> Path:
    return work / f"tile-{tile.row:05d}-{tile.col:05d}.npy"


def _write(config: Config, workspace: RunFolder, item: Item, work: Path, pair: dict, model: _Model) -> list[Path]:
    """Blends the tiles, puts them into the dilated mask alone, and writes the four files."""
    import numpy as np

    from cloudjob.restoration import blend, output
    from cloudjob.sentinel2.product import Product

    mask, cloudy = np.load(work / "mask.npy"), np.load(work / "cloudy.npy")
    parts = [(tile, _tile_file(work, tile)) for tile in _cloudy_tiles(config, mask)]
    several = config.infer.members > 1
    mean, spread = blend.mosaic(parts, shape=mask.shape, overlap=config.infer.overlap, spread=several)
    if several:  # calibrated on the held-out split of the training
        spread *= np.array(model.factors, np.float32)[:, None, None]
    reflectance, reconstructed = blend.compose(cloudy, mean, mask=mask, core=np.load(work / "core.npy"))
    product = Product.open(workspace.safe(item.name))
    settings = config.infer
    scene = output.Restored(
        product=item.name,
        reflectance=reflectance,
        reconstructed=reconstructed,
        uncertainty=np.where(reconstructed % 255 > 0, np.rint(spread), 0).astype(np.uint16) if several else None,
        crs=product.crs,
        transform=product.transform,
        sensing_time=product.sensing_time.isoformat().replace("+00:00", "Z"),
        attributes={
            "source_products": " ".join([item.name, *_references(config, pair)]),
            "checkpoint_sha256": model.sha256,
            "config_sha256": digest(item.config),
            "seed": config.seed,
            **model.taken,
            "members": settings.members,
            "uncertainty_factors": " ".join(f"{factor:.4f}" for factor in model.factors),
            "cloudjob_version": __version__,
        },
    )
    files = {}
    for key, write in (
        ("h5", output.write_h5),
        ("tif", output.write_cog),
        ("png", partial(output.write_png, gain=settings.preview_gain)),
    ):
        files[key] = workspace.output(item.name, f".{key}")
        with atomic(files[key]) as temporary:
            write(temporary, scene)
    with atomic(workspace.output(item.name, ".json")) as temporary:
        output.write_item(temporary, scene, files)
    return [*files.values(), workspace.output(item.name, ".json")]
