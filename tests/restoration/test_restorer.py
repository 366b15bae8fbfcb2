"""A restorer draws noise that belongs to the triplet or to the pixel, and leaves clear pixels as they were."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batches import batch
from torch import nn

from cloudjob.diffusion import noise
from cloudjob.diffusion.conditions import Guess
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
        self.asked, self.times = [], 0

    def sampling(self, sampler: str, steps: int) -> dict:
        return {"sampler": f"taken {sampler}", "steps": steps + 1}

    def told(self, network, batch, *, guess=None):
        self.guess, self.times = guess, self.times + 1
        return SimpleNamespace(samples=lambda numbers: numbers, cloudy=batch.cloudy)

    def draw(self, network, told, *, noise, **options):
        given = {"numbers": told} if isinstance(told, list) else {"size": len(told.cloudy)}
        self.asked.append(options | given | {"bfloat16": torch.is_autocast_enabled("cpu")})
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
    assert [told["size"] for told in recipe.asked] == [16, 4]


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


def test_what_members_have_in_common_is_computed_once_for_each_part():
    made, recipe = restorer()
    assert made.members(triplets(20), list(range(20)), 5).shape == (5, 20, 4, 8, 8)
    assert (recipe.times, len(recipe.asked)) == (2, 10)


def test_sampler_and_steps_are_those_that_were_asked_for():
    made, recipe = restorer()
    made.member(triplets(1), [0], 0)
    made.member(triplets(1), [0], 0, steps=9)
    tiles(made, [Tile(0, 0, 8, 8)])
    assert [(told["sampler"], told["steps"]) for told in recipe.asked] == [("heun", 4), ("heun", 9), ("heun", 4)]
    assert made.sampling == {"sampler": "taken heun", "steps": 5}


def test_low_precision_is_asked_for():
    for low in (False, True):
        made, recipe = restorer(low_precision=low)
        made.member(triplets(1), [0], 0)
        tiles(made, [Tile(0, 0, 8, 8)])
        assert [told["bfloat16"] for told in recipe.asked] == [low, low]
    assert not restorer()[0].low_precision


# --- tiles of a scene --------------------------------------------------------------------------------------------
def tiles(made: Restorer, places: list[Tile], *, members: int = 1, group: int = 1) -> torch.Tensor:
    size = places[0].height
    cloudy = torch.zeros(len(places), 4, size, size)
    told = batch(cloudy, torch.zeros(len(places), size, size, dtype=torch.uint8))
    return made.tiles(told, places, members, guess=Guess(cloudy, None), group=group)


PLACES = [Tile(0, 0, 32, 32), Tile(16, 24, 32, 32), Tile(20, 30, 32, 32)]


@pytest.mark.parametrize("group", [1, 2, 4, 6, 7])
def test_the_noise_of_a_tile_is_that_of_its_pixels_in_the_scene(group):
    """Of each member; and the network is always given as many samples."""
    made, recipe = restorer()
    found = tiles(made, PLACES, members=2, group=group)
    assert found.shape == (3, 2, 4, 32, 32)
    for member in range(2):
        whole = sum(
            factor * noise.field(7, rows=range(64), cols=range(80), bands=4, member=member, step=step)
            for factor, step in ((1, 0), (10, 3))
        )
        for tile, image in zip(PLACES, found, strict=True):
            assert torch.equal(image[member], whole[(slice(None), *tile.slices)])
    assert {len(told["numbers"]) for told in recipe.asked} == {group}
    asked = [number for told in recipe.asked for number in told["numbers"]]
    assert asked[:6] == [0, 0, 1, 1, 2, 2]
    assert set(asked[6:]) <= {2}


@pytest.mark.parametrize("group", [1, 4])
def test_what_a_tile_becomes_depends_on_no_other_tile(group):
    """Bit for bit, in any company and at any place of a group of one size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    recipe = Recipe.of("tiny", "corrective", mean=MEAN, std=STD)
    torch.manual_seed(0)
    network = recipe.network().eval()
    for parameter in network.parameters():  # it must say something, which an untrained one does not
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    made = Restorer(recipe, network, seed=3, sampler="auto", steps=2)
    image, mask = torch.rand(4, 4, 32, 32), torch.randint(0, 4, (4, 32, 32), dtype=torch.uint8)
    ground = torch.rand(4, 4, 32, 32)

    def restored(*order: int) -> torch.Tensor:
        some = list(order)
        places = [Tile(20 * number, 8, 32, 32) for number in some]
        return made.tiles(batch(image[some], mask[some]), places, 2, guess=Guess(ground[some], None), group=group)

    before = restored(0, 1, 2, 3)
    for order in ((1, 1, 1, 1), (3, 2, 1, 0), (2, 0, 3, 3)):
        for number, found in zip(order, restored(*order), strict=True):
            assert torch.equal(found, before[number])
    assert not torch.equal(before[0, 0], before[0, 1])
    torch.set_num_threads(threads)


@pytest.mark.parametrize("units", [True, False])
def test_a_gpu_is_given_what_it_is_fast_at(monkeypatch, units):
    """Bfloat16 only where it has units for it; layers compiled for one size, so that bits follow from that alone."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: units)
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append(options))
    recipe = Recipe.of("tiny", "corrective", mean=MEAN, std=STD)
    made = Restorer(recipe, recipe.network(), seed=0, sampler="auto", steps=2)
    assert made.at_once == 1
    with torch._dynamo.config.patch(suppress_errors=False):
        made.quicken()
        assert torch._dynamo.config.suppress_errors
    assert made.low_precision is units
    assert asked == [{"dynamic": False}]
    assert made.network.mean.stem.weight.is_contiguous(memory_format=torch.channels_last)


# --- with a network ----------------------------------------------------------------------------------------------
def test_a_regression_has_one_member():
    for process, single in (("regression", True), ("residual", False), ("corrective", False), ("ddpm", False)):
        recipe = Recipe.of("tiny", process, mean=MEAN, std=STD)
        made = Restorer(recipe, nn.Linear(1, 1), seed=0, sampler="auto", steps=2)
        assert made.single is single
        assert made.single == isinstance(recipe.process, Regression)


def test_a_real_recipe_restores_a_tile_from_its_first_guess():
    """An untrained regression gives its first guess."""
    recipe = Recipe.of("tiny", "regression", mean=MEAN, std=STD)
    made = Restorer(recipe, recipe.network().eval(), seed=0, sampler="auto", steps=2)
    told = batch(torch.full((1, 4, 32, 32), 0.9), torch.full((1, 32, 32), CLOUD, dtype=torch.uint8))
    ground = torch.full((1, 4, 32, 32), 0.4)
    found = made.tiles(told, [Tile(5, 6, 32, 32)], 1, guess=Guess(ground, None), group=1)
    assert made.device == torch.device("cpu")
    np.testing.assert_allclose(found, np.full((1, 1, 4, 32, 32), 0.4), atol=1e-5)
