import hashlib
import json
from datetime import date

import pytest
import requests
from examples import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from cloudjob.archive import server as module
from cloudjob.archive.make import make_synthetic
from cloudjob.archive.server import ArchiveServer

TOKEN = "/auth/realms/CDSE/protocol/openid-connect/token"
WIDE = {"type": "Polygon", "coordinates": [[[-165, 66], [-135, 66], [-135, 73], [-165, 73], [-165, 66]]]}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    names = make_synthetic(
        folder,
        tiles=["05WPS", "06WVC"],
        size=64,
        clear=[date(2024, 3, 1), date(2024, 3, 21)],
        cloudy=[date(2024, 3, 6), date(2024, 3, 11)],
        seed=1,
        cloud=(0.2, 0.8),
    )
    (folder / f"{names[0]}.SAFE" / "large.bin").touch()
    with (folder / f"{names[0]}.SAFE" / "large.bin").open("wb") as file:
        file.truncate(64 << 20)  # sparse; larger than what sockets hold on the way
    with ArchiveServer(folder) as server:
        yield server, folder, names


@pytest.fixture(scope="module")
def bearer(served):
    form = {"grant_type": "password", "client_id": "cdse-public", "username": "ann", "password": "x"}
    answer = requests.post(served[0].url + TOKEN, data=form)
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def stac(served, **body):
    answer = requests.post(f"{served[0].url}/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stac_names(served, **body):
    return [feature["id"] for feature in stac(served, limit=100, **body)["features"]]


def odata(served, text="", **options):
    options = {f"${key}": value for key, value in options.items()}
    return requests.get(f"{served[0].url}/odata/v1/Products", params={"$filter": text, **options})


def odata_names(served, text):
    answer = odata(served, text)
    assert answer.status_code == 200, answer.text
    return [row["Name"].removesuffix(".SAFE") for row in answer.json()["value"]]


def value_url(served, name, path):
    item = requests.get(f"{served[0].url}/v1/collections/sentinel-2-l2a/items/{name}").json()
    asset = next(a for a in item["assets"].values() if a["file:local_path"].endswith(path))
    return asset["alternate"]["https"]["href"], asset


@pytest.mark.slow
def test_items_have_the_members_of_real_ones(served, shared_data):
    real = json.loads(next(shared_data.glob("cdse_answers/xcube_stac/05_POST*")).read_text())
    ours = stac(served)
    assert set(ours) == set(real)
    theirs, mine = real["features"][0], ours["features"][0]
    assert set(mine) == set(theirs)
    assert set(mine["properties"]) == set(theirs["properties"])
    assert set(mine["properties"]["statistics"]) == set(theirs["properties"]["statistics"])
    assert set(mine["assets"]) <= set(theirs["assets"])
    for key in ("B04_10m", "SCL_20m", "TCI_60m", "granule_metadata"):
        missing = set(theirs["assets"][key]) - set(mine["assets"][key])
        assert missing <= {"view:azimuth", "view:incidence_angle", "classification:classes", "bands"}, key
    assert mine["assets"]["B04_10m"]["file:checksum"][:4] in ("1620", "d501")
    empty = json.loads(next(shared_data.glob("cdse_answers/xcube_stac/19_POST*")).read_text())
    assert set(stac(served, ids=["nothing"])) == set(empty)


def test_rows_have_the_members_of_real_ones(served, shared_data):
    real = json.loads((shared_data / "cdse_answers" / "eodag" / "cop_dataspace_search.json").read_text())
    ours = odata(served, top=2, expand="Attributes,Assets").json()
    assert set(ours) == set(real)
    assert ours["@odata.context"] == real["@odata.context"]
    theirs, mine = real["value"][0], ours["value"][0]
    assert list(mine) == list(theirs)
    assert {a["Name"] for a in theirs["Attributes"]} == {a["Name"] for a in mine["Attributes"]}
    assert set(mine["Attributes"][0]) == set(theirs["Attributes"][0])
    assert set(mine["Assets"][0]) == set(theirs["Assets"][0])
    assert "Attributes" not in odata(served, top=1).json()["value"][0]


def test_listing_has_the_members_of_a_real_one(served, shared_data):
    real = json.loads((shared_data / "cdse_answers" / "nodes_listing_example.json").read_text())
    row = odata(served, top=1).json()["value"][0]
    ours = requests.get(f"{served[0].url}/odata/v1/Products({row['Id']})/Nodes").json()
    assert set(ours) == set(real)
    assert set(ours["result"][0]) == set(real["result"][0])
    below = requests.get(ours["result"][0]["Nodes"]["uri"]).json()["result"]
    assert {"GRANULE", "MTD_MSIL2A.xml", "manifest.safe"} <= {node["Name"] for node in below}


@examples(12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, 9))
def test_stac_pages_neither_lose_nor_repeat(served, limit):
    body, names = {"limit": limit, "sortby": [{"field": "datetime", "direction": "asc"}]}, []
    method, url = "POST", f"{served[0].url}/v1/search"
    while url:
        page = requests.request(method, url, json=body).json()
        assert len(page["features"]) == page["numberReturned"] <= limit
        names += [feature["id"] for feature in page["features"]]
        following = next((link for link in page["links"] if link["rel"] == "next"), None)
        method, url, body = (following[k] for k in ("method", "href", "body")) if following else ("", "", {})
    assert names == sorted(served[2], key=lambda name: (name[11:26], name))


