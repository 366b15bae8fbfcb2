import dataclasses

import batches
import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from cloudjob.diffusion import clouds, noise
from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.recipe import Recipe
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN

SIZE, COUNT = 64, 12
SAMPLES = list(range(1000, 1000 + COUNT))


def blobs(rng: np.random.Generator) -> np.ndarray:
    """A mask of every class, in pieces of all sizes."""
    height = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 5)
    kinds = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 9)
    mask = np.digitize(kinds, np.quantile(kinds, [0.5, 0.7, 0.85, 0.93, 0.97]))
    return np.where(height > 0, np.array([CLOUD, SHADOW, CIRRUS, UNKNOWN, NO_DATA, CLEAR])[mask], CLEAR).astype("u1")


@pytest.fixture(scope="module")
def batch() -> Batch:
    rng = np.random.default_rng(0)
    cloudy, clear = torch.from_numpy(rng.uniform(0, 1.2, (2, COUNT, 4, SIZE, SIZE)).astype("f4"))
    clear[:, 1, :3, :5] = torch.nan
    donor = np.stack([blobs(rng) for _ in range(COUNT)])
    donor[-1] = np.where(donor[-1] == SHADOW, SHADOW, CLEAR)
    mask = torch.from_numpy(np.stack([blobs(rng) for _ in range(COUNT)]))
    days = torch.arange(1.0, COUNT + 1)
    return batches.batch(
        cloudy,
        mask,
        target=clear,
        donor=torch.from_numpy(donor),
        reference=clear.nan_to_num(0.3) + 0.1,
        reference_days=-days,
        target_days=days,
    )


def lay(batch, *, share=1.0, other_ground=0.0, seed=0, samples=SAMPLES):
    return clouds.lay(batch, share=share, other_ground=other_ground, seed=seed, samples=samples)


def fields(batch: Batch) -> dict[str, torch.Tensor]:
    return {field.name: getattr(batch, field.name) for field in dataclasses.fields(Batch)}


def same(one: Batch, other: Batch) -> bool:
    """Light that nobody knows is as none at all."""
    unknown = torch.full_like(one.cloudy[:, :1], torch.nan)
    first, second = (
        fields(each if each.light is not None else dataclasses.replace(each, light=unknown)) for each in (one, other)
    )
    return all(torch.equal(a.nan_to_num(-1), second[name].nan_to_num(-1)) for name, a in first.items())


def some(batch: Batch, places: list[int]) -> Batch:
    return batch[torch.tensor(places)]


def over(ground: torch.Tensor, donor: torch.Tensor) -> Batch:
    """Clear images, over which clouds are to be laid."""
    return batches.batch(ground, donor * 0, target=ground, donor=donor, target_days=torch.ones(len(ground)))


def test_outside_of_the_mask_the_image_is_the_target_bit_for_bit(batch):
    laid = lay(batch)
    hidden = ((laid.mask > CLEAR) & (laid.mask != NO_DATA))[:-1, None].expand(-1, 4, -1, -1)
    image, target = laid.cloudy[:-1], batch.target[:-1]
    assert torch.equal(image[~hidden].nan_to_num(-1), target[~hidden].nan_to_num(-1))
    assert (image[hidden] != target[hidden]).float().mean() > 0.4  # nothing lies above what a mask has grown by


def test_the_mask_is_the_turned_donors_where_the_target_has_data(batch):
    laid = lay(batch)
    assert (laid.mask[:, :3, :5] == NO_DATA)[:-1].all()
    assert (laid.mask[:-1] == NO_DATA).sum() == (COUNT - 1) * 15
    whole = dataclasses.replace(batch, target=batch.target.nan_to_num(0.5))
    turned = 0
    for mask, donor in zip(lay(whole).mask[:-1].numpy(), batch.donor.numpy(), strict=False):
        seen = np.where(np.isin(donor, (CLOUD, SHADOW, CIRRUS)), donor, CLEAR)
        eight = [np.rot90(flipped, quarter) for flipped in (seen, seen[:, ::-1]) for quarter in range(4)]
        assert any(np.array_equal(mask, one) for one in eight)
        turned += not np.array_equal(mask, seen)
    assert turned > COUNT / 2


