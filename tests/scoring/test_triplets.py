import json
import math

import numpy as np
import pytest
from restored import Known

from cloudjob.diffusion.batch import Batch
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, EMPTY_DN, NO_DATA, SHADOW, UNKNOWN
from cloudjob.scoring import methods, metrics, triplets
from cloudjob.scoring.tables import finite
from cloudjob.sentinel2.radiometry import digital_number, reflectance

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
COUNT, SIZE = 3, 16
LINES = [{"gain": 2.0, "offset": -500.0}, {"gain": 0.5, "offset": 1000.0}, {"gain": 1.0, "offset": 0.0}]
LINES.append({"gain": 1.25, "offset": 100.0})
OTHER = [{"gain": 1.0, "offset": 0.0}] * 4
PAIR = {
    "pair": "T1",
    "target": "clear date",
    "radiometry": "line",
    "radiometric_match": {"clear": {"lines": OTHER}, "reference": {"lines": LINES}},
}


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.full((COUNT, SIZE, SIZE), CLEAR, np.uint8)
    mask[0, :8], mask[0, 8:10], mask[0, 14], mask[0, 15] = CLOUD, SHADOW, UNKNOWN, NO_DATA
    mask[1, 3:6, 3:8] = CIRRUS  # the last has no cloud at all
    clear = rng.integers(2000, 6000, (COUNT, 4, SIZE, SIZE), np.uint16)
    cloudy = np.where((mask == CLEAR)[:, None], clear, 9000).astype(np.uint16)
    cloudy[np.broadcast_to((mask == NO_DATA)[:, None], cloudy.shape)] = EMPTY_DN
    reference = (clear + 300).astype(np.uint16)
    reference[0, :, 2, 2] = EMPTY_DN
    return {
        "cloudy": cloudy,
        "clear": clear,
        "mask": mask,
        "reference": reference,
        "sun_elevation": np.array([10, 20, np.nan], np.float32),
        "reference_days": np.array([5, -3, 7], np.float32),
        "clear_days": np.array([2, 2, 2], np.float32),
    }


OPTIONS = {
    "places": [4, 9, 30],
    "noise_key": 1000,
    "pair": PAIR,
    "members": 3,
    "more_steps": [2],
    "factors": [1.0, 2.0, 3.0, 4.0],
    "known": {"product": "S2A_1", "pair": "T1", "split": "test"},
}


@pytest.fixture(scope="module")
def scored():
    """(the scores of three triplets, the restorer that was asked)"""
    restorer = Known()
    return triplets.score_pair(restorer, arrays(), **OPTIONS), restorer


# --- one pair ----------------------------------------------------------------------------------------------------
def test_the_cloudy_day_is_asked_for_with_noise_by_the_place_in_the_pair(scored):
    _, restorer = scored
    for batch, numbers, _, _ in restorer.asked:
        assert numbers == [1004, 1009, 1030]
        assert batch.target_days.tolist() == [0, 0, 0]
    batch, *_ = restorer.asked[0]
    assert batch.reference_days.tolist() == [[5], [-3], [7]]
    assert np.array_equal(batch.target.numpy(), reflectance(arrays()["clear"]))
    asked = [(batch.references.shape[1], member, steps) for batch, _, member, steps in restorer.asked]
    assert asked == [(1, 0, None), (1, 1, None), (1, 2, None), (0, 0, None), (0, 1, None), (0, 2, None), (1, 0, 2)]


def test_all_methods_are_scored_against_the_clear_image(scored):
    pair, _ = scored
    given = arrays()
    truth, cloudy = reflectance(given["clear"]), reflectance(given["cloudy"])
    images = {
        "cloudy": cloudy,
        "nearest_matched": reflectance(given["reference"]),
        "nearest_clear": triplets.as_it_is(given["reference"], PAIR),
        **methods.one_date(cloudy, given["mask"]),
    }
    found, _ = methods.ours(Known(), Batch.of(given, scored=True), [0, 1, 2], members=3, more_steps=[2])
    expected = methods.score(found | images, truth, given["mask"])
    for number, triplet in enumerate(pair.rows):
        by = {(row["method"], row["on"]): row for row in triplet}
        assert set(by) == {(row["method"], row["on"]) for row in expected[number]}
        for row in expected[number]:
            assert {key: by[row["method"], row["on"]][key] for key in row} == finite(row)
    order = list(dict.fromkeys(row["method"] for row in pair.rows[0]))
    assert order[:5] == [
        "ours",
        "ours_member",
        "ours_without_reference",
        "ours_member_without_reference",
        "ours_2_steps",
    ]
    assert order[5:] == ["cloudy", "mean_fill", "smooth_fill", "nearest_matched", "nearest_clear"]


