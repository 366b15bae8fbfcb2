"""Other weather than training's differs from it in each property that a network could learn by heart."""

import math

import numpy as np
import pytest

from cloudjob.archive import light, sky, weather
from cloudjob.archive.fields import Noise
from cloudjob.archive.safe import pool
from cloudjob.diffusion import clouds

SUN = (11.0, 190.0)
SKIES = range(16)


def other(key: int, size: int = 256, cloud: float = 0.3, sun: tuple[float, float] = SUN) -> sky.Sky:
    return weather.make_sky(Noise(f"o{key}", size), cloud, *sun)


def usual(key: int, size: int = 256) -> sky.Sky:
    return sky.make_sky(Noise(f"u{key}", size), 0.3, *SUN)


@pytest.fixture(scope="module")
def skies() -> tuple[list[sky.Sky], list[sky.Sky]]:
    return [usual(key) for key in SKIES], [other(key) for key in SKIES]


@pytest.mark.parametrize("cloud", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("size", [128, 201])
def test_cloud_fraction_is_reached(cloud, size):
    for key in range(3):
        found = other(key, size, cloud)
        visible = pool(np.maximum(found.thick, found.cirrus), 2, np.max) > sky.VISIBLE
        assert visible.mean() == pytest.approx(cloud, abs=0.02)


def test_a_clear_sky_is_clear():
    assert not other(0, cloud=0).above().any()


# --- unlike training ---------------------------------------------------------------------------------------------
def bright(found: sky.Sky, band: int) -> np.ndarray:
    """Reflectance of cloud that lets nothing through."""
    thick = found.thick > 0.95
    return found.seen(np.full_like(found.thick, 0.4), band)[thick & (found.cirrus == 0)]


@pytest.mark.slow
def test_tops_have_another_colour(skies):
    """Yellow, and brighter in B08 than in B04; those of training are white within 4 %."""
    for before, now in zip(*skies, strict=True):
        for found, blue, near in ((before, 1.01, 0.96), (now, 0.95, 1.03)):
            red = bright(found, 0)
            if len(red):
                assert np.allclose(bright(found, 2) / red, blue, atol=0.04)
                assert np.allclose(bright(found, 3) / red, near, atol=0.04)


@pytest.mark.slow
def test_tops_are_grey_or_bright_and_seldom_between(skies):
    before, now = (np.concatenate([bright(found, 0) for found in each]) for each in skies)
    assert np.mean(before > 0.8) > 0.9
    grey, bright_ones = np.mean(now < 0.68), np.mean(now > 0.77)
    assert min(grey, bright_ones) > 0.2
    assert grey + bright_ones > 0.85


def softness(found: sky.Sky) -> float:
    seen = found.thick > 0.1
    return float((seen & (found.thick < 0.9)).sum() / seen.sum())


def test_edges_are_sharper_and_softer(skies):
    before, now = ([softness(found) for found in each] for each in skies)
    assert min(now) < 0.75 * min(before)
    assert np.std(now) > 1.5 * np.std(before)


def test_shadows_are_bluer_and_deeper_than_those_of_training():
    lost = np.array(other(0).colours.shadow[:4])
    laid = np.array(clouds._SHADOW_BANDS)
    assert np.allclose(np.array(sky.SHADOW[:4]) / sky.SHADOW[0], laid, atol=0.01)  # the archive's usual ones are those
    blue, trained = lost[2] / lost[0], laid[2] / laid[0]
    assert blue < trained - 0.1
    assert lost[0] > 0.65 > sky.SHADOW[0]


def centre(image: np.ndarray) -> np.ndarray:
    return np.array([(axis * image).sum() / image.sum() for axis in np.indices(image.shape)])


@pytest.mark.parametrize(("elevation", "azimuth"), [(12, 185), (25, 150), (40, 225)])
@pytest.mark.parametrize("height", [300, 900])
def test_a_shadow_lies_where_geometry_says(height, elevation, azimuth):
    deck = np.zeros((1200, 1200), np.float32)
    deck[595:606, 595:606] = 1
    moved = centre(weather.cast(deck, height, elevation, azimuth)) - centre(deck)
    away = math.radians(azimuth + 180)  # from north over east
    reach = height / math.tan(math.radians(elevation)) / 10
    assert np.allclose(moved, (-reach * math.cos(away), reach * math.sin(away)), atol=0.6)


def test_a_shadow_keeps_its_light_and_is_blurred_by_the_suns_disc():
    deck = np.zeros((256, 256), np.float32)
    deck[100:150, 100:150] = 1
    near, far = (weather.cast(deck, height, 15, 180) for height in (300, 6000))
    assert near.sum() == pytest.approx(deck.sum(), rel=1e-3)
    assert far.sum() == pytest.approx(deck.sum(), rel=1e-3)
    soft = [((shadow > 0.05) & (shadow < 0.95)).sum() for shadow in (near, far)]
    assert soft[1] > 3 * soft[0]


def test_shadows_lie_farther_off_than_those_of_training(skies):
    """Those of training lie 35 pixels off at most: there and nearer they agree with the clouds best."""

    def farthest(found: sky.Sky) -> float:
        spectrum = np.fft.rfft2(found.shadow - found.shadow.mean()) * np.conj(
            np.fft.rfft2(found.thick - found.thick.mean())
        )
        rows, cols = np.unravel_index(np.fft.irfft2(spectrum).argmax(), found.thick.shape)
        return float(np.hypot(min(rows, 256 - rows), min(cols, 256 - cols)))

    before, now = ([farthest(found) for found in each] for each in skies)
    assert max(before) <= 37
    assert np.median(now) > 40
    assert np.hypot(*light.shadow_offset(weather.LOW_M[0], *SUN)) > 100


# --- errors of the classification --------------------------------------------------------------------------------
def masks_of(scl: np.ndarray) -> dict[str, np.ndarray]:
    cloud = np.isin(scl, (8, 9, 10))
    return {
        "scl": scl,
        "cloud_probability": np.where(cloud, 80, 0).astype(np.uint8),
        "snow_probability": np.where(scl == 11, 90, 0).astype(np.uint8),
    }


def test_the_classification_errs_at_the_stated_rates_and_nowhere_else():
    rng = np.random.default_rng(1)
    scl = rng.choice(np.array([3, 5, 6, 8, 9, 10, 11], np.uint8), (20, 20)).repeat(8, 0).repeat(8, 1)
    ground = np.where(scl == 3, 11, scl).astype(np.uint8)
    before = masks_of(scl)
    kept = {name: image.copy() for name, image in before.items()}
    after = weather.misread(Noise("a", 320), before, ground)
    assert all(np.array_equal(before[name], kept[name]) for name in kept)
    wrong = after["scl"] != scl
    changes = set(zip(scl[wrong].tolist(), after["scl"][wrong].tolist(), strict=True))
    assert changes == {(11, 8), (11, 9), (8, 11), (9, 11), (10, 11), (3, 11)}
    cloud = np.isin(scl, (8, 9, 10))
    for among, rate in ((scl == 11, 0.03), (cloud, 0.10), (scl == 3, 0.30)):
        assert wrong[among].mean() == pytest.approx(rate, abs=0.005)
    false, missed = wrong & (scl == 11), wrong & cloud
    assert after["cloud_probability"][false].min() >= 40
    assert after["cloud_probability"][missed].max() <= 20
    assert (after["snow_probability"][false] <= 60).all()
    assert (after["snow_probability"][missed] >= 80).all()
    same = ~(false | missed)
    assert all(
        np.array_equal(after[name][same], before[name][same]) for name in ("cloud_probability", "snow_probability")
    )
    assert {image.dtype for image in after.values()} == {np.dtype(np.uint8)}


def test_a_scene_without_snow_cloud_or_shadow_has_no_errors():
    scl = np.full((30, 31), 5, np.uint8)
    assert (weather.misread(Noise("a", 62), masks_of(scl), scl)["scl"] == 5).all()
