"""The first guess of a scene: any stripe and any tile of it as of the whole scene at once."""

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.conditions import Conditions, Normalisation
from cloudjob.pixels import CLEAR, CLOUD, NO_DATA, SHADOW
from cloudjob.restoration import guess
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.tiles import Tile

NORM = Normalisation(mean=(0.2, 0.15, 0.1, 0.3), std=(0.1, 0.05, 0.1, 0.2))


def scene(shape: tuple[int, int], seed: int = 0, *, reference: bool = True) -> SceneConditions:
    """Ground in broad waves under clouds of any size, with a hole in each date."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[: shape[0], : shape[1]]
    ground = 3000 + 900 * np.sin(row / 60) + 700 * np.cos(col / 45) + rng.integers(0, 200, (4, *shape))
    coarse = rng.choice([CLEAR, CLOUD, SHADOW], [-(-side // 40) for side in shape], p=[0.3, 0.6, 0.1])
    mask = coarse.repeat(40, 0).repeat(40, 1)[: shape[0], : shape[1]].astype(np.uint8)
    cloudy = np.where(mask == CLOUD, 9000, ground).astype(np.uint16)
    other = (ground + 500).astype(np.uint16)
    cloudy[:, 5:9, 3:20], other[:, : shape[0] // 3] = 0, 0
    mask[5:7, 3:20] = NO_DATA
    return SceneConditions(cloudy, mask, mask, other if reference else None, 30.0, None)


def whole_cells(given: SceneConditions, rows: int = guess.ROWS) -> np.ndarray:
    height = guess.shape(given.mask.shape)[1] * guess.CELL
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guess, "ROWS", rows)
        return np.concatenate([guess.stripe(given, top, NORM) for top in range(0, height, rows)], 1)


def test_cells_are_whole_coarsest_cells():
    assert guess.shape((64, 128)) == (8, 16, 32)
    assert guess.shape((65, 100)) == (8, 32, 32)


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("shape", [(640, 128), (601, 70)])
def test_a_stripe_is_as_of_the_whole(shape, reference):
    given = scene(shape, reference=reference)
    whole = whole_cells(given)
    assert whole.shape == guess.shape(shape)
    for rows in (64, 256):  # but for the last bit, which torch rounds by where a value lies
        np.testing.assert_allclose(whole_cells(given, rows), whole, atol=2e-6)


@pytest.mark.parametrize("reference", [True, False])
def test_a_tile_has_the_first_guess_that_the_whole_scene_has(reference):
    """As `Conditions.anchor` gives it for all of a scene that is made of whole coarsest cells."""
    given = scene((256, 320), reference=reference)
    norm, everything = NORM, Tile(0, 0, 256, 320)
    whole = Conditions.of(Batch.of(given.arrays([everything])), norm=norm).anchor[0]
    cells = whole_cells(given)
    for tile in (Tile(0, 0, 64, 64), Tile(37, 101, 64, 64), Tile(192, 256, 64, 64), Tile(2, 255, 64, 64)):
        told = Conditions.of(Batch.of(given.arrays([tile])), norm=norm)
        found = told.first_guess(*guess.at_pixels(torch.from_numpy(guess.cut(cells, tile))[None], [tile]))[0]
        np.testing.assert_allclose(found, whole[:, *tile.slices], atol=2e-4)


@examples(25)
@given(st.integers(0, 200), st.integers(0, 250), st.sampled_from([32, 40, 64]))
def test_tiles_that_overlap_have_the_same_first_guess(row, col, size):
    cells = np.random.default_rng(1).standard_normal(guess.shape((256, 320))).astype(np.float32)
    one, other = Tile(row, col, size, size), Tile(row + 9, col + 14, size, size)
    shifts = []
    for tile in (one, other):
        shift, around = guess.at_pixels(torch.from_numpy(guess.cut(cells, tile))[None], [tile])
        assert shift.shape == around.shape == (1, 4, size, size)
        shifts.append(torch.cat([shift, around], 1)[0])
    np.testing.assert_allclose(shifts[0][:, 9:, 14:], shifts[1][:, :-9, :-14], atol=1e-5)


def test_a_tile_that_hangs_over_a_small_scene_has_the_outermost_cells_there():
    given = scene((40, 50))
    cells = whole_cells(given)
    shift, around = guess.at_pixels(torch.from_numpy(guess.cut(cells, Tile(0, 0, 96, 96)))[None], [Tile(0, 0, 96, 96)])
    assert shift.shape == around.shape == (1, 4, 96, 96)
    assert (around[0, :, 80] == around[0, :, 70]).all()
