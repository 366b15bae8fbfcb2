import json
import math

import numpy as np
import pytest
from restored import Known

from cloudjob.diffusion.batch import Batch
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, EMPTY_DN, NO_DATA, SHADOW, UNKNOWN
from cloudjob.scoring import baselines, methods, metrics, strata, triplets
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


def core() -> np.ndarray:
    """Below the mask of the first 3 rows of thick cloud, 2 of thin, 1 of shadow; nothing above the others."""
    core = np.zeros((COUNT, SIZE, SIZE), np.uint8)
    core[0, :3], core[0, 3:5], core[0, 5] = CLOUD, CIRRUS, SHADOW
    return core


OPTIONS = {
    "core": core(),
    "places": [4, 9, 30],
    "noise_key": 1000,
    "pair": PAIR,
    "members": 3,
    "more_steps": [2],
    "factors": [1.0, 2.0, 3.0, 4.0],
    "known": {"product": "S2A_1", "pair": "T1", "place": "05WPS", "split": "test"},
}


def score(restorer: Known, *which: int, reference: bool = True, **options) -> triplets.PairScores:
    """The scores of these triplets alone: each method takes its time."""
    chosen = list(which)
    given = {name: array[chosen] for name, array in arrays().items() if reference or name != "reference"}
    some = {"core": core()[chosen], "places": [OPTIONS["places"][i] for i in chosen], "more_steps": []}
    return triplets.score_pair(restorer, given, **OPTIONS | some | options)


