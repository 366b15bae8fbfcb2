import json
from dataclasses import asdict
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest
from scripted_server import Answer
from shapely.geometry import shape

from cloudjob.copernicus.catalogue import Scene, digest_of, search_odata, search_stac
from cloudjob.errors import ItemError

QUERY = {
    "polygon": [(9.0, 47.0), (9.1, 47.0), (9.1, 47.1), (9.0, 47.0)],
    "start": datetime(2020, 7, 1, tzinfo=UTC),
    "end": datetime(2020, 7, 6, tzinfo=UTC),
    "cloud": (0, 62.5),
}
SEARCHES = {"stac": (search_stac, "/v1/search"), "odata": (search_odata, "/odata/v1/Products")}


def name(day: int, tile: str = "32TNT") -> str:
    return f"S2B_MSIL2A_202007{day:02d}T101559_N0500_R065_T{tile}_20230530T175912"


def stac_item(day: int) -> dict:
    return {
        "id": name(day),
        "geometry": {"type": "Polygon", "coordinates": []},
        "properties": {"datetime": f"2020-07-{day:02d}T10:15:59.024Z", "eo:cloud_cover": 12.5},
        "assets": {"Product": {"href": f"https://x/Products({day:08d}-af5f-46de-868e-fe5a8faa2d9c)/$value"}},
    }


def odata_row(day: int) -> dict:
    return {
        "Id": f"{day:08d}-af5f-46de-868e-fe5a8faa2d9c",
        "Name": f"{name(day)}.SAFE",
        "ContentLength": 0,
        "Online": True,
        "ContentDate": {"Start": f"2020-07-{day:02d}T10:15:59.024000Z"},
        "GeoFootprint": {"type": "Polygon", "coordinates": []},
        "Attributes": [{"Name": "cloudCover", "Value": 12.5}],
    }


def page(kind: str, days: list[int], following: str | None = None, count: int | None = None) -> Answer:
    if kind == "stac":
        link = {"rel": "next", "method": "POST", "href": following, "merge": True, "body": {"token": "next:1"}}
        body = {"features": [stac_item(day) for day in days], "links": [link] if following else []}
        return Answer.json(body | ({} if count is None else {"numberMatched": count}))
    body = {"value": [odata_row(day) for day in days]} | ({} if count is None else {"@odata.count": count})
    return Answer.json(body | ({"@odata.nextLink": following} if following else {}))


def test_recorded_stac_answer(server, endpoints, session, shared_data):
    recorded = json.loads(next(shared_data.glob("cdse_answers/xcube_stac/05_POST*.json")).read_text())
    server.scripts["/v1/search"] = [Answer.json(recorded)]
    scenes = search_stac(session, endpoints, **QUERY)
    assert [scene.product for scene in scenes] == [
        "S2A_MSIL2A_20200703T103031_N0500_R108_T32TMT_20230613T212700",
        "S2A_MSIL2A_20200703T103031_N0500_R108_T32TNT_20230613T212700",
        "S2B_MSIL2A_20200705T101559_N0500_R065_T32TMT_20230530T175912",
        "S2B_MSIL2A_20200705T101559_N0500_R065_T32TNT_20230530T175912",
    ]
    scene = scenes[-1]
    assert scene.id == "8e7057cf-af5f-46de-868e-fe5a8faa2d9c"
    assert scene.datetime == "2020-07-05T10:15:59.024Z"
    assert (scene.tile, scene.relative_orbit, scene.baseline, scene.satellite) == ("32TNT", 65, "05.00", "S2B")
    assert (scene.cloud_cover, scene.snow_cover, scene.no_data) == (31.64, 0.43, 0.0)
    assert scene.sun_elevation == pytest.approx(62.75135)
    assert scene.footprint["type"] == "Polygon"
    assert scene.size == 1169979461
    assert len(scene.checksums) == 5
    scl = scene.checksums["GRANULE/L2A_T32TNT_A017394_20200705T101917/IMG_DATA/R20m/T32TNT_20200705T101559_SCL_20m.jp2"]
    assert scl["size"] == 2171670
    assert digest_of(scl["multihash"]) == ("SHA3-256", scl["multihash"][4:])
    assert Scene(**json.loads(json.dumps(asdict(scene)))) == scene


