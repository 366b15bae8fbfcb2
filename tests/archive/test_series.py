"""Real clouds over real ground: which dates are taken, and what is laid over what."""

from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cloudjob.archive import make, series
from cloudjob.archive.series import Day
from cloudjob.config.archive import Series
from cloudjob.errors import ConfigError
from cloudjob.pixels import CIRRUS, CLOUD, HIDDEN, SHADOW
from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.masks import SCL_BARE, SCL_CIRRUS, SCL_HIGH, SCL_NO_DATA, SCL_SHADOW, SCL_SNOW
from cloudjob.sentinel2.product import Product, read_bands, read_scl

SIZE, GRID = 64, Affine(10, 0, 500000, 0, -10, 5600000)


def day(number: int, *, scl=SCL_BARE, level: int = 2000) -> Day:
    """A date of random ground; `scl` is one class, or (class, rows from the top) on bare ground."""
    rng = np.random.default_rng(number)
    classes = np.full((SIZE // 2, SIZE // 2), SCL_BARE, np.uint8)
    kind, rows = scl if isinstance(scl, tuple) else (scl, SIZE)
    classes[:rows] = kind
    bands = rng.integers(level, level + 300, (4, SIZE, SIZE)).astype(np.uint16)
    return Day(date(2018, 5, number), bands, classes, "EPSG:32631", GRID)


def hidden(share: float, kind: int = SCL_HIGH) -> Day:
    found = day(9)
    found.scl.flat[: round(share * found.scl.size)] = kind
    return found


def test_a_clear_date_hides_nothing_has_no_snow_and_no_haze():
    assert day(1).is_clear
    for kind in (SCL_SHADOW, SCL_HIGH, SCL_CIRRUS):
        assert hidden(0.004, kind).is_clear
        assert not hidden(0.006, kind).is_clear
    assert hidden(0.019, SCL_SNOW).is_clear
    assert not hidden(0.021, SCL_SNOW).is_clear
    assert not day(1, level=2500).is_clear  # 0.15 and more of blue
    assert replace(day(1, level=2500), haze=0.2).is_clear
    holed = day(1)
    holed.bands[3, 5, 5] = 0
    assert not holed.is_clear
    assert not hidden(0.001, SCL_NO_DATA).is_clear


def test_a_cloudy_date_hides_a_part_also_when_its_clouds_have_grown():
    assert [hidden(share).is_cloudy for share in (0.07, 0.09, 0.59, 0.61)] == [False, True, True, False]
    strewn = day(1)
    strewn.scl[::3, ::3] = SCL_HIGH  # a ninth, which grows over everything
    assert strewn.hidden.mean() == pytest.approx(0.118, abs=1e-3)
    assert not strewn.is_cloudy
    holed = hidden(0.3)
    holed.bands[0, 0, 0] = 0
    assert not holed.is_cloudy


def test_every_clear_date_gets_its_own_draw_of_different_clouds():
    days = [
        *(day(number) for number in range(1, 9)),
        *(day(number, scl=(SCL_HIGH, number)) for number in range(10, 18)),
    ]
    found = list(series.draws(days, clouds=6, seed=3))
    assert [truth.day.day for truth, *_ in found] == [number for number in range(1, 9) for _ in range(6)]
    chosen = [[cloudy.day.day for truth, cloudy, _ in found if truth.day.day == number] for number in range(1, 9)]
    assert all(len(set(days)) == 6 for days in chosen)
    assert len({tuple(days) for days in chosen}) > 3
    assert {turn for *_, turn in found} == set(range(8))
    again = list(series.draws(days[1:], clouds=6, seed=3))  # without the first date: the draws of the others stay
    assert [(a.day, b.day, turn) for a, b, turn in again] == [(a.day, b.day, turn) for a, b, turn in found[6:]]
    assert len(list(series.draws(days, clouds=20, seed=3))) == 8 * 8


@pytest.mark.parametrize("turn", range(8))
def test_clouds_are_laid_over_the_ground_and_nothing_else_changes(turn):
    truth, cloudy = day(1, scl=(SCL_SNOW, 3)), day(2, scl=(SCL_HIGH, 8))
    cloudy.scl[20:24, 3:9], cloudy.scl[20:24, 15:20] = SCL_SHADOW, SCL_CIRRUS
    bands, scl = series.overlaid(truth, cloudy, turn)
    grown = masks.grow(masks.classes(scl), series.GROWTH, pixel_m=20)
    inside = masks.upsampled(np.isin(grown, HIDDEN), 2, (SIZE, SIZE))
    assert np.array_equal(bands[:, ~inside], truth.bands[:, ~inside]), "what is laid over lies below the mask"
    assert (bands != truth.bands).any(0)[inside].mean() > 0.99
    shares = {kind: np.mean(masks.classes(scl) == kind) for kind in (CLOUD, SHADOW, CIRRUS)}
    assert shares == {kind: np.mean(masks.classes(cloudy.scl) == kind) for kind in shares}
    back = np.rot90(bands[..., ::-1] if turn >= 4 else bands, -(turn % 4), (-2, -1))
    assert np.array_equal(back[:, :16], cloudy.bands[:, :16]), "turned back, the clouds are the cloudy date's"
    assert set(np.unique(scl[masks.classes(scl) == 0])) <= {SCL_BARE, SCL_SNOW}, "ground keeps its class"


def write(folder, days, metres: int = 10) -> None:
    for each in days:
        files = {f"{each.day}.tif": (each.bands, metres), f"{each.day}_scl.tif": (each.scl[None], 20)}
        for name, (pixels, width) in files.items():
            grid = Affine(width, 0, GRID.c, 0, -width, GRID.f)
            facts = {"count": len(pixels), "dtype": pixels.dtype, "crs": each.crs, "transform": grid}
            with rasterio.open(
                folder / name, "w", driver="GTiff", height=pixels.shape[1], width=pixels.shape[2], **facts
            ) as file:
                file.write(pixels)


@pytest.mark.slow
def test_an_archive_of_a_series_holds_each_clear_date_and_each_of_its_clouds(tmp_path):
    days = [day(1), day(5), day(7, scl=(SCL_HIGH, 8)), day(8, scl=(SCL_CIRRUS, 12)), day(9, scl=SCL_HIGH)]
    write(tmp_path, days)
    place = {"tile": "31UDS", "folder": tmp_path, "offset": -1000, "clouds": 2, "seed": 0, "haze": 0.15}
    names = make.make_from_series(tmp_path / "archive", places=[place])
    assert len(set(names)) == len(names) == 2 + 2 * 2
    assert make.make_from_series(tmp_path / "archive", places=[place]) == names
    truths = {path.stem for path in (tmp_path / "archive" / "truth").iterdir()}
    assert truths == set(names[2:])
    for name in names[2:]:
        product = Product.open(tmp_path / "archive" / f"{name}.SAFE")
        truth = next(each for each in days if each.day == product.sensing_time.date())
        with rasterio.open(tmp_path / "archive" / "truth" / f"{name}.tif") as file:
            assert np.array_equal(file.read(), truth.bands)
        scl = read_scl(product)
        assert set(np.unique(scl)) in ({SCL_BARE, SCL_HIGH}, {SCL_BARE, SCL_CIRRUS})
        changed = (read_bands(product) != truth.bands).any(0)
        assert 0.2 < changed.mean() < 0.5
    for name, truth in zip(names[:2], days[:2], strict=True):
        assert np.array_equal(read_bands(Product.open(tmp_path / "archive" / f"{name}.SAFE")), truth.bands)


@given(npst.arrays(np.uint16, st.tuples(st.just(4), *[st.shared(st.integers(1, 9), key="side")] * 2)))
def test_a_pixel_of_20_m_becomes_four_of_10_m(tmp_path_factory, dn):
    folder = tmp_path_factory.mktemp("coarse")
    scl = np.full(dn.shape[1:], SCL_BARE, np.uint8)
    write(folder, [Day(date(2018, 5, 1), dn, scl, "EPSG:32631", GRID)], metres=20)
    (found,) = series.read(folder, offset=-1000, haze=0.2)
    assert (found.transform, found.bands.shape, found.haze) == (GRID, (4, 2 * len(scl), 2 * len(scl)), 0.2)
    blocks = found.bands.reshape(4, len(scl), 2, len(scl), 2)
    np.testing.assert_array_equal(blocks.min((2, 4)), blocks.max((2, 4)))
    np.testing.assert_array_equal(blocks[:, :, 0, :, 0], np.where((dn == 0).all(0), 0, np.maximum(dn, 1)))


@pytest.mark.parametrize(("metres", "shape"), [(20, (16, 16)), (20, (64, 64)), (10, (16, 16)), (30, (32, 32))])
def test_bands_must_cover_what_is_classified(tmp_path, metres, shape):
    each = day(1)
    write(tmp_path, [replace(each, bands=each.bands[:, : shape[0], : shape[1]])], metres)
    half = shape[0] * metres // 20
    said = "expected pixels of 10 m or 20 m" if metres == 30 else rf"\(32, 32\) pixels, expected \({half}, {half}\)"
    with pytest.raises(ConfigError, match=said):
        series.read(tmp_path, offset=-1000)


@pytest.mark.parametrize("fault", ["no dates", "no classes", "another grid", "not square"])
def test_a_folder_that_is_no_series_is_said_to_be_none(tmp_path, fault):
    days = [day(1), day(2)]
    if fault == "another grid":
        days[1] = Day(days[1].day, days[1].bands, days[1].scl, "EPSG:32632", GRID)
    if fault == "not square":
        days = [Day(each.day, each.bands[:, :32], each.scl[:16], each.crs, GRID) for each in days]
    if fault != "no dates":
        write(tmp_path, days)
    if fault == "no classes":
        write(tmp_path, [Day(days[0].day, days[0].bands, days[0].scl[:7], days[0].crs, GRID)])
    said = {
        "no dates": r"holds no <YYYY-MM-DD>\.tif",
        "no classes": r"2018-05-01\.tif: .*\(7, 32\).*expected \(32, 32\)",
    }
    with pytest.raises(ConfigError, match=said.get(fault, "of one square grid")):
        series.read(tmp_path, offset=-1000)


@pytest.mark.parametrize("strange", [12, 255])
def test_a_class_that_does_not_exist_is_no_clear_ground(tmp_path, strange):
    days = [day(1)]
    days[0].scl[0, 0] = strange
    write(tmp_path, days)
    with pytest.raises(ConfigError, match=rf"_scl\.tif: holds 5, {strange}; expected classes 0 to 11"):
        series.read(tmp_path, offset=0)


def test_an_unset_variable_names_where_real_dates_are_had(monkeypatch, tmp_path):
    monkeypatch.setenv("CLOUDJOB_REAL", str(tmp_path))
    assert Series(tile="31UDS", folder="$CLOUDJOB_REAL/31UDS").folder == tmp_path / "31UDS"
    monkeypatch.delenv("CLOUDJOB_REAL")
    with pytest.raises(ValueError, match=r"\$CLOUDJOB_REAL is not set.*WorldCereal"):
        Series(tile="31UDS", folder="$CLOUDJOB_REAL/31UDS")
