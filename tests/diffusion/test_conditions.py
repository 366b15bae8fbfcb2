import numpy as np
import pytest
import torch

from cloudjob.diffusion.conditions import CHANNELS, CONDITION_CHANNELS, Conditions, NOTEBOOK_2025, Normalisation
from cloudjob.diffusion.batch import turn

NORM = Normalisation(mean=(0.1, 0.2, 0.3, 0.4), std=(0.1, 0.2, 0.1, 0.2))


def given(cloudy, mask, reference=None, **numbers) -> Conditions:
    batch = {"cloudy": cloudy, "mask": mask} | ({} if reference is None else {"reference": reference})
    return Conditions.of(batch | numbers, norm=NORM)


def one_row(mask: list[int], *, reference: list[float] | None = None) -> Conditions:
    """A 1 x n image of reflectance 0.5 on all bands."""
    cloudy = torch.full((1, 4, 1, len(mask)), 0.5)
    if reference is not None:
        reference = torch.tensor(reference).expand(1, 4, 1, -1)
    return given(cloudy, torch.tensor([[mask]], dtype=torch.uint8), reference)


def test_the_anchor_is_cloudy_where_clear():
    conditions = given(torch.rand(1, 4, 9, 9), torch.randint(0, 4, (1, 9, 9)).byte())
    clear = (conditions.mask == 0).expand(1, 4, 9, 9)
    assert torch.equal(conditions.anchor[clear], conditions.cloudy[clear])
    assert not torch.equal(conditions.anchor, conditions.cloudy)


def test_the_anchor_below_cloud_is_the_reference_made_to_agree_with_the_surroundings():
    """A date that differs by a constant leaves no step; a reference of its own is followed in detail."""
    ground = NORM.inverse(torch.randn(1, 4, 96, 96))
    mask = torch.zeros(1, 96, 96, dtype=torch.uint8)
    mask[:, 30:60, 30:60] = 1
    cloudy = ground.masked_fill(mask[:, None] == 1, 1.0)
    guess = given(cloudy, mask, ground + 0.05).anchor
    assert (guess - NORM.forward(ground)).abs().max() < 0.1
    flat = torch.full_like(ground, 0.7)
    guess = given(flat.masked_fill(mask[:, None] == 1, 1.0), mask).anchor
    assert NORM.inverse(guess).numpy() == pytest.approx(0.7, abs=0.02)
    partial = (ground + 0.05).index_fill(3, torch.arange(45), torch.nan)  # the other date's swath ends here
    guess = given(cloudy, mask, partial).anchor
    assert (guess - NORM.forward(ground))[..., 45:].abs().max() < 0.1


@pytest.mark.parametrize("size", [4, 96, 100])
def test_the_anchor_far_from_anything_clear_is_the_reference_or_the_mean(size):
    image, mask = torch.rand(1, 4, size, size), torch.ones(1, size, size, dtype=torch.uint8)
    conditions = given(image, mask, image / 2)
    assert torch.equal(conditions.anchor, conditions.reference)
    assert not given(image, mask).anchor.any()


def test_one_of_three_numbers_for_each_kind_of_pixel():
    conditions = one_row([0, 1, 2, 3, 4, 1], reference=[0.3, 0.3, 0.3, 0.3, 0.3, np.nan])
    assert conditions.choose(1, 2, 3).flatten().tolist() == [1, 2, 2, 2, 2, 3]


def test_channels_follow_the_table():
    channels = one_row([0, 1, 2, 3, 4, 255], reference=[np.nan, 0.3, 0.3, 0.3, 0.3, 0.3]).channels()[0, :, 0]
    parts = dict(zip(CHANNELS, channels.split([width for width, _ in CHANNELS.values()]), strict=True))
    assert channels.shape == (CONDITION_CHANNELS, 6)
    assert parts["cloud"].tolist() == [[0, 1, 0, 1, 0, 0]]
    assert parts["shadow"].tolist() == [[0, 0, 1, 0, 0, 0]]
    assert parts["valid"].tolist() == [[1, 1, 1, 1, 1, 0]]
    assert parts["unknown"].tolist() == [[0, 0, 0, 0, 1, 0]]
    assert parts["present"].tolist() == [[0, 1, 1, 1, 1, 1]]
    assert (parts["reference"][:, 0] == 0).all()
    assert (parts["reference"][:, 1] == NORM.forward(torch.full((4, 1, 1), 0.3)).flatten()).all()


