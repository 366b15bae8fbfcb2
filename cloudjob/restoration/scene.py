"""A whole scene restored: its tiles one by one, shared out over ranks, then put together again in the cloudy image."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudjob.errors import InterruptedJob
from cloudjob.files import atomic
from cloudjob.pixels import NO_DATA
from cloudjob.restoration import blend
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.restorer import Restorer
from cloudjob.restoration.tiles import Tile
from cloudjob.sentinel2.radiometry import digital_number


def restore_tiles(
    conditions: SceneConditions,
    restorer: Restorer,
    folder: Path,
    *,
    size: int,
    overlap: int,
    members: int,
    rank: int = 0,
    ranks: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Restores every `ranks`-th of the tiles that have cloud, from number `rank` on, each into a file of its own.

    A file holds all members, (members, 4, size, size) uint16 DN; finished ones are kept. InterruptedJob on a wish to
    stop. The surroundings of a tile reach as far as the next tile, for the first guess of the ground.
    """
    for number, tile in enumerate(conditions.cloudy_tiles(size=size, overlap=overlap)):
        target = _tile_file(folder, tile)
        if number % ranks != rank or target.exists():
            continue
        if stopped():
            raise InterruptedJob("stopped; finished tiles are kept, run the same command again")
        batch = conditions.batch(tile, margin=size, device=restorer.device)
        drawn = [digital_number(restorer.tile(batch, tile, member, margin=size)) for member in range(members)]
        with atomic(target) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate(drawn))


def put_together(
    conditions: SceneConditions, folder: Path, *, size: int, overlap: int, factors: Sequence[float] | None
) -> tuple[NDArray, NDArray, NDArray | None]:
    """(reflectance (4, H, W) uint16 DN, what was reconstructed (H, W) uint8, uncertainty (4, H, W) uint16 or None) from
    the files of `restore_tiles`.

    `factors`, one per band, calibrate the members' deviation; None where there is one member, and so no uncertainty.
    """
    parts = [(tile, _tile_file(folder, tile)) for tile in conditions.cloudy_tiles(size=size, overlap=overlap)]
    mask = np.asarray(conditions.mask)
    mean, spread = blend.mosaic(parts, shape=mask.shape, overlap=overlap, spread=factors is not None)
    reflectance, reconstructed = blend.compose(
        np.asarray(conditions.cloudy), mean, mask=mask, core=np.asarray(conditions.core)
    )
    if spread is None:
        return reflectance, reconstructed, None
    spread *= np.array(factors, np.float32)[:, None, None]
    changed = (reconstructed != blend.OBSERVED) & (reconstructed != NO_DATA)
    return reflectance, reconstructed, np.where(changed, np.rint(spread), 0).astype(np.uint16)


def _tile_file(folder: Path, tile: Tile) -> Path:
    return folder / f"tile-{tile.row:05d}-{tile.col:05d}.npy"