@pytest.fixture(scope="module", autouse=True)
def without_octaves():
    """They take a third of the time, and are the same for all that is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "octave_amplitudes", lambda image, pixels: [0.1] * 4)
        yield


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


def test_the_noise_of_the_sensor_is_a_row_where_the_ground_is_known_as_sensed():
    truth = arrays()["clear"][:1]
    sensed = (truth + np.random.default_rng(3).integers(-40, 41, truth.shape)).astype(np.uint16)
    rows = score(Known(), 0, sensed=sensed).rows[0]
    found = {row["on"]: row for row in rows if row["method"] == "sensor_noise"}
    hidden = core()[0] == CLOUD
    hidden[2, 2] = False  # where the reference has no data
    error = (sensed[0].astype(float) - truth[0])[:, hidden] / 10000
    assert found["thick"]["psnr"] == pytest.approx(-10 * math.log10(np.mean(error**2)), abs=0.001)
    assert found["thick"]["missing"] == 0
    assert "sensor_noise" not in {row["method"] for row in score(Known(), 0).rows[0]}


def restored() -> dict[str, np.ndarray]:
    found, _ = methods.ours(Known(), Batch.of(arrays(), scored=True), [0, 1, 2], members=3, more_steps=[2])
    return found


OURS = ["ours", "ours_member", "ours_without_reference", "ours_member_without_reference", "ours_2_steps"]
FILLS = ["first_guess", "poisson", "similar_pixels", "similar_and_seen", "similarity"]


def test_all_methods_are_scored_against_the_clear_image_on_the_same_pixels(scored):
    pair, _ = scored
    given = arrays()
    truth, cloudy, reference = (reflectance(given[name]) for name in ("clear", "cloudy", "reference"))
    images = {
        "cloudy": cloudy,
        "nearest_matched": reference,
        "nearest_clear": triplets.as_it_is(given["reference"], PAIR),
    }
    images |= restored() | methods.one_date(cloudy, given["mask"])
    images |= methods.from_another_date(cloudy, reference, given["mask"], [1004, 1009, 1030])
    images |= methods.by_similarity(cloudy, reference[:, None], given["mask"])
    order = [*OURS, "cloudy", "mean_fill", "smooth_fill", "nearest_matched", "nearest_clear", *FILLS]
    assert list(dict.fromkeys(row["method"] for row in pair.rows[0])) == order
    common = np.logical_and.reduce([np.isfinite(image).all(1) for image in images.values()])
    for number, triplet in enumerate(pair.rows):
        for row in triplet:
            where = strata.regions(given["mask"][number], core()[number])[row["on"]] & common[number]
            error = (images[row["method"]][number].astype(float) - truth[number])[:, where]
            assert row["pixels"] == where.sum()
            assert row["mae"] == pytest.approx(np.abs(error).mean(), abs=2e-6)


def test_strata_are_of_what_truly_lies_above_and_a_missing_pixel_is_told(scored):
    """One hidden pixel of the reference has no data, below thick cloud."""
    first, second, third = ({(row["method"], row["on"]): row for row in triplet} for triplet in scored[0].rows)
    pixels = {"thick": 47, "veil": 32, "shadow": 16, "rim": 64, "cloud": 159, "clear": 64, "all": 239}
    assert {on: row["pixels"] for (method, on), row in first.items() if method == "ours"} == pixels
    assert {on: row["pixels"] for (method, on), row in second.items() if method == "poisson"} == {
        "rim": 15,
        "cloud": 15,
        "clear": 241,
        "all": 256,
    }
    assert {on for _, on in third} == {"clear", "all"}
    lacking = {method for method, on in first if first[method, on]["missing"]}
    assert lacking == {"nearest_matched", "nearest_clear", *FILLS}
    assert {first["poisson", on]["missing"] for on in ("thick", "cloud", "all")} == {1}
    assert not any(row["missing"] for row in second.values())


def test_each_row_tells_of_its_triplet(scored):
    pair, _ = scored
    hidden = [10 / 16, 15 / 256, 0]
    for number, triplet in enumerate(pair.rows):
        for row in triplet:
            assert {key: row[key] for key in ("product", "pair", "place", "split")} == OPTIONS["known"]
            assert row["triplet"] == OPTIONS["places"][number]
            assert row["cloud"] == pytest.approx(hidden[number], abs=1e-6)
            assert row["sun_elevation"] == [10, 20, None][number]
            assert row["reference_days"] == [5, -3, 7][number]


def test_the_ensemble_is_scored_by_stratum_of_every_second_member_alone(scored):
    """The restored are 0.3, 0.31 and 0.32; the second is the twin of the first."""
    first, second, third = scored[0].ensemble
    assert {on: score["pixels"] for on, score in first.items()} == {
        "thick": 48,
        "veil": 32,
        "shadow": 16,
        "rim": 64,
        "cloud": 160,
    }
    assert {on: score["pixels"] for on, score in second.items()} == {"rim": 15, "cloud": 15}
    assert third == {}
    truth = reflectance(arrays()["clear"])[0, :, :10].astype(float)
    found = first["cloud"]
    assert found["spread"] == pytest.approx(0.02 / math.sqrt(2), abs=1e-6)
    assert found["skill"] == pytest.approx(np.sqrt(np.square(0.31 - truth).mean()), abs=1e-6)
    shares = [(truth < 0.3).mean(), ((truth > 0.3) & (truth < 0.32)).mean(), (truth > 0.32).mean()]
    assert found["ranks"] == pytest.approx(shares, abs=1e-3)  # a few are equal
    inside = [np.abs(0.31 - truth) <= 1.6449 * 0.0141421 * factor for factor in OPTIONS["factors"]]
    assert found["coverage_90"] == pytest.approx(np.mean([band[i] for i, band in enumerate(inside)]), abs=1e-6)


@pytest.mark.parametrize(("members", "independent"), [(1, 0), (2, 0), (3, 2), (4, 2), (5, 3)])
def test_the_members_of_an_ensemble_come_in_pairs_of_which_one_counts(members, independent):
    pair = score(Known(), 1, reference=False, members=members)
    if independent:
        assert len(pair.ensemble[0]["cloud"]["ranks"]) == independent + 1
    else:
        assert pair.ensemble is None


def test_the_regression_is_scored_by_as_many_members_of_its_gaussian():
    class Regresses(Known):
        regresses = True

        def regression(self, batch):
            mean = np.full(batch.cloudy.shape, np.float32(0.3))
            return mean, np.full_like(mean, 0.05)

    pair = score(Regresses(), 0, 1, members=8)
    found = {row["method"]: row for row in pair.rows[0] if row["on"] == "thick"}
    seen = np.ones((3, SIZE), bool)
    seen[2, 2] = False  # where the reference has no data
    truth = reflectance(arrays()["clear"])[0, :, :3][:, seen].astype(float)
    assert found["ours_regression"]["rmse"] == pytest.approx(np.sqrt(np.square(0.3 - truth).mean()), abs=1e-6)
    thick = pair.gaussian[0]["thick"]
    assert (thick["pixels"], len(thick["ranks"])) == (48, 5)
    assert thick["spread"] == pytest.approx(0.05, rel=0.15)
    assert pair.gaussian[0].keys() == pair.ensemble[0].keys()
    pooled = triplets.pool([pair.result()])
    assert pooled["gaussian"].keys() == pooled["ensemble"].keys()
    assert pooled["gaussian"]["thick"]["members"] == 4
    assert score(Regresses(), 0, 1, members=1).gaussian is None


def test_a_line_of_the_picture_shows_the_truth_last(scored):
    pair, _ = scored
    assert len(pair.shown) == COUNT
    given = arrays()
    found = restored()
    for number, line in enumerate(pair.shown):
        expected = [given["cloudy"], *(digital_number(found[name]) for name in triplets._SHOWN[1:]), given["clear"]]
        assert len(line) == 5
        for image, other in zip(line, expected, strict=True):
            assert image.dtype == np.uint16
            assert np.array_equal(image, other[number])


def test_four_lines_are_shown_at_most():
    pair = score(Known(single=True), 0, 1, 2, 1, 2, reference=False)
    assert len(pair.shown) == 4
    assert len(pair.rows) == 5
    assert len(pair.shown[0]) == 3, "there is no member beside ours"


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

    assert score(Careful(), 0, 1, reference=False).changed_clear_pixels == 1


@pytest.mark.parametrize("single", [False, True])
def test_a_pair_as_plain_json(single, scored):
    pair = score(Known(single=True), 1) if single else scored[0]
    result = pair.result()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["rows"] == pair.rows
    assert result["changed_clear_pixels"] == pair.changed_clear_pixels
    if single:
        assert not {"ensemble", "gaussian"} & set(result)
        assert "ours_member" not in {row["method"] for row in pair.rows[0]}
    else:
        assert result["ensemble"] == finite(pair.ensemble)


def test_without_another_date_there_is_none_to_be_compared_with():
    pair = score(Known(), 1, reference=False, more_steps=[2])
    found = {row["method"] for row in pair.rows[0]}
    assert found == {"ours", "ours_member", "ours_2_steps", "cloudy", "mean_fill", "smooth_fill"}
    assert [image.shape for image in pair.shown[0]] == [(4, SIZE, SIZE)] * 4


def test_further_dates_are_for_the_fills_and_the_model(scored):
    """The first triplet has a second date, the second has none."""
    rng = np.random.default_rng(3)
    given = arrays()
    given["reference2"] = (given["clear"] + rng.integers(0, 900, given["clear"].shape)).astype(np.uint16)
    given["reference2"][1:] = EMPTY_DN
    given["reference2_days"] = np.array([-8, np.nan, np.nan], np.float32)
    restorer = Known()
    more = triplets.score_pair(restorer, given, **OPTIONS)
    for batch, *_ in restorer.asked:
        assert batch.references.shape[1] in (0, 2)  # without any, and with all of them
    truth, mask, cloudy = reflectance(given["clear"]), given["mask"], reflectance(given["cloudy"])
    dates = reflectance(np.stack([given["reference"], given["reference2"]], 1))
    for number, (triplet, before) in enumerate(zip(more.rows, scored[0].rows, strict=True)):
        of = {name: [row for row in triplet if row["method"] == name] for name in ("similar_pixels", "similar_2_dates")}
        assert {row["reference2_days"] for row in triplet} == {[-8, None, None][number]}
        plain = [{key: value for key, value in row.items() if key != "reference2_days"} for row in triplet]
        assert [row for row in plain if not row["method"].endswith("_2_dates")] == before
        assert len(of["similar_2_dates"]) == len(of["similar_pixels"]) > 0
        if number:
            assert of["similar_2_dates"] == [row | {"method": "similar_2_dates"} for row in of["similar_pixels"]]
        else:
            fill = baselines.similar_pixels(cloudy[0], dates[0], mask[0] == CLEAR, seed=1004)
            (thick,) = (row for row in of["similar_2_dates"] if row["on"] == "thick")
            where = strata.regions(mask[0], core()[0])["thick"] & np.isfinite(dates[0, 0]).all(0)
            assert thick["mae"] == pytest.approx(np.abs(fill - truth[0])[:, where].mean(), abs=2e-6)


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


def row(method: str, on: str, error: float, pixels: int, *, place: str = "A", **facts) -> dict:
    where = np.zeros((16, 16), bool)
    where.flat[60 : 60 + pixels] = True
    plain = {"method": method, "on": on, "place": place, "cloud": 0.2, "sun_elevation": 20.0}
    return plain | finite(metrics.score(TRUTH + np.float32(error), TRUTH, where)) | facts


def psnr(*parts: tuple[float, int]) -> float:
    """Of (error, pixels) together."""
    return -10 * math.log10(sum(error**2 * pixels for error, pixels in parts) / sum(pixels for _, pixels in parts))


@pytest.fixture(scope="module")
def results() -> list[dict]:
    """Three pairs of a triplet each, the first two of one place; the last has no reference."""
    first = [
        *(row("ours", "cloud", 0.1, 10), row("cloudy", "cloud", 0.4, 10), row("nearest_clear", "cloud", 0.3, 10)),
        *(row("ours", "thick", 0.2, 4), row("cloudy", "thick", 0.5, 4), row("nearest_clear", "thick", 0.1, 4)),
    ]
    second = [row("ours", "cloud", 0.2, 30), row("ours", "clear", 0.01, 5), row("cloudy", "cloud", 0.5, 30, missing=2)]
    third = [row("ours", "cloud", 0.05, 20, place="B"), row("cloudy", "cloud", 0.3, 20, place="B", missing=7)]
    return [{"rows": [triplet]} for triplet in (first, second, third)]


def test_scores_are_pooled_by_method_and_kind_of_pixels(results):
    found = triplets.pool(results)["scores"]
    assert list(found) == ["nearest_clear", "ours", "cloudy"], "the best on thick cloud first"
    assert list(found["ours"]) == ["cloud", "thick", "clear"]
    ours = found["ours"]["cloud"]
    assert (ours["triplets"], ours["pixels"], ours["missing"]) == (3, 60, 0)
    assert ours["psnr"] == pytest.approx(psnr((0.1, 10), (0.2, 30), (0.05, 20)), abs=1e-4)
    assert ours["mae"] == pytest.approx((10 * 0.1 + 30 * 0.2 + 20 * 0.05) / 60, abs=1e-6)
    assert found["cloudy"]["cloud"]["missing"] == 9
    assert found["ours"]["clear"]["triplets"] == 1
    assert "clear" not in found["cloudy"]


def test_intervals_are_over_places_not_over_pairs(results):
    """Of two places, each is drawn twice in a quarter of the draws."""
    found = triplets.pool(results)["scores"]
    places = [psnr((0.1, 10), (0.2, 30)), psnr((0.05, 20))]
    assert found["ours"]["cloud"]["psnr_interval"] == pytest.approx(places, abs=1e-3)
    assert found["ours"]["clear"]["psnr_interval"] == [None, None], "one place says nothing of others"
    assert triplets.pool(results[:2])["scores"]["ours"]["cloud"]["psnr_interval"] == [None, None]


def test_differences_are_by_stratum_on_triplets_that_both_have(results):
    """The nearest clear date is there for the first triplet alone."""
    found = triplets.pool(results)["differences"]
    assert list(found) == ["thick", "cloud"]
    assert all(set(methods) == {"cloudy", "nearest_clear"} for methods in found.values())
    ours, cloudy = psnr((0.1, 10), (0.2, 30), (0.05, 20)), psnr((0.4, 10), (0.5, 30), (0.3, 20))
    assert found["cloud"]["cloudy"]["psnr"] == pytest.approx(ours - cloudy, abs=1e-3)
    nothing = {"interval": [None, None]}
    assert found["cloud"]["nearest_clear"] == nothing | {"psnr": pytest.approx(20 * math.log10(3), abs=1e-3)}
    assert found["thick"]["nearest_clear"] == nothing | {"psnr": pytest.approx(20 * math.log10(1 / 2), abs=1e-3)}
    assert found["thick"]["cloudy"] == nothing | {"psnr": pytest.approx(20 * math.log10(5 / 2), abs=1e-3)}
    places = [psnr((0.1, 10), (0.2, 30)) - psnr((0.4, 10), (0.5, 30)), psnr((0.05, 20)) - psnr((0.3, 20))]
    assert found["cloud"]["cloudy"]["interval"] == pytest.approx(sorted(places), abs=1e-3)


def test_a_pair_without_any_error_counts_like_others(results):
    perfect = {"rows": [[row("ours", "cloud", 0.0, 20), row("cloudy", "cloud", 0.3, 20)]]}
    found = triplets.pool([*results, *results, perfect])["differences"]["cloud"]["cloudy"]
    ours = psnr((0.1, 20), (0.2, 60), (0.05, 40), (0, 20))
    assert found["psnr"] == pytest.approx(ours - psnr((0.4, 20), (0.5, 60), (0.3, 60)), abs=1e-3)


# --- the ensemble ------------------------------------------------------------------------------------------------
PART = {"pixels": 10, "crps": 0.1, "coverage_50": 0.5, "coverage_90": 0.8, "spread_skill": 1.0}
PART |= {"spread": 0.3, "skill": 0.4, "ranks": [0.5, 0.25, 0.25], "variogram": 0.01}


def ensembles(*parts: dict[str, dict]) -> dict:
    """Pooled, of triplets that have these scores by stratum; two of a pair."""
    pairs = [{"rows": [], "ensemble": list(parts[i : i + 2])} for i in range(0, len(parts), 2)]
    return triplets.pool(pairs)["ensemble"]


def test_the_ensembles_scores_are_pooled_by_pixels():
    second = PART | {"pixels": 30, "spread": 0.1, "crps": 0.2, "ranks": [0.1, 0.3, 0.6], "variogram": 0.05}
    third = PART | {"pixels": 20, "coverage_50": 0.2, "coverage_90": 1.0, "skill": 0.1}
    found = ensembles({"cloud": PART}, {"cloud": second}, {"cloud": third})["cloud"]
    spread, skill = math.sqrt((10 * 0.09 + 30 * 0.01 + 20 * 0.09) / 60), math.sqrt((40 * 0.16 + 20 * 0.01) / 60)
    assert found == {
        "crps": pytest.approx((10 * 0.1 + 30 * 0.2 + 20 * 0.1) / 60, abs=1e-6),
        "coverage_50": pytest.approx((40 * 0.5 + 20 * 0.2) / 60, abs=1e-6),
        "coverage_90": pytest.approx((40 * 0.8 + 20 * 1.0) / 60, abs=1e-6),
        "ranks": pytest.approx([0.3, 0.275, 0.425], abs=1e-6),
        "variogram": pytest.approx((30 * 0.01 + 30 * 0.05) / 60, abs=1e-6),
        "spread": pytest.approx(spread, abs=1e-6),
        "skill": pytest.approx(skill, abs=1e-6),
        "members": 2,
        "spread_skill": pytest.approx(math.sqrt(3 / 2) * spread / skill, abs=1e-5),
    }


def test_an_ensemble_is_scored_on_the_strata_that_its_triplets_have():
    found = ensembles({"cloud": PART, "thick": PART | {"crps": 0.3}}, {}, {"cloud": PART | {"crps": 0.5}})
    assert list(found) == ["thick", "cloud"]
    assert found["thick"]["crps"] == 0.3
    assert found["cloud"]["crps"] == 0.3, "the mean of 0.1 and 0.5"


def test_without_two_pixels_side_by_side_there_is_no_score_of_texture():
    lonely = PART | {"variogram": None, "pixels": 30}
    assert ensembles({"cloud": PART}, {"cloud": lonely})["cloud"]["variogram"] == 0.01
    assert ensembles({"cloud": lonely})["cloud"]["variogram"] is None


def test_an_ensemble_without_error_has_no_ratio_to_it():
    assert ensembles({"cloud": PART | {"skill": 0.0}})["cloud"]["spread_skill"] is None


def test_pairs_without_an_ensemble_leave_it_to_the_others(results):
    assert "ensemble" not in triplets.pool(results)
    more = {"rows": [], "ensemble": [{"cloud": PART}]}
    assert triplets.pool([*results, more])["ensemble"]["cloud"]["skill"] == pytest.approx(0.4)
    assert "ensemble" not in triplets.pool([*results, {"rows": [], "ensemble": [{}]}])


# --- groups ------------------------------------------------------------------------------------------------------
SHARES = ["below 10 %", "10 to 30 %", "30 to 60 %", "above 60 %"]
SUNS = ["sun below 15", "15 to 25", "above 25 degrees"]


@pytest.mark.parametrize(
    ("cloud", "group"),
    [(0.0, 0), (0.099, 0), (0.1, 1), (0.299, 1), (0.3, 2), (0.599, 2), (0.6, 3), (1.0, 3)],
)
def test_groups_by_cloud_at_their_borders(cloud, group):
    found = triplets.pool([{"rows": [[row("ours", "cloud", 0.1, 10, cloud=cloud)]]}])["groups"]
    assert list(found) == [SHARES[group], SUNS[1]]


@pytest.mark.parametrize(
    ("sun", "group"),
    [(-90.0, 0), (14.9, 0), (15.0, 1), (24.9, 1), (25.0, 2), (90.0, 2), (None, None)],
)
def test_groups_by_the_sun_at_their_borders(sun, group):
    found = triplets.pool([{"rows": [[row("ours", "cloud", 0.1, 10, sun_elevation=sun)]]}])["groups"]
    assert list(found) == [SHARES[1], *([] if group is None else [SUNS[group]])]


def test_a_group_has_the_scores_of_its_methods_on_cloud():
    rows = [
        [row("ours", "cloud", 0.1, 10), row("cloudy", "cloud", 0.4, 10), row("ours", "clear", 0.0, 10)],
        [row("ours", "cloud", 0.2, 30), row("ours", "thick", 0.8, 10)],
        [row("ours", "cloud", 0.9, 30, cloud=0.7, sun_elevation=30)],
    ]
    found = triplets.pool([{"rows": rows}])["groups"]
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
    assert triplets.pool([]) == {"scores": {}, "groups": {}, "differences": {}}


def test_without_a_model_what_learns_nothing_is_scored():
    pair = triplets.score_pair(None, arrays(), **OPTIONS | {"members": 0})
    found = {row["method"] for row in pair.rows[0]}
    assert {"cloudy", "nearest_matched", "poisson", "similar_pixels"} <= found
    assert not [method for method in found if method.startswith("ours")]
    assert (pair.changed_clear_pixels, pair.ensemble) == (0, None)
    assert [len(line) for line in pair.shown] == [2] * COUNT, "cloudy and truth"
