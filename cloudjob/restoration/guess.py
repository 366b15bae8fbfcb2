"""The first guess of the ground under the clouds of a scene by similarity, computed once, so that neighbouring tiles
have the same.

It is made window by window, and what a window gives is what the whole scene gives: each sees `similarity.REACH` pixels
more on every side, and is told of clear pixels of all the scene for the middle of large clouds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.conditions import Guess
from cloudjob.diffusion.similarity import REACH, Far, similar
from cloudjob.files import atomic
from cloudjob.pixels import BANDS, CLEAR, EMPTY_DN, OFFSET, SCALE
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.placed import load
from cloudjob.restoration.team import Team, Unit
from cloudjob.restoration.tiles import Tile
from cloudjob.sentinel2.radiometry import digital_number

WINDOW = 1024  # pixels a side, a multiple of the blocks of `similarity`
_CELL, _STEP = 8, 8  # one clear pixel of so many, each so many pixels from the next, that are looked at a side
_TASTE = np.random.default_rng(0).random((_CELL, _CELL))  # which of equally good ones is taken
_FINE = 1e-5  # reflectance: the unit of deviations in files, below 1 % of the least


@dataclass(frozen=True)
class Similar:
    """The first guess of the scene whose conditions lie in a folder: in `windows` of it, each a file there of (8, h, w)
    uint16, the DN of the ground, EMPTY_DN where no date has data, and the deviation in units of 1e-5."""

    folder: Path
    device: torch.device
    windows: tuple[Tile, ...]

    @classmethod
    def of(cls, folder: Path, device: torch.device, places: Sequence[Tile]) -> "Similar":
        """In the windows that have anything to guess for these tiles."""
        conditions = SceneConditions.load(folder)
        height, width = conditions.mask.shape
        windows = (
            Tile(row, col, min(WINDOW, height - row), min(WINDOW, width - col))
            for row, col in product(range(0, height, WINDOW), range(0, width, WINDOW))
        )
        wanted = [one for one in windows if any(one.common(tile) for tile in places)]
        found = cls(folder, device, tuple(one for one in wanted if (conditions.mask[one.slices] != CLEAR).any()))
        conditions.release()
        return found

    def make(self, team: Team) -> None:
        """Leaves all windows in the folder."""

        def plan() -> list[Unit]:
            conditions = SceneConditions.load(self.folder)
            far = _far(conditions, self.device)
            hidden = {one: np.count_nonzero(conditions.mask[one.slices] != CLEAR) for one in self.windows}
            conditions.release()
            return [
                Unit(
                    f"{one.row:05d}-{one.col:05d}",
                    partial(self._write, conditions, far, one),
                    (self._file(one),),
                    weight=0.1 + count / WINDOW**2,
                )
                for one, count in hidden.items()
            ]

        team.do("first guess", plan)

    def _write(self, conditions: SceneConditions, far: Far, window: Tile) -> None:
        around = Tile(window.row - REACH, window.col - REACH, window.height + 2 * REACH, window.width + 2 * REACH)
        batch = Batch.of(conditions.arrays([around]), self.device)
        conditions.release()
        ground, deviation = similar(
            batch.cloudy,
            batch.references,
            batch.mask == CLEAR,
            margin=REACH,
            origin=(around.row, around.col),
            far=far,
        )
        spread = (deviation[0] / _FINE).round().nan_to_num(0).clamp(max=2**16 - 1)
        found = np.concatenate([digital_number(ground[0].cpu().numpy()), spread.cpu().numpy().astype(np.uint16)])
        with atomic(self._file(window)) as temporary, temporary.open("wb") as file:
            np.save(file, found)

    def _file(self, window: Tile) -> Path:
        return self.folder / f"guess-{window.row:05d}-{window.col:05d}.npy"

    def cut(self, batch: Batch, places: Sequence[Tile]) -> Guess:
        """What tiles are told, whose own images and masks are those of the batch."""
        found = np.stack([self._cut(tile) for tile in places])
        dn, deviation = torch.from_numpy(found).to(self.device).to(batch.cloudy.dtype).chunk(2, 1)
        nothing = dn == EMPTY_DN
        ground = (dn * SCALE + OFFSET).masked_fill(nothing, torch.nan)
        seen = batch.classes == CLEAR
        return Guess(
            torch.where(seen, batch.cloudy, ground),
            (deviation * _FINE).masked_fill(nothing, torch.nan).masked_fill(seen, 0),
        )

    def _cut(self, tile: Tile) -> NDArray:
        out = np.zeros((2 * len(BANDS), tile.height, tile.width), np.uint16)
        for window in self.windows:
            if common := tile.common(window):
                out[:, *common.within(tile)] = load(self._file(window))[:, *common.within(window)]
        return out


def _far(conditions: SceneConditions, device: torch.device) -> Far:
    """Clear pixels of all the scene."""
    tops = range(0, len(conditions.mask), _CELL * _STEP)
    found = torch.from_numpy(np.concatenate([_clear_pixels(conditions, top) for top in tops])).to(device)
    dn = found[:, 2:].unflatten(1, (-1, len(BANDS)))
    values = (dn * SCALE + OFFSET).masked_fill(dn == EMPTY_DN, torch.nan)
    return Far(found[:, :2].long(), values[:, 0], values[:, 1:])


def _clear_pixels(conditions: SceneConditions, top: int) -> NDArray:
    """Of a row of cells one clear pixel each, if it has any, with data on as many dates as can be: (k, 2 + 4 (1 + R))
    int32, row, column, and the DN of all dates."""
    rows = slice(top, top + _CELL * _STEP, _STEP)
    images = np.stack([image[:, rows, ::_STEP] for image in (conditions.cloudy, *conditions.references)])
    present = (images != EMPTY_DN).all(1)
    dates = present.sum(0) * (present[0] & (conditions.mask[rows, ::_STEP] == CLEAR))
    conditions.release()
    height, width = dates.shape
    cells = np.pad(dates, [(0, _CELL - height), (0, -width % _CELL)]).reshape(_CELL, -1, _CELL).swapaxes(0, 1)
    best = (cells + _TASTE).reshape(len(cells), -1).argmax(1)
    row, col = best // _CELL, np.arange(len(cells)) * _CELL + best % _CELL
    known = cells.reshape(len(cells), -1).max(1) > 0
    row, col = row[known], col[known]
    values = images.reshape(-1, height, width)[:, row, col]
    return np.concatenate([[top + row * _STEP, col * _STEP], values]).T.astype(np.int32)
