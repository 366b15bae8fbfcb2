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


def scores(psnr: float | None, **others) -> dict:
    return {"cloud": {"psnr": psnr, "ssim": 0.5, "mae": 0.25}} | others


def test_the_best_on_cloud_pixels_comes_first():
    """Those without a number there count as 0 dB, in the order given."""
    pooled = {
        "noise": scores(-0.5),
        "unknown": scores(None),
        "poor": scores(0.5),
        "worst": scores(3.0),
        "best": scores(30.0),
        "of no cloud": {"clear": {"psnr": 99.0}},
        "good": scores(12.5),
    }
    assert list(tables.best_first(pooled)) == ["best", "good", "worst", "poor", "unknown", "of no cloud", "noise"]
    assert tables.best_first(pooled) == pooled


def test_the_table_as_text():
    pooled = {
        "ours": scores(
            31.456, clear={"psnr": None, "ssim": 1.0, "mae": 0.0}, all={"psnr": 7.0, "ssim": -0.1, "mae": 2}
        ),
        "a method of a long name": scores(9.995),
    }
    lines = tables.table(pooled, "test").split("\n")
    wide = len("a method of a long name") + 2
    assert lines[0] == "split: test".ljust(wide) + "".join(f"{on + ' pixels':^27}" for on in ("cloud", "clear", "all"))
    assert lines[1] == " " * wide + "  PSNR dB     SSIM      MAE" * 3
    assert lines[2] == "ours".ljust(wide) + (
        "    31.46   0.5000   0.2500        -   1.0000   0.0000     7.00  -0.1000   2.0000"
    )
    assert lines[3] == "a method of a long name  " + "     9.99   0.5000   0.2500" + "        -" * 6
    assert len(lines) == 4


@pytest.mark.parametrize(("name", "wide"), [("x", 14), ("a longer name", 15)])
def test_the_table_is_as_wide_as_its_longest_name(name, wide):
    lines = tables.table({name: scores(1.0)}, "val").split("\n")
    assert {len(line) for line in lines[1:]} == {wide + 81}
    assert lines[0].startswith("split: val".ljust(wide) + "       cloud pixels")


def test_every_method_is_explained_and_all_kinds_of_pixels_are_defined():
    assert tables.PIXELS == ("cloud", "clear", "all")
    assert all(f"{on}:" in tables.DEFINITIONS for on in tables.PIXELS)
    assert next(iter(tables.METHODS)) == "ours"
    assert len(set(tables.METHODS.values())) == len(tables.METHODS) == 10
