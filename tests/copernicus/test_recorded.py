"""What the Data Space really said, replayed by a server that answers documented requests alone."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from data_space import odata_mistakes, stac_mistakes
from scripted_server import Answer

from cloudjob.config.acquisition import CopernicusConfig
from cloudjob.copernicus import odata
from cloudjob.copernicus.catalogue import search_odata, search_stac
from cloudjob.copernicus.checks import known
from cloudjob.copernicus.scenes import Asker, Odd, Question
from cloudjob.copernicus.session import get_json
from cloudjob.copernicus.sources.https import list_nodes
from cloudjob.errors import CorruptFileError, ItemError
from cloudjob.sentinel2.product import band_files, read_manifest

STAC = "xcube_stac/05_POST_stac_dataspace_copernicus_eu_v1_search_e0279fb7.json"
EMPTY = "xcube_stac/19_POST_stac_dataspace_copernicus_eu_v1_search_c5a9fc8c.json"
LANDING = [
    f"xcube_stac/{name}.json"
    for name in ("03_GET_stac_dataspace_copernicus_eu_v1_3967d351", "04_GET_stac_dataspace_copernicus_eu_v1__abb318ac")
]
COLLECTIONS = "xcube_stac/16_GET_stac_dataspace_copernicus_eu_v1_collections_4f46e7c2.json"
ITEMS = ["06", "07", "08", "09"]
PAGES = [f"cdsetool/odata_page_{number}.json" for number in range(1, 6)]
MADE_BY_A_CLIENT = {"eodag/eodag_search_result_cop_dataspace.geojson", "xcube_stac/INDEX.json"}
HOSTS = re.compile(r"https://(stac|catalogue)\.dataspace\.copernicus\.eu")
QUERY = {
    "polygon": [(9.0, 47.0), (9.1, 47.0), (9.1, 47.1), (9.0, 47.0)],
    "start": datetime(2020, 7, 1, tzinfo=UTC),
    "end": datetime(2020, 7, 6, tzinfo=UTC),
    "cloud": (0, 100),
}


@pytest.fixture
def answers(shared_data) -> Path:
    folder = shared_data / "cdse_answers"
    if not folder.is_dir():
        pytest.skip(f"recorded answers not found: {folder}")
    return folder


class Replay:
    """Hands out recorded answers: to searches page by page, to all else by its path. Its own address stands in for the
    services'. A search in a form that nobody has documented is refused."""

    def __init__(self, server, answers: Path):
        self.server, self.answers = server, answers
        self.item = json.loads((answers / STAC).read_text())["features"][0]
        server.scripts["/odata/v1/Products"] = [self._odata]
        server.scripts["/v1/search"] = [self._stac]
        self.stac: list[dict] = []
        self.odata: list[dict] = [{"value": []}]
        self.count = 0

    def read(self, name: str, **changes: str):
        text = (self.answers / name).read_text()
        for old, new in changes.items():
            text = text.replace(old, new)
        return json.loads(HOSTS.sub(self.server.url, text))

    def _odata(self, request) -> Answer:
        query = {key: values[0] for key, values in parse_qs(urlsplit(request[1]).query).items()}
        recorded = "SENTINEL-1" in query["$filter"] or "S2MSI1C" in query["$filter"]  # a next link of somebody else's
        if wrong := [] if recorded else odata_mistakes(query):
            return Answer.json({"detail": wrong}, 400)
        if "Online eq false" in query["$filter"]:
            return Answer.json({"value": []})
        if "$count" in query and not recorded:
            return Answer.json({"value": [], "@odata.count": self.count})
        return Answer.json(self.odata.pop(0))

    def _stac(self, request) -> Answer:
        wrong = stac_mistakes(json.loads(request[3]), self.item)
        return Answer.json({"description": wrong}, 400) if wrong else Answer.json(self.stac.pop(0))


@pytest.fixture
def replay(server, answers) -> Replay:
    return Replay(server, answers)