def test_each_row_tells_of_its_triplet(scored):
    pair, _ = scored
    hidden = [10 / 16, 15 / 256, 0]
    for number, triplet in enumerate(pair.rows):
        for row in triplet:
            assert {key: row[key] for key in ("product", "pair", "split")} == OPTIONS["known"]
            assert row["triplet"] == OPTIONS["places"][number]
            assert row["cloud"] == pytest.approx(hidden[number], abs=1e-6)
            assert row["sun_elevation"] == [10, 20, None][number]
            assert row["reference_days"] == [5, -3, 7][number]


def test_the_ensemble_is_scored_where_something_is_hidden(scored):
    pair, _ = scored
    given = arrays()
    hidden = np.isin(given["mask"], (CLOUD, SHADOW, CIRRUS))
    _, every = methods.ours(Known(), Batch.of(given, scored=True), [0, 1, 2], members=3, more_steps=[])
    expected = methods.score_members(every, reflectance(given["clear"]), hidden, OPTIONS["factors"])
    assert pair.ensemble == expected
    assert [part["pixels"] for part in expected] == [160, 15]


def test_a_line_of_the_picture_shows_the_truth_last(scored):
    pair, _ = scored
    assert len(pair.shown) == COUNT
    given = arrays()
    found, _ = methods.ours(Known(), Batch.of(given, scored=True), [0, 1, 2], members=3, more_steps=[])
    for number, line in enumerate(pair.shown):
        expected = [given["cloudy"], *(digital_number(found[name]) for name in triplets._SHOWN[1:]), given["clear"]]
        assert len(line) == 5
        for image, other in zip(line, expected, strict=True):
            assert image.dtype == np.uint16
            assert np.array_equal(image, other[number])


def test_four_lines_are_shown_at_most():
    given = {name: np.concatenate([array, array]) for name, array in arrays().items()}
    pair = triplets.score_pair(Known(single=True), given, **OPTIONS | {"places": range(6), "more_steps": []})
    assert len(pair.shown) == 4
    assert len(pair.rows) == 6
    assert len(pair.shown[0]) == 4, "there is no member beside ours"


def test_clear_pixels_that_were_changed_are_counted(scored):
    """In the known restorer's images those of unknown state, and none else: 16 pixels, but not those without data."""
    pair, _ = scored
    assert pair.changed_clear_pixels == 2 * SIZE  # restored where there are no data too

    class Careful(Known):
        def member(self, batch, numbers, member, *, steps=None):
            found = super().member(batch, numbers, member, steps=steps)
            shown = np.isin(batch.mask.numpy(), (CLOUD, SHADOW, CIRRUS))[:, None]
            found = np.where(shown, found, batch.cloudy.numpy())
            found[1, 2, 12, 12] += np.float32(0.0001)  # one band of one clear pixel
            found[1, :, 4, 4] += np.float32(0.1)
            return found

    assert triplets.score_pair(Careful(), arrays(), **OPTIONS).changed_clear_pixels == 1


@pytest.mark.parametrize("single", [False, True])
def test_a_pair_as_plain_json(single, scored):
    pair = triplets.score_pair(Known(single=True), arrays(), **OPTIONS) if single else scored[0]
    result = pair.result()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["rows"] == pair.rows
    assert result["changed_clear_pixels"] == pair.changed_clear_pixels
    if single:
        assert "ensemble" not in result
        assert "ours_member" not in {row["method"] for row in pair.rows[0]}
    else:
        assert result["ensemble"] == finite(pair.ensemble)


def test_without_another_date_there_is_none_to_be_compared_with():
    given = arrays()
    del given["reference"]
    pair = triplets.score_pair(Known(), given, **OPTIONS)
    found = {row["method"] for row in pair.rows[0]}
    assert found == {"ours", "ours_member", "ours_2_steps", "cloudy", "mean_fill", "smooth_fill"}
    assert [image.shape for image in pair.shown[0]] == [(4, SIZE, SIZE)] * 4


# --- the reference as it is --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("target", "role"), [("clear date", "reference"), ("ground", "clear")], ids=["clear date", "ground"]
)
def test_gain_and_offset_of_its_own_role_are_undone(target, role):
    """Where the target is the ground of the day, the reference is the clear date. No data stay none."""
    match = {other: {"lines": OTHER} for other in ("clear", "reference")} | {role: {"lines": LINES}}
    pair = PAIR | {"target": target, "radiometric_match": match}
    before = np.array([3000, 1, 2001, 40000]).reshape(1, 1, 2, 2).repeat(4, 1)
    gain, offset = (np.array([line[key] for line in LINES])[:, None, None] for key in ("gain", "offset"))
    after = np.rint(before * gain + offset).clip(1, 65535).astype(np.uint16)
    after[0, :, 1, 0] = EMPTY_DN
    found = triplets.as_it_is(after, pair)
    assert found.dtype == np.float32
    assert np.isnan(found[0, :, 1, 0]).all()
    expected = np.rint((after - offset) / gain).clip(1, 65535)
    assert found[0, :, 0, 0] == pytest.approx(reflectance(np.full(4, 3000, np.uint16)), abs=1e-7)
    assert np.nan_to_num(found, nan=-1) == pytest.approx(np.where(after > 0, expected * 1e-4 - 0.1, -1), abs=1e-6)


