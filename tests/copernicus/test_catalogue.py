"""Complete by OData's count, each product once, by either catalogue."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from data_space import DataSpace, name, odata_row, product, square, stac_item
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_server import Answer
from shapely.geometry import shape

from cloudjob.config import source
from cloudjob.copernicus import catalogue
from cloudjob.copernicus.catalogue import Scene, distinct, search, search_odata, search_stac
from cloudjob.errors import InterruptedJob, ItemError
from cloudjob.run.folder import RunFolder
from cloudjob.stages import search as stage

QUERY = {
    "polygon": [(9.0, 47.0), (9.1, 47.0), (9.1, 47.1), (9.0, 47.0)],
    "start": datetime(2020, 7, 1, tzinfo=UTC),
    "end": datetime(2020, 8, 1, tzinfo=UTC),
    "cloud": (0, 62.5),
}
BOTH = pytest.mark.parametrize("kind", ["stac", "odata"])
PATH = {"stac": "/v1/search", "odata": "/odata/v1/Products"}
ROWS = {"stac": "features", "odata": "value"}


def days(scenes: list[Scene]) -> list[int]:
    return [int(scene.datetime[8:10]) for scene in scenes]


@pytest.fixture
def data_space(server) -> DataSpace:
    return DataSpace(server, [product(day) for day in (3, 1, 2, 5, 4)])


@pytest.fixture
def ask(session, endpoints):
    return partial(search, session, endpoints, **QUERY)


@BOTH
@pytest.mark.parametrize("page_size", [1, 2, 5, 1000])
def test_all_pages_are_followed_and_the_products_sorted(data_space, ask, kind, page_size):
    scenes = ask(catalogue=kind, page_size=page_size)
    assert days(scenes) == [1, 2, 3, 4, 5]
    assert [scene.product for scene in scenes] == [name(day) for day in range(1, 6)]
    assert Scene(**json.loads(json.dumps(asdict(scenes[0])))) == scenes[0]
    assert len(data_space.asked(count=True)) == 1


def test_how_far_it_is_is_told_after_each_page(data_space, ask):
    told = []
    ask(catalogue="odata", page_size=2, progress=told.append)
    assert [int(line.split()[0]) for line in told] == [2, 4, 5]


@BOTH
def test_a_month_without_products_is_asked_for_once(server, ask, kind):
    space = DataSpace(server, [])
    assert ask(catalogue=kind) == []
    assert (len(space.asked(count=True)), len(space.asked(offline=True))) == (1, 0)


@BOTH
def test_what_is_asked_is_counted_too(data_space, ask, kind):
    ask(catalogue=kind)
    (counted,) = data_space.asked(count=True)
    assert counted["$filter"].endswith(
        "OData.CSC.Intersects(area=geography'SRID=4326;POLYGON((9.0 47.0,9.1 47.0,9.1 47.1,9.0 47.0))') and "
        "ContentDate/Start ge 2020-07-01T00:00:00.000Z and ContentDate/Start lt 2020-08-01T00:00:00.000Z"
    )


def test_what_stac_is_asked(data_space, server, ask):
    ask(catalogue="stac", page_size=7)
    body = json.loads(next(body for method, *_, body in server.requests if method == "POST"))
    assert "assets.safe_manifest.file:checksum" in body.pop("fields")["include"]
    assert body == {
        "collections": ["sentinel-2-l2a"],
        "intersects": {"type": "Polygon", "coordinates": [[list(point) for point in QUERY["polygon"]]]},
        "datetime": "2020-07-01T00:00:00.000Z/2020-07-31T23:59:59.999Z",
        "query": {"eo:cloud_cover": {"gte": 0, "lte": 62.5}},
        "sortby": [{"field": "datetime", "direction": "asc"}, {"field": "id", "direction": "asc"}],
        "limit": 7,
    }


# Rows that pages repeat, so that others are lost.


def test_repeated_rows_are_not_taken_for_the_lost_ones(server, session, endpoints):
    """15 products; whatever the range, OData's pages repeat three rows in the place of three others."""
    space = DataSpace(server, [product(day) for day in range(1, 16)])
    space.repeats = lambda rows, number: rows[: max(len(rows) - 3, 0)] + rows[:3]
    with pytest.raises(ItemError, match=r"has \d+ products of .*, gave \d+ different ones; run the same command again"):
        search_odata(session, endpoints, **QUERY, page_size=5)


