"""Masks, normalisation and shift of dates of an archive-made place."""

from dataclasses import replace
from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest

from cloudjob.archive.make import make_synthetic
from cloudjob.pixels import CLEAR, HIDDEN, UNKNOWN
from cloudjob.sentinel2 import masks, scene
from cloudjob.sentinel2.product import Product
from cloudjob.sentinel2.scene_masks import Preview

SETTINGS = masks.Settings(cloud_m=50)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Role -> folder of a cloudy and two clear products of 512 x 512 pixels."""
    archive = tmp_path_factory.mktemp("archive")
    days = {"clear": [date(2024, 3, 12), date(2024, 3, 20)], "cloudy": [date(2024, 3, 8)]}
    names = make_synthetic(archive, tiles=["05WPS"], size=512, seed=3, cloud=(0.2, 0.2), **days)
    folders = dict(zip(("clear", "reference", "cloudy"), (archive / f"{name}.SAFE" for name in names), strict=True))
    return {role: folders[role] for role in ("cloudy", "clear", "reference")}


def reduced(pair, step):
    products = {role: Product.open(folder) for role, folder in pair.items()}
    previews = {role: Preview.open(product, SETTINGS) for role, product in products.items()}
    found = scene.masks_of_pair(previews, SETTINGS)
    return {role: scene.ReducedScene.open(products[role], found[role], step) for role in products}


@pytest.mark.slow
def test_scenes_of_a_pair_have_masks_at_10_m_and_clear_dates_agree(pair):
    load = scene.open_pair(pair, SETTINGS)
    cloudy, clear = load("cloudy"), load("clear")
    assert cloudy.mask.shape == cloudy.bands.shape[1:] == (512, 512)
    assert 0.1 < np.isin(cloudy.core, HIDDEN).mean() < np.isin(cloudy.mask, HIDDEN).mean()
    both = (cloudy.mask == CLEAR) & (clear.mask == CLEAR)
    before, after = (
        np.abs(image[:, both].astype(int) - cloudy.bands[:, both]) for image in (clear.bands, cloudy.matched(clear))
    )
    assert after.mean() <= before.mean()
    shown = clear.clear_only(clear.bands)
    assert (shown[:, clear.mask == CLEAR] > 0).all()
    assert (shown[:, clear.mask != CLEAR] == 0).all()


def dated(*bright):
    """A clear preview of four cells of 60 m in a row, bright in these."""
    rgb = np.full((3, 1, 4), 2000, np.uint16)
    rgb[:, :, list(bright)] = 6000
    core = np.full((3, 12), CLEAR, np.uint8)
    return Preview(
        product=SimpleNamespace(sensing_time=date(2018, 5, 1)),
        core=core,
        factor=2,
        snow=np.zeros(core.shape, bool),
        rgb=rgb,
    )


def test_the_clear_date_revises_the_masks_of_the_others_and_the_cloudy_date_those_of_the_clear_one():
    """No other choice of dates gives the same cells."""
    previews = {"cloudy": dated(0, 2), "clear": dated(1), "reference": dated(1, 2, 3)}
    found = scene.masks_of_pair(previews, replace(SETTINGS, darker=0))
    unknown = {role: np.flatnonzero(masks.core[0, ::3] == UNKNOWN).tolist() for role, masks in found.items()}
    assert unknown == {"cloudy": [0, 2], "clear": [1], "reference": [2, 3]}
    assert set(scene.masks_of_pair({role: previews[role] for role in ("cloudy", "clear")}, SETTINGS)) == {
        "cloudy",
        "clear",
    }


def test_the_others_vote_on_what_is_dark():
    previews = {"cloudy": dated(0, 3), "clear": dated(0, 1, 3)}
    previews |= {role: dated(0, 1, 2) for role in ("reference", "reference2")}
    found = scene.masks_of_pair(previews, replace(SETTINGS, brighter=0.9))
    unknown = {role: np.flatnonzero(masks.core[0, ::3] == UNKNOWN).tolist() for role, masks in found.items()}
    assert unknown == {"cloudy": [1, 2], "clear": [2], "reference": [3], "reference2": [3]}


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 4, 8])
def test_a_reduced_pixel_is_clear_only_where_all_it_covers_is(pair, step):
    small = reduced(pair, step)["cloudy"]
    mask = scene.open_pair(pair, SETTINGS)("cloudy").mask
    cells = mask.reshape(512 // step, step, 512 // step, step)
    assert small.clear.shape == small.bands.shape[1:] == (512 // step, 512 // step)
    assert not (small.clear & (cells != CLEAR).any((1, 3))).any()
    assert small.clear.mean() > 0.2


@pytest.mark.slow
def test_the_match_hardly_depends_on_the_reduction(pair):
    lines = [scene.fit(found["clear"], found["cloudy"]).lines for found in (reduced(pair, 1), reduced(pair, 4))]
    for whole, small in zip(*lines, strict=True):
        assert whole["gain"] == pytest.approx(small["gain"], abs=0.03)
        assert whole["r2"] > 0.9


@pytest.mark.slow
def test_dates_of_one_place_are_not_shifted_and_a_shifted_one_is_found(pair):
    load, found = scene.open_pair(pair, SETTINGS), reduced(pair, 1)
    first, second = (load(role).bands for role in ("clear", "reference"))

    def measured(bands):
        estimator = scene.ShiftEstimator(found["clear"], found["reference"])
        estimator.add(0, first, bands)
        return estimator.shift()

    here = measured(second)
    assert here["chips"] >= 3
    assert max(abs(here["row"]), abs(here["col"])) < 0.2
    there = measured(np.roll(second, (2, -3), (1, 2)))
    assert (round(there["row"]), round(there["col"])) == (2, -3)


@pytest.mark.parametrize(("side", "window", "step"), [(10980, 256, 16), (10980, 64, 4), (2048, 256, 4), (192, 64, 1)])
def test_small_scenes_and_small_windows_are_reduced_less(side, window, step):
    assert scene.reduction((side, side), window=window) == step


@pytest.mark.parametrize("role", ["cloudy", "clear"])
def test_a_date_alone_has_its_own_masks(role):
    found = scene.masks_of_pair({role: dated(1)}, SETTINGS)
    assert (found[role].core == CLEAR).all()