def test_the_lowest_and_the_highest_number_stay_valid():
    dn = np.array([[[[1, 65535]]] * 4], np.uint16).reshape(1, 4, 1, 2)
    lines = [{"gain": 0.5, "offset": 100.0}] * 4
    pair = PAIR | {"radiometric_match": {"reference": {"lines": lines}}}
    assert triplets.as_it_is(dn, pair)[0, 0, 0].tolist() == pytest.approx([1e-4 - 0.1, 6.5535 - 0.1])


def test_without_a_normalisation_it_is_as_it_was():
    given = arrays()["reference"]
    found = triplets.as_it_is(given, {"radiometry": "none"})
    assert np.array_equal(found, reflectance(given), equal_nan=True)


# --- all pairs ---------------------------------------------------------------------------------------------------
TRUTH = np.random.default_rng(5).uniform(0.2, 0.6, (4, 16, 16)).astype("f4")


def row(method: str, on: str, error: float, pixels: int, *, cloud: float = 0.2, sun: float | None = 20.0) -> dict:
    where = np.zeros((16, 16), bool)
    where.flat[60 : 60 + pixels] = True
    facts = {"method": method, "on": on, "cloud": cloud, "sun_elevation": sun}
    return facts | finite(metrics.score(TRUTH + np.float32(error), TRUTH, where))


def psnr(*parts: tuple[float, int]) -> float:
    """Of (error, pixels) together."""
    return -10 * math.log10(sum(error**2 * pixels for error, pixels in parts) / sum(pixels for _, pixels in parts))


@pytest.fixture(scope="module")
def results() -> list[dict]:
    """Two pairs: two triplets and one; the second has no reference."""
    first = [
        [row("ours", "cloud", 0.1, 10), row("cloudy", "cloud", 0.4, 10), row("nearest_clear", "cloud", 0.3, 10)],
        [row("ours", "cloud", 0.2, 30), row("ours", "clear", 0.01, 5), row("cloudy", "cloud", 0.5, 30)],
    ]
    second = [[row("ours", "cloud", 0.05, 20), row("cloudy", "cloud", 0.3, 20)]]
    ensemble = {"spread": 0.3, "skill": 0.4, "crps": 0.1, "coverage_50": 0.5, "coverage_90": 0.8, "spread_skill": 1.0}
    return [
        {"rows": first, "ensemble": [ensemble | {"pixels": 10}, ensemble | {"pixels": 30, "spread": 0.1, "crps": 0.2}]},
        {"rows": second, "ensemble": [ensemble | {"pixels": 20, "coverage_50": 0.2, "coverage_90": 1.0, "skill": 0.1}]},
    ]


def test_scores_are_pooled_by_method_and_kind_of_pixels(results):
    found = triplets.pool(results)["scores"]
    assert list(found) == ["ours", "nearest_clear", "cloudy"], "the best on cloud first"
    ours = found["ours"]["cloud"]
    assert (ours["triplets"], ours["pixels"]) == (3, 60)
    assert ours["psnr"] == pytest.approx(psnr((0.1, 10), (0.2, 30), (0.05, 20)), abs=1e-4)
    rows = [each for result in results for triplet in result["rows"] for each in triplet]
    chosen = [each for each in rows if (each["method"], each["on"]) == ("ours", "cloud")]
    assert {key: ours[key] for key in ours if key not in ("triplets", "psnr_interval")} == finite(metrics.pool(chosen))
    assert found["ours"]["clear"]["triplets"] == 1
    assert "clear" not in found["cloudy"]


def test_intervals_are_over_pairs(results):
    found = triplets.pool(results)["scores"]
    sums = [[40, 10 * 0.1**2 + 30 * 0.2**2], [20, 20 * 0.05**2]]
    expected = metrics.bootstrap(sums, metrics.pooled_psnr)
    assert found["ours"]["cloud"]["psnr_interval"] == pytest.approx(expected, abs=1e-3)
    assert found["nearest_clear"]["cloud"]["psnr_interval"] == [None, None], "one pair says nothing of others"