@examples(12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(top=st.integers(1, 9))
def test_odata_pages_neither_lose_nor_repeat(served, top):
    page, names = odata(served, top=top, count="true", orderby="ContentDate/Start asc").json(), []
    while page["value"]:
        assert page["@odata.count"] == len(served[2])
        names += [row["Name"].removesuffix(".SAFE") for row in page["value"]]
        page = requests.get(page["@odata.nextLink"]).json() if "@odata.nextLink" in page else {"value": []}
    assert len(names) == len(set(names))
    assert set(names) == set(served[2])


def test_token_of_another_search_is_refused(served):
    first = stac(served, limit=2)
    token = next(link for link in first["links"] if link["rel"] == "next")["body"]["token"]
    answer = requests.post(f"{served[0].url}/v1/search", json={"limit": 3, "token": token})
    assert answer.status_code == 400


def test_stac_filters(served):
    names = served[2]
    may = [n for n in names if n[11:19] <= "20240306"]
    assert set(stac_names(served, datetime="2024-03-01T00:00:00Z/2024-03-06T23:59:59Z")) == set(may)
    assert set(stac_names(served, datetime="../2024-03-06T23:59:59Z")) == set(may)
    assert set(stac_names(served, query={"grid:code": {"eq": "MGRS-05WPS"}})) == {n for n in names if "05WPS" in n}
    cloudy = set(stac_names(served, query={"eo:cloud_cover": {"gte": 10, "lte": 100}}))
    assert {n[11:19] for n in cloudy} == {"20240306", "20240311"}
    assert set(stac_names(served, intersects=WIDE)) == set(stac_names(served, bbox=[-165, 66, -135, 73])) == set(names)
    assert stac_names(served, bbox=[0, 0, 1, 1]) == []
    assert stac_names(served, collections=["sentinel-1-grd"]) == []


def test_cql2_filter_says_the_same_as_query(served):
    terms = [
        {"op": "=", "args": [{"property": "grid:code"}, "MGRS-06WVC"]},
        {"op": "between", "args": [{"property": "eo:cloud_cover"}, 10, 100]},
        {"op": "s_intersects", "args": [{"property": "geometry"}, WIDE]},
        {"op": ">=", "args": [{"property": "datetime"}, {"timestamp": "2024-03-01T00:00:00Z"}]},
        {"op": "<", "args": [{"property": "datetime"}, {"timestamp": "2024-03-10T00:00:00Z"}]},
    ]
    found = stac_names(served, filter={"op": "and", "args": terms}, **{"filter-lang": "cql2-json"})
    assert found == [n for n in served[2] if "06WVC" in n and n[11:19] == "20240306"]


def test_odata_filters_of_real_clients(served):
    text = (
        "Collection/Name eq 'SENTINEL-2' and "
        "Attributes/OData.CSC.StringAttribute/any(att:att/Name eq 'productType' and "
        "att/OData.CSC.StringAttribute/Value eq 'S2MSI2A') and "
        "Attributes/OData.CSC.StringAttribute/any(att:att/Name eq 'tileId' and "
        "att/OData.CSC.StringAttribute/Value eq '{tile}') and "
        "Attributes/OData.CSC.DoubleAttribute/any(att:att/Name eq 'cloudCover' and "
        "att/OData.CSC.DoubleAttribute/Value ge 10.00) and "
        "OData.CSC.Intersects(area=geography'SRID=4326;POLYGON((-165 66,-135 66,-135 73,-165 73,-165 66))') and "
        "ContentDate/Start ge 2024-03-01T00:00:00.000Z and ContentDate/Start lt 2024-03-10T00:00:00.000Z"
    )
    expected = [n for n in served[2] if "05WPS" in n and n[11:19] == "20240306"]
    assert odata_names(served, text.format(tile="05WPS")) == expected
    assert odata_names(served, text.format(tile="T05WPS")) == []  # as there: no error, no rows
    assert odata_names(served, f"contains(Name,'{served[2][3]}')") == [served[2][3]]
    assert len(odata_names(served, "startswith(Name,'S2') and not (contains(Name,'05WPS'))")) == 4
    both = f"Name eq '{served[2][0]}.SAFE' or Name eq '{served[2][5]}.SAFE'"
    assert set(odata_names(served, f"({both}) and Online eq true")) == {served[2][0], served[2][5]}


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"text": "cloudCover le 10"}, 400),
        ({"text": "OData.CSC.Intersects(area=geography'SRID=4326;POLYGON((1 2')"}, 400),
        ({"top": "-1"}, 422),
        ({"top": "1001"}, 422),
        ({"skip": "10001"}, 422),
        ({"orderby": "Name"}, 400),
    ],
)
def test_questions_that_are_not_understood_get_json(served, options, status):
    answer = odata(served, **options)
    assert answer.status_code == status
    assert "detail" in answer.json()


