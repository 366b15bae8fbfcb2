import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cloudjob.diffusion import clouds
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN
from cloudjob.diffusion.recipe import Recipe

SIZE, COUNT = 64, 12
SAMPLES = list(range(1000, 1000 + COUNT))


def blobs(rng: np.random.Generator) -> np.ndarray:
    """A mask of every class, in pieces of all sizes."""
    height = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 5)
    kinds = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 9)
    mask = np.digitize(kinds, np.quantile(kinds, [0.5, 0.7, 0.85, 0.93, 0.97]))
    return np.where(height > 0, np.array([CLOUD, SHADOW, CIRRUS, UNKNOWN, NO_DATA, CLEAR])[mask], CLEAR).astype("u1")


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    cloudy, clear = torch.from_numpy(rng.uniform(0, 1.2, (2, COUNT, 4, SIZE, SIZE)).astype("f4"))
    clear[:, 1, :3, :5] = torch.nan
    donor = np.stack([blobs(rng) for _ in range(COUNT)])
    donor[-1] = np.where(donor[-1] == SHADOW, SHADOW, CLEAR)
    mask = torch.from_numpy(np.stack([blobs(rng) for _ in range(COUNT)]))
    return {"cloudy": cloudy, "clear": clear, "mask": mask, "donor": torch.from_numpy(donor)}


def lay(batch, *, share=1.0, other_ground=0.0, seed=0, samples=SAMPLES):
    return clouds.lay(batch, share=share, other_ground=other_ground, seed=seed, samples=samples)


def some(batch: dict, places: list[int]) -> dict:
    return {name: value[places] for name, value in batch.items()}


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name].nan_to_num(-1), other[name].nan_to_num(-1)) for name in one)


def test_outside_of_the_mask_the_image_is_the_target_bit_for_bit(batch):
    laid = lay(batch)
    hidden = ((laid["mask"] > CLEAR) & (laid["mask"] != NO_DATA))[:-1, None].expand(-1, 4, -1, -1)
    image, target = laid["cloudy"][:-1], batch["clear"][:-1]
    assert torch.equal(image[~hidden].nan_to_num(-1), target[~hidden].nan_to_num(-1))
    assert (image[hidden] != target[hidden]).float().mean() > 0.99


def test_the_mask_has_the_donors_classes_where_the_target_has_data(batch):
    laid = lay(batch)
    assert (laid["mask"][:, :3, :5] == NO_DATA)[:-1].all()
    whole = batch | {"clear": batch["clear"].nan_to_num(0.5)}
    for mask, donor in zip(lay(whole)["mask"][:-1], batch["donor"], strict=False):
        for kind in (CLOUD, SHADOW, CIRRUS):
            assert (mask == kind).sum() == (donor == kind).sum()
        assert set(mask.unique().tolist()) <= {CLEAR, CLOUD, SHADOW, CIRRUS}


def test_a_donor_without_cloud_changes_nothing_and_the_truth_stays(batch):
    before = {name: value.clone() for name, value in batch.items()}
    laid = lay(batch)
    assert same(some(laid, [COUNT - 1]), some(before, [COUNT - 1]))
    assert torch.equal(laid["clear"].nan_to_num(-1), before["clear"].nan_to_num(-1))
    assert same(batch, before)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(COUNT)), st.integers(1, COUNT), st.floats(0, 1), st.floats(0, 1))
def test_what_is_laid_belongs_to_the_sample(batch, order, number, share, other):
    """Any composition and any order of the batch; so more ranks, and a resumed training, see the same images."""
    chosen, options = list(order[:number]), {"share": share, "other_ground": other}
    whole = some(lay(batch, **options), chosen)
    assert same(lay(some(batch, chosen), **options, samples=[SAMPLES[place] for place in chosen]), whole)


def test_another_ground_is_darker_in_target_and_reference_alike(batch):
    """Each band by a factor of its own, and the clouds above it are as bright as ever."""
    many = some(batch | {"reference": batch["clear"] + 0.1}, [place % (COUNT - 1) for place in range(300)])
    laid = lay(many, other_ground=0.4, samples=list(range(300)))
    plain = lay(many, samples=list(range(300)))
    ratio = (laid["clear"] / many["clear"]).flatten(2).nanmedian(2).values
    np.testing.assert_allclose(laid["reference"] / many["reference"], laid["clear"] / many["clear"], rtol=1e-4)
    darker = (ratio < 0.999).any(1)
    assert darker.float().mean() == pytest.approx(0.4, abs=0.08)
    assert ratio.min() < 0.1
    assert ratio.max() <= 1.0001
    assert (ratio[darker].std(1) > 0.01).float().mean() > 0.9
    thick = (laid["mask"] == CLOUD) & (plain["cloudy"].mean(1) > 0.9)
    thick[~darker] = False
    difference = (laid["cloudy"] - plain["cloudy"]).mean(1)[thick]
    assert difference.abs().median() < 0.35 * (many["clear"] - laid["clear"]).mean(1)[thick].abs().median()


