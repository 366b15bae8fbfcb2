"""The table and the figure of a comparison, from scores made up."""

import copy

import numpy as np
import pytest
from PIL import Image

from cloudjob.comparison import results


def scores(psnr: float, interval: bool = True) -> dict:
    thick = {"psnr": psnr, "ssim": 0.9, "mae": 0.01, "high_pass_ratio": 0.95, "spectrum": [1, 2]}
    thick |= {"psnr_interval": [psnr - 1, psnr + 1] if interval else [None, None]}
    return {"thick": thick, "cloud": {"psnr": psnr + 5}, "rim": {"psnr": psnr + 9}, "clear": {"psnr": 48.123}}


def variant(name: str, given: dict) -> dict:
    training = {"samples": 20000, "seconds": 61.4, "parameters": 3452868}
    return {"name": name, "from": None, "overrides": [], "split": "test", "training": training, "scores": given}


@pytest.fixture
def document() -> dict:
    variants = [
        variant("first", {"ours": scores(30.0), "ours_member": scores(29.0)}),
        variant("second", {"ours": scores(25.0, interval=False)}),
        variant("bare", {"ours": {"cloud": {"psnr": None}}}),
    ]
    baselines: list = []
    for each, cloudy in zip(variants, (10.0, 10.0001, 12.0), strict=True):
        results._add_baselines(baselines, each["name"], {"cloudy": scores(cloudy), "nearest_matched": scores(27.0)})
    return {"definitions": "What they mean.", "variants": variants, "baselines": baselines, "missing": {"late": "gone"}}


def rows(document: dict) -> list[list[str]]:
    lines = [line for line in results.table(document).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_row_a_variant_and_method_then_the_baselines_of_each_data_once(document):
    head, rule, *body = rows(document)
    assert {len(row) for row in (head, rule, *body)} == {len(head)}
    assert [row[:3] for row in body] == [
        ["first", "ours", "30.00"],
        ["first", "ours_member", "29.00"],
        ["second", "ours", "25.00"],
        ["bare", "ours", "-"],
        ["baseline", "cloudy", "10.00"],
        ["baseline", "nearest_matched", "27.00"],
        ["baseline of bare", "cloudy", "12.00"],
        ["baseline of bare", "nearest_matched", "27.00"],
    ]
    assert body[0][3:] == [
        *("29.00 to 31.00", "0.9000", "0.0100", "0.95"),
        *("-", "-", "39.00", "35.00", "48.12"),
        *("20,000", "61", "3,452,868"),
    ]
    assert body[2][3] == "-"
    assert "Missing: late (gone)." in results.table(document)


def test_without_thick_cloud_all_cloud_pixels_are_judged_by(document):
    given = document["variants"][1]["scores"]["ours"]
    del given["thick"]
    assert [row[2:4] for row in rows(document) if row[0] == "second"] == [["30.00", "-"]]
    assert ("second", "ours", (30.0, 30.0, 30.0)) in results._points(document)


def test_different_splits_are_said(document):
    assert "Split: test. " in results.table(document)
    document["variants"][1]["split"] = "train"
    assert "Split: test (first), train (second), test (bare). " in results.table(document)


def test_nothing_finished_is_a_table_of_what_is_missing():
    empty = {"definitions": "", "variants": [], "baselines": [], "missing": {"ours": "missing"}}
    assert len(rows(empty)) == 2
    assert "Missing: ours (missing)." in results.table(empty)


def picture(document: dict, path) -> np.ndarray:
    results.figure(document, path)
    return np.asarray(Image.open(path).convert("RGB"), int)


@pytest.mark.slow
def test_the_figure_is_1200_wide_and_shows_points_intervals_and_near_baselines(document, tmp_path):
    whole = picture(document, tmp_path / "a.png")
    assert whole.shape[1] == 1200
    for change in (
        lambda d: d["variants"][0]["scores"]["ours"]["thick"].update(psnr=30.5),
        lambda d: d["variants"][0]["scores"]["ours"]["thick"].update(psnr_interval=[28.5, 31]),
        lambda d: d["baselines"][0]["scores"]["nearest_matched"]["thick"].update(psnr=26.0),
    ):
        other = copy.deepcopy(document)
        change(other)
        changed = (picture(other, tmp_path / "b.png") != whole).any(-1)
        assert changed[: int(0.7 * len(whole))].any()  # above the legend


@pytest.mark.slow
def test_a_baseline_far_off_does_not_squeeze_the_variants(document, tmp_path):
    whole = picture(document, tmp_path / "a.png")
    document["baselines"][0]["scores"]["cloudy"]["thick"]["psnr"] = -40.0
    changed = (picture(document, tmp_path / "b.png") != whole).any(-1)
    assert changed.any()  # the legend tells it
    assert not changed[: int(0.7 * len(whole))].any()
