import dataclasses

import numpy as np
import pytest
import torch
from batches import batch
from torch.nn import functional

from cloudjob.diffusion.conditions import CELLS, CHANNELS, NOTEBOOK_2025, Conditions, Normalisation, channel_count
from cloudjob.diffusion.conditions import continued as continued_cells
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN

NORM = Normalisation(mean=(0.1, 0.2, 0.3, 0.4), std=(0.1, 0.2, 0.1, 0.2))
WIDTHS = {kind: [width for width, _ in table.values()] for kind, table in CHANNELS.items()}


def given(cloudy, mask, reference=None, first_guess="surroundings", **numbers) -> Conditions:
    return Conditions.of(batch(cloudy, mask, reference=reference, **numbers), norm=NORM, first_guess=first_guess)


def one_row(mask: list[int], *, reference: list[float] | None = None) -> Conditions:
    """A 1 x n image of reflectance 0.5 on all bands."""
    cloudy = torch.full((1, 4, 1, len(mask)), 0.5)
    if reference is not None:
        reference = torch.tensor(reference).expand(1, 4, 1, -1)
    return given(cloudy, torch.tensor([[mask]], dtype=torch.uint8), reference)


def parts(channels: torch.Tensor, kind: str = "surroundings") -> dict[str, torch.Tensor]:
    return dict(zip(CHANNELS[kind], channels.split(WIDTHS[kind], 1), strict=True))


