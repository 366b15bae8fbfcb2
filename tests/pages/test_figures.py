"""Figures as people see them: where points and bars lie, what is written beside them."""

import base64
import re
from xml.etree import ElementTree

import pytest

from cloudjob.pages import figures


def svg(text: str) -> ElementTree.Element:
    """The SVG as XML, its attributes quoted as XML wants them."""
    return ElementTree.fromstring(re.sub(r"=([^'\s>]+)(?=[\s/>])", r"='\1'", text))


def points(text: str) -> list[tuple[float, float]]:
    line = svg(text).find("polyline").attrib["points"]
    return [tuple(map(float, point.split(","))) for point in line.split()]


def test_a_curve_is_logarithmic_from_the_top_to_the_bottom_and_begins_at_zero():
    text = figures.curve([(100, 1.0), (200, 0.1), (400, 0.01)], label="loss", unit="samples")
    assert points(text) == [(60 + 225, 20), (60 + 450, 120), (60 + 900, 220)]
    assert [label.text for label in svg(text).findall("text")] == ["1", "0.01", "0", "400 samples"]


def test_a_flat_curve_is_a_line():
    assert len(set(points(figures.curve([(1, 0.5), (2, 0.5)], label="", unit="")))) == 2


def test_the_highest_bar_fills_the_height_and_all_stand_on_one_line():
    text = figures.histogram([1.0, 4.0, 0.0], [0.0, 0.5, 1.0, 1.5], "cloud")
    bars = [{key: float(bar.attrib[key]) for key in ("x", "y", "width", "height")} for bar in svg(text).findall("rect")]
    assert [bar["x"] for bar in bars] == [10, 110, 210]
    assert {bar["width"] for bar in bars} == {99}
    assert [bar["height"] for bar in bars] == [20, 80, 0]
    assert {bar["y"] + bar["height"] for bar in bars} == {100}
    assert [label.text for label in svg(text).findall("text")] == ["cloud", "0", "1.5"]


def test_a_histogram_of_nothing_has_flat_bars():
    assert {bar.attrib["height"] for bar in svg(figures.histogram([0, 0], [0, 1, 2], "")).findall("rect")} == {"0.0"}


def test_a_picture_carries_its_bytes():
    text = figures.picture(b"\x89PNG", alt="a", caption="b")
    assert base64.b64decode(text.split("base64,")[1].split("'")[0]) == b"\x89PNG"


@pytest.mark.parametrize(
    "text",
    [
        figures.histogram([1], [0, 1], "<i>'"),
        figures.curve([(1, 1), (2, 2)], label="<i>'", unit="<i>'"),
        figures.picture(b"", alt="<i>'", caption="<i>'"),
    ],
)
def test_words_cannot_become_markup(text):
    assert "<i>" not in text
    assert "&lt;i&gt;" in text
    assert "'<i>'" not in text
    assert "&#x27;" in text
