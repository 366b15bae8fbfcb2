"""Figures as people see them: where points and bars lie, what is written beside them, in the page's own ink."""

import base64
import re
from itertools import combinations, product
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudjob.pages import figures

SVG = "{http://www.w3.org/2000/svg}"


def drawn(figure: figures.Figure) -> ElementTree.Element:
    return ElementTree.fromstring(figure.svg)


def texts(figure: figures.Figure) -> list[str]:
    return [element.text for element in drawn(figure).iter(f"{SVG}text")]


def path(figure: figures.Figure, colour: str) -> list[tuple[float, float]]:
    """The points of the first line of this colour."""
    line = next(
        each for each in drawn(figure).iter(f"{SVG}path") if f"stroke: {colour.lower()}" in each.get("style", "")
    )
    numbers = list(map(float, re.findall(r"-?[\d.]+", line.get("d"))))
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_with_a_logarithmic_axis_equal_ratios_are_equal_heights_and_the_label_says_so():
    figure = figures.curves({"loss": [(0, 1.0), (50, 0.0), (100, 0.1), (200, 0.01)]}, x="samples", y="loss", log=True)
    (x0, y0), (x1, y1), (x2, y2) = path(figure, figures.COLOURS[0])  # zero has no logarithm, and no point
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.01)
    assert x2 - x0 == pytest.approx(2 * (x1 - x0), abs=0.01)
    assert {"samples", "loss (log scale)"} <= set(texts(figure))
    assert "loss (log scale)" not in texts(figures.curves({"loss": [(0, 1), (1, 2)]}, x="", y="loss"))


def test_a_level_and_several_lines_are_named():
    figure = figures.curves({"a": [(0, 1), (1, 2)], "b": [(0, 2), (1, 1)]}, x="", y="", level=(1.5, "zero"))
    assert {"a", "b", "zero"} <= set(texts(figure))
    assert "a" not in texts(figures.curves({"a": [(0, 1), (1, 2)]}, x="", y=""))


def test_named_ticks_stand_in_place_of_numbers():
    assert {"2 to 4", "4 to 8"} <= set(
        texts(figures.curves({"a": [(0, 1), (1, 2)]}, x="", y="", ticks=("2 to 4", "4 to 8")))
    )


def test_what_has_no_point_above_zero_is_an_empty_figure():
    assert "loss (log scale)" in texts(figures.curves({"loss": [(1, 0.0)]}, x="", y="loss", log=True))


@pytest.mark.parametrize("values", [[1.0, 4.0, 0.0], [0, 0, 0]])
def test_a_histogram_has_a_bar_per_value_between_its_edges(values):
    figure = figures.histogram(values, [0.0, 0.5, 1.0, 1.5], x="cloud", y="triplets")
    assert {"cloud", "triplets", "0.5", "1.5"} <= {text.replace("−", "-") for text in texts(figure)} | {"0.5", "1.5"}
    assert figures.COLOURS[0].lower() in figure.svg.decode()


def test_a_map_names_kinds_with_their_number_and_tiles():
    ring = [(-150, 70), (-149, 70), (-149, 71), (-150, 71), (-150, 70)]
    figure = figures.footprints({"restored": [ring], "clear": [ring, ring]}, {"05WPS": (-149.5, 70.5)})
    assert {"restored (1)", "clear (2)", "05WPS", "longitude, degrees east"} <= set(texts(figure))


@given(st.lists(st.tuples(st.floats(-156, -140), st.floats(68, 71.5)), min_size=1, max_size=15))
@settings(max_examples=15)
def test_no_name_of_a_map_covers_another(middles):
    """As those of tiles of two UTM zones would, which lie on the same ground."""
    ring = [(-157, 67), (-139, 67), (-139, 72), (-157, 72), (-157, 67)]
    names = dict(zip(map("05W{}{}".format, *zip(*product("MN", "LMNPQRST"), strict=True)), middles, strict=False))
    figure = figures.footprints({"restored": [ring]}, names)
    written = [element for element in drawn(figure).iter(f"{SVG}text") if element.text in names]
    assert len(written) == len(names)
    for one, other in combinations(written, 2):
        right, down = (abs(float(one.get(axis)) - float(other.get(axis))) for axis in "xy")
        assert right > 24 or down > 8, (one.text, other.text)


def test_text_is_of_the_colour_of_the_page_light_or_dark():
    text = figures.curves({"a": [(0, 1), (1, 2)]}, x="x", y="y").svg.decode()
    assert figures._INK not in text
    assert "var(--ink)" in text
    assert "prefers-color-scheme:dark" in text


def test_the_same_figure_is_the_same_bytes_and_an_image_carries_them():
    one, two = (figures.curves({"a": [(0, 1), (1, 2)]}, x="x", y="y") for _ in range(2))
    assert one.svg == two.svg
    assert base64.b64decode(one.source.split("base64,")[1]) == one.svg


def test_words_cannot_become_markup():
    figure = figures.curves({"<i>": [(0, 1), (1, 2)]}, x="<i>'", y="<b>", level=(1, "<u>"))
    assert b"<i>" not in figure.svg
    assert "<i>" in texts(figure)