def test_a_search_by_stac(replay, session, endpoints):
    replay.stac, replay.count = [replay.read(STAC)], 4
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
    assert (scene.size, scene.online) == (1169979461, True)
    assert len(scene.checksums) == 13
    granule = "GRANULE/L2A_T32TNT_A017394_20200705T101917"
    image = known(f"{granule}/IMG_DATA/R20m/T32TNT_20200705T101559_SCL_20m.jp2", scene.checksums)
    multihash = scene.checksums[image.path]["multihash"]
    assert (image.size, image.digest) == (2171670, ("SHA3-256", multihash[4:]))
    kinds = [known(path, scene.checksums).digest[0] for path in ("manifest.safe", f"{granule}/MTD_TL.xml")]
    assert kinds == ["MD5", "SHA3-256"]


def test_items_cut_down_to_the_fields_tell_the_same(replay, session, endpoints):
    """Every field that is asked for is there in a recorded item (see `stac_mistakes`), and no other is needed."""
    replay.stac, replay.count = [replay.read(STAC)], 4
    whole = search_stac(session, endpoints, **QUERY)
    body = json.loads(next(body for method, *_, body in replay.server.requests if method == "POST"))
    small = [cut(item, body["fields"]["include"]) for item in replay.read(STAC)["features"]]
    replay.stac = [{"features": small, "links": []}]
    assert search_stac(session, endpoints, **QUERY) == whole
    assert len(json.dumps(small)) < 0.2 * len(json.dumps(replay.read(STAC)))


def cut(item: dict, paths: list[str]) -> dict:
    found: dict = {}
    for path in paths:
        source, target, (*outer, last) = item, found, path.split(".")
        for name in outer:
            source, target = source[name], target.setdefault(name, {})
        target[last] = source[last]
    return found


@pytest.mark.parametrize("number", ITEMS)
def test_an_item(replay, answers, session, endpoints, number):
    (path,) = answers.glob(f"xcube_stac/{number}_GET*.json")
    item, page = replay.read(path.relative_to(answers).as_posix()), replay.read(STAC)
    replay.stac, replay.count = [{"features": [item], "links": []}, page], 1
    (scene,) = search_stac(session, endpoints, **QUERY)
    assert scene in search_stac(session, endpoints, **QUERY)


def test_an_empty_search(replay, session, endpoints):
    replay.stac = [replay.read(EMPTY)]
    assert search_stac(session, endpoints, **QUERY) == []


@pytest.mark.parametrize("name", LANDING)
def test_the_service_says_that_it_knows_what_is_asked(replay, session, name):
    replay.server.scripts["/v1"] = [Answer.json(replay.read(name))]
    landing = get_json(session, "GET", f"{replay.server.url}/v1")
    assert {f"https://api.stacspec.org/v1.0.0/item-search{part}" for part in ("", "#fields", "#query", "#sort")} <= set(
        landing["conformsTo"]
    )
    search = {"method": "POST", "href": f"{replay.server.url}/v1/search"}
    assert any(link.items() >= search.items() for link in landing["links"])
    collections = replay.read(COLLECTIONS)["collections"]
    assert "sentinel-2-l2a" in [each["id"] for each in collections]


def test_pages_of_odata(replay, session, endpoints):
    """Level-1C rows are all there is; read as Level-2A, followed over the pages by the recorded kind of links."""
    page = replay.read("eodag/cop_dataspace_search.json", MSIL1C="MSIL2A")
    replay.odata, replay.count = [page, {"@odata.context": "$metadata#Products(Attributes())", "value": []}], 2
    scenes = search_odata(session, endpoints, **QUERY)
    assert [scene.tile for scene in scenes] == ["54PXA", "55PBR"]
    assert scenes[0].id == "05edf2bb-d103-49f1-a677-9e474138d84f"
    assert scenes[0].datetime == "2020-08-08T01:03:11.024Z"
    assert (scenes[0].cloud_cover, scenes[0].size) == (95.136736479015, 224105657)
    assert (scenes[0].footprint["type"], scenes[0].checksums, scenes[0].online) == ("Polygon", {}, True)
    assert parse_qs(urlsplit(replay.server.requests[-1][1]).query)["$skip"] == ["2"]


