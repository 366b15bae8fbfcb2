from types import SimpleNamespace

import batches
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri, stdtr

from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN
from cloudjob.scoring import ensembles

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
ALL = np.ones((64, 64), bool)


def drawn(count: int, *, spread: float | np.ndarray = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Members of deviation `spread` and a truth of deviation 0.05 round the same, unknown, means."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 1, (4, *ALL.shape))
    members = centre + np.reshape(spread, (-1, 1, 1)) * rng.normal(size=(count, 4, *ALL.shape))
    return members.astype(np.float32), (centre + rng.normal(0, 0.05, centre.shape)).astype(np.float32)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=7), st.integers(-60, 60))
def test_the_crps_is_the_integral_made_fair(members, truth):
    """The integral of (F(x) - 1[x >= y])^2 has mean |xi - xj| / 2 over all pairs; the fair one over those i != j."""
    grid = np.arange(-60, 60) + 0.5
    steps = (np.mean([grid >= member for member in members], 0) - (grid >= truth)) ** 2
    between = np.abs(np.subtract.outer(members, members)).sum() / 2
    count = len(members)
    fair = steps.sum() + between / count**2 - between / (count * (count - 1))
    images = np.broadcast_to(np.reshape(members, (-1, 1, 1, 1)), (count, 4, 2, 2)).astype(np.float32)
    found = ensembles.score(images, np.full((4, 2, 2), truth, np.float32), np.ones((2, 2), bool))
    assert found["crps"] == pytest.approx(fair, abs=1e-6)


def test_scores_by_hand():
    """Three members of one pixel; the bands' errors are 0.2, 0, -0.3 and 1, their deviations 0.1, 0.1, 0.2 and 0.1."""
    steps = np.array([-1.0, 0, 1])[:, None]
    members = np.array([0.5, 0.5, 0.4, 0.5]) + steps * [0.1, 0.1, 0.2, 0.1]
    truth = np.array([0.3, 0.5, 0.7, -0.5])
    found = ensembles.score(members[..., None, None], truth[:, None, None], np.ones((1, 1), bool))
    assert found["spread"] == pytest.approx(np.sqrt((3 * 0.01 + 0.04) / 4))
    assert found["skill"] == pytest.approx(np.sqrt((0.04 + 0 + 0.09 + 1) / 4))
    assert found["spread_skill"] == pytest.approx(np.sqrt(4 / 3) * found["spread"] / found["skill"])
    own = np.abs(members - truth).mean(0)
    others = [np.mean([abs(a - b) for a in band for b in band]) * 3 / 2 / 2 for band in members.T]
    assert found["crps"] == pytest.approx(np.mean(own - others))
    assert (found["coverage_50"], found["coverage_90"]) == (0.25, 0.5)  # within 0.67 and 1.64 deviations
    wider = ensembles.score(
        members[..., None, None], truth[:, None, None], np.ones((1, 1), bool), temperature=[3, 1, 1, 7]
    )
    assert (wider["coverage_50"], wider["coverage_90"]) == (0.5, 1.0)
    assert {key: wider[key] for key in ("crps", "spread", "skill")} == {
        key: found[key] for key in ("crps", "spread", "skill")
    }


@pytest.mark.parametrize("count", [2, 3, 16])
def test_members_as_good_as_the_truth(count):
    """The fair CRPS of two standard normals has the expectation sigma / sqrt(pi), whatever the number of members."""
    found = ensembles.score(*drawn(count), ALL)
    assert found["crps"] == pytest.approx(0.05 / np.sqrt(np.pi), rel=0.05)
    assert found["spread"] == pytest.approx(0.05, rel=0.03)
    assert found["skill"] == pytest.approx(0.05 * np.sqrt(1 + 1 / count), rel=0.03)
    assert found["spread_skill"] == pytest.approx(1, abs=0.03)
    for level in (50, 90):  # covers less than it says, as mean and deviation are estimates: Student's t
        width = ndtri(0.5 + level / 200) / np.sqrt(1 + 1 / count)
        expected = 2 * stdtr(count - 1, width) - 1
        assert found[f"coverage_{level}"] == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("count", [2, 4])
def test_the_temperature_covers_nine_tenths_of_images_not_seen(count):
    spread = np.array([0.01, 0.05, 0.1, 0.2])
    factors = ensembles.temperature((*drawn(count, spread=spread, seed=seed), ALL) for seed in range(3))
    assert np.all(np.diff(factors) < 0)
    members, truth = drawn(count, spread=spread, seed=9)
    assert ensembles.score(members, truth, ALL, temperature=factors)["coverage_90"] == pytest.approx(0.9, abs=0.01)
    for band, factor in enumerate(factors):
        error, deviation = np.abs(members[:, band].mean(0) - truth[band]), members[:, band].std(0, ddof=1)
        expected = np.quantile(error / deviation, 0.9) / 1.6449
        assert factor == pytest.approx(expected, rel=0.1)


