"""A restorer draws noise that belongs to the triplet or to the pixel, and leaves clear pixels as they were."""

import numpy as np
import pytest
import torch
from batches import batch
from torch import nn

from cloudjob.diffusion import noise
from cloudjob.diffusion.processes import Regression
from cloudjob.diffusion.recipe import Recipe
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN
from cloudjob.restoration.restorer import Restorer
from cloudjob.restoration.tiles import Tile

MEAN, STD = [0.2] * 4, [0.1] * 4


class Drawing:
    """A recipe that gives back the noise of two steps of a sampler, and keeps what else it was told."""

    process = None

    def __init__(self):
        self.told = []

    def sampling(self, sampler: str, steps: int) -> dict:
        return {"sampler": f"taken {sampler}", "steps": steps + 1}

    def restore(self, network, told, *, noise, **options):
        self.told.append(options | {"size": len(told), "bfloat16": torch.is_autocast_enabled("cpu")})
        return noise(0) + 10 * noise(3)


def restorer(**options) -> tuple[Restorer, Drawing]:
    recipe = Drawing()
    return Restorer(recipe, nn.Linear(1, 1), seed=7, sampler="heun", steps=4, **options), recipe


def triplets(number: int, hidden: int = CLOUD):
    """All but the first row of pixels is hidden."""
    cloudy = torch.arange(number * 4 * 8 * 8).reshape(number, 4, 8, 8) / 1e4
    mask = torch.full((number, 8, 8), hidden, dtype=torch.uint8)
    mask[:, 0] = CLEAR
    return batch(cloudy, mask)


def drawn(numbers: list[int], member: int) -> torch.Tensor:
    like = torch.empty(len(numbers), 4, 8, 8)
    one, two = (noise.draws(7, numbers, member=member, step=step, like=like) for step in (0, 3))
    return one + 10 * two


# --- triplets ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("member", [0, 1, 2])
def test_the_noise_of_a_triplet_follows_from_its_number(member):
    """In parts of 16: twenty triplets are drawn as each of them would be alone."""
    made, recipe = restorer()
    numbers = [3 * number + 1 for number in range(20)]
    found = made.member(triplets(20), numbers, member)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, :, 1:], drawn(numbers, member)[:, :, 1:])
    assert [told["size"] for told in recipe.told] == [16, 4]


@pytest.mark.parametrize(
    ("seen", "restored"),
    [(CLOUD, True), (SHADOW, True), (CIRRUS, True), (CLEAR, False), (UNKNOWN, False), (NO_DATA, False)],
)
def test_what_is_seen_comes_back_as_it_was(seen, restored):
    given = triplets(2, seen)
    given.cloudy[1, :, 2] = torch.nan
    found = restorer()[0].member(given, [5, 6], 0)
    np.testing.assert_array_equal(found[:, :, 0], given.cloudy[:, :, 0])
    np.testing.assert_array_equal(found[:, :, 1:], (drawn([5, 6], 0) if restored else given.cloudy)[:, :, 1:])


def test_members_are_numbered_from_zero():
    found = restorer()[0].members(triplets(3), [4, 5, 6], 3)
    assert found.shape == (3, 3, 4, 8, 8)
    for member in range(3):
        np.testing.assert_array_equal(found[member, :, :, 1:], drawn([4, 5, 6], member)[:, :, 1:])


def test_sampler_and_steps_are_those_that_were_asked_for():
    made, recipe = restorer()
    made.member(triplets(1), [0], 0)
    made.member(triplets(1), [0], 0, steps=9)
    made.tile(triplets(1), Tile(0, 0, 8, 8), 0, margin=0)
    assert [(told["sampler"], told["steps"]) for told in recipe.told] == [("heun", 4), ("heun", 9), ("heun", 4)]
    assert made.sampling == {"sampler": "taken heun", "steps": 5}


def test_low_precision_is_asked_for_and_not_for_tiles():
    """Tiles must not depend on the machine."""
    for low in (False, True):
        made, recipe = restorer(low_precision=low)
        made.member(triplets(1), [0], 0)
        made.tile(triplets(1), Tile(0, 0, 8, 8), 0, margin=0)
        assert [told["bfloat16"] for told in recipe.told] == [low, False]
    assert not restorer()[0].low_precision


# --- tiles of a scene --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("member", [0, 1])
def test_the_noise_of_a_tile_is_that_of_its_pixels_in_the_scene(member):
    made, recipe = restorer()
    whole = sum(
        factor * noise.field(7, rows=range(64), cols=range(80), bands=4, member=member, step=step)
        for factor, step in ((1, 0), (10, 3))
    )
    for tile in (Tile(0, 0, 32, 32), Tile(16, 24, 32, 32), Tile(20, 30, 40, 48)):
        found = made.tile(triplets(1), tile, member, margin=12)
        assert found.shape == (1, 4, tile.height, tile.width)
        np.testing.assert_array_equal(found[0], whole[(slice(None), *tile.slices)])
    assert {told["margin"] for told in recipe.told} == {12}


# --- with a network ----------------------------------------------------------------------------------------------
def test_a_regression_has_one_member():
    for process, single in (("regression", True), ("residual", False), ("corrective", False), ("ddpm", False)):
        recipe = Recipe.of("tiny", process, mean=MEAN, std=STD)
        made = Restorer(recipe, nn.Linear(1, 1), seed=0, sampler="auto", steps=2)
        assert made.single is single
        assert made.single == isinstance(recipe.process, Regression)


def test_a_real_recipe_restores_a_tile_within_its_surroundings():
    """An untrained regression gives its first guess: the surroundings continued, which the margin alone holds."""
    recipe = Recipe.of("tiny", "regression", mean=MEAN, std=STD)
    made = Restorer(recipe, recipe.network().eval(), seed=0, sampler="auto", steps=2)
    cloudy, mask = torch.full((1, 4, 96, 96), 0.9), torch.zeros(1, 96, 96, dtype=torch.uint8)
    mask[:, 32:64, 32:64] = CLOUD
    cloudy[(mask == CLEAR)[:, None].expand_as(cloudy)] = 0.4
    found = made.tile(batch(cloudy, mask), Tile(5, 6, 32, 32), 0, margin=32)
    assert made.device == torch.device("cpu")
    np.testing.assert_allclose(found, np.full((1, 4, 32, 32), 0.4), atol=0.02)
