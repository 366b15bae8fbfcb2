"""Answers of several queries become one row per product."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.run.records import Item
from cloudjob.stages import search

NAME = "S2A_MSIL2A_20240301T222541_N0400_R029_T05WPS_20240302T001122"


def scene(name, **facts):
    satellite, _, _, baseline, _, tile, _ = name.split("_")
    baseline = f"{baseline[1:3]}.{baseline[3:]}"
    return {"product": name, "satellite": satellite, "baseline": baseline, "tile": tile[1:]} | facts


def merged(*answers):
    """Of (role, names) each."""
    items = [Item("search", f"{role}-{number}", {"role": role}, {}) for number, (role, _) in enumerate(answers)]
    return search._merge(items, [[scene(name) for name in names] for _, names in answers])


def test_a_product_of_both_roles_has_one_row():
    other = NAME.replace("20240301T", "20240305T")
    found = merged(("clear", [other, NAME]), ("cloudy", [NAME]), ("clear", [NAME]))
    assert [(row["product"], row["roles"]) for row in found] == [(NAME, ["clear", "cloudy"]), (other, ["clear"])]


def test_of_one_datatake_and_tile_the_newest_baseline_is_kept():
    newer = NAME.replace("N0400", "N0510").replace("20240302T001122", "20240402T001122")
    later = newer.replace("20240402T", "20240403T")
    assert [row["product"] for row in merged(("clear", [newer, NAME, later]))] == [later]


def test_other_tiles_satellites_and_times_are_other_products():
    others = [NAME.replace(*change) for change in (("05WPS", "05WPT"), ("S2A", "S2B"), ("T222541", "T222542"))]
    assert len(merged(("clear", [NAME, *others]))) == 4


def on(south: float, north: float) -> dict:
    ring = [[-150, north], [-149, north], [-149, south], [-150, south], [-150, north]]
    return {"footprint": {"type": "Polygon", "coordinates": [ring]}}


def copies(*facts: dict, baseline: str = "N0510") -> list[dict]:
    """Products of one datatake and tile, each processed a day after the one before."""
    name = NAME.replace("N0400", baseline).replace("20240302T", "202404{:02d}T")
    return [scene(name.format(day), **fact) for day, fact in enumerate(facts, 1)]


def kept(rows: list[dict]) -> list[str]:
    return [row["product"] for row in search._merge([Item("search", "a", {"role": "clear"}, {})], [rows])]


@pytest.mark.parametrize("own", ["N9999", "N9933"])
def test_a_product_of_somebodys_own_is_taken_only_where_esa_has_none(own):
    mine, esa = copies({}, baseline=own)[0], scene(NAME)
    for rows in itertools.permutations([mine, esa]):
        assert kept(list(rows)) == [NAME]
    assert kept([mine]) == [mine["product"]]


@given(st.permutations(range(4)))
def test_of_two_halves_both_are_kept_each_in_its_newest_copy(order):
    """Two ground stations received a part each; the parts overlap a little, and one was processed again."""
    rows = [*copies(on(69.0, 69.5), on(69.45, 70.0), on(69.01, 69.5)), scene(NAME, **on(69.0, 70.0))]
    assert kept([rows[index] for index in order]) == [rows[1]["product"], rows[2]["product"]]


def test_a_copy_whose_footprint_is_not_known_is_no_half():
    rows = copies(on(69.0, 69.5), {})
    assert kept(rows) == [rows[1]["product"]]
