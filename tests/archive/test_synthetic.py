from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from cloudjob.archive.sky import SHADOW
from cloudjob.archive.synthetic import acquire, overcast
from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.radiometry import reflectance

WHEN = datetime(2024, 3, 5, 22, 20, 35, tzinfo=UTC)
COVERED = (3, 8, 9, 10)


def shot(tile="06WVC", days=0, size=256, seed=3, cloud=0.0):
    return acquire(tile=tile, when=WHEN + timedelta(days=days), size=size, seed=seed, cloud=cloud)


def full_size(mask, size):
    return mask.repeat(2, 0).repeat(2, 1)[:size, :size]


@pytest.mark.parametrize("cloud", [0.03, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("size", [200, 257])
def test_cloud_fraction_is_reached(cloud, size):
    scl = shot(cloud=cloud, size=size).scl
    assert np.isin(scl, (8, 9, 10)).mean() == pytest.approx(cloud, abs=0.02)


@pytest.mark.parametrize("cloud", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("shape", [(64, 64), (384, 768), (300, 151)])
def test_cloud_fraction_is_reached_over_real_ground_of_any_shape(cloud, shape):
    ground = np.full((4, *shape), 2000, np.uint16)
    classes = np.full([-(-length // 2) for length in shape], 4, np.uint8)
    seen = overcast(ground, classes, key="a", cloud=cloud, sun=(40, 150))
    assert np.isin(seen.scl, (8, 9, 10)).mean() == pytest.approx(cloud, abs=0.03)
    assert set(np.unique(seen.scl)) <= {3, 4, 8, 9, 10}


def test_clear_acquisition_has_neither_cloud_nor_shadow():
    clear = shot()
    assert not np.isin(clear.scl, COVERED).any()
    assert not clear.cloud_probability.any()


@pytest.mark.parametrize("days", [0, 7, 21])
def test_clear_ground_is_the_truth_within_sensor_noise(days):
    seen = shot(days=days, cloud=0.45)
    clear = full_size(~np.isin(seen.scl, COVERED), 256)
    difference = np.abs(reflectance(seen.bands) - reflectance(seen.truth))[:, clear]
    assert np.sqrt(np.mean(difference**2)) < 0.0045
    assert np.percentile(difference, 99.9) < 0.02


def test_flagged_cloud_hides_the_ground():
    seen = shot(cloud=0.4)
    difference = np.abs(reflectance(seen.bands) - reflectance(seen.truth)).max(0)
    assert np.median(difference[full_size(seen.scl == 9, 256)]) > 0.05
    assert np.median(difference[full_size(seen.scl == 3, 256)]) > 0.1
    assert (seen.cloud_probability[seen.scl == 9] > 60).all()


@pytest.mark.parametrize("size", [201, 256])
def test_what_lies_above_agrees_with_the_scene_classification(size):
    seen = shot(cloud=0.4, size=size)
    opacity, shadow = seen.above
    scl = full_size(seen.scl, size)
    assert (opacity[scl == 9] > 50).mean() > 0.95  # high probability of cloud
    assert (opacity[scl == 10] <= 50).all()  # cirrus
    assert (opacity[scl == 10] > 0).mean() > 0.7
    assert (shadow[scl == 3] > 0).mean() > 0.8
    assert (opacity[scl == 3] == 0).mean() > 0.99
    assert (seen.above[:, ~np.isin(scl, COVERED)] == 0).mean() > 0.99


@pytest.mark.parametrize("days", [0, 7])
def test_where_nothing_lies_above_the_ground_is_seen_within_sensor_noise(days):
    seen = shot(days=days, cloud=0.4)
    bare = ~seen.above.any(0)
    difference = np.abs(reflectance(seen.bands) - reflectance(seen.truth))
    assert 0.2 < bare.mean() < 0.8
    assert difference[:, bare].max() < 0.02
    assert np.median(difference.max(0)[seen.above[0] > 50]) > 0.05
    assert not shot(days=days).above.any()


def test_opacity_and_shadow_are_what_they_take_of_the_light():
    """Of two grounds below the same sky, the difference that is left is what comes through."""
    classes = np.full((100, 76), 4, np.uint8)
    dark, bright = (
        overcast(np.full((4, 200, 151), dn, np.uint16), classes, key="a", cloud=0.4, sun=(40, 150))
        for dn in (2000, 6000)
    )
    through = (bright.bands.astype(float) - dark.bands) / 4000
    opacity, shadow = dark.above / 100
    lit = 1 - np.array(SHADOW[:4])[:, None, None] * shadow
    assert np.abs(through - (1 - opacity) * lit).max() < 0.01
    assert np.array_equal(dark.above, bright.above)
    assert (opacity > 0.5).mean() > 0.1
    assert ((opacity > 0) & (opacity < 0.5)).mean() > 0.1
    assert ((shadow > 0.5) & (opacity == 0)).mean() > 0.1


def test_same_arguments_give_the_same_pixels_and_others_do_not():
    first, again, other = shot(cloud=0.3), shot(cloud=0.3), shot(cloud=0.3, seed=4)
    assert np.array_equal(first.bands, again.bands)
    assert np.array_equal(first.scl, again.scl)
    assert not np.array_equal(first.truth, other.truth)


def test_ground_does_not_depend_on_the_clouds():
    assert np.array_equal(shot(cloud=0.6).truth, shot(cloud=0).truth)


@pytest.mark.parametrize("tile", ["05WPS", "06WVC", "04WEE", "07WDT"])
def test_another_date_is_close_but_not_the_same(tile):
    here, later = (reflectance(shot(tile=tile, days=days).truth) for days in (0, 15))
    change = np.sqrt(np.mean((here - later) ** 2))
    assert 0.008 < change < 0.06
    assert change < 0.4 * here.std()


def test_snow_is_bright_and_every_band_has_its_own_ground():
    values = reflectance(shot().truth)
    assert 0.6 < np.median(values[0]) < 0.95
    assert values.min() > 0.01
    assert values.max() < 1.2
    assert np.median(values[3]) < np.median(values[0])  # snow is darker in the near infrared


def green_and_b11(seen):
    rows, columns = (side - side % 6 for side in seen.bands.shape[1:])
    green = reflectance(seen.bands[1, :rows, :columns]).reshape(rows // 6, 6, columns // 6, 6).mean((1, 3))
    return green, reflectance(seen.b11)[: rows // 6, : columns // 6]


@pytest.mark.slow
def test_b11_shows_snow_dark_and_clouds_bright():
    clear, cloudy = (shot(size=600, cloud=cloud) for cloud in (0, 0.4))
    green, b11 = green_and_b11(clear)
    assert 0.06 < np.median(b11[green > 0.7]) < 0.1
    assert np.median(b11[green < 0.3]) > 0.18  # tundra
    _, with_cloud = green_and_b11(cloudy)
    thick, shaded = ((cloudy.scl == cls).reshape(100, 3, 100, 3).all((1, 3)) for cls in (9, 3))
    assert 0.3 < np.median(with_cloud[thick]) < 0.5
    assert np.median(with_cloud[shaded] / b11[shaded]) < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("tile", ["06WVC", "05WPS"])
@pytest.mark.parametrize("cloud", [0, 0.1, 0.35])
def test_b11_agrees_with_the_scene_classification(tile, cloud):
    seen = shot(tile=tile, size=600, cloud=cloud)
    green, b11 = green_and_b11(seen)
    found = masks.combine(seen.scl, masks.Settings(), green=green, b11=b11)
    assert (found != masks.classes(seen.scl)).mean() < 0.02


def test_shapes_of_an_odd_size():
    seen = shot(size=201, cloud=0.3)
    assert (seen.b11.shape, seen.b11.dtype) == ((34, 34), np.uint16)
    assert seen.bands.shape == seen.truth.shape == (4, 201, 201)
    assert (seen.above.shape, seen.above.dtype) == ((2, 201, 201), np.uint8)
    assert seen.scl.shape == seen.cloud_probability.shape == seen.snow_probability.shape == (101, 101)
    assert {a.dtype for a in (seen.scl, seen.cloud_probability, seen.snow_probability)} == {np.dtype("uint8")}
    assert seen.bands.min() > 0