def test_recorded_empty_stac_answer(server, endpoints, session, shared_data):
    recorded = json.loads(next(shared_data.glob("cdse_answers/xcube_stac/19_POST*.json")).read_text())
    server.scripts["/v1/search"] = [Answer.json(recorded)]
    assert search_stac(session, endpoints, **QUERY) == []


def test_recorded_odata_pages(server, endpoints, session, shared_data):
    """Level-1C rows are all there is; read as Level-2A, followed over the pages by the recorded kind of links."""
    text = (shared_data / "cdse_answers/eodag/cop_dataspace_search.json").read_text()
    text = text.replace("MSIL1C", "MSIL2A").replace("https://catalogue.dataspace.copernicus.eu", server.url)
    server.scripts["/odata/v1/Products"] = [
        Answer(200, text.encode()),
        Answer.json({"@odata.context": "$metadata#Products(Attributes())", "value": []}),  # after the last full page
    ]
    scenes = search_odata(session, endpoints, **QUERY)
    assert [scene.tile for scene in scenes] == ["54PXA", "55PBR"]
    assert scenes[0].id == "05edf2bb-d103-49f1-a677-9e474138d84f"
    assert scenes[0].datetime == "2020-08-08T01:03:11.024Z"
    assert scenes[0].cloud_cover == 95.136736479015
    assert scenes[0].size == 224105657
    assert scenes[0].footprint["type"] == "Polygon"
    assert scenes[0].checksums == {}
    assert parse_qs(urlsplit(server.requests[1][1]).query)["$skip"] == ["2"]


def test_recorded_rows_that_are_no_scenes_are_an_error(server, endpoints, session, shared_data):
    recorded = json.loads((shared_data / "cdse_answers/cdsetool/odata_page_5.json").read_text())
    server.scripts["/odata/v1/Products"] = [Answer.json(recorded)]
    with pytest.raises(ItemError, match=r"127\.0\.0\.1:\d+: an answer of another shape"):
        search_odata(session, endpoints, **QUERY)


def test_what_stac_is_asked(server, endpoints, session):
    server.scripts["/v1/search"] = [page("stac", [])]
    search_stac(session, endpoints, **QUERY, page_size=7)
    assert json.loads(server.requests[0][3]) == {
        "collections": ["sentinel-2-l2a"],
        "intersects": {"type": "Polygon", "coordinates": [[[9.0, 47.0], [9.1, 47.0], [9.1, 47.1], [9.0, 47.0]]]},
        "datetime": "2020-07-01T00:00:00.000Z/2020-07-05T23:59:59.999Z",
        "query": {"eo:cloud_cover": {"gte": 0, "lte": 62.5}},
        "sortby": [{"field": "datetime", "direction": "asc"}],
        "limit": 7,
    }


def test_what_odata_is_asked(server, endpoints, session):
    server.scripts["/odata/v1/Products"] = [page("odata", [])]
    search_odata(session, endpoints, **QUERY, page_size=7)
    query = {key: value[0] for key, value in parse_qs(urlsplit(server.requests[0][1]).query).items()}
    assert query.pop("$filter").split(" and ", 5) == [
        "Collection/Name eq 'SENTINEL-2'",
        "Attributes/OData.CSC.StringAttribute/any(att:att/Name eq 'productType'",
        "att/OData.CSC.StringAttribute/Value eq 'S2MSI2A')",
        "Attributes/OData.CSC.DoubleAttribute/any(att:att/Name eq 'cloudCover'",
        "att/OData.CSC.DoubleAttribute/Value ge 0.0000)",
        "Attributes/OData.CSC.DoubleAttribute/any(att:att/Name eq 'cloudCover' and "
        "att/OData.CSC.DoubleAttribute/Value le 62.5000) and "
        "OData.CSC.Intersects(area=geography'SRID=4326;POLYGON((9.0 47.0,9.1 47.0,9.1 47.1,9.0 47.0))') and "
        "ContentDate/Start ge 2020-07-01T00:00:00.000Z and ContentDate/Start lt 2020-07-06T00:00:00.000Z",
    ]
    assert query == {
        "$orderby": "ContentDate/Start asc",
        "$top": "7",
        "$count": "true",
        "$expand": "Attributes",
    }


