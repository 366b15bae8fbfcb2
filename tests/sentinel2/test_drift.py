"""Sea ice that drifts between dates beside land that does not."""

from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cloudjob.pixels import CLEAR, CLOUD
from cloudjob.sentinel2 import drift
from cloudjob.sentinel2.scene_masks import Preview

SIDE = 540  # cells of 60 m: 32 km


@pytest.fixture(scope="module")
def floes():
    """Ground of two scales, wider than the scene on every side."""
    rng = np.random.default_rng(1)
    fine, coarse = (gaussian_filter(rng.normal(size=(SIDE + 200, SIDE + 200)), sigma) for sigma in (1, 6))
    return 3000 + 300 * fine / fine.std() + 500 * coarse / coarse.std()


def scene(floes, *, row=0, col=0, ice=np.s_[:], light=1.0, noise=1, core=CLEAR, factor=6):
    """The ground moved by so many cells in these columns, in other light."""
    still = floes[100 : 100 + SIDE, 100 : 100 + SIDE].copy()
    still[:, ice] = floes[100 - row : 100 - row + SIDE, 100 - col : 100 - col + SIDE][:, ice]
    red = light * still + np.random.default_rng(noise).normal(0, 40, still.shape)
    rgb = np.stack([red, np.full_like(red, 2000), np.full_like(red, 2000)]).round().astype(np.uint16)
    grid = (SIDE * 6 // factor,) * 2
    classes = np.broadcast_to(np.asarray(core, np.uint8), grid) if np.ndim(core) == 0 else core
    product = SimpleNamespace(sensing_time=datetime(2024, 3, 10))
    return Preview(product, classes, factor, np.zeros(grid, bool), rgb)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "col"), [(0, 0), (3, -2), (17, 0), (-25, 30)])
def test_the_drift_of_a_scene_of_ice_and_that_it_is_the_same_everywhere(floes, row, col):
    found = drift.measure(scene(floes), scene(floes, row=row, col=col, light=0.7, noise=2))
    alike, looked_at = found["drift_chips"]
    assert alike == looked_at > 10
    most, spread = found["drift"]
    assert most == pytest.approx(60 * np.hypot(row, col), abs=6)
    assert spread < 10


@pytest.mark.slow
def test_ice_beside_land_is_told_by_the_spread(floes):
    land = drift.measure(scene(floes), scene(floes, light=1.3, noise=2))
    beside = drift.measure(scene(floes), scene(floes, row=20, col=5, ice=np.s_[400:], noise=2))
    assert max(land["drift"]) < 20
    assert beside["drift"] == pytest.approx([60 * np.hypot(20, 5)] * 2, abs=10)


@pytest.mark.slow
def test_ice_that_has_gone_too_far_and_unrelated_ground_are_not_alike(floes):
    far = drift.measure(scene(floes), scene(floes, row=90, col=80))
    other = drift.measure(scene(floes), scene(floes[::-1, ::-1]))
    for found in (far, other):
        assert (found["drift"], found["drift_chips"][0]) == (None, 0)


@pytest.mark.parametrize("factor", [1, 2, 6])
def test_only_places_that_are_clear_on_both_dates_are_looked_at(floes, factor):
    core = np.zeros((SIDE * 6 // factor,) * 2, np.uint8)
    core[:, : core.shape[1] * 2 // 3] = CLOUD
    found = drift.measure(scene(floes), scene(floes, core=core, factor=factor, noise=2))
    alike, looked_at = found["drift_chips"]
    assert 3 <= alike == looked_at < 10
    assert max(found["drift"]) < 10
    hidden = drift.measure(scene(floes, core=CLOUD), scene(floes))
    assert hidden == {"drift": None, "drift_chips": [0, 0]}