def test_a_stage_that_is_given_too_few_has_failed(server, tmp_path):
    space = DataSpace(server, [product(day) for day in range(1, 16)])
    space.repeats = lambda rows, number: rows[: max(len(rows) - 3, 0)] + rows[:3]
    places = {"stac": "/v1", "catalogue": "/odata/v1", "download": "/odata/v1", "token": "/token"}
    july = "{start: 2020-07-01, end: 2020-07-31, cloud: [0, 50]}"
    overrides = [f"copernicus.{name}={server.url}{path}" for name, path in places.items()]
    overrides += ["archive=null", "search.catalogue=odata", f"search.clear={july}", f"search.cloudy={july}"]
    config, _ = source.load(Path(__file__).resolve().parents[2] / "configs" / "test.yaml", overrides)
    summary = stage.run(config, RunFolder(tmp_path))
    assert list(summary.failed) == ["clear-2020-07", "cloudy-2020-07"]
    assert not (tmp_path / "scenes.jsonl").exists()
    space.repeats = lambda rows, number: rows
    assert stage.run(config, RunFolder(tmp_path)).note == "15 products on 1 tiles"


def test_what_pages_have_lost_is_asked_for_in_halves(server, session, endpoints):
    space = DataSpace(server, [product(day) for day in range(1, 16)])
    space.repeats = lambda rows, number: rows if len(rows) <= 5 else rows[:-3] + rows[:3]
    assert days(search_odata(session, endpoints, **QUERY, page_size=5)) == list(range(1, 16))


def test_what_stac_lacks_is_described_by_odata(data_space, ask):
    data_space.lacking, said = {name(2), name(5)}, []
    data_space.products[3]["online"] = False
    scenes = ask(catalogue="stac", said=said.append)
    assert days(scenes) == [1, 2, 3, 4, 5]
    assert [scene.online for scene in scenes] == [True] * 4 + [False]
    assert "lacks 2 of 5 products" in said[0]
    data_space.repeats = lambda rows, number: rows[:-1] + rows[:1]
    with pytest.raises(ItemError, match="different ones"):
        ask(catalogue="stac")


@pytest.mark.slow
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.integers(1, 30), unique=True, max_size=25),
    page_size=st.integers(1, 6),
    lost=st.integers(0, 3),
    broken=st.booleans(),
    kind=st.sampled_from(["stac", "odata"]),
)
def test_the_answer_is_whole_or_an_error(server, ask, numbers, page_size, lost, broken, kind):
    space = DataSpace(server, [product(day) for day in numbers])
    space.lacking = {name(day) for day in numbers[:lost]}
    space.repeats = lambda rows, number: rows[: len(rows) - lost] + rows[:lost] if broken else rows
    try:
        assert days(ask(catalogue=kind, page_size=page_size)) == sorted(numbers)
    except ItemError:
        assert broken
        assert lost


@BOTH
def test_pages_that_repeat_themselves_end(server, ask, kind):
    space = DataSpace(server, [product(1)])
    space.recount = lambda number: 3
    link = {"rel": "next", "method": "POST", "href": f"{server.url}/v1/search", "body": {"token": "next:1"}}
    circle = {"stac": {"features": [stac_item(product(1))], "links": [link | {"merge": True}]}}
    circle["odata"] = {"value": [odata_row(product(1))], "@odata.nextLink": f"{server.url}/odata/v1/Products?page=1"}
    circle["odata"]["@odata.count"] = 3
    server.scripts[PATH[kind]] = [Answer.json(circle[kind])]
    with pytest.raises(ItemError, match="has 3 products of"):
        ask(catalogue=kind)
    assert len(server.requests) < 60


# More rows than a question may have.


@BOTH
def test_a_range_that_has_too_many_is_halved(data_space, ask, monkeypatch, kind):
    assert catalogue._MOST + catalogue._PAGE <= 10000  # OData lists no row beyond
    monkeypatch.setattr(catalogue, "_MOST", 2)
    assert days(ask(catalogue=kind)) == [1, 2, 3, 4, 5]
    spans = [each["$filter"].split("ContentDate/Start ")[1:] for each in data_space.asked(count=True)]
    edges = {(start[3:27], end[3:27]) for start, end in spans}
    assert ("2020-07-01T00:00:00.000Z", "2020-07-16T12:00:00.000Z") in edges


def test_too_many_within_a_second_are_an_error(data_space, ask, monkeypatch):
    monkeypatch.setattr(catalogue, "_MOST", 2)
    data_space.products = [product(1, id=f"{number:08d}-af5f-46de-868e-fe5a8faa2d9c") for number in range(3)]
    with pytest.raises(ItemError, match=r"3 products of .*: make the area smaller"):
        ask(
            catalogue="odata",
            start=datetime(2020, 7, 1, 10, 15, 59, tzinfo=UTC),
            end=datetime(2020, 7, 1, 10, 16, tzinfo=UTC),
        )


