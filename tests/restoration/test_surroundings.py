"""The first guess of a scene by its surroundings: any stripe and any tile of it as of the whole scene at once."""

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.conditions import Normalisation
from cloudjob.diffusion.processes import Regression
from cloudjob.diffusion.recipe import Recipe
from cloudjob.pixels import CLEAR, CLOUD, NO_DATA, SHADOW
from cloudjob.restoration import surroundings
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.team import Team
from cloudjob.restoration.tiles import Tile

NORM = Normalisation(mean=(0.2, 0.15, 0.1, 0.3), std=(0.1, 0.05, 0.1, 0.2))


def scene(shape: tuple[int, int], seed: int = 0, *, dates: int = 1) -> SceneConditions:
    """Ground in broad waves under clouds of any size, with a hole in each date."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[: shape[0], : shape[1]]
    ground = 3000 + 900 * np.sin(row / 60) + 700 * np.cos(col / 45) + rng.integers(0, 200, (4, *shape))
    coarse = rng.choice([CLEAR, CLOUD, SHADOW], [-(-side // 40) for side in shape], p=[0.3, 0.6, 0.1])
    mask = coarse.repeat(40, 0).repeat(40, 1)[: shape[0], : shape[1]].astype(np.uint8)
    cloudy = np.where(mask == CLOUD, 9000, ground).astype(np.uint16)
    others = [(ground + 500 - 900 * number).astype(np.uint16) for number in range(dates)]
    cloudy[:, 5:9, 3:20] = 0
    for number, other in enumerate(others):
        other[:, : shape[0] // (3 + 3 * number)] = 0
    mask[5:7, 3:20] = NO_DATA
    return SceneConditions(cloudy, mask, mask, tuple(others), 30.0, (None,) * dates)


def whole_cells(given: SceneConditions, rows: int = surroundings.ROWS) -> np.ndarray:
    height = surroundings.shape(given.mask.shape)[1] * surroundings.CELL
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surroundings, "ROWS", rows)
        return np.concatenate([surroundings.stripe(given, top, NORM) for top in range(0, height, rows)], 1)


def test_cells_are_whole_coarsest_cells():
    assert surroundings.shape((64, 128)) == (8, 16, 32)
    assert surroundings.shape((65, 100)) == (8, 32, 32)


@pytest.mark.parametrize("dates", [0, 1, 2])
@pytest.mark.parametrize("shape", [(640, 128), (601, 70)])
def test_a_stripe_is_as_of_the_whole(shape, dates):
    given = scene(shape, dates=dates)
    whole = whole_cells(given)
    assert whole.shape == surroundings.shape(shape)
    for rows in (64, 256):  # but for the last bit, which torch rounds by where a value lies
        np.testing.assert_allclose(whole_cells(given, rows), whole, atol=2e-6)


@pytest.mark.parametrize("dates", [0, 1, 2])
def test_a_tile_has_the_first_guess_that_the_whole_scene_has(tmp_path, dates):
    """As a recipe gives it for all of a scene that is made of whole coarsest cells."""
    given = scene((256, 320), dates=dates)
    given.save(tmp_path)
    recipe = Recipe("tiny", Regression(spread=(0.1, 0.2, 0.3)), NORM, first_guess="surroundings")
    whole = recipe.told(nn.Identity(), Batch.of(given.arrays([Tile(0, 0, 256, 320)]))).anchor[0]
    first = surroundings.Surroundings(tmp_path, NORM)
    first.make(Team(tmp_path))
    for tile in (Tile(0, 0, 64, 64), Tile(37, 101, 64, 64), Tile(192, 256, 64, 64), Tile(2, 255, 64, 64)):
        batch = Batch.of(given.arrays([tile]))
        found = recipe.told(nn.Identity(), batch, guess=first.cut(batch, [tile])).anchor[0]
        np.testing.assert_allclose(found, whole[:, *tile.slices], atol=2e-4)


@examples(25)
@given(st.integers(0, 200), st.integers(0, 250), st.sampled_from([32, 40, 64]))
def test_tiles_that_overlap_have_the_same_first_guess(row, col, size):
    cells = np.random.default_rng(1).standard_normal(surroundings.shape((256, 320))).astype(np.float32)
    one, other = Tile(row, col, size, size), Tile(row + 9, col + 14, size, size)
    shifts = []
    for tile in (one, other):
        shift, around = surroundings.at_pixels(torch.from_numpy(surroundings.cut(cells, tile))[None], [tile])
        assert shift.shape == around.shape == (1, 4, size, size)
        shifts.append(torch.cat([shift, around], 1)[0])
    np.testing.assert_allclose(shifts[0][:, 9:, 14:], shifts[1][:, :-9, :-14], atol=1e-5)


def test_a_tile_that_hangs_over_a_small_scene_has_the_outermost_cells_there():
    given = scene((40, 50))
    cells = whole_cells(given)
    shift, around = surroundings.at_pixels(
        torch.from_numpy(surroundings.cut(cells, Tile(0, 0, 96, 96)))[None], [Tile(0, 0, 96, 96)]
    )
    assert shift.shape == around.shape == (1, 4, 96, 96)
    assert (around[0, :, 80] == around[0, :, 70]).all()