@pytest.mark.parametrize("kind", SEARCHES)
def test_pages_are_followed_to_the_end_sorted_and_unique(server, endpoints, session, kind):
    search, path = SEARCHES[kind]
    following = f"{server.url}{path}?page=2"
    server.scripts[path] = [
        page(kind, [3, 1], following, count=5),
        page(kind, [1, 2, 4], following),  # a next link after the last row
        page(kind, []),
    ]
    scenes = search(session, endpoints, **QUERY)
    assert [scene.product for scene in scenes] == [name(day) for day in (1, 2, 3, 4)]
    assert len(server.requests) == 3
    if kind == "stac":  # the token of the link is added to the first request's body
        first, second = (json.loads(body) for *_, body in server.requests[:2])
        assert second == {**first, "token": "next:1"}


@pytest.mark.parametrize("kind", SEARCHES)
def test_truncation_is_an_error(server, endpoints, session, kind):
    search, path = SEARCHES[kind]
    server.scripts[path] = [page(kind, [1, 2], count=12000)]  # OData leaves the next link out beyond 10000
    with pytest.raises(ItemError, match="has 12000 products, gave 2: make the dates or the area smaller"):
        search(session, endpoints, **QUERY)


@pytest.mark.parametrize("kind", SEARCHES)
def test_pages_that_go_in_circles_are_an_error(server, endpoints, session, kind):
    search, path = SEARCHES[kind]
    server.scripts[path] = [page(kind, [1, 2], f"{server.url}{path}?page=1")]
    with pytest.raises(ItemError, match="repeat themselves"):
        search(session, endpoints, **QUERY)
    assert len(server.requests) == 2


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_next_link_to_another_host_is_not_followed(server, endpoints, session, kind):
    search, path = SEARCHES[kind]
    server.scripts[path] = [page(kind, [1], f"http://127.0.0.1:9{path}")]
    with pytest.raises(ItemError, match=r"another host, 127\.0\.0\.1:9; not followed"):
        search(session, endpoints, **QUERY)


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda body, rows: body.pop(rows),
        lambda body, rows: body.update({rows: [7]}),
        lambda body, rows: body[rows][0].update({"id": "S2A_X", "Name": "S2A_X"}),
        lambda body, rows: body[rows][0].update({"assets": {}, "GeoFootprint": None}),
        lambda body, rows: body[rows][0].update({"properties": None, "Attributes": None}),
    ],
)
def test_answers_of_another_shape_are_an_error(server, endpoints, session, kind, damage):
    search, path = SEARCHES[kind]
    body = json.loads(page(kind, [1]).body)
    damage(body, "features" if kind == "stac" else "value")
    server.scripts[path] = [Answer.json(body)]
    with pytest.raises(ItemError, match=r"127\.0\.0\.1:\d+: an answer of another shape"):
        search(session, endpoints, **QUERY)


ODD = {
    "stac": [
        lambda row: row.update(geometry=None),
        lambda row: row.pop("geometry"),
        lambda row: row.update(properties=None),
        lambda row: row["properties"].update({"eo:cloud_cover": None}),
        lambda row: row["properties"].update(datetime=None),
        lambda row: row.update(assets={}),
        lambda row: row.update(id="S2A_X"),
    ],
    "odata": [
        lambda row: row.update(GeoFootprint=None),
        lambda row: row.pop("ContentDate"),
        lambda row: row.update(Attributes=None),
        lambda row: row.update(Attributes=[{"Name": "cloudCover"}]),
        lambda row: row.update(Id=None),
        lambda row: row.update(Name="S2A_X.SAFE"),
    ],
}


