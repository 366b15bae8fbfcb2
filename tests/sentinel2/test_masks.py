"""Classes from the scene classification and its companions, and how they grow."""

import csv
from dataclasses import asdict, fields

import h5py
import numpy as np
import pytest
import rasterio
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from rasterio.windows import Window
from scipy import ndimage

from cloudjob.config.models import MasksConfig
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, HIDDEN, NO_DATA, SHADOW, UNKNOWN
from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.masks import Settings, classes, combine, dilate, fractions, grow

LIMITS = Settings(cloud_probability=20, snow_probability=80)


def plain_class(scl):
    return classes(np.array([scl], np.uint8))[0]


def test_settings_are_those_of_the_configuration():
    assert asdict(Settings()) == dict(MasksConfig())
    assert {field.name for field in fields(Settings)} == set(MasksConfig.model_fields)


def test_plain_table_is_the_classification_alone():
    assert classes(np.arange(12, dtype=np.uint8)).tolist() == [255, 0, 0, 2, 0, 0, 0, 0, 1, 1, 3, 0]


@examples(50)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 11)))
def test_without_any_other_file_only_defective_pixels_differ_from_the_table(scl):
    assert np.array_equal(combine(scl, LIMITS), np.where(scl == 1, UNKNOWN, classes(scl)))


def combined(scl, *, cloud=None, snow=None, green=None, b11=None):
    """The class that a scene of one kind of pixel gets."""
    given = {"cloud_probability": cloud, "snow_probability": snow}
    given = {name: None if percent is None else np.full((3, 3), percent, np.uint8) for name, percent in given.items()}
    given |= (
        {"green": None, "b11": None} if b11 is None else {"green": np.float32([[green]]), "b11": np.float32([[b11]])}
    )
    found = combine(np.full((3, 3), scl, np.uint8), LIMITS, **given)
    assert len(np.unique(found)) == 1
    return found[0, 0]


@pytest.mark.parametrize("scl", range(12))
def test_cloud_probability_makes_ground_unknown_and_clears_nothing(scl):
    limit = {2: 20, 4: 20, 5: 20, 6: 20, 7: 10, 11: 20}.get(scl)
    for percent in (0, 9, 10, 19, 20, 100):
        over = limit is not None and percent >= limit
        assert combined(scl, cloud=percent) == (UNKNOWN if over or scl == 1 else plain_class(scl))


@pytest.mark.parametrize(("scl", "cloud", "snow", "expected"), [
    (8, 65, 79, CLOUD),
    (8, 65, 80, UNKNOWN),
    (10, 0, 80, UNKNOWN),
    (9, 100, 100, CLOUD),
    (11, 20, 79, UNKNOWN),
    (11, 20, 80, CLEAR),
    (11, 19, 0, CLEAR),
    (4, 20, 100, UNKNOWN),
])  # fmt: skip
def test_snow_probability_decides_between_snow_and_cloud(scl, cloud, snow, expected):
    assert combined(scl, cloud=cloud, snow=snow) == expected


SNOW, WATER_CLOUD, TUNDRA = {"green": 0.85, "b11": 0.08}, {"green": 0.8, "b11": 0.4}, {"green": 0.2, "b11": 0.22}


@pytest.mark.parametrize("scl", range(12))
def test_b11_tells_snow_from_cloud(scl):
    plain = UNKNOWN if scl == 1 else plain_class(scl)
    assert combined(scl, **SNOW) == {8: CLEAR, 9: UNKNOWN, 10: CLEAR}.get(scl, plain)
    assert combined(scl, **WATER_CLOUD) == (CLOUD if scl in (2, 4, 5, 6, 7, 11) else plain)
    assert combined(scl, **TUNDRA) == plain
    assert combined(scl, green=np.nan, b11=np.nan) == plain
    assert combined(scl, green=0.5, b11=0.14) == {8: CLEAR, 9: UNKNOWN, 10: CLEAR}.get(scl, plain)
    assert combined(scl, green=0.41, b11=0.149) == plain  # dark in B11, but the index is below 0.5


