"""Queries as the catalogues read them, without HTTP."""

from datetime import date

import pytest

from cloudjob.archive.catalogue import Entry
from cloudjob.archive.make import make_synthetic
from cloudjob.archive.queries import search_odata, search_stac, selected

ORDER = "ContentDate/Start asc"
ATTRIBUTE = "Attributes/OData.CSC.{0}Attribute/any(a:a/Name eq '{1}' and a/OData.CSC.{0}Attribute/Value {2})"


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    days = {"clear": [date(2024, 3, 1)], "cloudy": [date(2024, 3, 6), date(2024, 3, 11)]}
    names = make_synthetic(folder, tiles=["05WPS"], size=64, **days, seed=1, cloud=(0.3, 0.5))
    return [Entry(folder / f"{name}.SAFE") for name in sorted(names, key=lambda name: name[11:26])]


def days(found):
    return [entry.sensing.day for entry in found]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ("2024-03-06T00:00:00Z/..", [11, 6]),
        ("2024-03-06T00:00:00Z/", [11, 6]),
        ("/2024-03-07T00:00:00Z", [6, 1]),
        ("../..", [11, 6, 1]),
        ("2024-03-06T00:00:00Z", []),
    ],
)
def test_intervals_of_stac_may_be_open(entries, interval, expected):
    assert days(search_stac(entries, {"datetime": interval})) == expected


def test_words_of_odata_bind_as_documented(entries):
    first, second, third = (f"contains(Name,'{entry.name}')" for entry in entries)
    for text, expected in (
        (f"{first} or {second} and {third}", [1]),
        (f"({first} or {second}) and not {first}", [6]),
        (f"not ({first} or {second})", [11]),
        ("contains(Name,' and ') or contains(Name,'(')", []),
        ("", [1, 6, 11]),
    ):
        assert days(search_odata(entries, text, ORDER)) == expected, text
    assert days(search_odata(entries, "", "PublicationDate desc")) == [11, 6, 1]


def test_attributes_of_odata_are_compared_by_their_own_type(entries):
    for kind, name, condition, expected in (
        ("Double", "cloudCover", "lt 9", [1]),  # as text, 30 would be less than 9
        ("Integer", "relativeOrbitNumber", "gt '9'", [1, 6, 11]),
        ("DateTimeOffset", "beginningDateTime", "ge 2024-03-06T00:00:00.000Z", [6, 11]),
        ("String", "unheard", "eq 'x'", []),
        ("Integer", "unheard", "gt 1", []),
    ):
        assert days(search_odata(entries, ATTRIBUTE.format(kind, name, condition), ORDER)) == expected, name


@pytest.mark.parametrize("text", ["(", "()", "clause0", "1", "Name eq 'x' and", "ContentDate/Start ge soon", "Name"])
def test_filters_that_are_none(entries, text):
    with pytest.raises((ValueError, KeyError)):
        search_odata(entries, text, ORDER)


@pytest.mark.parametrize(
    "query", [{"unheard": {"eq": 1}}, {"eo:cloud_cover": {"like": 1}}, {"datetime": {"gt": "soon"}}]
)
def test_queries_that_are_none(entries, query):
    with pytest.raises((ValueError, KeyError)):
        search_stac(entries, {"query": query})


def test_fields_of_stac_are_what_an_answer_is_cut_down_to():
    item = {"id": "a", "properties": {"eo:cloud_cover": 3, "gsd": 10}, "assets": {"B04": {"href": "x", "file:size": 7}}}
    fields = {
        "include": ["id", "properties.eo:cloud_cover", "assets.B04.file:size", "assets.B09.href", "properties.no"]
    }
    expected = {"id": "a", "properties": {"eo:cloud_cover": 3}, "assets": {"B04": {"file:size": 7}}}
    assert selected(item, fields) == expected
    assert selected(item, {}) == item