def test_the_last_channels_are_the_difference_to_the_first_guess_in_units_of_a_process():
    conditions = one_row([0, 1, 2, 3, 4, 1], reference=[0.3, 0.3, 0.3, 0.3, 0.3, np.nan])
    unit = conditions.choose(0.1, 0.5, 2.0)
    assert list(CHANNELS)[-1] == "difference"
    told = conditions.channels(unit)
    assert torch.equal(told[:, -4:], (conditions.cloudy - conditions.anchor) / unit)
    assert torch.equal(told[:, :-4], conditions.channels()[:, :-4])


def test_missing_data_are_masked_and_finite():
    cloudy = torch.full((1, 4, 2, 2), 0.5)
    cloudy[0, 2, 0, 0] = torch.nan
    conditions = given(cloudy, torch.zeros(1, 2, 2, dtype=torch.uint8))
    assert conditions.mask.flatten().tolist() == [255, 0, 0, 0]
    assert conditions.channels().isfinite().all()
    assert (conditions.cloudy[0, :, 0, 0] == 0).all()


def test_a_dropped_reference_leaves_no_trace_and_belongs_to_the_sample():
    image, mask = torch.rand(1, 4, 2, 2).expand(64, -1, -1, -1), torch.ones(64, 2, 2, dtype=torch.uint8)
    conditions = given(image, mask, image)
    indices = list(range(100, 164))
    dropped = conditions.drop_reference(0.5, seed=1, indices=indices)
    gone = ~dropped.present.flatten(1).any(1)
    assert 16 < gone.sum() < 48
    without = given(image, mask)
    assert torch.equal(dropped.channels()[gone], without.channels()[gone])
    assert torch.equal(dropped.channels()[~gone], conditions.channels()[~gone])
    again = conditions.drop_reference(0.5, seed=1, indices=indices[::-1])
    assert torch.equal(again.present.flip(0), dropped.present)


def test_numbers_are_told_everywhere_and_nothing_where_they_are_not_known():
    image, mask = torch.rand(2, 4, 2, 2), torch.ones(2, 2, 2, dtype=torch.uint8)
    days = torch.tensor([-7.5, torch.nan])
    conditions = given(image, mask, image, reference_days=days, sun_elevation=torch.tensor([15.0, 30.0]))
    parts = dict(zip(CHANNELS, conditions.channels().split([width for width, _ in CHANNELS.values()], 1), strict=True))
    assert parts["reference days"].flatten(1).tolist() == [[-0.5] * 4, [0.0] * 4]
    assert parts["sun elevation"].flatten(1).tolist() == [[0.5] * 4, [1.0] * 4]
    assert not parts["target days"].any()


def test_without_a_mask_nothing_is_told_or_trusted():
    image = torch.rand(1, 4, 2, 2)
    mask = torch.tensor([[[0, 1], [2, 255]]], dtype=torch.uint8)
    blind = given(image, mask, image).drop_mask(1, seed=0, indices=[0])
    assert blind.mask.flatten().tolist() == [4, 4, 4, 255]
    assert torch.equal(blind.anchor, blind.reference)


def test_turns_are_the_eight_symmetries_and_belong_to_the_sample():
    image = torch.arange(9.0).reshape(1, 1, 3, 3).expand(200, -1, -1, -1)
    indices = list(range(200))
    turned = turn(image, seed=0, indices=indices)
    assert len({tuple(one.flatten().tolist()) for one in turned}) == 8
    assert torch.equal(turn(image[:1, 0], seed=0, indices=[7])[0], turned[7, 0])


def test_normalisation_and_the_notebooks():
    reflectance = torch.rand(2, 4, 3, 3)
    assert torch.allclose(NORM.inverse(NORM.forward(reflectance)), reflectance, atol=1e-6)
    low, high = NORM.limits(0.0, 1.0)
    assert torch.allclose(NORM.inverse(low), torch.zeros(4, 1, 1), atol=1e-6)
    assert torch.allclose(NORM.inverse(high), torch.ones(4, 1, 1), atol=1e-6)
    dn = 10_000 * reflectance + 1000
    assert torch.allclose(NOTEBOOK_2025.forward(reflectance), (dn / 255 - 0.5) / 0.5, rtol=1e-3)