def test_b11_makes_the_snow_probability_unnecessary():
    assert combined(8, cloud=65, snow=90, **WATER_CLOUD) == CLOUD
    assert combined(11, cloud=65, snow=0, **SNOW) == CLEAR


def test_thin_edges_of_a_cloud_above_snow_stay_cloud():
    """They are as dark in B11 as snow alone; only where all the cloud around is, it is snow."""
    scl = np.full((300, 300), 11, np.uint8)
    scl[60:120, 60:120], scl[66:114, 66:114] = 8, 9
    scl[250:, 250:] = 8
    b11 = np.full((100, 100), 0.08, np.float32)
    b11[22:38, 22:38] = 0.4
    mask = combine(scl, LIMITS, green=np.full((100, 100), 0.85, np.float32), b11=b11)
    assert (mask[60:120, 60:120] == CLOUD).all()
    assert np.count_nonzero(mask) == 60 * 60


def test_b11_at_20_m_tells_each_pixel():
    """What is alike within cells of 60 m gives the same as those; a pixel of 20 m that is not changes itself alone."""
    rng = np.random.default_rng(5)
    scl = rng.choice([8, 9, 10, 11], (70, 50)).astype(np.uint8).repeat(3, 0).repeat(3, 1)
    green, b11 = (
        np.full((70, 50), 0.85, np.float32),
        np.where(rng.random((70, 50)) < 0.05, 0.4, 0.08).astype(np.float32),
    )
    fine = b11.repeat(3, 0).repeat(3, 1)
    mask = combine(scl, LIMITS, green=green, b11=b11)
    assert {CLEAR, CLOUD, UNKNOWN} <= set(mask.flat)
    assert np.array_equal(combine(scl, LIMITS, green=green, b11=fine), mask)
    row, col = (places[0] for places in np.nonzero((scl == 11) & (fine == np.float32(0.08))))
    fine[row, col] = 0.4
    changed = combine(scl, LIMITS, green=green, b11=fine) != mask
    assert np.argwhere(changed).tolist() == [[row, col]]


def test_odd_sizes_are_covered_by_the_60_m_grid():
    green, b11 = np.full((14, 11), 0.85, np.float32), np.full((14, 11), 0.08, np.float32)
    b11[13, 10] = np.nan
    mask = combine(np.full((40, 32), 8, np.uint8), LIMITS, green=green, b11=b11)
    assert (mask[39:, 30:] == CLOUD).all()
    assert np.count_nonzero(mask) == 2