def test_differences_are_on_triplets_that_both_have(results):
    """The nearest clear date is there for the first triplet alone."""
    found = triplets.pool(results)["differences"]
    assert set(found) == {"cloudy", "nearest_clear"}
    ours, cloudy = psnr((0.1, 10), (0.2, 30), (0.05, 20)), psnr((0.4, 10), (0.5, 30), (0.3, 20))
    assert found["cloudy"]["psnr"] == pytest.approx(ours - cloudy, abs=1e-3)
    assert found["nearest_clear"] == {
        "psnr": pytest.approx(psnr((0.1, 10)) - psnr((0.3, 10)), abs=1e-3),
        "interval": [None, None],
    }
    low, high = found["cloudy"]["interval"]
    pairs = [psnr((0.1, 10), (0.2, 30)) - psnr((0.4, 10), (0.5, 30)), psnr((0.05, 20)) - psnr((0.3, 20))]
    assert (low, high) == pytest.approx(sorted(pairs), abs=1e-3)


def test_a_pair_without_any_error_counts_like_others(results):
    perfect = {"rows": [[row("ours", "cloud", 0.0, 20), row("cloudy", "cloud", 0.3, 20)]]}
    found = triplets.pool([*results, *results, perfect])["differences"]["cloudy"]
    ours = psnr((0.1, 20), (0.2, 60), (0.05, 40), (0, 20))
    assert found["psnr"] == pytest.approx(ours - psnr((0.4, 20), (0.5, 60), (0.3, 60)), abs=1e-3)


def test_the_ensembles_scores_are_pooled_by_pixels(results):
    found = triplets.pool(results)["ensemble"]
    assert found == {
        "crps": pytest.approx((10 * 0.1 + 30 * 0.2 + 20 * 0.1) / 60, abs=1e-6),
        "coverage_50": pytest.approx((40 * 0.5 + 20 * 0.2) / 60, abs=1e-6),
        "coverage_90": pytest.approx((40 * 0.8 + 20 * 1.0) / 60, abs=1e-6),
        "spread": pytest.approx(math.sqrt((10 * 0.09 + 30 * 0.01 + 20 * 0.09) / 60), abs=1e-6),
        "skill": pytest.approx(math.sqrt((40 * 0.16 + 20 * 0.01) / 60), abs=1e-6),
    }
    bare = [{"rows": result["rows"]} for result in results]
    assert "ensemble" not in triplets.pool(bare)
    assert triplets.pool([*bare, results[1]])["ensemble"]["skill"] == pytest.approx(0.1)


SHARES = ["below 10 %", "10 to 30 %", "30 to 60 %", "above 60 %"]
SUNS = ["sun below 15", "15 to 25", "above 25 degrees"]


@pytest.mark.parametrize(
    ("cloud", "stratum"),
    [(0.0, 0), (0.099, 0), (0.1, 1), (0.299, 1), (0.3, 2), (0.599, 2), (0.6, 3), (1.0, 3)],
)
def test_strata_of_the_cloud_at_their_borders(cloud, stratum):
    found = triplets.pool([{"rows": [[row("ours", "cloud", 0.1, 10, cloud=cloud)]]}])["strata"]
    assert list(found) == [SHARES[stratum], SUNS[1]]


@pytest.mark.parametrize(
    ("sun", "stratum"),
    [(-90.0, 0), (14.9, 0), (15.0, 1), (24.9, 1), (25.0, 2), (90.0, 2), (None, 0)],
)
def test_strata_of_the_sun_at_their_borders(sun, stratum):
    found = triplets.pool([{"rows": [[row("ours", "cloud", 0.1, 10, sun=sun)]]}])["strata"]
    assert list(found) == [SHARES[1], SUNS[stratum]]


def test_a_stratum_has_the_scores_of_its_methods_on_cloud():
    rows = [
        [row("ours", "cloud", 0.1, 10), row("cloudy", "cloud", 0.4, 10), row("ours", "clear", 0.0, 10)],
        [row("ours", "cloud", 0.2, 30)],
        [row("ours", "cloud", 0.9, 30, cloud=0.7, sun=30)],
    ]
    found = triplets.pool([{"rows": rows}])["strata"]
    here = found["10 to 30 %"]
    assert found["15 to 25"] == here
    assert list(here) == ["ours", "cloudy"]
    assert list(here["ours"]) == ["triplets", "pixels", "psnr", "ssim", "mae", "high_pass_ratio"]
    assert (here["ours"]["triplets"], here["ours"]["pixels"]) == (2, 40)
    assert here["ours"]["psnr"] == pytest.approx(psnr((0.1, 10), (0.2, 30)), abs=1e-4)
    assert here["ours"]["mae"] == pytest.approx((10 * 0.1 + 30 * 0.2) / 40, abs=1e-5)
    assert here["cloudy"]["triplets"] == 1
    assert found["above 60 %"]["ours"]["pixels"] == found["above 25 degrees"]["ours"]["pixels"] == 30


def test_nothing_at_all():
    assert triplets.pool([]) == {"scores": {}, "strata": {}, "differences": {}}
