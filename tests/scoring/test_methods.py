"""Triplets restored in all the ways that are compared, and the scores of each."""

from cloudjob.pixels import HIDDEN
import numpy as np
import pytest
import torch

from cloudjob.scoring import methods
from cloudjob.diffusion.recipe import Recipe

SIZE, COUNT = 16, 5


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    clear = 0.5 + 0.1 * torch.randn(COUNT, 4, SIZE, SIZE)
    mask = torch.zeros(COUNT, SIZE, SIZE, dtype=torch.uint8)
    mask[:, :6], mask[:, 6:8], mask[:, 8:10], mask[:, 15] = 1, 2, 3, 255
    cloudy = torch.where(mask[:, None] > 0, 0.9, clear)
    return {"cloudy": cloudy, "mask": mask, "clear": clear, "reference": clear + 0.02}


def restorer(process="residual", steps=2, **options) -> methods.Restorer:
    torch.manual_seed(1)
    recipe = Recipe.of("tiny", process, mean=[0.5] * 4, std=[0.2] * 4, **options)
    network = recipe.network().eval()
    with torch.no_grad():  # untrained it would give the first guess alone
        network.head.weight.normal_(0, 0.05)
    return methods.Restorer(recipe, network, seed=3, sampler="auto", steps=steps)


def some(batch, places) -> dict:
    return {name: value[places] for name, value in batch.items() if name != "clear"}


def test_a_triplet_is_restored_the_same_in_any_batch(batch):
    model = restorer()
    whole = model.member(some(batch, slice(None)), [4, 5, 6, 7, 8], 1)
    alone = model.member(some(batch, slice(2, 3)), [6], 1)
    np.testing.assert_allclose(whole[2:3], alone, atol=1e-5)
    assert np.abs(model.member(some(batch, slice(2, 3)), [7], 1) - alone).max() > 1e-3


def test_clear_pixels_are_as_they_were_observed(batch):
    found = restorer().members(some(batch, slice(None)), list(range(COUNT)), 2)
    kept = np.isin(batch["mask"].numpy(), (0, 255))[:, None].repeat(4, 1)
    for member in found:
        np.testing.assert_array_equal(member[kept], batch["cloudy"].numpy()[kept])
        assert (member[~kept] != batch["cloudy"].numpy()[~kept]).mean() > 0.9


def test_all_ways_and_their_scores(batch):
    found, every = methods.ways(
        restorer(), some(batch, slice(None)), list(range(COUNT)), members=4, more_steps=[1, 7]
    )
    bare = {"ours_without_reference", "ours_member_without_reference"}
    assert set(found) == {"ours", "ours_member", "ours_1_step", "ours_7_steps"} | bare
    np.testing.assert_allclose(found["ours"], every.mean(0))
    arrays = {name: value.numpy() for name, value in batch.items()}
    found |= methods.one_date(arrays["cloudy"], arrays["mask"])
    rows = methods.score(found | {"perfect": arrays["clear"]}, arrays["clear"], arrays["mask"])
    assert len(rows) == COUNT
    for number, triplet in enumerate(rows):
        by = {(row["method"], row["on"]): row for row in triplet}
        assert by["perfect", "cloud"]["psnr"] == np.inf
        assert by["cloudy", "clear"]["mae"] == by["ours", "clear"]["mae"] == 0
        assert by["ours", "cloud"]["pixels"] == 10 * SIZE
        assert by["ours", "thick cloud"]["pixels"] == 6 * SIZE
        assert by["ours", "all"]["pixels"] == 15 * SIZE
        difference = (found["mean_fill"] - arrays["clear"])[number, :, :10]
        assert by["mean_fill", "cloud"]["rmse"] == pytest.approx(np.sqrt(np.square(difference).mean()), rel=1e-4)


def test_a_regression_has_no_members(batch):
    model = restorer("regression")
    assert model.single
    one, other = (model.member(some(batch, slice(None)), list(range(COUNT)), number) for number in (0, 1))
    np.testing.assert_array_equal(one, other)


def test_calibration_makes_the_interval_cover_its_own_triplets(batch):
    model = restorer()
    factors = model.calibrate(batch, 6)["factors"]
    drawn = model.members(some(batch, slice(None)), list(range(COUNT)), 6)
    hidden = np.isin(batch["mask"].numpy(), HIDDEN)
    for band, factor in enumerate(factors):
        error = np.abs(drawn.mean(0) - batch["clear"].numpy())[:, band][hidden]
        reach = 1.6449 * factor * drawn.std(0, ddof=1)[:, band][hidden]
        assert (error <= reach).mean() == pytest.approx(0.9, abs=0.01)
