"""The review page: what it says of each pair, in words."""

import json

import pytest

from cloudjob.pages import review
from cloudjob.sentinel2 import render

CLOUDY, CLEAR, OTHER, REFERENCE = (
    f"S2A_MSIL2A_202403{day:02}T222541_N0510_R029_T05WPS_20240402T001122" for day in (1, 9, 12, 20)
)


def candidate(pair: str, **more) -> dict:
    """A row of pairs.jsonl."""
    return {
        "pair": pair,
        "version": f"v-{pair}",
        "cloudy": CLOUDY,
        "clear": CLEAR,
        "shown": True,
        "accepted": True,
        "reasons": [],
        "reference": REFERENCE,
        "reference_days": 19.04,
        "days": 8.0,
        "same_orbit": True,
        "overlap": 1.0,
        "jointly_clear": 0.4567,
        "cloudy_cloud": 0.3,
        "cloudy_unknown": 0.0,
        "clear_cloud": 0.00125,
        "clear_unknown": None,
        "light": [0.91, None],
        "sun_elevation": [20.04, 22.0],
        "sun_difference": 1.96,
        "snow": [0.5, None],
        "snow_difference": None,
        "drift": [620.6, 18.0],
        "drift_chips": [7, 9],
    } | more


def data(*arguments) -> dict:
    text = review.page("demo", *arguments, command="")
    return json.loads(text.split('<script id="data" type="application/json">')[1].split("</script>")[0])


def measures(page: dict) -> list[list[list[str]]]:
    """What stands below each pair's pictures: names and values."""
    return [[*map(list, zip(page["measures"], pair["values"], strict=True)), *pair["more"]] for pair in page["pairs"]]


def test_it_says_how_much_of_a_mask_a_person_corrected():
    facts = {"size": [915, 900], "gain": None, "by_hand": {"cloudy": 0.0213, "clear": 1.0}}
    (found,) = measures(data([candidate("a")], {"a": facts}, {}))
    assert found[-1] == ["mask corrected by hand", "cloudy date 2.1%, clear date 100.0%"]


def test_measures_are_written_as_people_read_them():
    page = data([candidate("a")], {"a": {"size": [915, 900], "gain": 1.0456}}, {})
    (pair,) = page["pairs"]
    assert measures(page)[0] == [
        ["days to the clear date", "+8.0"],
        ["same relative orbit", "yes"],
        ["joint valid area", "100.0%"],
        ["clear on both dates", "45.7%"],
        ["cloudy date: cloud", "30.0%"],
        ["cloudy date: unknown", "0.0%"],
        ["clear date: cloud", "0.12%"],
        ["clear date: unknown", "not measurable"],
        ["light, cloudy and clear", "0.91 and not measurable"],
        ["sun, cloudy and clear", "20.0° and 22.0°"],
        ["sun difference", "2.0°"],
        ["snow, cloudy and clear", "50.0% and not measurable"],
        ["snow difference", "not measurable"],
        ["drift of the ground, most and spread", "621 m and 18 m"],
        ["places alike, of those looked at", "7 and 9"],
        ["reference", "2024-03-20, +19.0 days"],
        ["light of the clear date", "× 1.05"],
    ]
    assert pair["dates"] == {"cloudy": "2024-03-01", "clear": "2024-03-09"}
    assert (pair["pair"], pair["version"], pair["cloudy"], pair["clear"]) == ("a", "v-a", CLOUDY, CLEAR)
    assert pair["size"] == [915, 900]
    assert pair["images"] == {kind: f"images/a-{kind}.webp" for kind in review.PICTURES}


def test_a_pair_without_pictures_reference_or_brightness_says_so():
    rows = [candidate("a", reference=None, reference_days=None, same_orbit=False), candidate("b")]
    page = data(rows, {"a": None, "b": {"size": [1, 1], "gain": None}}, {})
    first, second = measures(page)
    assert ["reference", "none"] in first
    assert ["same relative orbit", "no"] in first
    assert not {"size", "images"} & set(page["pairs"][0])
    assert ["light of the clear date", "not measurable"] in second


def test_shown_pairs_in_their_order_with_the_other_candidates_of_their_cloudy_date_and_what_was_decided():
    rows = [
        candidate("a", accepted=False, reasons=["too dark", "too snowy"]),
        candidate("a2", shown=False, clear=OTHER, reasons=["farther"]),
        candidate("b", cloudy=OTHER),
        candidate("c2", cloudy=REFERENCE, shown=False),  # of a cloudy date without a shown pair
    ]
    mine = {"pair": "a", "decision": "accept", "reviewer": "Ada"}
    page = data(rows, {}, {"a": mine})
    assert [pair["pair"] for pair in page["pairs"]] == ["a", "b"]
    assert [pair["accepted"] for pair in page["pairs"]] == [False, True]
    assert [pair["reasons"] for pair in page["pairs"]] == [["too dark", "too snowy"], []]
    assert [pair["decided"] for pair in page["pairs"]] == [mine, None]
    (other,) = page["pairs"][0]["others"]
    assert (other["clear"], other["reasons"], len(other["values"])) == (OTHER, ["farther"], len(review.MEASURES))
    assert page["pairs"][1]["others"] == []


def test_what_the_page_offers_and_its_legend():
    page = data([], {}, {})
    assert page["run"] == "demo"
    assert page["pairs"] == []
    assert page["rule"] == review.RULE
    assert page["columns"] == list(review.COLUMNS)
    assert page["reasons"] == list(review.REASONS)
    assert len(review.REASONS) <= 9  # one key each
    assert {name: tuple(colour) for name, colour in page["outlines"]} == dict(render.OUTLINES.values())
    assert page["difference"] == {
        "ends": [list(render.DARKER), list(render.SAME), list(render.BRIGHTER)],
        "range": render.DIFFERENCE,
    }


@pytest.mark.parametrize("evil", ["</script><b>", "<!--", "__DATA__"])
def test_words_cannot_end_the_script_that_holds_the_data(evil):
    decided = {"a": {"pair": "a", "reason": evil}}
    assert data([candidate("a")], {}, decided)["pairs"][0]["decided"]["reason"] == evil
    assert review.page("demo", [candidate("a")], {}, decided, command="").count("</script>") == review.page(
        "", [], {}, {}, command=""
    ).count("</script>")
