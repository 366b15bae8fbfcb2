"""Which clear product is taken, which is the reference, and why the others are not."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest
from affine import Affine
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.config.models import PairConfig
from cloudjob.names import ProductName
from cloudjob.pixels import CLOUD, NO_DATA, UNKNOWN
from cloudjob.sentinel2 import masks, pairing
from cloudjob.sentinel2.product import Product
from cloudjob.sentinel2.scene_masks import Preview

DAY = datetime(2024, 3, 10, 22, 15, tzinfo=UTC)
RULES = pairing.Rules(max_days=30, cloudy_range=(0.05, 0.5), max_sun_difference=10)
SETTINGS = masks.Settings()


def product(day, *, satellite="S2A", tile="05WPS", zone=32605, sun=15.0, orbit=29, shape=(24, 240), copy=0):
    moment = DAY + timedelta(days=day)
    sensing, made = f"{moment:%Y%m%dT%H%M%S}", f"{moment + timedelta(hours=copy):%Y%m%dT%H%M%S}"
    name = ProductName.parse(f"{satellite}_MSIL2A_{sensing}_N0510_R{orbit:03}_T{tile}_{made}")
    return Product(
        folder=Path(name.name),
        name=name,
        baseline="05.10",
        offsets={},
        quantification=10000,
        crs=f"EPSG:{zone}",
        transform=Affine(10, 0, 0, 0, -10, 0),
        shape=shape,
        sun_elevation=sun,
        percentages={},
        sensing_time=moment,
        files={},
    )


def preview(day, cloud=0.0, *, no_data=0.0, unknown=0.0, haze=0.0, snow=0.0, factor=2, **facts):
    """A scene of 24 x 240 pixels. Cloud and haze fill it from the west, snow too, no data and unknown from the east;
    all in parts of 0.025, the 60 m pixels of the picture."""
    core = np.zeros((24 // factor, 240 // factor), np.uint8)
    width = core.shape[1]
    core[:, width - round(width * unknown) :] = UNKNOWN
    core[:, : round(width * cloud)] = CLOUD
    core[:, width - round(width * no_data) :] = NO_DATA
    white = np.zeros(core.shape, bool)
    white[:, : round(width * snow)] = True
    rgb = np.full((3, 4, 40), 2000, np.uint16)
    rgb[..., : round(40 * max(cloud, haze, snow))] += np.uint16(3000)
    return Preview(product=product(day, **facts), core=core, factor=factor, snow=white, rgb=rgb)


def rows(*clear, cloudy=None, rules=RULES):
    return pairing.candidates(cloudy or preview(0, 0.3), clear, rules, SETTINGS)


def accepted(found):
    (row,) = [row for row in found if row["accepted"]]
    return row


def eastern_half(*facts, **more):
    """What another station received of a scene: a product of its own without data in the west."""
    view = preview(*facts, copy=3, **more)
    view.core[:, : view.core.shape[1] // 2] = NO_DATA
    return view


def test_two_halves_of_an_acquisition_are_two_pairs_each_with_a_date_that_has_its_ground():
    west, clear = preview(0, 0.2, no_data=0.5), preview(4)
    east = eastern_half(0, 0.7)
    halves = {west.product.name.granule}
    found = [pairing.candidates(half, [clear], RULES, SETTINGS, halves) for half in (west, east)]
    assert len({accepted(each)["pair"] for each in found}) == 2
    assert all(row["pair"].endswith(f"_{DAY + timedelta(days=4):%Y%m%dT%H%M%S}") for each in found for row in each)
    (row,) = pairing.candidates(west, [eastern_half(4)], RULES, SETTINGS)
    assert "joint valid area 0.00, at least 0.5" in row["reasons"]


def test_the_rules_are_those_of_the_configuration():
    assert asdict(pairing.Rules()) == dict(PairConfig())


def test_nearest_good_date_is_taken_and_the_next_other_one_is_the_reference():
    found = rows(preview(12), preview(-5), preview(3, 0.2), preview(8))
    assert [row["days"] for row in found] == [3, -5, 8, 12]
    row = accepted(found)
    assert row["shown"]
    assert (row["days"], row["reference_days"]) == (-5, 8)
    assert row["reference"] != row["clear"]
    assert row["pair"] == "05WPS_20240310T221500_20240305T221500"
    assert "0.200 cloud" in found[0]["reasons"][0]
    assert "is nearer: 5.0 days against 8.0" in found[2]["reasons"][0]
    assert {row["reference"] for row in found if not row["shown"]} == {None}


def test_the_same_orbit_is_preferred_but_not_at_any_price():
    near, far = rows(preview(6), preview(4, orbit=72))
    assert (near["days"], near["accepted"], far["days"]) == (6, True, 4)
    assert far["reasons"][0].endswith("is nearer: 6.0 days against 7.0, 3 for another orbit")
    assert accepted(rows(preview(4, orbit=72), preview(8)))["days"] == 4
    assert accepted(rows(preview(4, orbit=72), preview(6), rules=replace(RULES, other_orbit_days=0)))["days"] == 4


def test_the_reference_is_never_the_acquisition_of_the_target_or_of_the_cloudy_date():
    target, half, own = preview(4), preview(4, copy=3), preview(0, copy=3)
    row = accepted(rows(target, half, own))
    assert row["reference"] is None
    assert row["reference_days"] is None
    twin = preview(4, satellite="S2B")  # another satellite is another acquisition
    assert accepted(rows(target, half, own, twin))["reference"] == twin.product.name.name
    assert accepted(rows(target, half, own, preview(9)))["reference_days"] == 9


def test_the_reference_may_be_far_and_in_other_light_but_must_be_clear():
    far = {"sun": 40.0}
    assert accepted(rows(preview(4), preview(55, **far)))["reference_days"] == 55
    assert accepted(rows(preview(4), preview(61)))["reference"] is None
    assert accepted(rows(preview(4), preview(55, 0.1)))["reference"] is None
    assert accepted(rows(preview(4), preview(55, unknown=0.2)))["reference"] is None
    assert (
        accepted(rows(preview(4), preview(55, no_data=0.6)))["reference_days"] == 55
    )  # all of its half is jointly valid


def test_where_none_is_acceptable_the_least_wrong_is_shown():
    found = rows(preview(2, 0.3, sun=40.0), preview(-35), preview(50))
    (row,) = [row for row in found if row["shown"]]
    assert row["days"] == -35
    assert row["reasons"] == ["-35.0 days apart, at most 30"]
    assert row["reference_days"] == 50
    assert not any(row["accepted"] for row in found)


def test_a_clear_date_may_be_too_near():
    found = rows(preview(1), preview(-2), rules=replace(RULES, min_days=2))
    reasons = {row["days"]: row["reasons"] for row in found}
    assert reasons == {1: ["+1.0 days apart, at least 2"], -2: []}


@pytest.mark.parametrize(
    ("clear", "word"),
    [
        (preview(40), "+40.0 days apart, at most 30"),
        (preview(2, 0.1), "clear date has 0.100 cloud"),
        (preview(2, unknown=0.2), "clear date has 0.200 doubtful"),
        (preview(2, haze=0.6), "clear date has 0.300 doubtful"),
        (preview(2, sun=30.0), "sun 15.0 and 30.0 degrees high, at most 10 apart"),
        (preview(2, sun=4.0), "sun at 4.0 degrees, at least 5"),
        (preview(2, no_data=1.0), "joint valid area 0.00"),
        (preview(2, snow=1.0), "snow on 0.00 and 1.00 of the ground"),
    ],
)
def test_a_no_has_its_reason(clear, word):
    (row,) = rows(clear)
    assert not row["accepted"]
    assert any(word in reason for reason in row["reasons"]), row["reasons"]


@pytest.mark.parametrize("cloud", [0.0, 0.6])
def test_the_cloudy_date_must_be_cloudy_but_not_too_much(cloud):
    (row,) = rows(preview(2), cloudy=preview(0, cloud))
    assert row["reasons"] == [f"cloudy date has {cloud:.3f} cloud, not 0.05..0.5"]


def test_other_tiles_and_other_grids_are_no_candidates():
    larger = replace(preview(4), product=product(4, shape=(30, 240)))
    assert rows(preview(2, tile="05WPT"), preview(3, zone=32606), larger) == []


def test_fractions_are_of_the_pixels_that_both_dates_have():
    cloudy, clear = preview(0, 0.3, no_data=0.4), preview(2, 0.15, unknown=0.75)
    found = pairing.measure(cloudy, clear, SETTINGS)
    assert found["overlap"] == 1.0
    assert found["cloudy_cloud"] == 0.5
    assert found["clear_cloud"] == 0.25
    assert found["clear_unknown"] == pytest.approx(0.35 / 0.6, abs=1e-4)
    assert found["jointly_clear"] == 0.0
    assert found["snow"] == [None, None]
    assert found["snow_difference"] is None


def test_snow_is_compared_where_both_dates_are_clear():
    found = pairing.measure(preview(0, 0.5, snow=0.75), preview(2, snow=0.6), SETTINGS)
    assert found["snow"] == [0.5, 0.2]
    assert found["snow_difference"] == 0.3


def test_suspects_of_either_date_are_doubtful_and_not_jointly_clear():
    found = pairing.measure(preview(0, haze=0.5), preview(2), SETTINGS)
    assert (found["cloudy_unknown"], found["clear_unknown"], found["jointly_clear"]) == (0.5, 0.0, 0.5)
    found = pairing.measure(preview(0), preview(2, haze=0.5), SETTINGS)
    assert (found["cloudy_unknown"], found["clear_unknown"], found["jointly_clear"]) == (0.0, 0.5, 0.5)


def test_other_clear_dates_testify_where_the_cloudy_one_is_hidden_or_wrong():
    hazy, clean = preview(2, haze=0.6), [preview(4), preview(-3)]
    assert pairing.measure(preview(0, 0.6), hazy, SETTINGS)["clear_unknown"] == 0.0
    assert pairing.measure(preview(0, 0.6), hazy, SETTINGS, clean)["clear_unknown"] == 0.6
    assert pairing.measure(preview(0, 0.6), hazy, SETTINGS, [*clean, preview(5, haze=0.5)])["clear_unknown"] == 0.6
    bright = preview(2)
    dark = replace(preview(0, 0.3), rgb=preview(0).rgb // np.uint16(2))  # a shadow that the classification missed
    bright.rgb[:] = 4000
    assert pairing.measure(dark, bright, SETTINGS)["clear_unknown"] == 0.7
    assert pairing.measure(dark, bright, SETTINGS, [bright, bright])["clear_unknown"] == 0.0


def test_a_date_that_is_dark_as_a_whole_is_neither_target_nor_reference():
    black, clear = preview(1), [preview(day) for day in (3, 5, 7)]
    black.rgb[:] = 1300  # the others have 2000
    found = rows(black, *clear)
    assert [row["days"] for row in found] == [1, 3, 5, 7]
    assert found[0]["light"] == [1.0, 0.3]
    assert "clear date has 0.30 of the light of others, at least 0.5" in found[0]["reasons"]
    assert (accepted(found)["days"], accepted(found)["reference_days"]) == (3, 5)
    assert accepted(found)["light"] == [1.0, 1.0]
    alone = rows(black, cloudy=preview(0, 0.1))
    assert accepted(alone)["light"] == [3.333, None]  # against the cloudy date, which may be hazy


def test_the_nearest_other_clear_acquisitions_are_the_witnesses():
    hazy, copy = preview(2, haze=0.6), preview(2, haze=0.6, copy=1)
    far = [preview(70), preview(80), preview(90)]
    cloudy = preview(0, 0.6)
    rules = replace(RULES, cloudy_range=(0, 1))
    unknown = [row["clear_unknown"] for row in rows(hazy, copy, *far, cloudy=cloudy, rules=rules)]
    assert unknown == [0.0] * 5
    unknown = [row["clear_unknown"] for row in rows(hazy, copy, preview(9), *far, cloudy=cloudy, rules=rules)]
    assert unknown == [0.6, 0.6, 0, 0, 0, 0]


@pytest.mark.parametrize("factors", [(1, 2), (2, 1), (1, 1), (6, 2)])
def test_masks_at_10_m_measure_as_those_at_20_m(factors):
    cloudy, clear = {"cloud": 0.4, "no_data": 0.1}, {"unknown": 0.3, "haze": 0.6, "snow": 0.2}
    expected = pairing.measure(preview(0, **cloudy), preview(2, **clear), SETTINGS)
    first, second = factors
    found = pairing.measure(preview(0, factor=first, **cloudy), preview(2, factor=second, **clear), SETTINGS)
    assert found == expected


SCENES = st.builds(
    preview,
    st.integers(-70, 70),
    st.sampled_from([0, 0, 0, 0.1]),
    satellite=st.sampled_from(["S2A", "S2B"]),
    orbit=st.sampled_from([29, 72]),
    sun=st.sampled_from([4.0, 15.0, 40.0]),
    copy=st.integers(0, 2),
)


@examples(50)
@given(st.lists(SCENES, max_size=8, unique_by=lambda each: each.product.name.name))
def test_one_row_is_shown_and_whatever_the_candidates_the_triplet_is_of_three_acquisitions(clear):
    found = rows(*clear)
    usable = [each for each in clear if each.product.sensing_time != DAY or each.product.name.satellite != "S2A"]
    assert sorted(row["clear"] for row in found) == sorted(each.product.name.name for each in usable)
    assert sum(row["shown"] for row in found) == bool(found)
    for row in found:
        assert row["accepted"] == (not row["reasons"])
        assert row["shown"] or not row["accepted"]
        if row["reference"]:
            names = [ProductName.parse(row[role]) for role in ("cloudy", "clear", "reference")]
            assert len({name.datatake for name in names}) == 3
            assert abs(row["reference_days"]) <= RULES.reference_max_days
            (other,) = [other for other in found if other["clear"] == row["reference"]]
            assert other["days"] == row["reference_days"]
            assert not any("clear date has" in reason for reason in other["reasons"])


def brute_force(found, first, day, used, rules):
    """The second and third reference after the first, for a truth at `day`, by trying all rows each time."""
    chosen, days = [], [0, day, first["days"]]
    used = [ProductName.parse(name).datatake for name in (*used, first["clear"])]
    for number in range(rules.references - 1):
        best = None
        for row in found:
            name, orbit = ProductName.parse(row["clear"]), 0 if row["same_orbit"] else rules.other_orbit_days
            bad = row["clear_cloud"] > 0.05 or min(row["sun_elevation"]) < 5 or abs(row["days"]) > 60
            if bad or name.datatake in used or min(abs(row["days"] - other) for other in days) < rules.min_days:
                continue
            between = min(row["days"], first["days"]) < day < max(row["days"], first["days"])
            key = (number == 0 and not between, abs(row["days"]) + orbit, row["clear"])
            if best is None or key < best[0]:
                best = key, row
        if best:
            used.append(ProductName.parse(best[1]["clear"]).datatake)
            days.append(best[1]["days"])
            chosen.append({"product": best[1]["clear"], "days": best[1]["days"]})
    return chosen


@pytest.mark.slow
@examples(200)
@given(st.lists(SCENES, max_size=9, unique_by=lambda each: each.product.name.name), st.integers(2, 3), st.booleans())
def test_further_references_are_the_nearest_but_the_second_lies_beyond_the_truth(clear, references, apart):
    plain = replace(RULES, references=1, min_days=2 if apart else 0)
    rules = replace(plain, references=references)
    before, found = rows(*clear, rules=plain), rows(*clear, rules=rules)
    further = ("further", "further_of_ground")
    assert [{key: value for key, value in row.items() if key not in further} for row in found] == before
    assert not any(name in row for row in (*before, *(row for row in found if not row["shown"])) for name in further)
    for row in (row for row in found if row["shown"]):
        first = next((other for other in found if other["clear"] == row["reference"]), None)
        expected = brute_force(found, first, row["days"], [row["clear"]], rules) if first else []
        assert row["further"] == expected
        assert row["further_of_ground"] == brute_force(found, row, 0, [], rules)


def test_of_three_references_the_second_is_on_the_other_side():
    dates = [preview(day) for day in (-5, 8, 9, 12, -20)]
    row = accepted(rows(*dates, rules=replace(RULES, references=3)))
    assert (row["days"], row["reference_days"]) == (-5, 8)
    assert [each["days"] for each in row["further"]] == [-20, 9]  # the truth is the clear date
    assert [each["days"] for each in row["further_of_ground"]] == [8, 9]
    assert row["further"][0]["product"] == dates[4].product.name.name
    row = accepted(rows(preview(3), preview(4), preview(6), preview(-9), rules=replace(RULES, references=3)))
    assert [each["days"] for each in row["further_of_ground"]] == [-9, 4]
    row = accepted(rows(preview(3), preview(4), rules=replace(RULES, references=3)))
    assert (row["further"], [each["days"] for each in row["further_of_ground"]]) == ([], [4])


def test_further_references_are_of_other_days_than_the_truth():
    """In an archive of clouds over real dates a day is there more than once: its clear ground, and cloudy ones."""
    dates = [preview(day, satellite=name) for day in (0, -5, 7, 12) for name in ("S2A", "S2B")]
    row = accepted(rows(*dates, rules=replace(RULES, references=3, min_days=2)))
    assert (row["days"], row["reference_days"]) == (-5, 0)
    assert [each["days"] for each in row["further_of_ground"]] == [7, 12]


@pytest.fixture(scope="module")
def series(shared_data):
    """A year of real dates of one place (T31UDS): a preview per date, named by its day."""
    folder, name = shared_data / "worldcereal_L2A", "00002806639B424A_32631_2017-08-01_2018-11-30.nc"
    with h5py.File(folder / f"S2_L2A_10m_{name}") as file:
        bands = np.stack([file[band][:] for band in ("B04", "B03", "B02")], axis=1)
        times = file["timestamp"][:]
    with h5py.File(folder / f"S2_L2A_20m_{name}") as file:
        classes, suns = file["SCL"][:], 90 - file["sunZenithAngles"][:]
        bands = np.concatenate([bands, file["B11"][:].repeat(2, 1).repeat(2, 2)[:, None]], axis=1)
    views = {}
    for pixels, seconds, scl, sun in zip(bands, times, classes, suns, strict=True):
        when = datetime(2017, 8, 4, 10, 53, 28, tzinfo=UTC) + timedelta(seconds=int(seconds))
        days = round(seconds / 86400)
        facts = {"satellite": "S2B" if days // 5 % 2 else "S2A", "orbit": 8 if days % 5 else 51, "sun": float(sun)}
        facts |= {"tile": "31UDS", "zone": 32631, "shape": (64, 64)}
        coarse = np.pad(pixels + 1000.0, [(0, 0), (0, 2), (0, 2)], mode="edge").reshape(4, 11, 6, 11, 6).mean((2, 4))
        views[f"{when:%Y-%m-%d}"] = Preview(
            product=product((when - DAY) / timedelta(days=1), **facts),
            core=masks.combine(scl, SETTINGS),
            factor=2,
            snow=scl == masks.SCL_SNOW,
            rgb=coarse[:3].astype(np.uint16),
            scl=scl,
            b11=coarse[3].astype(np.uint16),
        )
    return views


@pytest.mark.slow
def test_real_dates_that_only_the_classification_calls_clear_are_never_a_target_or_a_reference(series):
    """On 2018-09-23 snow (11) lies on thick cloud, on 06-25 and 07-13 thin cloud was missed; seen in the pictures."""
    wrong = ("2018-06-25", "2018-07-13", "2018-09-23")
    fractions = {day: masks.fractions(preview.core) for day, preview in series.items()}
    clear_days = [day for day, each in fractions.items() if each["clear"] >= 0.95]
    clear = [series[day] for day in clear_days]
    cloudy = [series[day] for day, each in fractions.items() if 0.01 <= each["cloud"] + each["cirrus"] <= 0.9]
    assert set(wrong) < set(clear_days)
    taken = {"clear": set(), "reference": set()}
    doubtful = {}
    for target in cloudy:
        for row in pairing.candidates(target, clear, pairing.Rules(), SETTINGS):
            doubtful.setdefault(row["clear"], []).append(row["clear_unknown"])
            if row["accepted"]:
                for role, names in taken.items():
                    names.add(row[role])
                assert abs(row["reference_days"]) <= 60
    assert len(taken["clear"]) >= 10
    for day in wrong:
        name = series[day].product.name.name
        assert name not in taken["clear"] | taken["reference"]
        assert min(doubtful.pop(name)) > 0.10
    always = {name for name, shares in doubtful.items() if np.median(shares) > 0.05}
    hazy = ("2017-08-24", "2017-10-23", "2018-07-18", "2018-11-22", "2018-11-27")  # by eye, more or less
    shaded = ("2018-05-24",)
    assert always <= {series[day].product.name.name for day in (*hazy, *shaded)}  # no good date is thrown out with them


def test_real_pair_alone_tells_too_where_both_dates_are_clear(series):
    found = pairing.measure(series["2018-09-21"], series["2018-09-23"], SETTINGS)
    assert found["clear_unknown"] > 0.9
    assert found["snow_difference"] > 0.9
    assert pairing.measure(series["2018-09-26"], series["2018-09-21"], SETTINGS)["clear_unknown"] < 0.05


# --- limits: each itself is allowed, a little more is not ----------------------------------------------------
MEASURES = {
    "days": 5.0,
    "same_orbit": True,
    "overlap": 0.9,
    "cloudy_cloud": 0.3,
    "cloudy_unknown": 0.0,
    "clear_cloud": 0.0,
    "clear_unknown": 0.0,
    "jointly_clear": 0.6,
    "light": [0.3, 0.9],
    "sun_elevation": [15.0, 18.0],
    "sun_difference": 3.0,
    "snow": [0.2, 0.3],
    "snow_difference": 0.1,
}


@pytest.mark.parametrize(
    ("measure", "allowed", "refused"),
    [
        ("days", 30, 30.001),
        ("days", -30, -30.001),
        ("overlap", 0.5, 0.4999),
        ("cloudy_cloud", 0.05, 0.0499),
        ("cloudy_cloud", 0.5, 0.5001),
        ("clear_cloud", 0.05, 0.05001),
        ("clear_unknown", 0.10, 0.10001),
        ("sun_difference", 10, 10.01),
        ("sun_elevation", [5, 18], [4.99, 18]),
        ("sun_elevation", [18, 5], [18, 4.99]),
        ("light", [0.1, 0.5], [0.9, 0.4999]),
        ("light", [0.1, None], [0.9, np.nan]),
        ("snow_difference", 0.4, 0.4001),
        ("snow_difference", None, 1),
    ],
)
def test_a_limit_itself_is_allowed(measure, allowed, refused):
    assert pairing.judge(MEASURES | {measure: allowed}, RULES) == []
    assert len(pairing.judge(MEASURES | {measure: refused}, RULES)) == 1


@pytest.mark.parametrize("measure", [name for name, value in MEASURES.items() if isinstance(value, float)])
def test_no_limit_is_kept_by_what_is_no_number(measure):
    asked = measure not in ("cloudy_unknown", "jointly_clear")
    assert bool(pairing.judge(MEASURES | {measure: np.nan}, RULES)) == asked


@pytest.mark.parametrize(("suns", "who"), [((None, 15.0), "cloudy"), ((15.0, None), "clear"), ((None, None), "cloudy")])
def test_a_sun_that_nobody_knows_is_a_reason(suns, who):
    cloudy, clear = (preview(day, cloud, sun=sun) for day, cloud, sun in zip((0, 2), (0.3, 0), suns, strict=True))
    (row,) = rows(clear, cloudy=cloudy)
    assert row["sun_elevation"] == list(suns)
    assert row["sun_difference"] is None
    (reason,) = row["reasons"]
    assert reason.startswith("nobody knows how high the sun stood on the")
    assert who in reason
    assert "NaN" not in json.dumps(row)


def test_each_role_may_have_its_own_lowest_sun():
    rules = replace(RULES, max_sun_difference=90, min_sun_elevation={"clear": 20, "cloudy": 10})
    dates = [preview(day, sun=sun) for day, sun in ((2, 19.9), (4, 20.0), (6, 5.0), (8, 4.9))]
    found = rows(*dates, cloudy=preview(0, 0.3, sun=10.0), rules=rules)
    assert found[0]["reasons"] == ["sun at 19.9 degrees, at least 20"]
    assert (accepted(found)["days"], accepted(found)["reference_days"]) == (4, 2)
    assert accepted(rows(*dates[1:], cloudy=preview(0, 0.3, sun=10.0), rules=rules))["reference_days"] == 6
    low = rows(dates[1], dates[3], cloudy=preview(0, 0.3, sun=10.0), rules=rules)
    assert accepted(low)["reference"] is None
    (row,) = rows(dates[1], cloudy=preview(0, 0.3, sun=9.9), rules=rules)
    assert row["reasons"] == ["sun at 9.9 degrees, at least 10"]


@pytest.mark.parametrize(
    ("drift", "chips", "reason"),
    [
        ([100.0, 5.0], [9, 9], None),
        ([100.1, 5.0], [9, 9], "the ground drifts by 100 m, at most 100"),
        ([np.nan, 5.0], [9, 9], "the ground drifts by nan m, at most 100"),
        (None, [2, 7], "nobody can tell how far the ground drifts: 2 of 7 places are alike"),
    ],
)
def test_ground_that_drifts_is_no_matter_unless_it_is_asked(drift, chips, reason):
    measures = MEASURES | {"drift": drift, "drift_chips": chips}
    assert pairing.judge(measures, RULES) == []
    asked = replace(RULES, max_drift=100)
    assert pairing.judge(measures, asked) == ([reason] if reason else [])
    assert pairing._faults(measures, asked, "reference") == ([reason] if reason else [])


def test_a_date_whose_sun_nobody_knows_is_no_reference():
    assert accepted(rows(preview(4), preview(6, sun=None)))["reference"] is None


def test_the_reference_is_judged_by_its_own_measures_and_days_up_to_the_limit():
    at_the_limit, beyond = preview(60), preview(-60.01)
    assert accepted(rows(preview(4), at_the_limit, beyond))["reference_days"] == 60
    assert accepted(rows(preview(4), beyond))["reference"] is None
    found = rows(preview(4), preview(6, 0.04), preview(8), rules=replace(RULES, clear_max_cloud=0.03))
    assert (accepted(found)["days"], accepted(found)["reference_days"]) == (4, 8)
    cloudier = rows(preview(4, 0.04), preview(6), preview(8, 0.04), rules=replace(RULES, clear_max_cloud=0.03))
    assert (accepted(cloudier)["days"], accepted(cloudier)["reference"]) == (6, None)


def test_a_preview_of_a_whole_scene_is_thinned_and_of_a_small_one_is_not(monkeypatch):
    large, small = preview(0, shape=(3000, 3000)), preview(0, shape=(2999, 3000))
    for read, factor, size in ((large, 6, (4, 40)), (small, 2, (12, 120))):
        monkeypatch.setattr(pairing.Preview, "open", lambda *_, read=read, labels: read)
        found = pairing.open_preview(read.product, SETTINGS)
        assert (found.factor, found.core.shape) == (factor, size)


def test_a_product_alone_has_the_measures_that_its_own_rules_ask_for():
    row = pairing.alone(preview(0, 0.25, no_data=0.5, sun=15.126))
    assert row["cloudy_cloud"] == 0.5  # of the half that has data
    assert row["sun_elevation"] == [15.13, None]
    assert not row["accepted"]
    assert not row["shown"]
    assert row["pair"] == row["cloudy"] == product(0).name.name
    assert [row[key] for key in ("clear", "reference", "days", "reference_days")] == [None] * 4