@pytest.mark.parametrize(("kind", "damage"), [(kind, damage) for kind, each in ODD.items() for damage in each])
def test_one_odd_row_is_named_and_loses_no_other(server, endpoints, session, kind, damage):
    search, path = SEARCHES[kind]
    body = json.loads(page(kind, [1, 2, 3], count=3).body)
    row = body["features" if kind == "stac" else "value"][1]
    damage(row)
    server.scripts[path], said = [Answer.json(body)], []
    scenes = search(session, endpoints, **QUERY, said=said.append)
    assert [scene.product for scene in scenes] == [name(1), name(3)]
    (line,) = said
    assert (row.get("id") or row["Name"].removesuffix(".SAFE")) in line
    assert "is left out" in line


def test_what_a_row_can_do_without_leaves_it_in(server, endpoints, session):
    """No checksum of a file, no statistics, an asset that is null: the product is there all the same."""
    body = json.loads(page("stac", [1, 2]).body)
    whole, odd = (item["assets"] for item in body["features"])
    checked = {"file:local_path": "B04.jp2", "file:size": 7, "file:checksum": "1620ab"}
    whole["B04_10m"], odd["B04_10m"] = checked, {"file:local_path": "B04.jp2", "file:size": 7}
    odd |= {"B03_10m": None, "B02_10m": checked | {"file:local_path": "B02.jp2"}}
    body["features"][1]["properties"]["statistics"] = None
    server.scripts["/v1/search"], said = [Answer.json(body)], []
    scenes = search_stac(session, endpoints, **QUERY, said=said.append)
    assert [set(scene.checksums) for scene in scenes] == [{"B04.jp2"}, {"B02.jp2"}]
    assert said == []


def test_a_row_that_is_read_on_another_page_counts(server, endpoints, session):
    following, bodies = f"{server.url}/v1/search?page=2", []
    for days, odd in (([1, 2], 0), ([1, 2, 3], 1), ([], None)):
        bodies.append(json.loads(page("stac", days, following).body))
        if odd is not None:
            bodies[-1]["features"][odd]["geometry"] = None
    server.scripts["/v1/search"], said = [Answer.json(body) for body in bodies], []
    scenes = search_stac(session, endpoints, **QUERY, said=said.append)
    assert ([scene.product for scene in scenes], said) == ([name(day) for day in (1, 2, 3)], [])


def test_digest_goes_by_its_length():
    long, short = "ab" * 32, "cd" * 16
    assert digest_of(f"1620{long}") == ("SHA3-256", long)
    assert digest_of(f"d50120{long}") == ("SHA3-256", long)  # as the Data Space marks XML files
    assert digest_of(f"d50110{short}") == ("MD5", short)
    with pytest.raises(ItemError, match="unknown kind"):
        digest_of(f"1220{long}")


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_footprint_that_jumps_at_180_degrees_is_cut_there(server, endpoints, session, kind):
    search, path = SEARCHES[kind]
    ring = [[179.5, 67], [-179.5, 67], [-179.5, 68], [179.5, 68], [179.5, 67]]
    answer = json.loads(page(kind, [1, 2]).body)
    row = answer["features" if kind == "stac" else "value"][0]
    row["geometry" if kind == "stac" else "GeoFootprint"] = {"type": "Polygon", "coordinates": [ring]}
    server.scripts[path] = [Answer.json(answer), Answer.json({"value": [], "features": []})]
    cut, plain = search(session, endpoints, **QUERY)
    assert shape(cut.footprint).bounds == (-180, 67, 180, 68)
    assert shape(cut.footprint).area == pytest.approx(1)
    assert plain.footprint == {"type": "Polygon", "coordinates": []}
    assert Scene(**json.loads(json.dumps(asdict(cut)))).product == cut.product
