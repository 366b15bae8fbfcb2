"""Previews of real and synthetic dates, the second opinion of another date, and masks of the user's own."""

from dataclasses import replace
from datetime import date, datetime, timedelta
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import rasterio
from affine import Affine
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.archive.make import make_synthetic
from cloudjob.errors import ConfigError
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, HIDDEN, NO_DATA, SHADOW, UNKNOWN
from cloudjob.sentinel2 import masks, scene_masks
from cloudjob.sentinel2.masks import Settings
from cloudjob.sentinel2.product import (
    Product,
    read_b11_20m,
    read_cloud_probability,
    read_scl,
    read_snow_probability,
)
from cloudjob.sentinel2.radiometry import reflectance
from cloudjob.sentinel2.scene import masks_of_pair
from cloudjob.sentinel2.scene_masks import Preview, SceneMasks, dark, light, revised_masks, still, suspect

TUNED = Settings(brighter=0.04)
HAZY = ["2017-08-24", "2017-10-23", "2018-06-10", "2018-06-25", "2018-07-13", "2018-07-18", "2018-11-22", "2018-11-27"]
SNOW_OR_CLOUD = "2018-09-23"  # thick cloud, of which the classification says 99 % snow


def on(day):
    """All that is asked of a product here: its time."""
    return SimpleNamespace(sensing_time=datetime.fromisoformat(str(day)))