def test_grants(served):
    def grant(**form):
        answer = requests.post(served[0].url + TOKEN, data=form)
        return answer.status_code, answer.json()

    status, first = grant(grant_type="password", client_id="cdse-public", username="ann", password="x")
    assert (status, first["expires_in"], first["refresh_expires_in"]) == (200, 600, 3600)
    status, second = grant(grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert status == 200
    assert second["access_token"] != first["access_token"]
    for wrong in ({"grant_type": "password", "username": "ann"}, {"grant_type": "refresh_token"}, {}):
        status, body = grant(**wrong)
        assert (status, body["error"]) == (401, "invalid_grant")


def test_file_comes_whole_and_in_ranges(served, bearer):
    url, asset = value_url(served, served[2][0], "B04_10m.jp2")
    whole = requests.get(url, headers=bearer)
    assert (whole.status_code, len(whole.content)) == (200, asset["file:size"])
    code, digest = asset["file:checksum"][:4], asset["file:checksum"][4:]
    assert digest.endswith((hashlib.sha3_256 if code == "1620" else hashlib.md5)(whole.content).hexdigest())
    size = len(whole.content)
    for header, part in (("100-", slice(100, None)), ("5-9", slice(5, 10)), ("-7", slice(-7, None))):
        answer = requests.get(url, headers=bearer | {"Range": f"bytes={header}"})
        assert (answer.status_code, answer.content) == (206, whole.content[part])
        first, last, _ = part.indices(size)
        assert answer.headers["Content-Range"] == f"bytes {first}-{last - 1}/{size}"
    assert requests.get(url, headers=bearer | {"Range": f"bytes={size}-"}).status_code == 416


def test_one_connection_serves_many_requests(served, bearer):
    url, _ = value_url(served, served[2][0], "MTD_TL.xml")
    with requests.Session() as session:
        session.headers.update(bearer)
        for _ in range(20):
            assert session.get(url).status_code == 200
            assert session.get(url.replace("MTD_TL", "absent")).status_code == 404
        (pool,) = session.adapters["http://"].poolmanager.pools._container.values()
        assert pool.num_connections == 1


def test_refusals_of_a_download(served, bearer, monkeypatch):
    url, _ = value_url(served, served[2][0], "B04_10m.jp2")
    anonymous = requests.get(url)
    assert (anonymous.status_code, anonymous.json()["code"]) == (401, "DAT-ZIP-604")
    assert requests.get(url, headers={"Authorization": "Bearer made-up"}).json()["code"] == "DAT-ZIP-604"
    quoted = requests.get(url.replace("(GRANULE)", "('GRANULE')"), headers=bearer)
    assert (quoted.status_code, quoted.json()["code"]) == (400, "DAT-ZIP-104")
    outside = requests.get(url.replace("Nodes(GRANULE)", "Nodes(..)"), headers=bearer)
    assert outside.status_code == 404
    identifier = url.partition("Products(")[2].partition(")")[0]
    assert requests.get(url.replace(identifier, "12"), headers=bearer).status_code == 422
    assert requests.get(url.replace(identifier, identifier[::-1]), headers=bearer).status_code == 404
    monkeypatch.setattr(module, "TOKEN_SECONDS", -1)
    form = {"grant_type": "password", "username": "ann", "password": "x"}
    expired = requests.post(served[0].url + TOKEN, data=form).json()["access_token"]
    answer = requests.get(url, headers={"Authorization": f"Bearer {expired}"})
    assert (answer.status_code, answer.json()["code"]) == (401, "DAT-ZIP-109")


@pytest.mark.slow
def test_fifth_transfer_of_an_account_is_refused(served, bearer):
    url, _ = value_url(served, served[2][0], "MTD_MSIL2A.xml")
    large = url.replace("MTD_MSIL2A.xml", "large.bin")
    form = {"grant_type": "password", "username": "bob", "password": "x"}
    bob = {"Authorization": f"Bearer {requests.post(served[0].url + TOKEN, data=form).json()['access_token']}"}
    running = [requests.get(large, headers=bob, stream=True) for _ in range(4)]
    fifth = requests.get(large, headers=bob, stream=True)
    assert (fifth.status_code, fifth.json()["code"]) == (429, "DAT-ZIP-100")
    assert requests.get(url, headers=bearer).status_code == 200  # another account has slots of its own
    assert len(running[0].content) == 64 << 20  # one is through: its slot is free at once
    assert requests.get(url, headers=bob).status_code == 200
    for transfer in running:
        transfer.close()


def test_the_end_of_the_server_ends_its_connections(served):
    with requests.Session() as session:
        with ArchiveServer(served[1]) as server:
            assert session.get(f"{server.url}/v1").status_code == 200
        with pytest.raises(requests.ConnectionError):
            session.get(f"{server.url}/v1")