# --- the first guess ---------------------------------------------------------------------------------------------
def enlarged(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear, between the centres of cells; beyond the outermost ones their own value."""
    matrices = []
    for size, count in zip(shape, values.shape, strict=True):
        place = ((np.arange(size) + 0.5) * count / size - 0.5).clip(0, count - 1)
        matrices.append((1 - np.abs(place[:, None] - np.arange(count))).clip(0))
    return matrices[0] @ values @ matrices[1].T


def continued(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Known values (H, W) into the rest: means of cells of 64 to 4 pixels, each drawn to the coarser level as if 5 %
    of its pixels were known to have that."""
    guess = np.zeros((1, 1))
    for cell in (64, 32, 16, 8, 4):
        starts = [np.arange(0, size, cell) for size in values.shape]
        total, count, pixels = (
            np.add.reduceat(np.add.reduceat(x, starts[0], 0), starts[1], 1)
            for x in (values * known, known.astype(float), np.ones(values.shape))
        )
        guess = (total / pixels + 0.05 * enlarged(guess, total.shape)) / (count / pixels + 0.05)
    return enlarged(guess, values.shape)


@pytest.mark.parametrize("shape", [(128, 128), (100, 72)])
def test_the_anchor_is_the_image_the_shifted_reference_or_the_continued_surroundings(shape):
    rng = np.random.default_rng(0)
    cloudy, reference = rng.uniform(0, 1, (2, 4, *shape)).astype("f4")
    kinds = np.array([CLEAR, CLOUD, SHADOW, CIRRUS, UNKNOWN, NO_DATA])
    mask = kinds[rng.choice(6, shape, p=[0.2, 0.4, 0.1, 0.1, 0.1, 0.1])].astype("u1")
    mask[40:, :40] = CLOUD  # far from all that is clear
    reference[1, :, shape[1] // 2 :] = np.nan
    conditions = given(*(torch.from_numpy(x)[None] for x in (cloudy, mask, reference)))
    clear, present = mask == CLEAR, np.isfinite(reference).all(0)
    told = (conditions.cloudy[0].double().numpy(), conditions.reference[0].double().numpy())
    for band, found in enumerate(conditions.anchor[0].numpy()):
        seen, other = (image[band] for image in told)
        shifted = other + continued(seen - other, clear & present)
        expected = np.where(clear, seen, np.where(present, shifted, continued(seen, clear)))
        np.testing.assert_allclose(found, expected, atol=2e-5)


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
    assert torch.allclose(conditions.anchor, conditions.reference, atol=1e-6)
    assert given(image, mask).anchor.abs().max() < 1e-6


def test_another_first_guess_takes_the_place_of_the_own_one():
    conditions = one_row([0, 1, 1, 1])
    guess = torch.randn(1, 4, 1, 4)
    other = conditions.anchored(guess)
    assert torch.equal(other.anchor, guess)
    assert torch.equal(other.channels()[:, -4:], conditions.cloudy - guess)
    assert not torch.equal(conditions.anchor, guess)


def test_samples_are_taken_with_all_that_is_known_of_them():
    torch.manual_seed(0)
    image, reference = torch.rand(2, 3, 4, 8, 8)
    mask = torch.randint(0, 5, (3, 8, 8), dtype=torch.uint8)
    numbers = {name: torch.rand(3) for name in ("sun_elevation", "reference_days", "target_days")}
    whole = given(image, mask, reference, **numbers).anchored(torch.rand(3, 4, 8, 8))
    taken = whole.samples([2, 0, 2])
    assert torch.equal(taken.channels(), whole.channels()[[2, 0, 2]])
    assert torch.equal(taken.anchor, whole.anchor[[2, 0, 2]])


def test_values_are_continued_from_the_cells_as_from_the_pixels():
    """From sums over the finest cells alone, where the image is made of whole coarsest cells."""
    torch.manual_seed(0)
    image = torch.rand(1, 4, 128, 192)
    mask = torch.where(torch.rand(1, 128, 192) < 0.7, CLOUD, CLEAR).to(torch.uint8)
    conditions = given(image, mask)
    known = (conditions.mask == CLEAR).float()
    cells = [functional.avg_pool2d(x, 4) for x in (conditions.cloudy * known, known)]
    levels = [[functional.avg_pool2d(x, cell // 4) for x in cells] for cell in CELLS]
    fine = functional.interpolate(continued_cells(levels), scale_factor=4.0, mode="bilinear")
    hidden = (conditions.mask != CLEAR).expand_as(fine)
    assert torch.allclose(fine[hidden], conditions.anchor[hidden], atol=1e-4)


# --- what the network is told --------------------------------------------------------------------------------------
def test_one_of_three_numbers_for_each_kind_of_pixel():
    conditions = one_row([0, 1, 2, 3, 4, 1], reference=[0.3, 0.3, 0.3, 0.3, 0.3, np.nan])
    assert conditions.choose(1, 2, 3).flatten().tolist() == [1, 2, 2, 2, 2, 3]


def test_where_a_guess_knows_its_deviation_that_is_the_spread_but_for_a_factor():
    """Another date bounds it: far above 0.4 in normalised units it counts as that. Noise bounds it below."""
    conditions = one_row([0, 1, 2, 3, 1, 1], reference=[0.3, 0.3, 0.3, 0.3, 0.3, np.nan])
    deviation = torch.tensor([9.0, 0.0, 0.04, 0.3, 400.0, 3.0]).expand(1, 4, 1, 6)
    told = dataclasses.replace(conditions, deviation=deviation)
    found = told.spread(0.1, 2.0, 5.0)
    assert found[0, 0, 0].tolist() == pytest.approx([0.1, 0.02, 0.08 / 1.01**0.5, 0.6 / 1.25, 0.8, 15], rel=1e-5)
    unit = torch.rand(1, 4, 1, 6)
    assert torch.equal(told.anchored(told.anchor, unit).spread(0.1, 2.0, 5.0), unit)
    assert torch.equal(conditions.spread(1, 2, 3), conditions.choose(1, 2, 3))


def test_channels_follow_the_table():
    conditions = one_row([0, 1, 2, 3, 4, 255], reference=[np.nan, 0.3, 0.3, 0.3, 0.3, 0.3])
    channels = conditions.channels()
    assert channels.shape == (1, channel_count("surroundings"), 1, 6)
    assert channels.dtype == torch.float32
    told = {name: value[0, :, 0] for name, value in parts(channels).items()}
    assert told["cloud"].tolist() == [[0, 1, 0, 1, 0, 0]]
    assert told["shadow"].tolist() == [[0, 0, 1, 0, 0, 0]]
    assert told["valid"].tolist() == [[1, 1, 1, 1, 1, 0]]
    assert told["unknown"].tolist() == [[0, 0, 0, 0, 1, 0]]
    assert told["present"].tolist() == [[0, 1, 1, 1, 1, 1]]
    assert (told["reference"][:, 0] == 0).all()
    assert (told["reference"][:, 1] == NORM.forward(torch.full((4, 1, 1), 0.3)).flatten()).all()
    assert torch.equal(told["cloudy"], conditions.cloudy[0, :, 0])
    assert torch.equal(told["anchor"], conditions.anchor[0, :, 0])
    assert next(iter(CHANNELS["surroundings"])) == "cloudy", "all that the notebook of 2025 looks at"
    assert WIDTHS == {
        "surroundings": [4, 1, 1, 1, 1, 4, 1, 4, 1, 1, 1, 4],
        "similar": [4, 1, 1, 1, 1, 4, 1, 4, 1, 1, 1, 1, 1, 1, 4],
    }


def test_the_last_channels_are_the_difference_to_the_first_guess_in_units_of_a_process():
    conditions = one_row([0, 1, 2, 3, 4, 1], reference=[0.3, 0.3, 0.3, 0.3, 0.3, np.nan])
    unit = conditions.choose(0.1, 0.5, 2.0)
    assert {list(table)[-1] for table in CHANNELS.values()} == {"difference"}
    told = conditions.channels(unit)
    assert torch.equal(told[:, -4:], (conditions.cloudy - conditions.anchor) / unit)
    assert torch.equal(told[:, :-4], conditions.channels()[:, :-4])


def test_missing_data_are_masked_and_finite():
    """A pixel that lacks one band lacks all."""
    cloudy, reference = torch.full((2, 1, 4, 2, 2), 0.5)
    cloudy[0, 2, 0, 0], reference[0, 3, 1, 1] = torch.nan, torch.nan
    conditions = given(cloudy, torch.zeros(1, 2, 2, dtype=torch.uint8), reference)
    assert conditions.mask.flatten().tolist() == [255, 0, 0, 0]
    assert conditions.channels().isfinite().all()
    assert (conditions.cloudy[0, :, 0, 0] == 0).all()
    assert conditions.present.flatten().tolist() == [True, True, True, False]
    assert (conditions.reference[0, :, 1, 1] == 0).all()
    for image in (conditions.cloudy[0, :, 0, 1], conditions.reference[0, :, 0, 0]):
        assert image.tolist() == pytest.approx([4, 1.5, 2, 0.5])


def test_numbers_are_told_everywhere_and_nothing_where_they_are_not_known():
    image, mask = torch.rand(4, 4, 2, 2), torch.ones(4, 2, 2, dtype=torch.uint8)
    conditions = given(
        image,
        mask,
        image,
        reference_days=torch.tensor([-7.5, torch.nan, 75.0, -75.0]),
        target_days=torch.tensor([30.0, 0.0, -61.0, 61.0]),
        sun_elevation=torch.tensor([15.0, 30.0, 0.0, torch.nan]),
    )
    told = {name: value.flatten(1) for name, value in parts(conditions.channels()).items()}
    assert told["reference days"].tolist() == [[-0.5] * 4, [0.0] * 4, [4.0] * 4, [-4.0] * 4]
    assert told["target days"].tolist() == [[2.0] * 4, [0.0] * 4, [-4.0] * 4, [4.0] * 4]
    assert told["sun elevation"].tolist() == [[0.5] * 4, [1.0] * 4, [0.0] * 4, [0.0] * 4]


def test_of_several_references_the_nearest_is_told():
    image, mask = torch.rand(2, 4, 4, 4), torch.ones(2, 4, 4, dtype=torch.uint8)
    one = batch(image, mask, reference=image / 2, reference_days=torch.tensor([3.0, -4.0]))
    several = dataclasses.replace(
        one,
        references=torch.cat([one.references, torch.rand(2, 1, 4, 4, 4)], 1),
        reference_days=torch.cat([one.reference_days, torch.tensor([[9.0], [9.0]])], 1),
    )
    told = [Conditions.of(each, norm=NORM, first_guess="surroundings") for each in (one, several)]
    assert torch.equal(told[0].channels(), told[1].channels())
    assert told[1].reference_days.tolist() == [3, -4]


def test_without_a_reference_nothing_of_it_is_told():
    image, mask = torch.rand(2, 4, 4, 4), torch.ones(2, 4, 4, dtype=torch.uint8)
    mask[:, 0] = CLEAR
    told = given(image, mask, image / 2, reference_days=torch.tensor([3.0, -4.0]))
    bare = given(image, mask)
    assert bare.reference_days.isnan().all()
    found = parts(bare.channels())
    assert not any(found[name].any() for name in ("reference", "present", "reference days"))
    assert told.present.all()


def test_without_a_mask_nothing_is_trusted():
    image = torch.rand(1, 4, 2, 2)
    mask = torch.tensor([[[UNKNOWN, UNKNOWN], [UNKNOWN, NO_DATA]]], dtype=torch.uint8)
    blind = given(image, mask, image)
    assert torch.equal(blind.anchor, blind.reference)


# --- units ----------------------------------------------------------------------------------------------------------
def test_normalisation_and_the_notebooks():
    reflectance = torch.rand(2, 4, 3, 3)
    assert NORM.forward(torch.full((4, 1, 1), 0.5)).flatten().tolist() == pytest.approx([4, 1.5, 2, 0.5])
    assert torch.allclose(NORM.inverse(NORM.forward(reflectance)), reflectance, atol=1e-6)
    dn = 10_000 * reflectance + 1000
    assert torch.allclose(NOTEBOOK_2025.forward(reflectance), (dn / 255 - 0.5) / 0.5, rtol=1e-3)


def test_the_physical_range_in_normalised_units():
    low, high = NORM.limits()
    assert low.shape == high.shape == (4, 1, 1)
    assert low.flatten().tolist() == pytest.approx([-2, -1.5, -4, -2.5])  # reflectance -0.1
    assert high.flatten().tolist() == pytest.approx([19, 9, 17, 8])  # reflectance 2
    assert [limit[2].item() for limit in NORM.limits(0.3, 0.4)] == pytest.approx([0, 1], abs=1e-6)
