"""A whole scene restored by a team of ranks: its first guess, its tiles, then all put together in the cloudy image.

The scene's conditions lie in the team's folder (see `SceneConditions.save`), and so does all that is made of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudjob.diffusion.batch import Batch
from cloudjob.files import atomic
from cloudjob.pixels import BANDS, NO_DATA
from cloudjob.restoration import blend, guess, surroundings
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.placed import Placed, load, release
from cloudjob.restoration.restorer import Restorer
from cloudjob.restoration.team import Team, Unit
from cloudjob.restoration.tiles import Tile
from cloudjob.sentinel2.radiometry import digital_number

_STRIPES = 4  # of blend.ROWS rows, that make a unit
_FEEDERS = 3  # threads that keep a GPU busy: what one reads and writes lies beside another's computing


@dataclass(frozen=True)
class Layout:
    """How a scene is cut: tiles of `size` pixels that overlap by `overlap`, each restored `members` times."""

    size: int
    overlap: int
    members: int = 1


def restore(team: Team, restorer: Restorer, layout: Layout, *, factors: Sequence[float] | None) -> None:
    """All of it. `factors`, one per band, calibrate the members' deviation; None where there is one member, and so no
    uncertainty. Read what comes out by `stripes`, or mapped by `restored`."""
    make_guess(team, restorer, layout)
    restore_tiles(team, restorer, layout)
    put_together(team, layout, factors=factors)


def make_guess(team: Team, restorer: Restorer, layout: Layout) -> None:
    """The first guess of the ground, as tiles need it."""
    conditions = SceneConditions.load(team.folder)
    places = conditions.cloudy_tiles(size=layout.size, overlap=layout.overlap)
    conditions.release()
    _guess(team, restorer, places).make(team)


def _guess(team: Team, restorer: Restorer, places: Sequence[Tile]) -> "guess.Similar | surroundings.Surroundings":
    """Of these tiles."""
    if restorer.recipe.first_guess == "surroundings":
        return surroundings.Surroundings(team.folder, restorer.recipe.norm)
    return guess.Similar.of(team.folder, restorer.device, places)


def restore_tiles(team: Team, restorer: Restorer, layout: Layout) -> None:
    """Restores the tiles that have cloud, each into a file of its own: all members, (members, 4, size, size) uint16 DN.
    The work of a rank is a group of tiles of one size, whatever is left, so that bits depend on no other rank."""
    group = max(1, min(restorer.at_once, restorer.at_once * 256**2 // layout.size**2))

    def plan() -> list[Unit]:
        conditions = SceneConditions.load(team.folder)
        every = conditions.cloudy_tiles(size=layout.size, overlap=layout.overlap)
        conditions.release()
        first = _guess(team, restorer, every)
        count = max(1, group // layout.members)
        groups = [every[first : first + count] for first in range(0, len(every), count)]

        def make(places: list[Tile]) -> None:
            full = places + places[-1:] * (count - len(places))
            _restore_group(conditions, restorer, first, full, layout.members, group, _files(team.folder, places))
            conditions.release()

        return [
            Unit(f"{places[0].row}-{places[0].col}", partial(make, places), _files(team.folder, places))
            for places in groups
        ]

    feeders = _FEEDERS if restorer.device.type == "cuda" else 1
    team.do("tiles", plan, threads=feeders)


def _restore_group(
    conditions: SceneConditions,
    restorer: Restorer,
    first: "guess.Similar | surroundings.Surroundings",
    places: list[Tile],
    members: int,
    group: int,
    files: tuple[Path, ...],
) -> None:
    on_gpu = restorer.device.type == "cuda"
    arrays = conditions.arrays(places, pin=on_gpu)  # until the GPU is done
    batch = Batch.of(arrays, restorer.device)
    told = first.cut(batch, places)
    ground = restorer.tiles(batch, places, members, guess=told, group=group)[: len(files)].cpu().numpy()
    for path, tile in zip(files, ground, strict=True):
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.save(file, digital_number(tile))


def put_together(team: Team, layout: Layout, *, factors: Sequence[float] | None) -> None:
    """Blends the tiles into the cloudy image, stripe by stripe."""

    def plan() -> list[Unit]:
        conditions = SceneConditions.load(team.folder)
        feather = blend.Feather(conditions.mask, conditions.core)
        feather.look()
        places = conditions.cloudy_tiles(size=layout.size, overlap=layout.overlap)
        parts = list(zip(places, _files(team.folder, places), strict=True))
        conditions.release()
        out = Outputs.of(team.folder, conditions.mask.shape, uncertainty=factors is not None)

        def make(tops: Sequence[int]) -> None:
            for top in tops:
                _compose(conditions, feather, parts, layout.overlap, top, factors, out)
            out.flush()
            conditions.release()

        tops = feather.tops
        units = [tops[first : first + _STRIPES] for first in range(0, len(tops), _STRIPES)]
        return [Unit(f"{some[0]:05d}", partial(make, some)) for some in units]

    team.do("blending", plan, threads=team.few)


def _compose(
    conditions: SceneConditions,
    feather: blend.Feather,
    parts: list[tuple[Tile, Path]],
    overlap: int,
    top: int,
    factors: Sequence[float] | None,
    out: "Outputs",
) -> None:
    rows, shape = slice(top, top + blend.ROWS), conditions.mask.shape
    mean, spread = blend.mosaic(parts, shape=shape, overlap=overlap, spread=factors is not None, rows=rows)
    reflectance, flags = feather.compose(top, conditions.cloudy[:, rows], mean)
    out.reflectance.write_layers(top, reflectance)
    out.reconstructed.write(top, flags)
    if out.uncertainty and spread is not None:
        spread *= np.array(factors, np.float32)[:, None, None]
        changed = (flags != blend.OBSERVED) & (flags != NO_DATA)
        out.uncertainty.write_layers(top, np.where(changed, np.rint(spread), 0).astype(np.uint16))


@dataclass(frozen=True)
class Outputs:
    """The arrays of the restored scene."""

    reflectance: Placed  # (4, H, W) uint16 DN
    reconstructed: Placed  # (H, W) uint8, see `blend.Feather`
    uncertainty: Placed | None  # (4, H, W) uint16 deviation over members, in the units of reflectance / SCALE

    @classmethod
    def of(cls, folder: Path, shape: tuple[int, int], *, uncertainty: bool) -> "Outputs":
        image = (len(BANDS), *shape)
        return cls(
            Placed(folder / "restored.npy", image, "uint16"),
            Placed(folder / "reconstructed.npy", shape, "uint8"),
            Placed(folder / "uncertainty.npy", image, "uint16") if uncertainty else None,
        )

    def flush(self) -> None:
        for array in (self.reflectance, self.reconstructed, self.uncertainty):
            if array:
                array.flush()


def restored(folder: Path) -> tuple[NDArray, NDArray, NDArray | None]:
    """(reflectance, reconstructed, uncertainty) of `put_together`, mapped: see `Outputs`."""
    paths = [folder / f"{name}.npy" for name in ("restored", "reconstructed", "uncertainty")]
    reflectance, reconstructed, uncertainty = (load(path) if path.exists() else None for path in paths)
    assert reflectance is not None  # as `put_together` wrote it
    assert reconstructed is not None
    return reflectance, reconstructed, uncertainty


def shape(folder: Path) -> tuple[int, int]:
    """Rows and columns of the restored scene."""
    return restored(folder)[1].shape


def stripes(team: Team, *, rows: int = 512) -> Iterator[tuple[int, NDArray, NDArray, NDArray | None]]:
    """(top, reflectance (4, r, W), reconstructed (r, W), uncertainty (4, r, W) or None) from north to south.
    InterruptedJob on a wish to stop."""
    reflectance, reconstructed, uncertainty = restored(team.folder)
    for top in range(0, len(reconstructed), rows):
        team.look()
        here = np.s_[..., top : top + rows, :]
        spread = None if uncertainty is None else np.array(uncertainty[here])
        yield top, np.array(reflectance[here]), np.array(reconstructed[here]), spread
        release(reflectance, reconstructed, uncertainty)


def _files(folder: Path, places: Sequence[Tile]) -> tuple[Path, ...]:
    return tuple(folder / f"tile-{tile.row:05d}-{tile.col:05d}.npy" for tile in places)
