"""Answers of several queries become one row per product."""

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
