"""Whatever the pixels of two dates: no measure of theirs is NaN, and nothing that is hidden becomes clear unsaid."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
from affine import Affine
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.names import ProductName
from cloudjob.pixels import CLASSES, CLEAR, HIDDEN, NO_DATA, UNKNOWN
from cloudjob.sentinel2 import masks, pairing, radiometry
from cloudjob.sentinel2.scene import masks_of_pair
from cloudjob.sentinel2.scene_masks import Preview

DAY = datetime(2024, 3, 10, 22, 15, tzinfo=UTC)
CELLS = (8, 10)  # of 60 m
DN = (0, 1, 1000, 1040, 2000, 2050, 9000, 65535)  # no data, below zero, zero, shadow, ground, cloud, the most
RULES = pairing.Rules(references=3, max_drift=100, min_sun_elevation={"reference": 10})


def date(seed: int, day: float, kinds: int, classes: list[int], sun: float | None, factor: int) -> Preview:
    """Cells of 60 m of some of DN and of some classes; `kinds` of DN, so that one of them may fill the whole."""
    rng, fine = np.random.default_rng(seed), 6 // factor
    grid = tuple(length * fine for length in CELLS)
    moment = DAY + timedelta(days=day)
    name = f"S2A_MSIL2A_{moment:%Y%m%dT%H%M%S}_N0510_R029_T05WPS_{moment:%Y%m%dT%H%M%S}"
    product = SimpleNamespace(
        name=ProductName.parse(name),
        sensing_time=moment,
        sun_elevation=sun,
        crs="EPSG:32605",
        transform=Affine(10, 0, 0, 0, -10, 0),
        shape=tuple(length * 6 for length in CELLS),
    )
    rgb, b11 = rng.choice(rng.choice(DN, kinds), (3, *CELLS)), rng.choice(rng.choice(DN, kinds), CELLS)
    core = masks.upsampled(rng.choice(classes, CELLS).astype(np.uint8), fine, grid)
    scl = masks.upsampled(rng.integers(0, 12, CELLS).astype(np.uint8), fine, grid) if factor == 2 else None
    b11 = b11.astype(np.uint16) if seed % 3 else None
    return Preview(product, core, factor, rng.random(grid) < seed % 4 / 3, rgb.astype(np.uint16), scl, b11)


DATES = st.builds(
    date,
    seed=st.integers(0, 10**6),
    day=st.sampled_from([-40, -5, -1, 2, 2.5, 6, 33]),
    kinds=st.integers(1, 4),
    classes=st.lists(st.sampled_from(list(CLASSES.values())), min_size=1, max_size=3),
    sun=st.none() | st.sampled_from([-3.0, 0.0, 5.0, 60.0]),
    factor=st.sampled_from([1, 2, 6]),
)


@examples(60)
@given(DATES, st.lists(DATES, max_size=5, unique_by=lambda each: each.product.sensing_time))
def test_no_measure_of_a_pair_is_nan(cloudy, clear):
    cloudy.product.sensing_time = DAY
    found = pairing.candidates(cloudy, clear, RULES, masks.Settings())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert not [reason for row in found for reason in row["reasons"] if "nan" in reason.split()]


@examples(60)
@given(st.lists(DATES, min_size=2, max_size=4, unique_by=lambda each: each.product.sensing_time))
def test_nothing_that_is_hidden_unknown_or_without_data_becomes_clear_by_other_dates(dates):
    roles = dict(zip(("cloudy", "clear", "reference", "reference2"), dates, strict=False))
    for role, found in masks_of_pair(roles, masks.Settings()).items():
        before = roles[role].core
        assert set(np.unique(found.core[np.isin(before, HIDDEN)])) <= {*HIDDEN, UNKNOWN}
        assert CLEAR not in found.core[before == UNKNOWN]
        assert (found.core[before == NO_DATA] == NO_DATA).all()
        assert CLEAR not in found.mask[found.core != CLEAR]
        assert (found.mask[found.core == NO_DATA] == NO_DATA).all()


@examples(60)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0, 1), st.booleans())
def test_no_measure_of_a_match_or_a_shift_is_nan(seed, kinds, share, grid):
    rng = np.random.default_rng(seed)
    source, target = (rng.choice(rng.choice(DN, kinds), (4, 40, 32)).astype(np.uint16) for _ in range(2))
    usable = rng.random((40, 32)) < share
    match = radiometry.fit(source, target, usable, grid=grid)
    json.dumps(match.facts(), allow_nan=False)
    assert not [word for word in match.poor(0.5) + match.unknown() if "nan" in word]
    json.dumps(radiometry.shift([(source[0], target[0], usable)] * 4), allow_nan=False)