# Tiles, and links.


@BOTH
def test_tiles_are_asked_for_by_ten_without_their_t(data_space, ask, server, kind):
    tiles = [f"32TN{letter}" for letter in "ABCDEFGHJKLM"]
    ask(catalogue=kind, tiles=tiles, polygon=None)
    counted = [each["$filter"] for each in data_space.asked(count=True)]
    assert [text.count("'tileId'") for text in counted] == [10, 2]
    assert "/Value eq '32TNA') or Attributes/" in counted[0]
    assert " and (Attributes/OData.CSC.StringAttribute/any(att:att/Name eq 'tileId'" in counted[0]
    assert "Intersects" not in counted[0]
    if kind == "stac":
        body = json.loads(next(body for method, *_, body in server.requests if method == "POST"))
        assert body["query"]["grid:code"] == {"in": [f"MGRS-{tile}" for tile in tiles[:10]]}
        assert "intersects" not in body


@BOTH
@pytest.mark.parametrize("other", ["http://127.0.0.1:9", "https://{host}"])
def test_a_next_link_to_another_host_is_not_followed(server, ask, kind, other):
    DataSpace(server, [product(1)])
    following = other.format(host=server.url.removeprefix("http://")) + PATH[kind]
    page = {"features": [stac_item(product(1))], "links": [{"rel": "next", "href": following}]}
    page |= {"value": [odata_row(product(1))], "@odata.nextLink": following, "@odata.count": 1}
    server.scripts[PATH[kind]] = [Answer.json(page)]
    with pytest.raises(ItemError, match="is on another host, http"):
        ask(catalogue=kind)


def test_a_next_link_may_name_the_other_catalogue_and_be_relative(server, ask):
    DataSpace(server, [product(1)])
    first = {"features": [stac_item(product(1))], "links": [{"rel": "next", "href": "/other?token=next%3A1"}]}
    server.scripts["/v1/search"] = [Answer.json(first)]
    server.scripts["/other"] = [Answer.json({"features": [stac_item(product(2))], "links": []})]
    assert days(ask(catalogue="stac")) == [1, 2]
    assert ("GET", "/other?token=next%3A1") in [request[:2] for request in server.requests]


@BOTH
def test_a_stop_ends_the_search_before_the_next_request(data_space, server, ask, kind):
    with pytest.raises(InterruptedJob):
        ask(catalogue=kind, page_size=1, stopped=lambda: len(server.requests) == 2)
    assert len(server.requests) == 2


# Rows that are odd.


def reshape(row: dict, path: str, value) -> None:
    """Gives a row's member (a dotted path) another value."""
    *outer, last = path.split(".")
    for each in outer:
        row = row[each]
    row[last] = value


@BOTH
@pytest.mark.parametrize(
    ("stac", "odata", "value"),
    [
        ("geometry", "GeoFootprint", None),
        ("geometry", "GeoFootprint", {"type": "Point", "coordinates": [9, 47]}),
        ("geometry", "GeoFootprint", {"type": "Polygon", "coordinates": [[[9]]]}),
        ("geometry", "GeoFootprint", {}),
        ("properties", "Attributes", None),
        ("properties.eo:cloud_cover", "Attributes", []),
        ("properties.eo:cloud_cover", "Attributes", [{"Name": "cloudCover"}]),
        ("properties.datetime", "ContentDate", None),
        ("assets", "Id", {}),
        ("id", "Name", "S2A_X"),
    ],
)
def test_one_odd_row_is_named_and_loses_no_other(data_space, ask, kind, stac, odata, value):
    def damage(row, own):
        if own == name(2) and ("Id" in row) == (kind == "odata"):
            reshape(row, {"stac": stac, "odata": odata}[kind], value)

    data_space.damage, said = damage, []
    assert days(ask(catalogue=kind, said=said.append)) == [1, 3, 4, 5]
    (line,) = said
    assert ("S2A_X" if value == "S2A_X" else name(2)) in line
    assert "is left out" in line


@BOTH
def test_a_month_of_one_odd_row_is_no_error_but_one_of_several_is(server, ask, kind):
    space, said = DataSpace(server, [product(1)]), []
    space.damage = lambda row, own: row.update(id="S2A_X", Name="S2A_X")
    assert ask(catalogue=kind, said=said.append) == []
    assert len(said) == 1
    space.products.append(product(2))
    space.damage = lambda row, own: row.update(geometry=None, GeoFootprint=None)
    with pytest.raises(ItemError, match=r"127\.0\.0\.1:\d+: an answer of another shape"):
        ask(catalogue=kind)


