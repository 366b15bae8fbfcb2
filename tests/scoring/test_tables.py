import json

import numpy as np
import pytest

from cloudjob.scoring import tables


def test_numbers_become_plain_json():
    given = {
        "plain": [1, True, "text", None],
        "rounded": [np.float32(0.1), 2.123456789, -0.0000004],
        "no numbers": {"nan": np.nan, "inf": [np.inf, -np.inf]},
        "counts": [np.int64(3), {"deep": [np.float64(0.5)]}],
    }
    found = tables.finite(given)
    assert found == {
        "plain": [1, True, "text", None],
        "rounded": [0.1, 2.123457, 0.0],
        "no numbers": {"nan": None, "inf": [None, None]},
        "counts": [3.0, {"deep": [0.5]}],
    }
    assert found["plain"][1] is True
    assert isinstance(found["plain"][0], int)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def scores(thick: float | None, **others) -> dict:
    return {"thick": {"psnr": thick, "ssim": 0.5, "mae": 0.25}} | others


def cloud(psnr: float | None) -> dict:
    return {"cloud": {"psnr": psnr, "ssim": 0.75, "mae": 0.125}}


# --- the stratum to judge by -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ours", "on"), [(scores(9.0), "thick"), (scores(0.0), "thick"), (scores(None), "cloud"), (cloud(9.0), "cloud")]
)
def test_thick_cloud_judges_where_ours_has_any(ours, on):
    assert tables.headline({"cloudy": scores(4.0), "ours": ours}) == on
    assert tables.headline({"cloudy": scores(4.0)}) == "thick", "nothing is ours"
    assert tables.headline({}) == "cloud"


def test_the_best_under_thick_cloud_comes_first():
    """Those without a number there count as 0 dB, in the order given."""
    pooled = {
        "noise": scores(-0.5),
        "unknown": scores(None),
        "poor": scores(0.5),
        "ours": scores(3.0, cloud={"psnr": 80.0}),
        "best": scores(30.0, cloud={"psnr": 1.0}),
        "of no thick cloud": {"cloud": {"psnr": 99.0}},
        "good": scores(12.5),
    }
    order = ["best", "good", "ours", "poor", "unknown", "of no thick cloud", "noise"]
    assert list(tables.best_first(pooled)) == order
    assert tables.best_first(pooled) == pooled


def test_where_nothing_is_thick_the_best_on_all_cloud_pixels_comes_first():
    pooled = {"cloudy": cloud(3.0), "ours": cloud(5.0), "poisson": cloud(7.0) | scores(None)}
    assert list(tables.best_first(pooled)) == ["poisson", "ours", "cloudy"]


# --- the verdict -------------------------------------------------------------------------------------------------
def apart(pooled: dict) -> dict:
    """The differences where all methods have the same triplets."""
    found: dict = {}
    for method, given in pooled.items():
        for on, each in given.items():
            ours = pooled.get("ours", {}).get(on, {}).get("psnr")
            if method != "ours" and None not in (ours, each["psnr"]):
                found.setdefault(on, {})[method] = {"psnr": ours - each["psnr"]}
    return found


def test_ours_above_the_best_that_learns_nothing():
    """One member and what sees no other date are ours too, and no rivals."""
    pooled = {
        "ours_member": scores(40.0),
        "ours_without_reference": scores(41.0),
        "ours": scores(31.5),
        "poisson": scores(30.25),
        "mean_fill": scores(12.0, cloud={"psnr": 50.0}),
    }
    found = tables.judged(pooled, apart(pooled))
    assert found["headline"] == "thick"
    assert found["best_fill"] == {"method": "poisson", "above_ours": -1.25}
    assert found["verdict"] == "under thick cloud ours is 1.25 dB above poisson, the best that learns nothing"


@pytest.mark.parametrize("above", [0.0, 0.5])
def test_ours_not_above_the_best_that_learns_nothing(above):
    pooled = {"ours": scores(30.0), "cloudy": scores(-3.0), "similar_pixels": scores(30.0 + above)}
    found = tables.judged(pooled, apart(pooled))
    assert found["best_fill"] == {"method": "similar_pixels", "above_ours": above}
    said = f"under thick cloud similar_pixels, which learns nothing, is {above:.2f} dB above ours"
    assert found["verdict"] == said


def test_a_rival_of_0_db_is_one():
    pooled = {"ours": scores(-1.0), "cloudy": scores(0.0)}
    found = tables.judged(pooled, apart(pooled))
    assert found["best_fill"] == {"method": "cloudy", "above_ours": 1.0}


def test_without_thick_pixels_all_of_the_cloud_are_judged():
    pooled = {"ours": cloud(20.0), "first_guess": cloud(18.0) | scores(25.0), "cloudy": cloud(19.5)}
    found = tables.judged(pooled, apart(pooled))
    assert found["headline"] == "cloud"
    assert found["best_fill"] == {"method": "cloudy", "above_ours": -0.5}
    assert found["verdict"] == "on cloud pixels ours is 0.50 dB above cloudy, the best that learns nothing"


