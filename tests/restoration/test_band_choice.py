"""Which bands are red, green, blue and near infrared."""

import pytest

from cloudjob.errors import ConfigError
from cloudjob.restoration import band_choice

TWELVE = [f"B{number:02d}" for number in range(1, 9)] + ["B8A", "B09", "B11", "B12"]


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["B04", "B03", "B02", "B08"], [0, 1, 2, 3]),
        (["blue", "green", "red", "nir"], [2, 1, 0, 3]),
        (TWELVE, [3, 2, 1, 7]),
        (["B2 (Blue)", "B3 (Green)", "B4 (Red)", "B8 (NIR)"], [2, 1, 0, 3]),
        (["Band 4", "Band 3", "Band 2", "Band 8"], [0, 1, 2, 3]),
        (["S2_B8", "S2_B4", "S2_B3", "S2_B2"], [1, 2, 3, 0]),
        (["blue", "green", "red", "red edge 1", "red-edge 2", "Near Infrared"], [2, 1, 0, 5]),
        (["red", "green", "blue", "nir", "nir08", "narrow nir"], [0, 1, 2, 3]),
        (["red", "green", "blue", "near infra red"], [0, 1, 2, 3]),
        (["red", "red", "green", "blue", "nir"], None),
        (["red", "green", "blue"], None),
        (["hundred", "greenish", "bluer", "nirvana"], None),
        (["", "", "", ""], None),
    ],
)
def test_by_names(names, places):
    assert band_choice.by_names(names) == places


@pytest.mark.parametrize(
    ("colours", "places"),
    [
        (["red", "green", "blue", "nir"], [0, 1, 2, 3]),
        (["blue", "green", "red", "undefined"], [2, 1, 0, 3]),
        (["red", "green", "blue", "undefined", "alpha"], [0, 1, 2, 3]),
        (["red", "green", "blue", "alpha"], None),
        (["red", "green", "blue", "undefined", "undefined"], None),
        (["gray", "undefined", "undefined", "undefined"], None),
    ],
)
def test_by_colours(colours, places):
    assert band_choice.by_colours(colours) == places


@pytest.mark.parametrize(
    ("text", "places"), [("4,3,2,8", [3, 2, 1, 7]), ("b04, B03,b02,B08", [3, 2, 1, 7]), ("B8A,1,B12,2", [8, 0, 11, 1])]
)
def test_as_asked(text, places):
    assert band_choice.asked(text, TWELVE, source="x.tif") == places


def test_a_message_does_not_list_a_whole_series():
    assert band_choice.listed(["", "a"]) == "1, 2 (a)"
    assert band_choice.listed(["x"] * 99).endswith("24 (x), and 75 more")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("4,3,2", "3 bands, four are needed"),
        ("4,3,2,13", r"x.tif has no band 13; it has 1 \(B01\), 2 \(B02\)"),
        ("4,3,2,0", "has no band 0"),
        ("4,3,2,B10", "has no band B10"),
        ("4,3,2,", "has no band ;"),
    ],
)
def test_what_the_image_does_not_have(text, why):
    with pytest.raises(ConfigError, match=why):
        band_choice.asked(text, TWELVE, source="x.tif")