def test_the_types_of_attributes_are_those_of_the_rows(replay, session, endpoints):
    kinds = {
        each["Name"]: each["@odata.type"].removeprefix("#OData.CSC.")
        for each in replay.read("eodag/cop_dataspace_search.json")["value"][0]["Attributes"]
    }
    listed = {each["Name"]: f"{each['ValueType']}Attribute" for each in replay.read("cdsetool/attributes.json")}
    search_odata(session, endpoints, **QUERY, tiles=["32TNT"])
    asked = re.findall(
        r"OData\.CSC\.(\w+)/any\(att:att/Name eq '(\w+)'",
        parse_qs(urlsplit(replay.server.requests[0][1]).query)["$filter"][0],
    )
    assert {name for _, name in asked} == {"productType", "cloudCover", "tileId"}
    assert all(kinds[name] == kind for kind, name in asked)
    assert listed["productType"] == kinds["productType"]


def test_five_pages_to_the_end_of_rows_that_are_no_scenes(replay, session, endpoints):
    pages = [replay.read(name) for name in PAGES]
    replay.odata, replay.count = [*pages], pages[0]["@odata.count"]
    asker = Asker(session, endpoints, 10)
    found = odata.rows(asker, Question(**{"ring" if key == "polygon" else key: each for key, each in QUERY.items()}))
    assert (len(found), {type(row) for row in found.values()}) == (47, {Odd})
    assert {row.name for row in found.values()} == {
        row["Name"].removesuffix(".SAFE") for page in pages for row in page["value"]
    }
    replay.odata = [*pages]
    with pytest.raises(ItemError, match=r"127\.0\.0\.1:\d+: an answer of another shape"):
        search_odata(session, endpoints, **QUERY)


def test_rows_and_answers_of_other_kinds_are_named(replay, session, endpoints):
    replay.odata, replay.count, said = [replay.read("hls_downloader/example_checksum_response.json")], 1, []
    assert search_odata(session, endpoints, **QUERY, said=said.append) == []
    assert "S2A_MSIL1C_20231001T025531_N0509_R032_T50TNQ_20231001T044701 is left out" in said[0]
    replay.odata = [replay.read("hls_downloader/example_search_response.json")] * 9  # of the interface that was closed
    with pytest.raises(ItemError, match="the answer is not a JSON object with value"):
        search_odata(session, endpoints, **QUERY)


def test_the_identity_service_is_where_it_is_looked_for(replay, session):
    replay.server.scripts["/known"] = [Answer.json(replay.read("cdsetool/openid-configuration.json"))]
    known = get_json(session, "GET", f"{replay.server.url}/known")
    assert known["token_endpoint"] == CopernicusConfig().token
    assert {"password", "refresh_token"} <= set(known["grant_types_supported"])


def test_a_listing_of_nodes(replay, session, endpoints):
    recorded = replay.read("nodes_listing_example.json")
    name = recorded["result"][0]["Name"].removesuffix(".SAFE")
    replay.server.scripts[f"/odata/v1/Products(1)/Nodes({name}.SAFE)/Nodes"] = [Answer.json(recorded)]
    assert list_nodes(session, endpoints, "1", name) == [(f"{name}.SAFE", 0)]


def test_manifests(answers):
    assert len(band_files(read_manifest(answers / "eodag/manifest.safe.S2_MSI_L2A"))) == 4
    assert len(read_manifest(answers / "cdsetool/manifest.safe")) > 50
    with pytest.raises(CorruptFileError):
        read_manifest(answers / "cdsetool/broken_manifest.safe")


def test_no_recorded_answer_is_left_out(answers):
    """`errors.json` is read in test_session.py."""
    text = Path(__file__).read_text() + Path(__file__).with_name("test_session.py").read_text()
    found = {path.relative_to(answers).as_posix() for path in answers.rglob("*") if path.is_file()}
    found = {name for name in found if not name.endswith(("LICENSE", ".txt"))} - MADE_BY_A_CLIENT
    read = {name for name in found if name in text} | {*LANDING, *PAGES}
    read |= {name for name in found if re.match(rf"xcube_stac/({'|'.join(ITEMS)})_GET", name)}
    assert found - read == set()
