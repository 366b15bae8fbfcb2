import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cloudjob.scoring import ensembles

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


@pytest.mark.parametrize("count", [2, 3, 16])
def test_members_as_good_as_the_truth(count):
    """The fair CRPS of two standard normals has the expectation sigma / sqrt(pi), whatever the number of members."""
    found = ensembles.score(*drawn(count), ALL)
    assert found["crps"] == pytest.approx(0.05 / np.sqrt(np.pi), rel=0.05)
    assert found["spread"] == pytest.approx(0.05, rel=0.03)
    assert found["skill"] == pytest.approx(0.05 * np.sqrt(1 + 1 / count), rel=0.03)
    assert found["spread_skill"] == pytest.approx(1, abs=0.03)
    for level in (50, 90):  # covers less than it says, as mean and deviation are estimates: Student's t
        width = stats.norm.ppf(0.5 + level / 200) / np.sqrt(1 + 1 / count)
        expected = 2 * stats.t.cdf(width, count - 1) - 1
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
    assert np.isnan(list(ensembles.score(members, truth, ~ALL).values())).all()
    assert set(ensembles.score(members, truth, ~ALL)) == set(ensembles.score(members, truth, ALL))


def test_one_member_is_no_ensemble():
    with pytest.raises(ValueError, match="two"):
        ensembles.score(*drawn(1), ALL)