def at_60m(image):
    rows, columns = (-(-length // 6) for length in image.shape[1:])
    missing = [(0, 0), (0, rows * 6 - image.shape[1]), (0, columns * 6 - image.shape[2])]
    blocks = np.pad(image, missing, mode="edge").reshape(-1, rows, 6, columns, 6)
    return np.rint(blocks.mean((2, 4))).astype(np.uint16)


@pytest.fixture(scope="module")
def series(shared_data):
    """Day -> preview of the 118 dates of T31UDS; their DN have no offset."""
    folder = shared_data / "worldcereal_L2A"
    with h5py.File(next(folder.glob("S2_L2A_10m_00002806639B424A*.nc"))) as fine:
        first = np.datetime64(fine["timestamp"].attrs["units"].removeprefix("seconds since "))
        days = [str(day)[:10] for day in first + fine["timestamp"][:]]
        rgb = np.stack([fine[band] for band in ("B04", "B03", "B02")], axis=1)
    with h5py.File(next(folder.glob("S2_L2A_20m_00002806639B424A*.nc"))) as coarse:
        scl, b11 = coarse["SCL"][:], coarse["B11"][:].repeat(2, 1).repeat(2, 2)
    rgb, b11 = (bands.astype(np.uint16) + np.uint16(1000) for bands in (rgb, b11))
    return {
        day: Preview(
            on(day), masks.combine(classes, TUNED), 2, classes == 11, at_60m(pixels), classes, at_60m(swir[None])[0]
        )
        for day, pixels, swir, classes in zip(days, rgb, b11, scl, strict=True)
    }


def clean(series, day, within=30):
    """Dates around `day` that are clear by the classification and by eye: dark in B02, and not in a cloud's shadow."""
    return [
        other
        for other, preview in series.items()
        if other not in (day, *HAZY, SNOW_OR_CLOUD)
        and abs(date.fromisoformat(other) - date.fromisoformat(day)) <= timedelta(within)
        and np.isin(preview.core, HIDDEN).mean() < 0.02
        and 1200 < preview.rgb[2].mean() < 1670
    ]


def flagged(series, day, other):
    """How much of what is clear on both dates is suspect."""
    both = (series[day].core == CLEAR) & (series[other].core == CLEAR)
    return suspect(series[day], series[other], TUNED)[both].mean()


@pytest.mark.slow
def test_thick_cloud_that_is_classified_as_snow_is_found(series):
    others = clean(series, SNOW_OR_CLOUD)
    assert len(others) >= 5
    for other in others:
        assert (series[SNOW_OR_CLOUD].core == CLEAR).mean() > 0.98
        assert flagged(series, SNOW_OR_CLOUD, other) > 0.95
        assert flagged(series, other, SNOW_OR_CLOUD) == 0
        revised = revised_masks(series[SNOW_OR_CLOUD], series[other], TUNED)
        assert (revised.core == UNKNOWN).mean() > 0.95
        assert (revised_masks(series[other], series[SNOW_OR_CLOUD], TUNED).core == series[other].core).all()


@pytest.mark.slow
@pytest.mark.parametrize("day", HAZY)
def test_hazy_dates_that_the_classification_calls_clear_are_found(series, day):
    assert np.isin(series[day].core, HIDDEN).mean() < 0.1
    others = clean(series, day)
    assert others
    assert np.median([flagged(series, day, other) for other in others]) > 0.15
    assert max(flagged(series, other, day) for other in others) < 0.05


def test_clean_dates_are_not_suspected(series):
    shares = [flagged(series, day, other) for day in clean(series, "2018-05-01", 400) for other in clean(series, day)]
    assert len(shares) > 100
    assert np.mean(shares) < 0.01
    assert np.quantile(shares, 0.9) < 0.02


def test_real_cirrus_that_leaves_no_trace_is_unknown_and_thick_cloud_is_not(series):
    day, other = "2018-09-11", "2018-09-01"
    assert (series[day].core == CIRRUS).mean() > 0.95
    revised = revised_masks(series[day], series[other], TUNED).core
    assert 0.2 < (revised == UNKNOWN).mean() < 0.6
    assert np.isin(revised, (CIRRUS, UNKNOWN)).mean() > 0.95
    thick = series["2018-08-27"]
    assert (revised_masks(thick, series[other], TUNED).core == thick.core).all()


BLACK, SHADED = "2017-12-27", ("2018-05-24", "2018-06-25")  # in shadow: all of it, and parts


def voters(series, day):
    """The four nearest other dates that are clear by the classification, hazy or dark as they may be."""
    others = [other for other in series if other != day and np.isin(series[other].core, HIDDEN).mean() < 0.05]
    return [series[other] for other in sorted(others, key=lambda other: abs(since(other) - since(day)))[:4]]


def since(day):
    return date.fromisoformat(day).toordinal()


@pytest.mark.slow
def test_real_dates_below_clouds_are_dark_and_crops_that_ripen_are_not(series):
    shares = {}
    for day, here in series.items():
        clear = here.core == CLEAR
        share = (dark(here, voters(series, day), TUNED) & clear).sum() / max(clear.sum(), 1)
        if day == BLACK:
            assert share > 0.4
        elif day in SHADED:
            assert share > 0.03
        elif clear.mean() > 0.5:
            shares[day] = share
    assert max(shares.values()) < 0.1, shares
    assert not dark(series[BLACK], voters(series, BLACK), Settings(darker=0)).any()


@pytest.mark.slow
def test_only_the_black_date_has_less_than_half_of_the_light_of_its_neighbours(series):
    lights = {day: light(here, voters(series, day)) for day, here in series.items()}
    assert {day for day, value in lights.items() if value is not None and value < 0.5} == {BLACK}
    assert lights[BLACK] < 0.3


@pytest.fixture(scope="module")
def field(shared_data):
    """Two dates of one field without B11, of which the second lies in a shadow that its classification calls plants:
    previews, and (64, 64) bool that B08 has lost a third or more."""
    dates, b08 = [], []
    for day in ("2019-04-21", "2019-04-26"):
        stem = shared_data / "real_cases" / "missed_shadow" / day
        with rasterio.open(f"{stem}_B04B03B02B08.tif") as image, rasterio.open(f"{stem}_SCL_20m.tif") as classes:
            bands, scl = image.read(), classes.read(1)
        rgb = at_60m(bands[:3] + np.uint16(1000))
        dates.append(Preview(on(day), masks.combine(scl, TUNED), 2, scl == 11, rgb, scl))
        b08.append(bands[3].astype(float))
    return *dates, b08[1] <= b08[0] * 2 / 3


def test_a_real_shadow_that_the_classification_calls_plants_is_unknown(field):
    clear, cloudy, lost = field
    before, after = (
        revised_masks(cloudy, clear, rules, [clear]).at_10m("mask", (64, 64))
        for rules in (Settings(darker=0), Settings())
    )
    both = (before == CLEAR) & (clear.core.repeat(2, 0).repeat(2, 1) == CLEAR)
    assert (both & lost).sum() > 200
    assert (after[both & lost] == UNKNOWN).mean() > 0.98
    assert (after[both & ~lost] == UNKNOWN).mean() < 0.1  # beside it
    assert set(after[before != after]) == {UNKNOWN}


def test_a_date_that_may_be_hazy_does_not_tell_alone_that_another_is_dark(field):
    clear, cloudy, _ = field
    found = masks_of_pair({"cloudy": cloudy, "clear": clear}, TUNED)
    assert np.array_equal(found["clear"].core, clear.core)
    assert (found["cloudy"].core != revised_masks(cloudy, clear, TUNED).core).any()


@pytest.mark.parametrize(("beside", "cells"), [(1.0, 0.5), (0.95, 0.5), (0.85, 2), (np.nan, 2)])
def test_beside_dark_ground_is_unknown_what_is_dimmer_or_not_compared_and_half_a_cell_of_what_is_bright(beside, cells):
    """A dark cell in the middle of a row of cells; no voter is clear beside it where `beside` is not known."""
    ground = np.full((1, 9), 0.06)
    light = np.full((1, 9), np.nan_to_num(beside, nan=1.0))
    light[0, 4] = 0.4
    voter = preview(np.zeros((3, 27)), ground)
    if np.isnan(beside):
        voter.core[:, :12], voter.core[:, 15:] = CLOUD, CLOUD
    mask = revised_masks(preview(np.zeros((3, 27)), ground * light), None, Settings(shadow_m=120), [voter]).mask
    grown = int(3 * cells)
    assert np.flatnonzero(mask[1] == UNKNOWN).tolist() == list(range(12 - grown, 15 + grown))


@examples(60)
@given(st.integers(0, 10**6), st.integers(0, 4), st.booleans())
def test_dark_is_what_most_of_the_clear_dates_say(seed, number, with_b11):
    rng = np.random.default_rng(seed)

    def drawn():
        core = rng.choice([CLEAR, CLEAR, CLEAR, UNKNOWN, CLOUD], (3, 5)).astype(np.uint8).repeat(3, 0).repeat(3, 1)
        rgb = rng.choice([1300, 1600, 2500, 2600, 0], (3, 3, 5), p=[0.3, 0.2, 0.3, 0.15, 0.05]).astype(np.uint16)
        snow = rng.random((3, 5)).repeat(3, 0).repeat(3, 1) < 0.2
        when = rng.choice(["2018-05-01", "2018-05-03"])
        return Preview(on(when), core, 2, snow, rgb, None, rgb[0] if with_b11 else None)

    here, others = drawn(), [drawn() for _ in range(number)]
    found = dark(here, others, TUNED)
    for row in range(3):
        for col in range(5):
            mine, at = here.rgb[:, row, col] / 1e4 - 0.1, (3 * row, 3 * col)
            votes, count = [0, 0], [0, 0]
            for other in others:
                if other.core[at] != CLEAR or other.snow[at] != here.snow[at]:
                    continue
                side = int(other.product.sensing_time > here.product.sensing_time)
                count[side] += 1
                theirs = other.rgb[:, row, col] / 1e4 - 0.1
                if here.core[at] == CLOUD or not (here.rgb[:, row, col] * other.rgb[:, row, col]).all():
                    continue
                votes[side] += (
                    mine.mean() < 0.7 * theirs.mean() - 0.0035
                    and (mine[0] < 0.7 * theirs[0] if with_b11 else theirs[2] - 1.1 * mine[2] <= 0.04)
                    and mine[1] / mine[0] < 1.25 * theirs[1] / theirs[0]
                )
            most = 2 * sum(votes) > sum(count) and all(v or not c for v, c in zip(votes, count, strict=True))
            assert (found[3 * row : 3 * row + 3, 3 * col : 3 * col + 3] == most).all()


def test_the_light_of_a_date_is_the_median_of_the_medians_and_needs_16_cells():
    def shown(value, cells=(4, 5)):
        return preview(np.zeros((3 * cells[0], 3 * cells[1])), np.full(cells, value))

    here = shown(0.1)
    assert light(here, [shown(0.2), shown(0.1), shown(0.05)]) == 1
    assert light(here, [shown(0.2), shown(0.2), shown(0.05)]) == 0.5
    assert light(here, []) is None
    assert light(shown(0.1, (3, 5)), [shown(0.2, (3, 5))]) is None
    cloudy = shown(0.2)
    cloudy.core[:, :3], cloudy.snow[:, 4:6] = CLOUD, True
    assert light(here, [cloudy]) is None  # 4 * 5 cells, of which 3 columns are clear and without snow
    assert light(here, [cloudy, shown(0.4)]) == 0.25


def preview(core, blue, *, factor=2, scl=None):
    """A date whose ground is equally bright in all three bands, reflectance at 60 m."""
    core = np.asarray(core, np.uint8)
    dn = np.rint(np.asarray(blue) * 10000 + 1000).astype(np.uint16)
    return Preview(on("2018-05-01"), core, factor, np.zeros(core.shape, bool), np.stack([dn] * 3), scl)


DARK = preview(np.zeros((6, 9)), np.full((2, 3), 0.05))


def test_suspicion_needs_a_whole_cell_that_is_clear_on_both_dates_and_brighter_here():
    here = preview(np.zeros((6, 9)), [[0.3, 0.3, 0.05], [0.3, 0.3, 0.09]])
    here.core[0, 0], here.core[5, 4] = CLOUD, UNKNOWN
    found = suspect(here, DARK, TUNED)
    expected = np.zeros((6, 9), bool)
    expected[0:3, 3:6] = expected[3:6, 0:6] = True
    expected[5, 4] = False  # unknown already, but it does not hide its cell
    assert np.array_equal(found, expected)
    there = preview(DARK.core.copy(), np.full((2, 3), 0.05))
    there.core[1, 4], there.core[4, 1] = UNKNOWN, SHADOW
    expected[:3, 3:6] = expected[3:, :3] = False
    assert np.array_equal(suspect(here, there, TUNED), expected)
    assert not suspect(there, here, TUNED).any()
    assert not suspect(here, DARK, Settings(brighter=1)).any()


def test_light_on_bright_ground_may_change_by_a_tenth():
    fresh, old = (preview(np.zeros((3, 3)), [[value]]) for value in (0.9, 0.8))
    assert not suspect(fresh, old, TUNED).any()
    assert suspect(preview(np.zeros((3, 3)), [[0.95]]), old, TUNED).all()


def test_no_data_is_never_suspect():
    here, there = preview(np.zeros((3, 3)), [[0.9]]), preview(np.zeros((3, 3)), [[0.05]])
    there.rgb[:] = 0
    assert not suspect(here, there, TUNED).any()
    assert not suspect(there, here, TUNED).any()


def test_grids_of_10_20_and_60_m_meet():
    sizes = {1: (13, 20), 2: (7, 10), 6: (3, 4)}
    blue = np.full((3, 4), 0.05)
    bright = blue.copy()
    bright[2, 3] = 0.3
    for factor, size in sizes.items():
        here = preview(np.zeros(size), bright, factor=factor)
        for other, other_size in sizes.items():
            found = suspect(here, preview(np.zeros(other_size), blue, factor=other), TUNED)
            assert found.shape == size
            assert found[12 // factor :, 18 // factor :].all()
            assert np.count_nonzero(found) == found[12 // factor :, 18 // factor :].size


def test_cloud_that_b11_had_taken_for_snow_comes_back_where_the_other_date_is_darker():
    scl = np.full((6, 9), 11, np.uint8)
    scl[:, :3], scl[:, 3:6] = 8, 9
    core = masks.combine(scl, TUNED, green=np.full((2, 3), 0.8, "f4"), b11=np.full((2, 3), 0.1, "f4"))
    assert [core[0, 0], core[0, 3], core[0, 6]] == [CLEAR, UNKNOWN, CLEAR]
    bright = preview(core, np.full((2, 3), 0.8), scl=scl)
    assert revised_masks(bright, DARK, TUNED).core[0].tolist() == [CLOUD] * 6 + [UNKNOWN] * 3
    assert revised_masks(bright, None, TUNED).core is not bright.core
    for other, rule in ((None, TUNED), (preview(DARK.core, np.full((2, 3), 0.8)), TUNED), (DARK, Settings(brighter=1))):
        assert np.array_equal(revised_masks(bright, other, rule).core, core)


def test_medium_cloud_and_cirrus_without_any_difference_are_unknown():
    scl = np.array([[8] * 3 + [9] * 3 + [10] * 3] * 6, np.uint8)
    here = preview(masks.classes(scl), [[0.059] * 3, [0.061] * 3], scl=scl)
    revised = revised_masks(here, DARK, Settings(brighter=0.5, cloud_m=0, shadow_m=0, cirrus_m=0))
    assert (revised.core[:3, [0, 8]] == UNKNOWN).all()
    assert np.array_equal(np.delete(revised.core[:3], [0, 1, 2, 6, 7, 8], 1), here.core[:3, 3:6])
    assert np.array_equal(revised.core[3:], here.core[3:])
    assert np.array_equal(revised.mask, revised.core)
    one_band = Preview(None, here.core, 2, here.snow, here.rgb.copy(), scl)
    one_band.rgb[0] += np.uint16(200)
    assert np.array_equal(revised_masks(one_band, DARK, TUNED).core, here.core)


@pytest.mark.parametrize(("light", "kept"), [(1.0, 1), (1.09, 1), (0.92, 1), (1.3, 0), (0.75, 0)])
def test_cirrus_is_doubted_in_the_light_of_the_other_date_which_changes_by_a_tenth_at_most(light, kept):
    """Ground of 0.1 to 0.4, all of which the classification calls cirrus, but for a cloud in one cell."""
    ground = np.linspace(0.1, 0.4, 20).reshape(4, 5)
    scl = np.full((12, 15), 10, np.uint8)
    here = preview(masks.classes(scl), ground * light + np.eye(4, 5) * 0.05, scl=scl)
    revised = revised_masks(here, preview(np.zeros((12, 15)), ground), Settings(brighter=0.9)).core[::3, ::3]
    expected = np.where(np.eye(4, 5), CIRRUS, UNKNOWN if kept else CIRRUS)
    if kept:
        assert np.array_equal(revised, expected)
    else:
        assert (revised == CIRRUS).mean() > 0.7  # it differs where the ground is bright


def test_real_cirrus_over_a_clear_image_is_unknown_and_cirrus_that_shows_is_not(series):
    """By eye: on 2018-10-16 the ground is a tenth brighter than three days before, on 06-15 all is white."""
    plain, other = series["2018-10-16"], series["2018-10-13"]
    cirrus = plain.core == CIRRUS
    revised = revised_masks(plain, other, TUNED).core
    assert cirrus.mean() > 0.25
    assert (revised[cirrus] == UNKNOWN).mean() > 0.6
    white = series["2018-06-15"]
    assert (revised_masks(white, series["2018-06-28"], TUNED).core == white.core).mean() > 0.98


def test_a_mask_of_the_users_own_is_not_overruled_by_the_absence_of_a_difference():
    own = preview(np.full((6, 9), CLOUD), np.full((2, 3), 0.05))
    assert (revised_masks(own, DARK, TUNED).core == CLOUD).all()


def test_the_mask_is_the_grown_core():
    core = np.zeros((60, 60), np.uint8)
    core[30, 30] = CLOUD
    found = revised_masks(preview(core, np.full((20, 20), 0.1)), None, TUNED)
    assert np.array_equal(found.core, core)
    assert np.array_equal(found.mask, masks.grow(core, TUNED, pixel_m=20))


@examples(60)
@given(st.data())
def test_any_rows_of_masks_at_10_m(data):
    factor = data.draw(st.sampled_from([1, 2]))
    height, width = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 9)))
    rng = np.random.default_rng(height)
    grid = (-(-height // factor), -(-width // factor))
    found = SceneMasks(*rng.integers(0, 5, (2, *grid)).astype(np.uint8), factor)
    whole = found.at_10m("core", (height, width))
    assert np.array_equal(whole, found.core[np.ix_(np.arange(height) // factor, np.arange(width) // factor)])
    top, bottom = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    part = found.at_10m("mask", (height, width), slice(top, bottom))
    assert np.array_equal(part, found.at_10m("mask", (height, width))[top:bottom])
    part[:] = 9
    assert found.mask.max() < 9


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """A clear and a cloudy product of 201 x 201 pixels."""
    folder = tmp_path_factory.mktemp("archive")
    asked = {"tiles": ["06WVC"], "size": 201, "seed": 2, "cloud": (0.4, 0.4)}
    names = make_synthetic(folder, clear=[date(2024, 3, 1)], cloudy=[date(2024, 3, 11)], **asked)
    return [Product.open(folder / f"{name}.SAFE") for name in names]


def test_preview_of_a_product_joins_all_that_was_fetched_of_it(products):
    for product in products:
        opened = Preview.open(product, TUNED)
        scl = read_scl(product)
        assert (opened.factor, opened.rgb.shape, opened.rgb.dtype) == (2, (3, 34, 34), np.uint16)
        assert np.array_equal(opened.scl, scl)
        assert np.array_equal(opened.snow, scl == 11)
        assert (opened.core != masks.classes(scl)).mean() < 0.02
    assert np.isin(opened.core, HIDDEN).mean() > 0.4


def test_preview_looks_at_b11_at_20_m_where_that_is_asked_for(products):
    finer = replace(TUNED, b11=20)
    for product in products:
        opened, fine = Preview.open(product, finer), read_b11_20m(product)
        bands = {"green": reflectance(opened.rgb[1]), "b11": reflectance(fine)}
        expected = masks.combine(opened.scl, finer, cloud_probability=read_cloud_probability(product), **bands)
        expected[masks.sunny(expected, *scene_masks._sun(product), pixel_m=20)] = UNKNOWN
        assert np.array_equal(opened.core, expected)
        coarse = Preview.open(product, TUNED)
        assert np.abs(opened.b11[:33, :33].astype(int) - coarse.b11[:33, :33]).max() <= 1
        lacking = replace(product, files={key: path for key, path in product.files.items() if key != "B11_20m"})
        assert np.array_equal(Preview.open(lacking, finer).core, coarse.core)
    assert not np.array_equal(opened.core, coarse.core)


def test_preview_without_b11_uses_the_probabilities(products, monkeypatch):
    for metres in (20, 60):
        monkeypatch.delitem(products[1].files, f"B11_{metres}m")
    percents = {"cloud_probability": read_cloud_probability(products[1])}
    percents |= {"snow_probability": read_snow_probability(products[1])}
    expected = masks.combine(read_scl(products[1]), TUNED, **percents)
    assert np.array_equal(Preview.open(products[1], TUNED).core, expected)
    assert (expected == UNKNOWN).any()


def test_synthetic_dates_hardly_suspect_each_other(products):
    clear, cloudy = (Preview.open(product, TUNED) for product in products)
    assert suspect(clear, cloudy, TUNED).mean() < 0.02
    assert suspect(cloudy, clear, TUNED).mean() < 0.02


def write(folder, product, values, *, pixel=10, **changes):
    place = Affine(pixel, 0, product.transform.c, 0, -pixel, product.transform.f)
    profile = {"driver": "GTiff", "count": 1, "dtype": values.dtype, "crs": product.crs, "transform": place} | changes
    with rasterio.open(
        folder / f"{product.name.name}.tif", "w", height=values.shape[0], width=values.shape[1], **profile
    ) as image:
        image.write(values, 1)


def test_clear_pixels_are_unknown_where_the_ground_drifts(tmp_path, products):
    """The cell of 20 m of any such pixel; what was unknown or hidden before stays as it was, and so does `core`."""
    product = products[1]
    found = revised_masks(Preview.open(product, TUNED), None, TUNED)
    there = np.zeros((201, 201), np.uint8)
    there[51, 31:] = 1
    assert still(found, product, None) is found
    assert still(found, product, tmp_path) is found
    write(tmp_path, product, there)
    (tmp_path / f"{product.name.name}.tif").rename(tmp_path / "06WVC.tif")
    marked = still(found, product, tmp_path)
    expected = found.mask.copy()
    expected[25, 15:][found.mask[25, 15:] == CLEAR] = UNKNOWN
    assert (expected != found.mask).any()
    assert np.array_equal(marked.mask, expected)
    assert marked.core is found.core
    write(tmp_path, product, there[:200])
    (tmp_path / f"{product.name.name}.tif").rename(tmp_path / "06WVC.tif")
    with pytest.raises(ConfigError, match=r"06WVC\.tif: 200 x 201 pixels .* expected for S2"):
        still(found, product, tmp_path)


@pytest.mark.parametrize(("factor", "size"), [(1, 201), (2, 101)])
def test_a_raster_of_the_users_own_replaces_the_classification(tmp_path, products, factor, size):
    values = np.random.default_rng(0).integers(0, 7, (size, size)).astype(np.uint8)
    write(tmp_path, products[1], values, pixel=10 * factor)
    meaning = {"clear": [3, 4], "cloud": [1, 2], "shadow": [5], "no_data": [6]}
    opened = Preview.open(products[1], Settings(source="raster", folder=tmp_path, values=meaning))
    table = np.array([CLEAR, CLOUD, CLOUD, CLEAR, CLEAR, SHADOW, NO_DATA])
    assert (opened.factor, opened.scl) == (factor, None)
    assert np.array_equal(opened.core, table[values])
    assert np.array_equal(opened.snow, masks.upsampled(read_scl(products[1]) == 11, 2 // factor, (size, size)))
    found = revised_masks(opened, Preview.open(products[0], TUNED), TUNED)
    assert found.at_10m("mask", (201, 201)).shape == (201, 201)


def test_no_data_of_the_classification_stays_no_data(tmp_path, products, monkeypatch):
    scl = np.full((101, 101), 4, np.uint8)
    scl[:10] = 0
    monkeypatch.setattr(scene_masks, "read_scl", lambda _: scl)
    write(tmp_path, products[0], np.zeros((201, 201), np.uint8))
    core = Preview.open(products[0], Settings(source="raster", folder=tmp_path)).core
    assert (core[:20] == NO_DATA).all()
    assert (core[20:] == CLEAR).all()


def test_of_a_raster_on_other_pixels_the_nearest_are_taken_and_that_is_told(tmp_path, products):
    values = np.zeros((201, 201), np.uint8)
    values[:50], values[50:] = 255, 1
    write(tmp_path, products[0], values, pixel=20)
    opened = Preview.open(products[0], Settings(source="raster", folder=tmp_path, values="binary"))
    assert (opened.factor, opened.core.shape, (opened.core == CLOUD).all()) == (2, (101, 101), True)
    assert "201 x 201 pixels of 20.0 x 20.0 m" in opened.note
    write(tmp_path, products[0], 7 * (values == 1).astype(np.uint8), pixel=20)
    with pytest.raises(ConfigError, match="values found: 0, 7"):
        Preview.open(products[0], Settings(source="raster", folder=tmp_path))


@pytest.mark.parametrize(
    ("shape", "changes", "found"),
    [
        ((190, 201), {}, "190 x 201 pixels of 10"),
        ((201, 201), {"crs": "EPSG:32605"}, "EPSG:32605"),
        ((201, 201), {"crs": None}, "in None"),
        ((201, 201), {"transform": Affine(10, 0, 0, 0, -10, 0)}, r"from \(0.0, 0.0\)"),
    ],
)
def test_a_raster_that_does_not_fit_is_refused_with_all_that_is_needed(tmp_path, products, shape, changes, found):
    write(tmp_path, products[0], np.zeros(shape, np.uint8), **changes)
    with pytest.raises(ConfigError, match=found) as error:
        Preview.open(products[0], Settings(source="raster", folder=tmp_path))
    name = products[0].name.name
    for expected in (
        str(tmp_path / f"{name}.tif"),
        "; expected ",
        "201 x 201 pixels of 10",
        "101 x 101 pixels of 20",
    ):
        assert expected in str(error.value)


def test_a_missing_or_broken_raster_is_a_matter_of_configuration(tmp_path, products):
    for content in (None, b"no raster"):
        if content:
            (tmp_path / f"{products[0].name.name}.tif").write_bytes(content)
        with pytest.raises(ConfigError, match=r"missing; expected|not readable"):
            Preview.open(products[0], Settings(source="raster", folder=tmp_path))
