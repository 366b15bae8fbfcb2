"""A low sun: skylight by the optical depth of air, shadows against a march along each ray, noise by theory."""

import math

import numpy as np
import pytest

from cloudjob.archive import light


def test_skylight_is_blue_and_counts_for_more_as_the_sun_sinks():
    shares = np.array([light.skylight(elevation) for elevation in (8, 15, 30, 60)])
    red, green, blue, near, b11 = shares.T
    assert (np.array([blue - green, green - red, red - near, near - b11]) > 0).all()
    assert (np.diff(shares, axis=0) < 0).all()
    assert shares.min() > 0
    assert shares.max() < 0.8


def test_without_haze_skylight_is_that_of_the_optical_depth_of_air(monkeypatch):
    """0.1436 at 0.5 um at sea level (Bodhaine et al. 1999, table 3, within the 1 % that the two formulas differ)."""
    monkeypatch.setattr(light, "_HAZE", 0)
    monkeypatch.setattr(light, "_WAVELENGTHS", (0.5,))
    transmitted = math.exp(-0.1436 / math.sin(math.radians(20)))
    assert light.skylight(20)[0] == pytest.approx((1 - transmitted) / (1 + transmitted), rel=0.02)


@pytest.mark.parametrize(
    ("azimuth", "direction"), [(180, (-1, 0)), (90, (0, -1)), (270, (0, 1)), (225, (-(0.5**0.5), 0.5**0.5))]
)
def test_a_shadow_lies_opposite_to_the_sun_at_height_over_tangent(azimuth, direction):
    rows, cols = light.shadow_offset(1000, 30, azimuth)
    assert np.allclose((rows, cols), 100 * math.sqrt(3) * np.array(direction), atol=1e-9)


def test_flat_ground_has_all_of_the_suns_light():
    assert (light.on_slopes(np.zeros((20, 30), np.float32), 10, 200) == 1).all()


def test_a_slope_is_lit_by_the_cosine_of_incidence():
    """Against the dot product of the slope's normal (per horizontal area) and the sun's direction."""
    east, south = np.meshgrid(np.arange(40), np.arange(40))
    height = (0.4 * east - 0.3 * south).astype(np.float32)
    elevation, azimuth = math.radians(25), math.radians(160)
    sun = np.array(
        [math.cos(elevation) * math.sin(azimuth), -math.cos(elevation) * math.cos(azimuth), math.sin(elevation)]
    )
    normal = np.array([-0.04, 0.03, 1])  # east, south, up; pixels of 10 m
    found = light.on_slopes(height, 25, 160)
    assert np.allclose(found, normal @ sun / math.sin(elevation), atol=1e-4)


def marched(height: np.ndarray, elevation: float, azimuth: float) -> np.ndarray:
    """Whether any point on the way to the sun, pixel by pixel, rises above the ray."""
    size, found = len(height), np.zeros(height.shape, bool)
    for row in range(size):
        for col in range(size):
            for step in range(1, size):
                y = round(row - step * math.cos(math.radians(azimuth)))
                x = round(col + step * math.sin(math.radians(azimuth)))
                if not (0 <= y < size and 0 <= x < size):
                    break
                found[row, col] |= height[y, x] > height[row, col] + step * 10 * math.tan(math.radians(elevation))
    return found


@pytest.mark.parametrize(("elevation", "azimuth"), [(8, 180), (12, 200), (20, 135), (10, 300)])
def test_shadows_are_those_of_a_march_to_the_sun(elevation, azimuth):
    smooth = np.random.default_rng(2).normal(size=(8, 8)).repeat(6, 0).repeat(6, 1)
    height = (25 * smooth).astype(np.float32)
    shaded, expected = light._in_shadow(height, elevation, azimuth), marched(height, elevation, azimuth)
    assert 0.1 < expected.mean() < 0.9
    assert (shaded != expected).mean() < 0.05  # rays between pixels are rounded otherwise


def test_a_wall_casts_its_height_over_the_tangent():
    height = np.zeros((100, 40), np.float32)
    height[80] = 50
    for elevation in (8, 15, 40):
        shaded = light.on_slopes(height, elevation, 180)[:79, 20] == 0
        assert abs(shaded.sum() + 1 - 5 / math.tan(math.radians(elevation))) <= 1


def test_noise_is_that_of_radiance_over_the_sine_of_the_suns_elevation():
    zenith = light.noise_deviation(np.array(0.2), 90)
    assert 0.2 / zenith == pytest.approx(200, rel=0.01)
    for elevation in (8, 20, 45):
        up = math.sin(math.radians(elevation))
        for reflectance in (0.0, 0.1, 0.9):
            radiance_noise = light.noise_deviation(np.array(reflectance * up), 90)  # the same radiance
            assert light.noise_deviation(np.array(reflectance), elevation) == pytest.approx(radiance_noise / up)
