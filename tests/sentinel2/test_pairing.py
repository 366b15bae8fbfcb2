"""Which clear product is taken, which is the reference, and why the others are not."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from cloudjob.sentinel2 import pairing

RULES = {
    "max_days": 30,
    "min_overlap": 0.5,
    "clear_max_cloud": 0.05,
    "cloudy_range": (0.05, 0.5),
    "max_sun_difference": 10,
    "min_sun_elevation": 5,
}
DAY = datetime(2024, 3, 10, 22, 15, tzinfo=UTC)


def preview(day, cloud=0.0, *, tile="05WPS", grid=("EPSG:32605",), sun=15.0, no_data=0.0, orbit=29):
    mask = np.zeros((10, 100), np.uint8)
    mask[:, : round(100 * cloud)] = 1
    if no_data:
        mask[:, -round(100 * no_data) :] = 255
    moment = DAY + timedelta(days=day)
    name = f"S2A_MSIL2A_{moment:%Y%m%dT%H%M%S}_N0510_R029_T{tile}_{moment:%Y%m%dT%H%M%S}"
    return pairing.Preview(name, tile, grid, moment, orbit, sun, mask)


def rows(*clear, cloudy=None):
    return pairing.candidates(cloudy or preview(0, 0.3), list(clear), RULES)


def test_nearest_good_date_is_taken_and_the_next_other_one_is_the_reference():
    found = rows(preview(12), preview(-5), preview(3, 0.2), preview(8))
    assert [row["days"] for row in found] == [3, -5, 8, 12]
    taken = [row for row in found if row["accepted"]]
    assert [row["days"] for row in taken] == [-5]
    assert taken[0]["reference_days"] == 8
    assert taken[0]["reference"] != taken[0]["clear"]
    assert "0.200 cloud" in found[0]["reasons"][0]
    assert "is nearer" in found[2]["reasons"][0]


def test_the_reference_is_never_the_acquisition_of_the_target():
    target, half = preview(4), preview(4, orbit=30)
    (row,) = [row for row in rows(target, half) if row["accepted"]]
    assert row["reference"] is None
    (row,) = [row for row in rows(target, half, preview(9)) if row["accepted"]]
    assert row["reference_days"] == 9


@pytest.mark.parametrize(
    ("clear", "word"),
    [
        (preview(40), "days apart"),
        (preview(2, 0.1), "clear date has"),
        (preview(2, sun=30.0), "degrees"),
        (preview(2, sun=4.0), "at least 5"),
        (preview(2, no_data=1.0), "joint valid area"),
    ],
)
def test_a_no_has_its_reason(clear, word):
    (row,) = rows(clear)
    assert not row["accepted"]
    assert any(word in reason for reason in row["reasons"])


def test_other_tiles_and_other_grids_are_no_candidates():
    assert rows(preview(2, tile="05WPT"), preview(3, grid=("EPSG:32606",))) == []


def test_cloud_is_counted_where_both_dates_have_data():
    cloudy = preview(0, 0.3, no_data=0.4)
    (row,) = rows(preview(2), cloudy=cloudy)
    assert row["cloudy_cloud"] == 0.5
    assert row["overlap"] == 1.0
