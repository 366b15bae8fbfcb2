"""Each fault on its own, as a client sees it: it comes once, then the same request gets what it asked for."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.archive import accounts, faults
from cloudjob.archive import server as archive_server
from cloudjob.archive.faults import Draws, Rules
from cloudjob.archive.hostile import HostileServer
from cloudjob.archive.make import make_synthetic
from cloudjob.archive.server import MAX_TRANSFERS, Refusal
from cloudjob.sentinel2.product import Product, check_file, read_manifest

TOKEN = "/auth/realms/CDSE/protocol/openid-connect/token"
BEARER = {"Authorization": "Bearer token-of-ann"}
SIGN_IN = {"grant_type": "password", "client_id": "cdse-public", "username": "ann", "password": "secret-of-ann"}
QUICK = {"slow_s": 0.05, "stalled_s": 0.05, "dripping_s": 0.0, "outage_s": 0.05, "retry_after": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("archive")
    make_synthetic(
        path,
        tiles=["05WPS"],
        size=64,
        clear=[date(2024, 3, 1), date(2024, 3, 4)],
        cloudy=[date(2024, 3, 7)],
        seed=1,
        cloud=(0.2, 0.8),
    )
    return path


@pytest.fixture
def serve(folder, tmp_path):
    """A function that starts a server with these faults, each of them certain; Ann has signed in."""
    with ExitStack() as stack:

        def start(*names: str, seed: int = 0, **rules) -> HostileServer:
            server = HostileServer(
                folder,
                rates=dict.fromkeys(names, 1.0),
                rules=Rules(**QUICK | rules),
                seed=seed,
                journal=tmp_path / "journal.jsonl",
            )
            server.access["token-of-ann"] = "ann", time.monotonic() + 600
            return stack.enter_context(server)

        yield start


@pytest.fixture
def journal(tmp_path):
    """A function that reads the journal in the order of the requests, once it has so many lines: one comes when its
    answer is through, perhaps after that of the next."""

    def read(count: int) -> list[dict]:
        for _ in range(1000):
            lines = (tmp_path / "journal.jsonl").read_text().splitlines()
            if len(lines) >= count:
                break
            time.sleep(0.01)
        assert len(lines) == count
        return sorted(map(json.loads, lines), key=lambda line: line["time"])

    return read


def band(server) -> tuple[str, Path]:
    """The address of a file, and where it lies."""
    entry = next(entry for entry in server.entries if entry.name not in server.twins)
    path = entry.product.files["B04_10m"]
    return f"{server.url}{entry.node_path(path)}/$value", entry.product.folder / path


def get(url: str, **options) -> requests.Response:
    return requests.get(url, headers=BEARER | options.pop("headers", {}), timeout=5, allow_redirects=False, **options)


def search(server, **body) -> dict:
    return requests.post(f"{server.url}/v1/search", json={"limit": 100, **body}, timeout=5).json()


def rows(server, **options) -> dict:
    options = {"$count": "true", "$top": "1000", "$expand": "Attributes"} | options
    return requests.get(f"{server.url}/odata/v1/Products", params=options, timeout=5).json()


def grant(server, **form) -> requests.Response:
    return requests.post(server.url + TOKEN, data=form or SIGN_IN, timeout=5)


# --- which request meets which fault --------------------------------------------------------------


@pytest.mark.slow
@given(seed=st.integers(0, 99), what=st.text(max_size=8), rate=st.floats(0, 1), times=st.integers(1, 3))
def test_all_drawn_faults_come_so_often_and_then_no_more(seed, what, rate, times):
    draws = Draws(dict.fromkeys(faults.ANYWHERE, rate), seed=seed, times=times)
    drawn = draws.of(what, faults.ANYWHERE)
    met = [draws.next(what, faults.ANYWHERE) for _ in range(times * len(drawn) + 2)]
    assert met == [fault for fault in drawn for _ in range(times)] + [None, None]


def test_threads_change_nothing():
    names = [f"file {number}" for number in range(50)] * 4

    def met(threads: int) -> dict[str, list]:
        draws, found = Draws(dict.fromkeys(faults.ANYWHERE, 0.2), seed=4), {name: [] for name in names}
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda name: found[name].append(draws.next(name, faults.ANYWHERE)), names))
        return {name: sorted(map(str, faults)) for name, faults in found.items()}

    assert met(1) == met(4)


def test_the_rate_is_the_share_of_what_meets_the_fault():
    draws = Draws({"short": 0.2, "reset": 0.0, "slow": 1.0}, seed=1)
    hits = [draws.of(f"file {number}", faults.ANYWHERE) for number in range(2000)]
    assert sum("short" in hit for hit in hits) == pytest.approx(400, abs=60)
    assert all("slow" in hit and "reset" not in hit for hit in hits)


def test_another_seed_draws_other_faults():
    def drawn(seed: int) -> list:
        draws = Draws(dict.fromkeys(faults.ANYWHERE, 0.5), seed=seed)
        return [sorted(draws.of(f"file {number}", faults.ANYWHERE)) for number in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_what_comes_always_comes_always():
    draws = Draws({"short": 1.0, "reset": 1.0}, times=0)
    assert len({draws.next("file", faults.ANYWHERE) for _ in range(9)}) == 1


# --- any request ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("rate_limited", 429),
        ("rate_limited_wait", 429),
        ("unavailable", 503),
        ("broken", 500),
        ("unauthorized", 401),
        ("missing", 404),
    ],
)
def test_refusals_of_a_file(serve, journal, fault, status):
    url, path = band(server := serve(fault))
    refused = get(url)
    assert refused.status_code == status
    assert refused.headers.get("Retry-After") == ("7" if fault == "rate_limited_wait" else None)
    assert refused.json()
    assert get(url).content == path.read_bytes()
    first, second = journal(2)
    assert (first["fault"], first["status"], first["account"], first["service"]) == (fault, status, "ann", "file")
    assert "fault" not in second
    assert second["bytes"] == second["size"] == path.stat().st_size
    assert second["path"] == url.removeprefix(server.url)


@pytest.mark.slow
def test_a_reset_connection_and_a_late_answer(serve):
    url, path = band(serve("reset"))
    with pytest.raises(requests.ConnectionError, match=r"reset|without response"):
        get(url)
    assert get(url).content == path.read_bytes()
    url, path = band(serve("slow"))
    begun = time.monotonic()
    assert get(url).content == path.read_bytes()
    assert time.monotonic() - begun > QUICK["slow_s"]


@pytest.mark.parametrize("fault", ["short", "stalled"])
def test_half_of_a_body(serve, journal, fault):
    url, path = band(serve(fault))
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        get(url)
    whole = path.read_bytes()
    half = len(whole) // 2
    rest = get(url, headers={"Range": f"bytes={half}-"})
    assert (rest.status_code, rest.content) == (206, whole[half:])
    first, second = journal(2)
    assert (first["bytes"], first["size"]) == (half, len(whole))
    assert second["range"] == f"bytes={half}-"
    assert (first["seconds"] >= QUICK["stalled_s"]) == (fault == "stalled")


def test_a_body_that_drips_ends_when_the_client_leaves(serve, journal):
    url, _ = band(serve("dripping", dripping_s=30))
    answer = get(url, stream=True)
    assert answer.raw.read(1)
    answer.close()
    (line,) = journal(1)
    assert line["bytes"] == 1
    assert line["left"]
    assert line["seconds"] < 5


@pytest.mark.parametrize(("fault", "media_type"), [("html", "text/html"), ("message", "application/json")])
def test_messages_with_status_200(serve, fault, media_type):
    url, path = band(serve(fault))
    answer = get(url)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, media_type)
    assert answer.content != path.read_bytes()
    assert get(url).content == path.read_bytes()


@pytest.mark.parametrize(("fault", "host"), [("other_host", "localhost"), ("other_port", "127.0.0.1")])
def test_redirects_lead_to_a_server_that_tells_on_who_follows(serve, journal, fault, host):
    server = serve(fault)
    url, path = band(server)
    place = get(url).headers["Location"]
    assert place.startswith(f"http://{host}:")
    assert not place.startswith(server.url)
    assert requests.get(place, headers=BEARER, timeout=5).content == b"not yours"
    assert requests.get(place, timeout=5).ok
    assert get(url).content == path.read_bytes()
    lines = journal(4)
    assert [line["service"] for line in lines] == ["file", "elsewhere", "elsewhere", "file"]
    assert [line.get("leaks") for line in lines] == [None, ["authorization"], None, None]


def test_a_password_and_a_search_that_follow_a_redirect_are_told(serve, journal):
    server = serve("other_host")
    assert grant(server).json()["access_token"] == "stolen"  # requests keeps method and body on 307
    assert search(server)["features"] == []
    assert {tuple(line["leaks"]) for line in journal(4) if "leaks" in line} == {("body",), ("search",)}


def test_in_an_outage_nobody_gets_an_answer(serve):
    server = serve("outage")
    url, path = band(server)
    for address in (url, f"{server.url}/v1"):
        with pytest.raises(requests.ConnectionError):
            get(address)
    time.sleep(QUICK["outage_s"])
    assert get(f"{server.url}/v1").ok
    assert get(url).content == path.read_bytes()


# --- files ----------------------------------------------------------------------------------------


def test_wrong_bytes(serve):
    url, path = band(serve("wrong_bytes"))
    wrong, right = get(url).content, path.read_bytes()
    assert sum(a != b for a, b in zip(wrong, right, strict=True)) == 1
    assert get(url).content == right


@pytest.mark.parametrize(
    ("fault", "status", "start"),
    [("range_error", 400, None), ("range_refused", 416, None), ("range_ignored", 200, 0), ("range_wrong", 206, 1)],
)
def test_answers_to_a_range(serve, fault, status, start):
    url, path = band(serve(fault))
    whole = path.read_bytes()
    assert get(url).content == whole  # the fault waits for a range
    answer = get(url, headers={"Range": "bytes=100-"})
    assert answer.status_code == status
    if start is not None:
        assert answer.content == whole[start:]
    if status == 206:
        assert answer.headers["Content-Range"] == f"bytes 1-{len(whole) - 1}/{len(whole)}"
    assert get(url, headers={"Range": "bytes=100-"}).content == whole[100:]


def test_speed_and_latency(serve):
    url, path = band(serve(speed=20_000, latency=0.1))
    pieces = path.stat().st_size // 400  # of 20 ms; the last one comes without a wait
    assert pieces > 5
    begun = time.monotonic()
    assert get(url).content == path.read_bytes()
    assert 0 <= time.monotonic() - begun - 0.1 - 0.02 * pieces < 1


# --- accounts -------------------------------------------------------------------------------------


@contextmanager
def open_transfers(url: str, count: int):
    running = [get(url, stream=True) for _ in range(count)]
    yield running
    for answer in running:
        answer.close()


def test_a_fifth_connection_is_refused_until_one_is_given_up(serve, journal):
    url, _ = band(serve(speed=1000))
    with open_transfers(url, MAX_TRANSFERS) as running:
        fifth = get(url, stream=True)
        assert (fifth.status_code, fifth.json()["code"]) == (429, "DAT-ZIP-100")
        running[0].close()
        with open_transfers(url, 1) as (again,):
            assert again.status_code == 200
    lines = journal(MAX_TRANSFERS + 2)
    assert max(line["running"] for line in lines) == MAX_TRANSFERS
    assert [line["status"] for line in lines].count(429) == 1


def test_who_has_left_counts_no_longer_though_its_thread_may_not_know(serve):
    server, pairs = serve(), [socket.socketpair() for _ in range(MAX_TRANSFERS + 1)]
    with ExitStack() as stack:
        ends = [[stack.enter_context(end) for end in pair] for pair in pairs]
        for near, _ in ends[:-1]:
            stack.enter_context(server.transfer("ann", near))
        with pytest.raises(Refusal), server.transfer("ann", ends[-1][0]):
            pass
        ends[1][1].close()
        with server.transfer("ann", ends[-1][0]) as count:
            assert count == MAX_TRANSFERS


def test_past_its_quota_an_account_has_one_connection(serve):
    server = serve(quota=1000)
    url, path = band(server)
    with open_transfers(url, 2) as running:
        assert [answer.status_code for answer in running] == [200, 200]
    assert get(url).content == path.read_bytes()
    near, far = socket.socketpair()
    with near, far, server.transfer("ann", near):
        assert get(url).status_code == 429


def test_tokens_live_as_long_as_the_file_says(serve, monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, time=time.time)
    for module in (accounts, archive_server):
        monkeypatch.setattr(module, "time", clock)
    server = serve(token_s=100, refresh_s=200)
    url, _ = band(server)
    answer = grant(server).json()
    assert (answer["expires_in"], answer["refresh_expires_in"]) == (100, 200)
    headers = {"Authorization": f"Bearer {answer['access_token']}"}
    clock.now = 99
    assert requests.get(url, headers=headers, timeout=5).ok
    clock.now = 101
    assert requests.get(url, headers=headers, timeout=5).json()["code"] == "DAT-ZIP-109"
    form = {"grant_type": "refresh_token", "refresh_token": answer["refresh_token"]}
    assert grant(server, **form).ok
    clock.now = 201
    assert grant(server, **form).status_code == 401


@pytest.mark.parametrize("rotating", [False, True])
def test_a_refresh_token_that_rotates_is_good_for_one_use(serve, rotating):
    server = serve(rotating=rotating)
    form = {"grant_type": "refresh_token", "refresh_token": grant(server).json()["refresh_token"]}
    assert grant(server, **form).ok
    assert grant(server, **form).status_code == (401 if rotating else 200)


def test_a_lost_refresh_token_stays_lost(serve):
    server = serve("refresh_lost")
    form = {"grant_type": "refresh_token", "refresh_token": grant(server).json()["refresh_token"]}
    assert (grant(server, **form).status_code, grant(server, **form).status_code) == (400, 401)
    assert grant(server).ok


# --- catalogues -----------------------------------------------------------------------------------


def names_of(page: dict) -> list[str]:
    return [row.get("id") or row["Name"] for row in page.get("features", page.get("value"))]


@pytest.mark.parametrize("ask", [search, rows])
def test_pages_that_lie(serve, ask):
    right = ask(serve())
    short, repeats = serve("page_short"), serve("page_repeats")
    assert names_of(ask(short)) == names_of(right)[:-1]
    assert names_of(ask(repeats)) == [*names_of(right)[:-1], names_of(right)[0]]
    for server in (short, repeats):
        assert names_of(ask(server)) == names_of(right)


@pytest.mark.parametrize(("ask", "size"), [(search, {"limit": 2}), (rows, {"$top": "2"})])
def test_links_that_lie(serve, ask, size):
    cut, astray = serve("page_last"), serve("page_elsewhere")
    assert [following(ask(cut, **size)) for _ in range(2)] == ["", cut.url]
    elsewhere = f"http://localhost:{astray.elsewhere.server_address[1]}"
    assert [following(ask(astray, **size)) for _ in range(2)] == [elsewhere, astray.url]


def following(page: dict) -> str:
    """The server that the next page is on."""
    links = [link["href"] for link in page.get("links", []) if link["rel"] == "next"]
    url = page.get("@odata.nextLink") or "".join(links)
    return "/".join(url.split("/")[:3])


def test_a_count_of_one_too_many(serve):
    server = serve("count_wrong")
    assert [rows(server)["@odata.count"] for _ in range(2)] == [4, 3]


@pytest.mark.parametrize("fault", faults.ROWS)
def test_checksums_that_are_none(serve, journal, fault):
    server = serve(fault)
    spoiled, right = search(server), search(server)
    first, second = journal(2)
    assert first["rows"] == dict.fromkeys(names_of(right), fault)
    assert "rows" not in second
    for ours, theirs in zip(spoiled["features"], right["features"], strict=True):
        sums = [{key: asset["file:checksum"] for key, asset in item["assets"].items()} for item in (ours, theirs)]
        other = [key for key in sums[0] if sums[0][key] != sums[1][key]]
        assert len(other) == (1 if fault == "checksum_wrong" else len(sums[0]))
        assert all(key.endswith("_10m") for key in other) or fault != "checksum_wrong"


@pytest.mark.slow
@pytest.mark.parametrize("kind", faults.TWINS)
def test_twins_are_odd_and_all_else_stays(serve, kind):
    plain, odd = serve(), serve(kind)
    for ask in (search, rows):
        before, after = ask(plain), ask(odd)
        assert len(names_of(after)) == 2 * len(names_of(before))
        assert len(set(names_of(after))) == len(names_of(after))
        kept = {name: row for name, row in zip(names_of(after), _rows(after), strict=True) if name in names_of(before)}
        assert [_without(row, odd.url) for row in kept.values()] == [_without(row, plain.url) for row in _rows(before)]
    twin = next(entry for entry in odd.entries if entry.name in odd.twins)
    manifest = get(f"{odd.url}{twin.node_path('manifest.safe')}/$value")
    assert manifest.status_code == (404 if kind in ("offline", "withdrawn") else 200)
    item = next(row for row in _rows(search(odd)) if twin.id in json.dumps(row))
    row = next(row for row in _rows(rows(odd)) if row["Id"] == twin.id)
    online = names_of(rows(odd, **{"$filter": "Online eq true"}))
    assert (row["Name"] in online) == (kind != "offline")
    sizes, sums = ([key in asset for asset in item["assets"].values()] for key in ("file:size", "file:checksum"))
    assert {
        "no_cloud_cover": "eo:cloud_cover" not in item["properties"] and "cloudCover" not in json.dumps(row),
        "no_size": not any(sizes) and row["ContentLength"] == 0,
        "no_checksum": not any(sums),
        "no_geometry": item["geometry"] is None and row["GeoFootprint"] is None and row["Footprint"] is None,
        "other_name": "_USER_" in item["id"] and "_USER_" in row["Name"],
        "offline": row["Online"] is False,
        "withdrawn": row["Online"],
    }[kind]


def test_a_twin_is_a_whole_product_under_its_own_name(serve):
    server = serve("no_size")
    for entry in server.entries:
        assert Product.open(entry.product.folder).name.name == entry.name == entry.product.folder.stem
        for file in read_manifest(entry.product.folder / "manifest.safe"):
            check_file(entry.product.folder, file)


def _rows(page: dict) -> list[dict]:
    return page.get("features", page.get("value"))


def _without(row: dict, address: str) -> str:
    return json.dumps(row).replace(address, "")


# --- the journal ----------------------------------------------------------------------------------


def test_credentials_where_they_should_not_be_are_told_and_not_kept(serve, journal, tmp_path):
    server = serve()
    url, _ = band(server)
    token = grant(server).json()["access_token"]
    requests.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=5)
    requests.get(f"{url}?token={token}", timeout=5)
    requests.get(f"{server.url}/odata/v1/Products?password=x", timeout=5)
    requests.get(f"{server.url}/v1", headers=BEARER, timeout=5)
    requests.post(f"{server.url}/v1/search", json={"ids": ["secret-of-ann"]}, timeout=5)
    requests.get(url, headers=BEARER | {"X-Key": "secret-of-ann"}, timeout=5)
    found = [line.get("leaks", []) for line in journal(7)]
    assert found == [[], [], ["address"], ["address"], ["authorization"], ["body"], ["headers"]]
    text = (tmp_path / "journal.jsonl").read_text()
    assert token not in text
    assert "secret-of-ann" not in text