def test_the_target_is_the_ground_of_the_cloudy_day_itself(batch):
    """So no day lies between; where nothing was laid, the days stay. Those of references count from the target."""
    laid = lay(batch)
    assert laid.target_days.tolist() == [0] * (COUNT - 1) + [COUNT]
    assert torch.equal(laid.reference_days, batch.reference_days)
    some_of_them = lay(batch, share=0.5)
    chosen = noise.uniforms(0, SAMPLES, "synthetic clouds").numpy() < 0.5
    expected = np.where(chosen & (np.arange(COUNT) < COUNT - 1), 0, batch.target_days.numpy())
    assert some_of_them.target_days.tolist() == expected.tolist()
    assert 0 < (some_of_them.target_days == 0).sum() < COUNT - 1


def test_a_donor_without_cloud_changes_nothing_and_the_truth_stays(batch):
    before = batch[torch.arange(COUNT)]
    laid = lay(batch)
    assert same(some(laid, [COUNT - 1]), some(before, [COUNT - 1]))
    assert torch.equal(laid.target.nan_to_num(-1), before.target.nan_to_num(-1))
    assert torch.equal(laid.references, before.references)
    assert torch.equal(laid.donor, before.donor)
    assert same(batch, before)


@pytest.mark.parametrize("kind", [CLOUD, CIRRUS])
def test_cirrus_alone_is_cloud_enough(kind):
    donor = torch.full((1, 8, 8), CLEAR, dtype=torch.uint8)
    donor[0, 2, 3] = kind
    laid = lay(over(torch.full((1, 4, 8, 8), 0.2), donor), samples=[0])
    assert laid.target_days.item() == 0
    assert (laid.mask == kind).sum() == 1


def test_without_donors_nothing_can_be_laid(batch):
    bare = dataclasses.replace(batch, donor=None)
    with pytest.raises(ValueError, match="the batch has no donor"):
        lay(bare)
    assert lay(bare, share=0) is bare
    with pytest.raises(ValueError, match="without a target"):
        lay(dataclasses.replace(batch, target=None))


def test_what_is_laid_is_pinned(batch):
    """A training that a later version goes on with sees the same clouds: means below the mask, by class, and the share
    of light that is left of other grounds. Samples over bright, over common and over dark ground."""
    light = torch.tensor([0.9, 0.6, 0.3, 0.05]).repeat(3)[:, None, None, None]
    ground = light * (1 + 0.2 * batch.target.nan_to_num(0.5))
    laid = lay(dataclasses.replace(batch, target=ground, references=ground[:, None]))
    found = {
        kind: laid.cloudy.permute(0, 2, 3, 1)[laid.mask == kind].double().mean(0).tolist()
        for kind in (CLOUD, CIRRUS, SHADOW)
    }
    assert found == {
        CLOUD: pytest.approx([0.574341, 0.574516, 0.574719, 0.574550], abs=3e-6),
        CIRRUS: pytest.approx([0.503151, 0.502482, 0.507879, 0.503433], abs=3e-6),
        SHADOW: pytest.approx([0.507612, 0.509472, 0.512710, 0.502024], abs=3e-6),
    }
    darkened = lay(dataclasses.replace(batch, target=ground, references=ground[:, None]), other_ground=0.7)
    kept = (darkened.target / ground).flatten(2).mean(2)
    expected = [[1, 1, 1, 1], [0.138193, 0.128617, 0.111411, 0.085540], [1, 1, 1, 1], [1, 1, 1, 1]]
    expected += [[0.154593, 0.130790, 0.162974, 0.098488], [0.260067, 0.203744, 0.285118, 0.366372]]
    assert kept[:6].tolist() == [pytest.approx(each, abs=3e-6) for each in expected]


@examples(10)
@given(st.permutations(range(COUNT)), st.integers(1, COUNT), st.floats(0, 1), st.floats(0, 1))
def test_what_is_laid_belongs_to_the_sample(batch, order, number, share, other):
    """Any composition and any order of the batch; so more ranks, and a resumed training, see the same images."""
    chosen, options = list(order[:number]), {"share": share, "other_ground": other}
    whole = some(lay(batch, **options), chosen)
    assert same(lay(some(batch, chosen), **options, samples=[SAMPLES[place] for place in chosen]), whole)