def test_the_share_of_the_samples_and_none(batch):
    assert same(lay(batch, share=0), batch)
    many = some(batch, [place % (COUNT - 1) for place in range(300)])
    laid = lay(many, share=0.3, samples=list(range(300)))
    changed = (laid["mask"] != many["mask"]).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(0.3, abs=0.08)
    assert not same(lay(batch), lay(batch, seed=1))


def test_reflectances_are_those_of_clouds_and_shadows():
    """A core hides the ground, cirrus half of it at most, a shadow leaves a part of the light and the most in blue."""
    count, size = 40, 96
    ground = torch.rand(count, 4, size, size) * 0.2
    donor = torch.full((count, size, size), CLOUD, dtype=torch.uint8)
    batch = {"cloudy": ground, "clear": ground, "mask": donor * 0}

    def seen(kind: int) -> torch.Tensor:
        one = donor * 0 + kind
        one[:, 0, 0] = CLOUD
        return lay(batch | {"donor": one}, samples=list(range(count)))["cloudy"][..., 20:-20, 20:-20]

    inner = ground[..., 20:-20, 20:-20]
    tops, veiled, shaded = seen(CLOUD), seen(CIRRUS), seen(SHADOW)
    white = tops.flatten(1).quantile(0.9, dim=1)
    assert white.min() > 0.4
    assert white.max() < 1.3
    assert tops.mean((2, 3)).std(1).max() < 0.05  # nearly white
    through = veiled.diff().flatten(1).std(1) / inner.diff().flatten(1).std(1)  # of the contrast from pixel to pixel
    assert through.min() > 0.4
    assert through.max() < 0.95
    assert (veiled > inner).all()
    kept = (shaded / inner).mean((2, 3))
    assert kept.min() > 0.3
    assert kept.max() < 0.85
    assert (kept[:, 2] > kept[:, 1]).all()
    assert (kept[:, 1] > kept[:, 3]).all()


def test_clouds_are_thin_at_the_edge_of_the_mask_and_thick_inside():
    donor = torch.zeros(30, 96, 96, dtype=torch.uint8)
    donor[:, 20:76, 20:76] = CLOUD
    black = torch.zeros(30, 4, 96, 96)
    batch = {"cloudy": black, "clear": black, "mask": donor, "donor": donor}
    profile = lay(batch, samples=list(range(30)))["cloudy"][:, :, 48].mean((0, 1))
    assert profile[20] < 0.1 * profile[48]
    assert profile[48] > 0.6
    assert (profile[20:32].diff() > 0).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.3), st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_distances_are_exact_up_to_their_reach(seed, density, size):
    to = np.random.default_rng(seed).random((1, 2, size, size)) < density
    found = clouds._distance(torch.from_numpy(to)).numpy()
    for one, distance in zip(to[0], found[0], strict=True):
        expected = ndimage.distance_transform_edt(~one) if one.any() else np.full(one.shape, np.inf)
        np.testing.assert_allclose(distance, np.minimum(expected, 16), rtol=1e-6)


def test_real_masks_on_real_ground(shared_data):
    import rasterio

    def read(name: str) -> torch.Tensor:
        paths = sorted((shared_data / "sen12mscr_triplets").glob(f"*/{name}.tif"))
        return torch.from_numpy(np.stack([rasterio.open(path).read() for path in paths]).astype("f4"))

    donor = read("mask")[:, 0].byte()
    clear = read("clear") / 1e4
    laid = lay({"cloudy": clear, "clear": clear, "mask": donor * 0, "donor": donor}, samples=list(range(10)))
    outside = (laid["mask"] == CLEAR)[:, None].expand_as(clear)
    assert torch.equal(laid["cloudy"][outside], clear[outside])
    assert laid["cloudy"].min() >= 0
    assert laid["cloudy"].max() < 1.6
    for image, mask, ground in zip(laid["cloudy"], laid["mask"], clear, strict=True):
        if (mask == CLOUD).float().mean() > 0.2:
            assert image[:, mask == CLOUD].mean() > ground[:, mask == CLOUD].mean() + 0.1


def test_the_loss_of_a_sample_is_the_same_in_any_batch_with_and_without_a_reference(batch):
    """With laid clouds, dropped references and turns: the loss of a batch is the mean of those of its halves."""
    recipe = Recipe.of("tiny", "residual", mean=[0.5] * 4, std=[0.3] * 4)
    torch.manual_seed(0)
    network = recipe.network()
    options = {"seed": 3, "clear_weight": 0.2, "drop_reference": 0.5, "drop_mask": 0.3}
    options |= {"synthetic_clouds": 0.5, "other_ground": 0.5}
    for arrays in (batch, batch | {"reference": batch["clear"] + 0.05}):
        halves = [list(range(6)), list(range(6, COUNT))]
        parts = [recipe.loss(network, some(arrays, h), samples=[SAMPLES[p] for p in h], **options) for h in halves]
        whole = recipe.loss(network, arrays, samples=SAMPLES, **options)
        assert whole.item() == pytest.approx(sum(part.item() for part in parts) / 2, rel=1e-4)
        plain = recipe.loss(network, arrays, samples=SAMPLES, **options | {"synthetic_clouds": 0.0})
        assert whole.item() != pytest.approx(plain.item(), rel=1e-3)
