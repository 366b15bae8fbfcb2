import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import cho_factor, cho_solve
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from torch import Tensor

from cloudjob.diffusion import neighbours, similarity
from cloudjob.diffusion.similarity import REACH, Far, similar
from cloudjob.scoring import baselines


def ground(shape: tuple[int, int], dates: int, *, seed: int = 0, clear: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """(truth (1, 4, H, W), other dates (1, R, 4, H, W), known (1, H, W)): a texture that changes by what it is."""
    rng = np.random.default_rng(seed)

    def smooth(sigma: float) -> np.ndarray:
        field = gaussian_filter(rng.normal(size=shape), sigma)
        return field / field.std()

    bands = np.stack([0.2 + 0.03 * smooth(1) + 0.02 * smooth(4) for _ in range(4)])
    greener = 0.05 * (bands[3] > bands[0])
    truth = bands + greener + 0.01 * smooth(20)
    others = [bands + 0.01 * rng.normal(size=bands.shape) for _ in range(dates)]
    blobs = smooth(5)
    known = blobs <= np.quantile(blobs, clear)
    references = np.stack(others) if dates else np.zeros((0, *bands.shape))
    return torch.from_numpy(truth)[None], torch.from_numpy(references)[None], torch.from_numpy(known)[None]


def rmse(guess: Tensor, truth: Tensor, pixels: Tensor) -> float:
    return (guess - truth)[pixels[:, None].expand_as(truth)].square().mean().sqrt().item()


@pytest.mark.parametrize("dates", [0, 1, 3])
def test_it_is_the_process_that_it_says(dates):
    truth, references, known = ground((18, 23), dates)
    known &= torch.from_numpy(np.random.default_rng(0).random(known.shape) < 0.4)
    assert 50 < known.sum() <= 96  # all are told, and judge
    guess, deviation = similar(truth, references, known)
    here, there = known[0].numpy(), ~known[0].numpy()
    spectra = references[0].flatten(0, 1).numpy()
    shares = np.array([4, 2, 1][:dates]) / sum([4, 2, 1][:dates] or [1])
    mean = np.tensordot(shares, references[0].numpy(), 1)
    centre = spectra[:, here].mean(1)

    def covariance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        x, y = (spectra[:, at].T - centre for at in (one, other))
        apart = cdist(np.argwhere(one), np.argwhere(other)) / 100
        unlike = cdist(x, y, "sqeuclidean") / (2 * 0.06**2 * max(dates, 1)) if dates else 0
        return 4 * np.exp(-apart - unlike) + 50 * x @ y.T + 2.5

    left = (truth[0].numpy() - mean)[:, here].T
    level = left.mean(0)
    system = cho_factor(covariance(here, here) + np.eye(here.sum()))
    weights = cho_solve(system, left - level)
    cross = covariance(there, here)
    expected = mean[:, there].T + level + cross @ weights
    np.testing.assert_allclose(guess[0].numpy()[:, there].T, expected, rtol=0, atol=1e-6)
    variance = 1 + np.diag(covariance(there, there)) - (cross * cho_solve(system, cross.T).T).sum(1)
    unit = (((left - level) * weights).sum(0) + 4 * 0.02**2) / (here.sum() + 4)
    np.testing.assert_allclose(deviation[0].numpy()[:, there].T, np.sqrt(variance[:, None] * unit), rtol=1e-6)


@pytest.mark.parametrize("dates", [1, 2, 3])
def test_it_is_no_worse_than_the_process_over_similar_pixels_of_the_baselines(dates):
    truth, references, known = ground((64, 64), dates, seed=1)
    guess, _ = similar(truth.float(), references.float(), known)
    other = baselines.similar_pixels(truth[0].numpy(), references[0].numpy(), known[0].numpy(), seed=0)
    assert rmse(guess, truth, ~known) < 10 ** (0.2 / 20) * rmse(torch.from_numpy(other)[None], truth, ~known)


def test_a_window_with_a_margin_gives_what_the_scene_gives():
    truth, references, known = ground((REACH * 2 + 70, 720), 1, clear=0.95)
    known[:, : REACH + 10], known[:, REACH + 60 :] = True, True  # in the margin
    row, col, first, last = 1000, 333, 300, 400
    inner = slice(REACH, -REACH)
    scene = similar(truth.float(), references.float(), known, origin=(row, col))
    cut = slice(first - REACH, last + REACH)
    given = truth[..., cut].float(), references[..., cut].float(), known[..., cut]
    window = similar(*given, margin=REACH, origin=(row, col + first - REACH))
    assert not known[..., inner, first:last].all()
    for whole, part in zip(scene, window, strict=True):
        torch.testing.assert_close(part, whole[..., inner, first:last], rtol=1e-4, atol=1e-5)


def test_the_seed_and_the_place_in_the_scene_decide_who_is_told():
    truth, references, known = ground((48, 48), 1)
    given = truth.float(), references.float(), known
    first = similar(*given, seed=3)
    assert all(torch.equal(one, other) for one, other in zip(first, similar(*given, seed=3), strict=True))
    assert not torch.equal(first[0], similar(*given, seed=4)[0])
    assert not torch.equal(first[0], similar(*given, seed=3, origin=(0, 64))[0])


def test_samples_have_nothing_to_do_with_each_other():
    images = [ground((40, 56), 2, seed=seed) for seed in (1, 2, 3)]
    together = similar(*(torch.cat(each).contiguous() for each in zip(*images, strict=True)))
    for number, image in enumerate(images):
        for one, all_ in zip(similar(*image), together, strict=True):
            torch.testing.assert_close(all_[number : number + 1], one)


def test_a_date_without_data_is_as_none():
    truth, references, known = ground((40, 40), 2)
    alone, _ = similar(truth, references[:, :1], known)
    missing = references.clone()
    missing[:, 1] = torch.nan
    torch.testing.assert_close(similar(truth, missing, known)[0], alone)
    torch.testing.assert_close(similar(truth, missing[:, [1, 0]], known)[0], alone)
    nothing, _ = similar(truth, references[:, :0], known)
    torch.testing.assert_close(similar(truth, missing[:, 1:], known)[0], nothing)


def test_where_a_date_lacks_data_the_others_are_used():
    truth, references, known = ground((40, 80), 2)
    both, _ = similar(truth, references, known)
    references[:, 1, 2, :, 40:] = torch.nan
    first, _ = similar(truth, references[:, :1], known)
    guess, deviation = similar(truth, references, known)
    torch.testing.assert_close(guess[..., 40:], first[..., 40:])
    assert guess.isfinite().all()
    assert deviation.isfinite().all()
    assert rmse(guess[..., :40], both[..., :40], ~known[..., :40]) < 0.01


def test_nothing_known_leaves_the_mean_of_the_dates():
    truth, references, known = ground((20, 20), 2)
    known[:] = False
    references[:, 1, :, 3:5, 3:5] = torch.nan
    references[:, :, :, 8, 8] = torch.nan
    truth[:, :, 8, 8] = torch.nan
    guess, deviation = similar(truth, references, known)
    both = (2 * references[:, 0] + references[:, 1]) / 3
    torch.testing.assert_close(guess, both.where(references[:, 1].isfinite(), references[:, 0]), equal_nan=True)
    assert (deviation[guess.isfinite()] > 0.02).all()
    assert deviation[:, :, 8, 8].isnan().all()
    assert similar(truth, references[:, :0], known)[0].isnan().all()


def test_what_is_known_far_off_is_told_where_nothing_nearer_is():
    references = ground((64, 704), 1)[1]
    truth = references[:, 0] + 0.05
    known = torch.zeros(1, 64, 704, dtype=torch.bool)
    known[:, :, :20] = True
    guess, deviation = similar(truth, references, known)
    torch.testing.assert_close(guess, truth, atol=1e-3, rtol=0)
    assert (deviation[0, :, :, 700] > deviation[0, :, :, 21]).double().mean() > 0.9


def test_a_window_is_told_what_it_does_not_hold():
    """Under a large cloud, by pixels of the scene: those that have data on the dates that the window has."""
    truth, references, known = ground((128, 900), 2, clear=1)
    references[:, 1, :, :, 100:] = torch.nan
    known[:, :, 100:] = False
    row, col = (
        each.flatten() for each in torch.meshgrid(torch.arange(5, 128, 30), torch.arange(7, 200, 5), indexing="ij")
    )
    col[row > 100] += 100  # some under the cloud, if they were told
    place = torch.stack([row, col], 1)[col < 100]
    far = Far(place, truth[0, :, *place.T].T, references[0, :, :, *place.T].permute(2, 0, 1))
    whole = similar(truth, references, known, far=far)
    for first in (512, 640):
        here = slice(first - REACH, min(first + 128 + REACH, 900))
        window = similar(truth[..., here], references[..., here], known[..., here], origin=(0, first - REACH), far=far)
        for one, part in zip(whole, window, strict=True):
            middle = slice(REACH, REACH + 128)
            torch.testing.assert_close(part[..., middle], one[..., first : first + 128])
    guess, deviation = (each[..., 512:] for each in whole)
    assert rmse(guess, truth[..., 512:], ~known[..., 512:]) < 0.06
    assert deviation.isfinite().all()
    none = Far(place[:0], far.cloudy[:0], far.references[:0])
    mean = similar(truth[..., 512:], references[..., 512:], known[..., 512:], far=none)[0]
    torch.testing.assert_close(mean, references[:, 0, ..., 512:])


def test_neighbouring_blocks_meet_without_a_seam():
    truth, references, known = ground((64, 192), 1, seed=5)
    left = (similar(truth.float(), references.float(), known)[0] - references[:, 0]).diff(dim=-1).abs()
    hidden = ~(known[..., 1:] | known[..., :-1])
    steps = torch.stack([left[..., col][hidden[:, None, :, col].expand(-1, 4, -1)].mean() for col in range(191)])
    assert steps[[63, 127]].max() < 1.3 * steps[20:170].median()


def test_single_precision_is_enough():
    truth, references, known = ground((64, 100), 3)
    exact, near = similar(truth, references, known), similar(truth.float(), references.float(), known)
    for one, other in zip(exact, near, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(other.double(), one, rtol=1e-3, atol=1e-4)


def test_low_precision_around_it_changes_nothing():
    truth, references, known = ground((40, 40), 1)
    given = truth.float(), references.float(), known
    expected = similar(*given)
    with torch.autocast("cpu", torch.bfloat16):
        found = similar(*given)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("far", [False, True])
def test_a_device_that_is_not_asked_gives_the_same(monkeypatch, far):
    """As a GPU has it: blocks of all colours and shares at once, patterns that do not occur, pixels far off for all."""
    truth, references, known = ground((150, 500), 2)
    known[:, :, 200:] = False
    references[:, 1, :, 30:60] = torch.nan
    places = torch.tensor([[20, 900], [130, 40], [45, -80]])  # in none, in one and in the other of the images
    told = Far(places, torch.full((3, 4), 0.3).double(), torch.full((3, 2, 4), 0.2).double())
    given, options = (truth, references, known), {"far": told if far else None, "origin": (5, 9)}
    expected = similar(*given, **options)
    monkeypatch.setattr(similarity, "answers", lambda tensor: False)
    monkeypatch.setattr(similarity, "_budget", lambda like: 2**24)
    for one, other in zip(similar(*given, **options), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_its_products_are_not_rounded_where_others_are(monkeypatch):
    rounded, solve, products = [], similarity._solve, torch.backends.cuda.matmul

    def noted(*given) -> None:
        rounded.append(products.allow_tf32)
        solve(*given)

    monkeypatch.setattr(similarity, "_solve", noted)
    products.allow_tf32 = True
    try:
        similar(*ground((40, 40), 1))
        assert products.allow_tf32
    finally:
        products.allow_tf32 = False
    assert rounded == [False]


def test_the_deviation_is_that_of_the_error():
    for seed in range(3):
        truth, references, known = ground((64, 64), 1, seed=seed)
        guess, deviation = similar(truth.float(), references.float(), known)
        ratio = rmse((guess - truth) / deviation, torch.zeros_like(truth), ~known)
        assert 0.6 < ratio < 1.6


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 99),
    dates=st.integers(0, 3),
    clear=st.floats(0, 1),
    lack=st.floats(0, 0.5),
    shift=st.floats(-0.2, 0.2),
)
def test_whatever_is_known(seed, dates, clear, lack, shift):
    truth, references, known = ground((20, 30), dates, seed=seed, clear=clear)
    rng = np.random.default_rng(seed)
    references[torch.from_numpy(rng.random(references.shape) < lack / 4)] = torch.nan
    truth[torch.from_numpy(rng.random(truth.shape) < lack / 4)] = torch.nan
    guess, deviation = similar(truth, references, known)
    seen = known & truth.isfinite().all(1)
    everywhere = seen[:, None].expand_as(truth)
    assert torch.equal(guess[everywhere], truth[everywhere])
    assert (deviation[everywhere] == 0).all()
    assert (deviation[~everywhere & guess.isfinite()] > 0).all()
    data = references.isfinite().all(2).any(1) | (truth.isfinite().all(1) & bool(seen.any()))
    assert torch.equal(guess.isfinite().all(1), data)
    covered = torch.where(everywhere, truth, torch.where(truth.isnan(), torch.nan, 9.0))
    assert torch.equal(similar(covered, references, known)[0].nan_to_num(), guess.nan_to_num())
    brighter, _ = similar(truth + shift, references + shift, known)
    torch.testing.assert_close(brighter, guess + shift, equal_nan=True, atol=1e-6, rtol=0)
    turned, _ = similar(truth.flip(1), references.flip(2), known)
    torch.testing.assert_close(turned.flip(1), guess, equal_nan=True, atol=1e-6, rtol=0)


def test_the_shares_of_neighbouring_blocks_add_up_to_one():
    side = torch.arange(-4.0, 68)
    place = torch.cartesian_prod(side, side)
    share = similarity._share(place).view(72, 72)
    assert (share > 0).all()
    assert share.sum() == pytest.approx(64**2)
    assert (share[:, :8] + share[:, 64:] == share[:, 36:37]).all()
    assert (share[4:-4, 8:-8] + torch.cat([share[-4:, 8:-8], torch.zeros(56, 56), share[:4, 8:-8]]) == 1).all()


def test_who_is_told_is_near_or_else_one_of_a_cell():
    rank = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 320, 320)))
    near = slice(128 - 32, 192 + 32)
    few = torch.zeros(128, 128, dtype=torch.bool)
    few[::40, 3::40] = True
    rank[0, near, near] = (rank[0, near, near] + 50).masked_fill(~few, torch.inf)
    nowhere = neighbours.Everywhere(torch.empty(1, 0), torch.empty(0, 2), torch.empty(1, 0))
    points, told = neighbours.select(torch.tensor([[0, 2, 2]]), rank, neighbours.sparse(rank, 8), nowhere)
    assert told.all()
    row, col = points[0] // 320, points[0] % 320
    within = (row >= 96) & (row < 224) & (col >= 96) & (col < 224)
    count = int(few.sum())
    assert within[:count].all()
    assert not within[count:].any()
    assert rank[0, row, col][:count].diff().min() > 0
    cells = rank[0].view(40, 8, 40, 8).amin((1, 3))
    assert torch.equal(rank[0, row, col][count:], cells[row // 8, col // 8][count:])
    apart = torch.maximum((row - 159.5).abs(), (col - 159.5).abs())[count:]
    assert (apart < 112).sum() > 1.5 * len(apart) * (224**2 - 128**2) / (320**2 - 128**2)