@BOTH
@pytest.mark.parametrize("damage", [lambda body, rows: body.pop(rows), lambda body, rows: body.update({rows: 7})])
def test_answers_of_another_shape_are_an_error(server, ask, kind, damage):
    DataSpace(server, [])
    body = {"features": [], "value": [], "links": [], "@odata.count": 0}
    damage(body, ROWS[kind])
    server.scripts[PATH[kind]] = [Answer.json(body)]
    with pytest.raises(ItemError, match=r"127\.0\.0\.1:\d+: (an answer of another shape|the answer is not)"):
        ask(catalogue=kind)


def test_a_catalogue_that_does_not_count_is_an_error(server, ask):
    server.scripts["/odata/v1/Products"] = [Answer.json({"value": []})]
    with pytest.raises(ItemError, match=r"@odata\.count is None"):
        ask(catalogue="odata")


def test_what_a_row_can_do_without_leaves_it_in(data_space, session, endpoints):
    """No checksum of a file, no size, no statistics, an asset that is null: the product is there all the same."""
    checked = {"file:local_path": f"{name(1)}.SAFE/manifest.safe", "file:size": 7, "file:checksum": "1620ab"}

    def damage(row, own):
        if "assets" in row:
            row["assets"] |= {"safe_manifest": checked, "B04_10m": {"file:local_path": "B04.jp2"}, "B03_10m": None}
            row["assets"] |= {"B02_10m": {"file:local_path": "B02.jp2", "file:size": 8}}
            row["assets"] |= {"B08_10m": {"file:local_path": "B08.jp2", "file:checksum": "1620cd"}}
            row["properties"]["statistics"] = None

    data_space.damage, said = damage, []
    scenes = search_stac(session, endpoints, **QUERY, said=said.append)
    assert (days(scenes), said) == ([1, 2, 3, 4, 5], [])
    assert scenes[0].checksums == {
        "manifest.safe": {"size": 7, "multihash": "1620ab"},
        "B02.jp2": {"size": 8, "multihash": ""},
        "B08.jp2": {"size": None, "multihash": "1620cd"},
    }
    assert (scenes[0].no_data, scenes[0].size) == (None, None)


def test_a_row_that_is_read_on_another_page_counts(server, ask):
    DataSpace(server, [product(1), product(2)])
    pages = []
    for numbers, odd in (([1, 2], 0), ([1, 2, 3], 1), ([], None)):
        rows = [stac_item(product(day)) | ({"geometry": None} if n == odd else {}) for n, day in enumerate(numbers)]
        link = {"rel": "next", "method": "POST", "href": f"{server.url}/v1/search?page=2", "body": {}}
        pages.append(Answer.json({"features": rows, "links": [link]}))
    server.scripts["/v1/search"], said = pages, []
    assert (days(ask(catalogue="stac", said=said.append)), said) == ([1, 2, 3], [])


# Which of several, and what can be had.


@BOTH
def test_offline_products_are_marked(data_space, ask, kind):
    data_space.products[0]["online"] = False
    assert {day for day, scene in zip([1, 2, 3, 4, 5], ask(catalogue=kind), strict=True) if not scene.online} == {3}


def test_of_equal_names_that_with_less_no_data_is_taken(server, ask):
    small = product(1, footprint=square(0.5))
    large = product(1, footprint=square(1.0), id="f" * 8 + small["id"][8:])
    for products in ([large, small], [small, large]):
        DataSpace(server, products)
        (scene,) = ask(catalogue="odata")
        assert scene.id == large["id"]
        DataSpace(server, [each | {"online": each is small} for each in products])
        (scene,) = ask(catalogue="odata")
        assert scene.id == small["id"]
    (described,) = ask(catalogue="odata")
    scenes = [Scene(**asdict(described) | {"id": str(share), "no_data": share}) for share in (3.0, None, 1.0, 2.0)]
    assert distinct(scenes)[0].id == "1.0"


@BOTH
def test_a_footprint_that_jumps_at_180_degrees_is_cut_there(server, ask, kind):
    ring = [[179.5, 67], [-179.5, 67], [-179.5, 68], [179.5, 68], [179.5, 67]]
    DataSpace(server, [product(1, footprint={"type": "Polygon", "coordinates": [ring]}), product(2)])
    cut, plain = ask(catalogue=kind)
    assert shape(cut.footprint).bounds == (-180, 67, 180, 68)
    assert shape(cut.footprint).area == pytest.approx(1)
    assert plain.footprint == square()
    assert Scene(**json.loads(json.dumps(asdict(cut)))).product == cut.product