def test_the_temperature_covers_what_it_was_fitted_to():
    members, truth = drawn(4, spread=0.02)
    factors = ensembles.temperature([(members, truth, ALL)])
    assert 0.9 <= ensembles.score(members, truth, ALL, temperature=factors)["coverage_90"] < 0.905


def members_with(ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two members of deviation 1 in each band, and a truth that is off by `ratios` (4, n)."""
    centre = np.zeros((4, 1, ratios.shape[1]))
    half = 1 / np.sqrt(2)
    return np.stack([centre - half, centre + half]), ratios[:, None], np.ones(centre.shape[1:], bool)


def test_the_temperature_is_the_ninth_of_ten_ratios_in_each_band():
    """To 0.1 %, upwards; what is beyond a thousandth to a thousand counts as these."""
    ratios = np.array([np.arange(1, 11) * scale for scale in (1.0, 0.01, 1e5, 1e-7)])
    expected = np.array([9, 0.09, 1e3, 1e-3]) / ndtri(0.95)
    found = np.array(ensembles.temperature([members_with(ratios)]))
    assert (found >= expected * (1 - 1e-9)).all()
    edges = np.geomspace(1e-3, 1e3, 2**14 + 1) / ndtri(0.95)
    assert found == pytest.approx(
        [edges[edges > expected * (1 - 1e-9)].min() for expected in expected[:3]] + [edges[1]]
    )
    parts = [members_with(part) for part in np.split(ratios, 2, 1)]  # one after the other
    assert ensembles.temperature(parts) == found.tolist()
    assert ensembles.temperature([]) == [1.0] * 4


def test_the_interval_includes_its_ends():
    ends = ndtri([0.75, 0.95])
    for key, end in zip(("coverage_50", "coverage_90"), ends, strict=True):
        for ratio, expected in ((end * 0.999, 1), (end * 1.001, 0)):
            assert ensembles.score(*members_with(np.full((4, 1), ratio)))[key] == expected
    members = np.zeros((2, 4, 1, 1))
    assert ensembles.score(members, members[0], np.ones((1, 1), bool))["coverage_50"] == 1


def test_members_that_agree():
    members, truth = drawn(3)
    same = np.repeat(members[:1], 3, 0)
    assert ensembles.temperature([(same, truth, ALL)]) == [1.0] * 4
    half = np.arange(64) < 32
    mixed = np.where(half, members, same)
    assert ensembles.temperature([(mixed, truth, ALL)]) == ensembles.temperature([(members, truth, ALL & half)])
    found = ensembles.score(same, members[0], ALL)
    assert (found["crps"], found["spread"], found["skill"], found["coverage_50"]) == (0, 0, 0, 1)
    assert np.isnan(found["spread_skill"])
    assert ensembles.score(same, truth, ALL)["coverage_90"] == 0


def test_only_pixels_asked_for_that_have_data_count():
    members, truth = drawn(3)
    some = np.arange(64) % 3 == 0
    spoilt = np.where(some, members, 9).astype(np.float32)
    spoilt[1, 2, :8], spoilt[0, 0, 9, 9] = np.nan, np.nan
    truth[3, 60] = np.nan
    known = ALL & some
    known[:8], known[9, 9], known[60] = False, False, False
    assert ensembles.score(spoilt, truth, ALL & some) == ensembles.score(members, truth, known)
    assert ensembles.score(members, truth, ~ALL) == ensembles.score(members * np.nan, truth, ALL) == {}


def test_ranks_count_the_members_below_the_truth():
    """One pixel, four bands, three members: a tie is halved between the lowest and the highest rank it may have."""
    members = np.array([[0.1, 0.1, 0.5, 0.2], [0.2, 0.4, 0.5, 0.2], [0.3, 0.3, 0.5, 0.9]])[..., None, None]
    truth = np.array([0.0, 0.35, 0.5, 0.2])[:, None, None]  # ranks 0; 2; 0 and 3; 0 and 2
    found = ensembles.score(members, truth, np.ones((1, 1), bool))
    assert found["ranks"] == pytest.approx([2 / 4, 0, 1.5 / 4, 0.5 / 4])


@pytest.mark.parametrize("count", [2, 5])
def test_ranks_are_those_of_loops_and_sum_to_1(count):
    rng = np.random.default_rng(0)
    members, truth = rng.integers(0, 4, (count, 4, 6, 5)) / 4, rng.integers(0, 4, (4, 6, 5)) / 4  # ties
    pixels = rng.uniform(size=(6, 5)) < 0.7
    expected = np.zeros(count + 1)
    for band, row, col in np.ndindex(truth.shape):
        if pixels[row, col]:
            values = members[:, band, row, col].tolist()
            expected[sum(value < truth[band, row, col] for value in values)] += 0.5
            expected[sum(value <= truth[band, row, col] for value in values)] += 0.5
    found = ensembles.score(members, truth, pixels)["ranks"]
    assert found == pytest.approx(expected / (4 * pixels.sum()))
    assert sum(found) == pytest.approx(1)


@pytest.mark.parametrize("count", [2, 7])
def test_ranks_are_flat_for_members_drawn_as_the_truth_and_not_for_narrow_ones(count):
    flat = ensembles.score(*drawn(count), ALL)["ranks"]
    assert flat == pytest.approx([1 / (count + 1)] * (count + 1), abs=0.015)
    narrow = ensembles.score(*drawn(count, spread=0.01), ALL)["ranks"]
    assert min(narrow[0], narrow[-1]) > 0.25


def loops(members: np.ndarray, truth: np.ndarray, pixels: np.ndarray) -> float:
    """The variogram score, pair by pair."""
    rows, cols = pixels.shape
    found = []
    for row, col in np.argwhere(pixels):
        for lag in (1, 2, 4):
            for other in ((row + lag, col), (row, col + lag)):
                if other[0] < rows and other[1] < cols and pixels[other]:
                    for band in range(len(truth)):
                        own = abs(truth[band, row, col] - truth[band, *other]) ** 0.5
                        theirs = [abs(image[band, row, col] - image[band, *other]) ** 0.5 for image in members]
                        found.append((own - np.mean(theirs)) ** 2)
    return float(np.mean(found))


@pytest.mark.parametrize("size", [(7, 6), (3, 9), (1, 5)])
def test_the_variogram_score_is_that_of_loops(size):
    rng = np.random.default_rng(0)
    members, truth = rng.uniform(size=(3, 4, *size)), rng.uniform(size=(4, *size))
    some = rng.uniform(size=size) < 0.8
    for pixels in (np.ones(size, bool), some):
        found = ensembles.score(members, truth, pixels)["variogram"]
        assert found == pytest.approx(loops(members, truth, pixels))
    members[1, 2, 0, 1] = truth[3, 0, 3] = np.nan  # without data in one image is without data
    known = np.ones(size, bool)
    known[0, [1, 3]] = False
    found = ensembles.score(members.astype("f4"), truth.astype("f4"), np.ones(size, bool))["variogram"]
    assert found == pytest.approx(loops(members, truth, known), rel=1e-5)


def test_the_variogram_score_needs_pairs():
    """Pixels 3 apart in a row, or in neither one row nor one column, are no pair."""
    members, truth = (image[..., :8, :8] for image in drawn(3))
    pixels = np.zeros((8, 8), bool)
    pixels[2, 2] = pixels[2, 5] = pixels[3, 3] = True
    found = ensembles.score(members, truth, pixels)
    assert np.isnan(found["variogram"])
    assert found["crps"] > 0
    pixels[6, 2] = True
    expected = loops(members.astype(float), truth.astype(float), pixels)
    assert ensembles.score(members, truth, pixels)["variogram"] == pytest.approx(expected, rel=1e-5)


def test_the_variogram_score_finds_texture_that_is_missing():
    """Members that are smooth have a score above those drawn as the truth, which have some as well."""
    rng = np.random.default_rng(0)
    texture = rng.normal(0, 0.05, (5, 4, 64, 64))
    right = ensembles.score(texture[1:], texture[0], ALL)["variogram"]
    smooth = ensembles.score(texture[1:] * 0.3, texture[0], ALL)["variogram"]
    assert 0 < right < smooth * 0.8


def test_a_calibration_is_of_what_is_hidden_in_held_out_triplets():
    """Clear pixels, and those without data, are all but in agreement with the truth here, and must not count."""
    rng = np.random.default_rng(0)
    classes = np.array([CLEAR, CLOUD, SHADOW, CIRRUS, UNKNOWN, NO_DATA], np.uint8)
    mask = classes[rng.integers(0, 6, (3, 16, 16))]
    hidden = np.isin(mask, (CLOUD, SHADOW, CIRRUS))
    truth = rng.uniform(0, 1, (3, 4, 16, 16)).astype("f4")
    error = np.where(hidden[:, None], 0.1, 1e-4) * rng.normal(size=(5, *truth.shape))
    drawn = (truth + error + np.where(hidden[:, None], 0.1, 0)).astype("f4")
    batch = batches.batch(torch.zeros(3, 4, 16, 16), torch.from_numpy(mask), target=torch.from_numpy(truth))
    asked = []

    def members(*given):
        asked.append(given)
        return drawn

    restorer = SimpleNamespace(members=members, sampling={"sampler": "heun", "steps": 3})
    found = ensembles.calibrate(restorer, batch, 5)
    assert asked == [(batch, [0, 1, 2], 5)]
    expected = ensembles.temperature((drawn[:, i], truth[i], hidden[i]) for i in range(3))
    assert found == {"sampler": "heun", "steps": 3, "factors": expected}
    assert found["factors"] != ensembles.temperature((drawn[:, i], truth[i], ~hidden[i]) for i in range(3))
    every_second = ensembles.calibrate(restorer, batch, 5, independent=True)
    assert asked[1] == asked[0]
    expected = ensembles.temperature((drawn[[0, 2, 4], i], truth[i], hidden[i]) for i in range(3))
    assert every_second == {"sampler": "heun", "steps": 3, "factors": expected}
    assert every_second["factors"] != found["factors"]


def test_one_member_is_no_ensemble():
    with pytest.raises(ValueError, match="two"):
        ensembles.score(*drawn(1), ALL)