@examples(60)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=25)), st.floats(0, 30))
def test_dilation_is_that_by_a_disk(mask, radius):
    reach = int(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    expected = ndimage.binary_dilation(mask, y**2 + x**2 <= radius**2)
    assert np.array_equal(dilate(mask, radius), expected)


def test_dilation_across_stripes_and_far_distances():
    mask = np.zeros((700, 300), bool)
    mask[[0, 320, 699], [0, 150, 299]] = True
    assert np.array_equal(dilate(mask, 260.5), ndimage.distance_transform_edt(~mask) <= 260.5)


ANY_MASK = arrays(
    np.uint8,
    array_shapes(min_dims=2, max_dims=2, max_side=25),
    elements=st.sampled_from([CLEAR, CLEAR, CLEAR, CLOUD, SHADOW, CIRRUS, UNKNOWN, NO_DATA]),
)
RADII = st.fixed_dictionaries({name: st.floats(0, 200) for name in ("cloud_m", "shadow_m", "cirrus_m")})


@examples(60)
@given(ANY_MASK, RADII, st.sampled_from([10, 20]))
def test_each_class_grows_by_its_own_radius_into_clear_and_unknown_pixels_alone(mask, radii, pixel_m):
    grown = grow(mask, Settings(**radii), pixel_m=pixel_m)
    free = np.isin(mask, (CLEAR, UNKNOWN))
    assert np.array_equal(grown[~free], mask[~free])
    expected = mask.copy()
    for value, metres in zip(
        (CIRRUS, SHADOW, CLOUD), (radii[f"{n}_m"] for n in ("cirrus", "shadow", "cloud")), strict=True
    ):
        if (mask == value).any():  # the later one wins
            near = ndimage.distance_transform_edt(mask != value) <= metres / pixel_m
            expected[near & free] = value
    assert np.array_equal(grown, expected)


def test_growth_at_10_and_20_m_covers_the_same_metres():
    fine, coarse = np.zeros((200, 200), np.uint8), np.zeros((100, 100), np.uint8)
    fine[100:102, 100:102], coarse[50, 50] = CLOUD, CLOUD
    areas = [np.count_nonzero(grow(m, Settings(cloud_m=300), pixel_m=p)) * p**2 for m, p in ((fine, 10), (coarse, 20))]
    assert areas[0] == pytest.approx(areas[1], rel=0.06)


def test_fractions_are_of_the_valid_pixels():
    mask = np.array([[0, 0, 0, 4, 1, 1, 2, 3, 255, 255]], np.uint8)
    shares = {"cloud": 0.25, "shadow": 0.125, "cirrus": 0.125, "unknown": 0.125, "clear": 0.375, "no_data": 0.2}
    assert fractions(mask) == shares
    assert fractions(np.full((3, 3), 255, np.uint8)) == dict.fromkeys(shares, 0) | {"no_data": 1}


def test_real_series_of_classifications(shared_data):
    """118 dates of one place: the fractions are those counted independently when the series was recorded."""
    folder = shared_data / "worldcereal_L2A"
    with h5py.File(next(folder.glob("S2_L2A_20m_00002806639B424A*.nc"))) as series:
        scl = series["SCL"][:].astype(np.uint8)
    with next(folder.glob("*.csv")).open() as file:
        recorded = list(csv.DictReader(file))
    assert len(scl) == len(recorded) == 118
    for date, row in zip(scl, recorded, strict=True):
        found = fractions(classes(date))
        assert found["no_data"] == pytest.approx(float(row["frac_nodata_0"]), abs=1e-6)
        valid = 1 - found["no_data"]
        cloudy = (found["cloud"] + found["cirrus"]) * valid
        assert cloudy == pytest.approx(float(row["frac_8_9_10"]), abs=1e-6)
        assert cloudy + found["shadow"] * valid == pytest.approx(float(row["frac_3_8_9_10"]), abs=1e-6)


@pytest.mark.slow
def test_real_clouds_above_snowless_ground_stay_clouds_with_b11(shared_data):
    """The same series: of its 9855 pixels of class 8 and 38941 of 9, B11 calls none snow."""
    folder = shared_data / "worldcereal_L2A"
    with h5py.File(next(folder.glob("S2_L2A_20m_00002806639B424A*.nc"))) as series:
        scl, b11 = series["SCL"][:], series["B11"][:] * np.float32(1e-4)
    with h5py.File(next(folder.glob("S2_L2A_10m_00002806639B424A*.nc"))) as series:
        green = series["B03"][:] * np.float32(1e-4)
    b11 = b11[:, :30, :30].reshape(-1, 10, 3, 10, 3).mean((2, 4))
    green = green[:, :60, :60].reshape(-1, 10, 6, 10, 6).mean((2, 4))
    dates = zip(scl[:, :30, :30], green, b11, strict=True)
    found = np.stack([combine(date, LIMITS, green=g, b11=b) for date, g, b in dates])
    scl = scl[:, :30, :30]
    assert (found[np.isin(scl, (8, 9))] == CLOUD).all()
    assert (found[np.isin(scl, (2, 4, 5, 6, 7))] == CLOUD).mean() < 0.002


@pytest.mark.slow
def test_cloud_probability_of_a_real_product(shared_data):
    """What the rules rest on, in a tenth of a real product: 8 and 10 may have 0 %, ground hardly ever has 20 %, and
    unclassified pixels have no more than 20 %, so that half the limit is what finds haze among them."""
    rows = Window(0, 1920, 5490, 640)
    with rasterio.open(next(shared_data.glob("safe_T29UNU/*/GRANULE/*/IMG_DATA/R20m/*_SCL_20m.jp2"))) as image:
        scl = image.read(1, window=rows)
    with rasterio.open(next(shared_data.glob("safe_T29UNU/*/GRANULE/*/QI_DATA/MSK_CLDPRB_20m.jp2"))) as image:
        percent = image.read(1, window=rows)
    mask = combine(scl, LIMITS, cloud_probability=percent)
    assert np.array_equal(np.isin(mask, HIDDEN), np.isin(scl, (3, 8, 9, 10)))
    assert (percent[np.isin(scl, (8, 10))] == 0).mean() > 0.1
    assert (mask[np.isin(scl, (4, 5, 6))] == UNKNOWN).mean() < 1e-3
    assert percent[scl == 7].max() <= 20
    assert 0.2 < (mask[scl == 7] == UNKNOWN).mean() < 0.7


def scattered(seed, shape=(120, 130)):
    """Clear ground with clouds, shadows, unknown and no data, in cells of 120 m."""
    rng = np.random.default_rng(seed)
    core = np.zeros(shape, np.uint8)
    for value, number in ((SHADOW, 40), (CLOUD, 2), (UNKNOWN, 1), (NO_DATA, 1)):
        for row, col in zip(rng.integers(0, shape[0], number), rng.integers(0, shape[1], number), strict=True):
            core[row : row + 2, col : col + 2] = value
    return core


@pytest.mark.slow
@examples(30)
@given(st.integers(0, 10**6), st.floats(35, 80), st.floats(0, 360))
def test_shadow_without_a_cloud_towards_the_sun_is_told_by_looking_at_each(seed, elevation, azimuth):
    """By the geometry itself, with a margin: no cloud near any way to the sun, or one right on it."""
    core = scattered(seed)
    found = masks.sunny(core, elevation, azimuth, pixel_m=120)
    others = np.argwhere((core != CLEAR) & (core != SHADOW)) * 120.0
    reach, slope = 12_000 / np.tan(np.radians(elevation)), np.tan(np.radians(elevation))
    north, east = np.cos(np.radians(azimuth)), np.sin(np.radians(azimuth))
    assert not found[core != SHADOW].any()
    for row, col in np.argwhere(core == SHADOW):
        down, right = (others - (row * 120.0, col * 120.0)).T if len(others) else np.zeros((2, 0))
        along, beside = -down * north + right * east, np.abs(down * east + right * north)
        end = np.array([row * 120.0 - reach * north, col * 120.0 + reach * east])
        out = (end < -360).any() or (end > np.array(core.shape) * 120.0 + 360).any()
        turned = np.arctan(0.21 * slope)
        ways = np.radians(azimuth) + turned * np.array([-1, 0, 1])
        for way in ways:
            on = -down * np.cos(way) + right * np.sin(way)
            if ((on > 0) & (on < reach - 200) & (np.abs(down * np.sin(way) + right * np.cos(way)) < 900)).any():
                out = True
        if out:
            assert not found[row, col]
        ends = np.stack([row * 120 - reach * np.cos(ways), col * 120 + reach * np.sin(ways)])
        wholly = (ends > 360).all() and (ends.max(1) < np.array(core.shape) * 120 - 480).all()
        within = np.maximum(along, 0) * np.tan(turned) + 1700 / np.cos(turned)
        near = (along > -1700) & (along < reach + 1700) & (beside < within)
        if wholly and not near.any():
            assert found[row, col]


def test_the_sunny_side_of_a_cloud_has_no_shadow():
    core = np.zeros((900, 900), np.uint8)
    core[440:460, 440:460] = CLOUD
    core[300:310, 445:455], core[600:610, 445:455], core[2:6, 450] = SHADOW, SHADOW, SHADOW
    found = masks.sunny(core, 70, 180, pixel_m=20)  # the sun is in the south
    assert found[600:610, 445:455].all()
    assert found[2:6, 450].all()  # its cloud would stand higher than clouds do
    assert found.sum() == 104
    found = masks.sunny(core, 70, 0, pixel_m=20)
    assert found[300:310, 445:455].all()
    assert found.sum() == 100  # from the other one the way leaves the scene
    for unknown in ((None, 180), (60, None), (-1, 180)):
        assert not masks.sunny(core, *unknown, pixel_m=20).any()