def test_the_light_that_clouds_let_through_is_known_where_they_are_laid():
    """Over black ground a cloud is as bright as it takes light away: one of the same texture, twice as opaque, too."""
    donor = torch.full((COUNT, 32, 32), CLEAR, dtype=torch.uint8)
    donor[:, 4:28, 4:28] = CLOUD
    donor[:, 10:20, 24:28] = SHADOW
    ground = torch.rand(COUNT, 4, 32, 32) * 0.3
    for number in range(COUNT):
        one = [over(x[number : number + 1], donor[number : number + 1]) for x in (ground, ground * 0.5)]
        bright, dark = (lay(each, samples=[number]) for each in one)
        assert torch.equal(bright.light, dark.light)
        cloud = (bright.mask == CLOUD)[:, None]
        assert (bright.light[~cloud & (bright.mask != SHADOW)[:, None]] == 1).all()
        assert bright.light[cloud].min() < 0.9
    laid = lay(over(ground, donor), share=0.5).light.isfinite().flatten(1)
    assert torch.equal(laid.any(1), laid.all(1)), "nobody knows it of clouds that are real"
    assert laid.all(1).tolist() == (noise.uniforms(0, SAMPLES, "synthetic clouds") < 0.5).tolist()


def test_another_ground_is_darker_in_target_and_reference_alike(batch):
    """Each band by a factor of its own, and the clouds above it are as bright as ever."""
    many = some(batch, [place % (COUNT - 1) for place in range(40)])
    many = dataclasses.replace(many, references=many.target[:, None] + 0.1)
    laid = lay(many, other_ground=0.4, samples=list(range(60, 100)))
    plain = lay(many, samples=list(range(60, 100)))
    ratio = (laid.target / many.target).flatten(2).nanmedian(2).values
    np.testing.assert_allclose(laid.references[:, 0] / many.references[:, 0], laid.target / many.target, rtol=1e-4)
    darker = (ratio < 0.999).any(1)
    assert darker.float().mean() == pytest.approx(0.4, abs=0.1)
    assert ratio.min() < 0.1
    assert ratio.max() <= 1.0001
    assert (ratio[darker].std(1) > 0.01).float().mean() > 0.9
    black, bright = (
        lay(dataclasses.replace(many, target=0 * many.target + x), samples=list(range(60, 100))) for x in (0, 1)
    )
    thick = (laid.mask == CLOUD) & ((bright.cloudy - black.cloudy).mean(1) < 0.3)
    thick[~darker] = False
    difference = (laid.cloudy - plain.cloudy).mean(1)[thick]
    assert difference.abs().median() < 0.35 * (many.target - laid.target).mean(1)[thick].abs().median()


def test_the_share_of_the_samples_and_none(batch):
    assert same(lay(batch, share=0), batch)
    many = some(batch, [place % (COUNT - 1) for place in range(60)])
    laid = lay(many, share=0.3, samples=list(range(60)))
    changed = (laid.mask != many.mask).flatten(1).any(1)
    assert changed.tolist() == (noise.uniforms(0, list(range(60)), "synthetic clouds") < 0.3).tolist()
    assert not same(lay(batch), lay(batch, seed=1))


def test_a_share_ends_below_its_border(batch):
    """A sample whose draw is the share itself stays as it is; so does the light of its ground."""
    one, draws = some(batch, [0]), [noise.uniforms(0, [5], use).item() for use in ("synthetic clouds", "other ground")]
    assert same(lay(one, share=draws[0], samples=[5]), one)
    assert not same(lay(one, share=draws[0] + 1e-9, samples=[5]), one)
    plain = lay(one, samples=[5])
    assert same(lay(one, other_ground=draws[1], samples=[5]), plain)
    assert not same(lay(one, other_ground=draws[1] + 1e-9, samples=[5]), plain)


