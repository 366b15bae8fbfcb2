"""The first guess of the ground under the clouds of a scene by its surroundings, computed once: what tiles need of it,
in cells. Checkpoints of before have learned with it.

As the conditions of a batch have it, but continued from all of the scene, so that neighbouring tiles continue the same
surroundings. A cell is 4 pixels wide; pixels are interpolated from them where they are wanted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.conditions import CELLS, Guess, Normalisation, continued
from cloudjob.pixels import BANDS, CLEAR, EMPTY_DN, OFFSET, SCALE
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.placed import Placed, load
from cloudjob.restoration.team import Team, Unit
from cloudjob.restoration.tiles import Tile

LAYERS = 2 * len(BANDS)  # the shift from the reference to the cloudy date, and the cloudy image around the clouds
CELL, _COARSEST = CELLS[-1], CELLS[0]
ROWS = 16 * _COARSEST  # of a stripe
_REACH = 3 * _COARSEST  # pixels from which a cell is continued: one cell of each size on either side of it


@dataclass(frozen=True)
class Surroundings:
    """The first guess of the scene whose conditions lie in a folder; its cells are a file there."""

    folder: Path
    norm: Normalisation

    def make(self, team: Team) -> None:
        """Leaves the cells in the folder."""

        def plan() -> list[Unit]:
            conditions = SceneConditions.load(self.folder)
            cells = self._cells(conditions.mask.shape)

            def make(top: int) -> None:
                cells.write_layers(top // CELL, stripe(conditions, top, self.norm))
                cells.flush()
                conditions.release()

            tops = range(0, cells.shape[1] * CELL, ROWS)
            return [Unit(f"{top:05d}", partial(make, top)) for top in tops]

        team.do("first guess", plan, threads=team.few)

    def _cells(self, scene: tuple[int, int]) -> Placed:
        return Placed(self.folder / "guess.npy", shape(scene), "float32")

    def cut(self, batch: Batch, places: Sequence[Tile]) -> Guess:
        """What tiles are told, whose own images are those of the batch."""
        cells = load(self.folder / "guess.npy")
        told = torch.from_numpy(np.stack([cut(cells, tile) for tile in places]))
        shift, around = at_pixels(told.to(batch.cloudy.device), places)
        std = torch.tensor(self.norm.std, device=shift.device)[:, None, None]
        ground = self.norm.inverse(around)
        for other in batch.references.flip(1).unbind(1):  # the most wanted last, over the others
            ground = torch.where(other.isfinite().all(1, keepdim=True), other + shift * std, ground)
        return Guess(torch.where(batch.classes == CLEAR, batch.cloudy, ground), None)


def shape(scene: tuple[int, int]) -> tuple[int, int, int]:
    """(LAYERS, rows, columns) of the cells of a scene of this shape (rows, columns), in whole coarsest cells."""
    rows, cols = (-(-side // _COARSEST) * _COARSEST // CELL for side in scene)
    return LAYERS, rows, cols


def stripe(conditions: SceneConditions, top: int, norm: Normalisation) -> NDArray:
    """(LAYERS, r, w) float32 cells in normalised units: those of ROWS rows of pixels from row `top` on, a multiple of
    ROWS. Any stripe comes out as of the whole scene."""
    height = shape(conditions.mask.shape)[1] * CELL
    first, last = max(top - _REACH, 0), min(top + ROWS + _REACH, height)
    found = [_pooled(conditions, row) for row in range(first, last, _COARSEST)]
    sums, counts = (torch.from_numpy(np.concatenate(parts, -2)) for parts in zip(*found, strict=True))
    del found
    mean, std = (torch.tensor(values)[:, None, None] for values in (norm.mean, norm.std))
    shift = sums[: len(BANDS)] * SCALE / std
    around = (sums[len(BANDS) :] * SCALE + counts[1:] * (OFFSET - mean)) / std
    del sums
    here = slice((top - first) // CELL, (min(top + ROWS, height) - first) // CELL)
    parts = [
        continued(_levels(values[None] / CELL**2, known[None, None] / CELL**2))[0, :, here]
        for values, known in ((shift, counts[0]), (around, counts[1]))
    ]
    return torch.cat(parts).numpy()


def _levels(mean: Tensor, share: Tensor) -> Iterator[list[Tensor]]:
    for cell in CELLS:
        yield [F.avg_pool2d(x, cell // CELL) for x in (mean, share)]


def _pooled(conditions: SceneConditions, top: int) -> tuple[NDArray, NDArray]:
    """Of the rows of a coarsest cell: sums over the known pixels of each cell (LAYERS, r, w) float32 DN, and how many
    are known, with and without need of a reference (2, r, w) float32. All of them are whole numbers."""
    rows = slice(top, top + _COARSEST)
    cloudy, others = conditions.cloudy[:, rows], [other[:, rows] for other in conditions.references]
    conditions.release()
    clear = (conditions.mask[rows] == CLEAR) & (cloudy != EMPTY_DN).all(0)
    other = np.zeros_like(cloudy)
    for image in reversed(others):  # the most wanted last, over the others
        np.copyto(other, image, where=(image != EMPTY_DN).all(0))
    both = clear & (other != EMPTY_DN).all(0)
    width = shape(conditions.mask.shape)[2] * CELL
    sums = [_sums((band.astype(np.int32) - known) * both, width) for band, known in zip(cloudy, other, strict=True)]
    sums += [_sums(band * clear, width) for band in cloudy]
    counts = [_sums(known, width) for known in (both, clear)]
    return np.stack(sums), np.stack(counts)


def _sums(values: NDArray, width: int) -> NDArray:
    """(_COARSEST / CELL, width / CELL) float32 sums over cells; 0 beyond the values."""
    missing = (_COARSEST - values.shape[0], width - values.shape[1])
    padded = np.pad(values.astype(np.int32), [(0, each) for each in missing])
    rows = reduce(np.add, (padded[n::CELL] for n in range(CELL)))
    return reduce(np.add, (rows[:, n::CELL] for n in range(CELL))).astype(np.float32)


def cut(cells: NDArray, tile: Tile) -> NDArray:
    """(LAYERS, h, w): the cells of a tile and one more on each side, the outermost repeated beyond the scene. Tiles of
    one size have as many."""
    rows, cols = (
        np.arange(start // CELL - 1, start // CELL + -(-length // CELL) + 2).clip(0, count - 1)
        for start, length, count in zip((tile.row, tile.col), (tile.height, tile.width), cells.shape[1:], strict=True)
    )
    return np.array(cells[:, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1][:, rows - rows[0]][..., cols - cols[0]])


def at_pixels(cells: Tensor, places: Sequence[Tile]) -> tuple[Tensor, Tensor]:
    """Shift and surroundings (N, 4, h, w) at the pixels of tiles, from their cells (N, LAYERS, ...) (see `cut`)."""
    fine = F.interpolate(cells, scale_factor=float(CELL), mode="bilinear")
    tiles = [
        one[:, CELL + tile.row % CELL :, CELL + tile.col % CELL :][:, : tile.height, : tile.width]
        for one, tile in zip(fine, places, strict=True)
    ]
    shift, around = torch.stack(tiles).chunk(2, 1)
    return shift, around