@pytest.mark.parametrize(
    ("pooled", "on"),
    [
        ({}, "cloud"),
        ({"ours": scores(30.0), "ours_member": scores(29.0)}, "thick"),
        ({"ours": scores(30.0), "poisson": scores(None, cloud={"psnr": 28.0})}, "thick"),
    ],
    ids=["nothing", "no rival", "no rival there"],
)
def test_without_a_rival_there_is_no_verdict(pooled, on):
    assert tables.judged(pooled, apart(pooled)) == {
        "headline": on,
        "best_fill": {"method": None, "above_ours": None},
        "verdict": "nothing to compare with: no truth is known",
    }


@pytest.mark.parametrize("others", [{}, {"ours": cloud(None)}])
def test_without_ours_the_best_that_learns_nothing_is_named(others):
    found = tables.judged({"poisson": cloud(30.0), "cloudy": cloud(7.0)} | others, {})
    assert found["best_fill"] == {"method": "poisson", "above_ours": None}
    assert found["verdict"] == (
        "on cloud pixels poisson is the best that learns nothing, at 30.00 dB; no model is scored"
    )


def test_a_fill_is_judged_on_the_triplets_that_it_has():
    """Poisson has the easy ones alone: it is ahead by the pooled scores, and behind where both are."""
    pooled = {"ours": scores(20.0), "poisson": scores(31.0), "cloudy": scores(9.0)}
    found = tables.judged(pooled, {"thick": {"poisson": {"psnr": 6.0}, "cloudy": {"psnr": 11.0}}})
    assert found["best_fill"] == {"method": "poisson", "above_ours": -6.0}
    assert found["verdict"] == "under thick cloud ours is 6.00 dB above poisson, the best that learns nothing"


# --- the table ---------------------------------------------------------------------------------------------------
HEADS = "   thick    veil  shadow     rim   cloud   clear     all"


def test_the_table_as_text():
    ours = scores(31.456, clear={"psnr": None, "ssim": 1.0, "mae": 0.0}, all={"psnr": 7.0, "ssim": -0.1, "mae": 2})
    pooled = {"ours": ours | {"rim": {"psnr": 44.0}}, "a method of a long name": cloud(9.995)}
    lines = tables.table(pooled, "test").split("\n")
    wide = len("a method of a long name") + 2
    assert lines[0] == "split: test".ljust(wide) + "PSNR dB on pixels of"
    assert lines[1] == " " * wide + HEADS + "  SSIM, thick  MAE, thick"
    assert lines[2] == "ours".ljust(wide) + (
        "   31.46       -       -   44.00       -       -    7.00       0.5000      0.2500"
    )
    assert (
        lines[3] == "a method of a long name  " + "       -" * 4 + "    9.99       -       -            -           -"
    )
    assert len(lines) == 4


def test_without_thick_cloud_the_table_has_the_measures_of_all_cloud_pixels():
    _, heads, line = tables.table({"ours": cloud(9.0)}, "val").split("\n")
    assert heads.endswith("     all  SSIM, cloud  MAE, cloud")
    assert line.endswith("       -       0.7500      0.1250")


@pytest.mark.parametrize(("name", "wide"), [("x", 14), ("a longer name", 15)])
def test_the_table_is_as_wide_as_its_longest_name(name, wide):
    lines = tables.table({name: scores(1.0)}, "val").split("\n")
    assert {len(line) for line in lines[1:]} == {wide + 7 * 8 + 13 + 12}
    assert lines[0] == "split: val".ljust(wide) + "PSNR dB on pixels of"


def test_every_method_is_explained_and_all_kinds_of_pixels_are_defined():
    strata = ("thick", "veil", "shadow", "rim", "cloud", "clear", "all")
    assert all(f" {on}: " in tables.DEFINITIONS for on in strata)
    assert next(iter(tables.METHODS)) == "ours"
    assert len(set(tables.METHODS.values())) == len(tables.METHODS) == 21
    assert {"first_guess", "poisson", "similar_pixels", "similar_and_seen"} < set(tables.METHODS)
    assert {"similar_2_dates", "similar_3_dates", "similarity", "similarity_3_dates"} < set(tables._FILLS)


def test_the_noise_of_the_sensor_heads_the_table_and_is_no_fill():
    pooled = tables.best_first({"ours": scores(30.0), "sensor_noise": scores(48.0), "poisson": scores(28.0)})
    assert list(pooled) == ["sensor_noise", "ours", "poisson"]
    assert tables.judged(pooled, apart(pooled))["best_fill"]["method"] == "poisson"
    assert tables.judged({"sensor_noise": scores(48.0)}, {})["best_fill"]["method"] is None
    assert tables.table(pooled, "test").splitlines()[2].split()[:2] == ["sensor_noise", "48.00"]
