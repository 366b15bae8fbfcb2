"""The dates of a pair as conditions: as the whole scenes give them, by however many ranks and threads."""

from datetime import date

import numpy as np
import pytest
from scene_conditions import equal, made_by
from worlds import together

from cloudjob.archive.make import make_synthetic
from cloudjob.errors import CorruptFileError, InterruptedJob
from cloudjob.pixels import EMPTY_DN, NO_DATA
from cloudjob.restoration import dates
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.dates import Dates, make_conditions
from cloudjob.restoration.team import Team, Unit
from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.decode import Band
from cloudjob.sentinel2.product import Product
from cloudjob.sentinel2.scene import open_pair

SETTINGS = masks.Settings(cloud_m=50)
DAYS = {"clear": [date(2024, 3, 12), date(2024, 3, 20)], "cloudy": [date(2024, 3, 8)]}
NUMBERS = {"clear": -4.5, "reference": 12.0}  # days


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Role -> folder of a cloudy and two clear products of 264 x 264 pixels."""
    archive = tmp_path_factory.mktemp("archive")
    names = make_synthetic(archive, tiles=["05WPS"], size=264, seed=3, cloud=(0.2, 0.2), **DAYS)
    return dict(zip(("clear", "reference", "cloudy"), (archive / f"{name}.SAFE" for name in names), strict=True))


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    """Several units of several stripes, though the scene is small."""
    monkeypatch.setattr(dates, "_ROWS", 96)
    monkeypatch.setattr(dates, "_STRIPE", 25)
    monkeypatch.setattr(Band, "tile_rows", lambda band: 48)


def opened(pair, shown: tuple[str, ...]) -> Dates:
    return Dates(
        {role: Product.open(folder) for role, folder in pair.items()}, shown, tuple(map(NUMBERS.get, shown)), SETTINGS
    )


def made(folder, pair, shown=("clear", "reference"), *, size=1, threads=1, **options) -> SceneConditions:
    def work(ranks):
        make_conditions(Team(folder, ranks, threads=threads, **options), lambda: opened(pair, shown))

    return made_by(size, folder, work)


def of_scenes(cloudy, others, *, days) -> SceneConditions:
    """The same from whole scenes, one after the other."""
    shown = tuple(other.clear_only(cloudy.matched(other)) for other in others)
    return SceneConditions(cloudy.bands, cloudy.mask, cloudy.core, shown, cloudy.product.sun_elevation, days)


@pytest.mark.slow
@pytest.mark.parametrize("shown", [("clear", "reference"), ("reference", "clear"), ("reference",), ()])
def test_they_are_those_of_the_whole_scenes(pair, tmp_path, shown):
    load = open_pair(pair, SETTINGS)
    expected = of_scenes(load("cloudy"), map(load, shown), days=tuple(map(NUMBERS.get, shown)))
    assert all((reference != EMPTY_DN).any() for reference in expected.references)
    if "reference" in shown:
        assert (expected.references[shown.index("reference")] == EMPTY_DN).any()
    equal(made(tmp_path / "one", pair, shown), expected)
    equal(made(tmp_path / "more", pair, shown, size=3), expected)
    equal(made(tmp_path / "threads", pair, shown, size=2, threads=3), expected)


@pytest.mark.slow
def test_each_row_of_tiles_is_decoded_once_over_all_ranks_and_stops(pair, tmp_path, monkeypatch):
    read, asked = Band.read, []

    def spy(band, rows=slice(None), *rest, **options):
        if rows.start is not None:  # else a small image, whole
            asked.append((band.path.name, rows.start))
        return read(band, rows, *rest, **options)

    monkeypatch.setattr(Band, "read", spy)
    whole = made(tmp_path / "whole", pair, ("reference",), size=2)
    assert len(asked) == len(set(asked)) == 2 * 4 * 3
    asked.clear()
    with pytest.raises(InterruptedJob):
        made(tmp_path / "stopped", pair, ("reference",), stopped=lambda: len(asked) == 5)
    (tmp_path / "stopped" / "over").unlink()
    equal(made(tmp_path / "stopped", pair, ("reference",)), whole)
    assert len(asked) == len(set(asked)) == 2 * 4 * 3


def test_a_wish_to_stop_is_heard_while_the_dates_are_measured(pair, tmp_path, monkeypatch):
    asked = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) == 3  # not before the unit, nor after the first date

    with pytest.raises(InterruptedJob):
        dates._survey(Team(tmp_path, stopped=stopped), opened(pair, ("clear",)))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_one_rank_finds_broken_is_named_to_all_before_any_decoding(pair, tmp_path):
    path = pair["clear"] / "band.jp2"

    def check():
        raise CorruptFileError(path, "is damaged")

    def work(ranks):
        team = Team(tmp_path, ranks)
        team.do("checking", lambda: [Unit("check", check)])
        make_conditions(team, lambda: opened(pair, ()))

    found = together(2, work)
    assert [type(each) for each in found] == [CorruptFileError] * 2
    assert [each.path for each in found] == [path] * 2


def test_a_pixel_without_data_in_one_band_has_none(tmp_path):
    found = masks.classes(np.full((4, 5), 4, np.uint8))
    bands = np.ones((4, 8, 10), np.uint16)
    bands[2, 3, 7] = 0
    seen = dates._mask(dates.SceneMasks(found, found, 2), bands[:, 2:6], slice(2, 6), (8, 10))
    assert np.argwhere(seen == NO_DATA).tolist() == [[1, 7]]
