"""Ice that drifts, and hills in a low sun."""

import math

import numpy as np
import pytest

from cloudjob.archive.fields import Noise
from cloudjob.archive.ground import drifted, make_ground

PLACE = Noise("7/05WMS", 128)  # a third of it is sea, in the north


def end_of_sheet(place: Noise, day: float) -> float:
    """When another sheet has come, in days, to 0.0002."""
    key = drifted(place, day).key
    day = next(day + n / 50 for n in range(1, 999) if drifted(place, day + n / 50).key != key)
    return next(day - n / 5000 for n in range(1, 999) if drifted(place, day - n / 5000).key == key)


def speed_of(place: Noise) -> float:
    """km a day, by following a sheet of ice for as long as it lasts."""
    begin = end_of_sheet(place, 0)
    end = end_of_sheet(place, begin + 0.001)
    return place.size * 0.01 / (end - begin)


@pytest.mark.slow
def test_ice_drifts_2_to_20_km_a_day():
    speeds = [speed_of(Noise(f"7/{tile}", 128)) for tile in range(40)]
    assert 1.9 < min(speeds) < 5
    assert 16 < max(speeds) < 21


def test_within_hours_the_same_ice_lies_displaced():
    later = [day for day in np.arange(0, 1, 0.005) if drifted(PLACE, day).key == drifted(PLACE, 0).key]
    first, last = drifted(PLACE, later[0]), drifted(PLACE, later[-1])
    assert first.offset != last.offset
    moved = np.subtract(last.offset, first.offset)
    assert np.array_equal(np.roll(first.field("floes", 30), moved, (0, 1)), last.field("floes", 30))
    km = math.hypot(*moved) * 0.01
    assert km == pytest.approx(speed_of(PLACE) * (later[-1] - later[0]), rel=0.05, abs=0.015)


def test_after_days_other_ice_lies_there_and_the_land_and_its_ice_stay():
    dates = [make_ground(PLACE, day, 190, elevation=12) for day in (1500, 1510)]
    before, after = (each.water + each.blue + each.brightness for each in dates)
    sea = slice(0, 20), slice(None)
    land = slice(80, 128), slice(None)
    assert abs(np.corrcoef(before[sea].ravel(), after[sea].ravel())[0, 1]) < 0.5
    assert np.corrcoef(before[land].ravel(), after[land].ravel())[0, 1] > 0.9
    still = [make_ground(PLACE, day, 190) for day in (1500, 1510)]
    before, after = (each.water + each.blue + each.brightness for each in still)
    assert np.corrcoef(before[sea].ravel(), after[sea].ravel())[0, 1] > 0.9


def test_hills_are_lit_by_the_sun_of_the_day_and_the_sea_is_flat():
    low, high = (make_ground(PLACE, 1500, 190, elevation=elevation) for elevation in (8, 27))
    assert low.direct[100:].std() > 2 * high.direct[100:].std()
    assert (low.direct[:20] == 1).mean() > 0.95
    assert low.direct.min() == 0
    assert make_ground(PLACE, 1500, 190).direct is None


def test_in_terrain_shadow_the_sky_alone_lights_the_ground():
    ground = make_ground(PLACE, 1500, 190, elevation=7)
    flat = make_ground(PLACE, 1500, 190, elevation=7)
    flat.direct = np.ones_like(flat.direct)
    shaded = ground.direct == 0
    assert shaded.any()
    for band in range(4):
        ratio = ground.reflectance(band)[shaded] / flat.reflectance(band)[shaded]
        assert np.allclose(ratio, ground.skylight[band], rtol=1e-4)