def test_reflectances_are_those_of_clouds_and_shadows():
    """A core hides the ground, cirrus half of it at most, a shadow a part of the light, mostly in blue."""
    count, size = 16, 96
    ground = torch.rand(count, 4, size, size) * 0.2 + 1e-4  # it is divided by
    donor = torch.full((count, size, size), CLOUD, dtype=torch.uint8)

    def seen(kind: int) -> torch.Tensor:
        one = donor * 0 + kind
        one[:, 0, 0] = CLOUD
        return lay(over(ground, one), samples=list(range(count))).cloudy[..., 20:-20, 20:-20]

    inner = ground[..., 20:-20, 20:-20]
    tops, veiled, shaded = seen(CLOUD), seen(CIRRUS), seen(SHADOW)
    white = tops.flatten(1).quantile(0.9, dim=1)
    assert white.min() > 0.25
    assert white.max() < 1.3
    assert tops.mean((2, 3)).std(1).max() < 0.1  # nearly white
    through = veiled.diff().flatten(1).std(1) / inner.diff().flatten(1).std(1)  # of the contrast from pixel to pixel
    assert through.min() > 0.4
    assert through.max() < 0.95
    assert (veiled > inner).all()
    kept = (shaded / inner).mean((2, 3))
    assert kept.min() > 0.05
    assert kept.max() < 0.9
    assert kept[:, 2].mean() > kept[:, 1].mean() > kept[:, 3].mean()


def test_clouds_are_thin_at_the_edge_of_the_mask_and_thick_inside():
    donor = torch.zeros(30, 96, 96, dtype=torch.uint8)
    donor[:, 20:76, 20:76] = CLOUD
    profile = lay(over(torch.zeros(30, 4, 96, 96), donor), samples=list(range(30))).cloudy[:, :, 48].mean((0, 1))
    assert profile[20] < 0.1 * profile[48]
    assert profile[48] > 0.5
    assert (profile[20:32].diff() > 0).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.3), st.integers(2, 40))
@examples(30)
def test_distances_are_exact_up_to_their_reach(seed, density, size):
    to = np.random.default_rng(seed).random((1, 2, size, size)) < density
    found = clouds._distance(torch.from_numpy(to)).numpy()
    for one, distance in zip(to[0], found[0], strict=True):
        expected = ndimage.distance_transform_edt(~one) if one.any() else np.full(one.shape, np.inf)
        np.testing.assert_allclose(distance, np.minimum(expected, 16), rtol=1e-6)


@pytest.mark.slow
def test_real_masks_on_real_ground(shared_data):
    import rasterio

    def read(name: str) -> torch.Tensor:
        paths = sorted((shared_data / "sen12mscr_triplets").glob(f"*/{name}.tif"))
        return torch.from_numpy(np.stack([rasterio.open(path).read() for path in paths]).astype("f4"))

    donor = read("mask")[:, 0].byte()
    clear = read("clear") / 1e4
    laid = lay(over(clear, donor), samples=list(range(10)))
    outside = (laid.mask == CLEAR)[:, None].expand_as(clear)
    assert torch.equal(laid.cloudy[outside], clear[outside])
    assert laid.cloudy.min() >= 0
    assert laid.cloudy.max() < 1.6
    for image, mask, ground in zip(laid.cloudy, laid.mask, clear, strict=True):
        if (mask == CLOUD).float().mean() > 0.2:
            assert image[:, mask == CLOUD].mean() > ground[:, mask == CLOUD].mean() + 0.1


@pytest.mark.slow
def test_the_loss_of_a_sample_is_the_same_in_any_batch_with_and_without_a_reference(batch):
    """With laid clouds, dropped references and turns: the loss of a batch is the mean of those of its halves."""
    recipe = Recipe.of("tiny", "residual", mean=[0.5] * 4, std=[0.3] * 4)
    torch.manual_seed(0)
    network = recipe.network()
    options = {"seed": 3, "clear_weight": 0.2, "drop_reference": 0.5, "drop_mask": 0.3}
    options |= {"synthetic_clouds": 0.5, "other_ground": 0.5}
    for images in (batch.without_references(), batch):
        halves = [list(range(6)), list(range(6, COUNT))]
        parts = [recipe.loss(network, some(images, h), samples=[SAMPLES[p] for p in h], **options) for h in halves]
        whole = recipe.loss(network, images, samples=SAMPLES, **options)
        assert whole.item() == pytest.approx(sum(part.item() for part in parts) / 2, rel=1e-4)
        plain = recipe.loss(network, images, samples=SAMPLES, **options | {"synthetic_clouds": 0.0})
        assert whole.item() != pytest.approx(plain.item(), rel=1e-3)
