import errno
import hashlib
import json
import random

import pytest
from scripted_server import Answer, ranged

from cloudjob.config.acquisition import CopernicusConfig
from cloudjob.copernicus import transfer
from cloudjob.copernicus.session import Endpoints
from cloudjob.copernicus.token import TokenSource
from cloudjob.copernicus.transfer import fetch, file_url, list_nodes, node_url
from cloudjob.errors import CorruptFileError, DiskFullError, ItemError, LeftOutError

SIZE = 3_000_000
DATA = random.Random(0).randbytes(SIZE)
SHA3 = ("SHA3-256", hashlib.sha3_256(DATA).hexdigest().upper())  # as manifests write it
ITEM = ("8e7057cf-af5f-46de-868e-fe5a8faa2d9c", "S2B_MSIL2A_20200705T101559_N0500_R065_T32TNT_20230530T175912")


@pytest.fixture
def get(server, session, tmp_path):
    """Fetches DATA as <tmp_path>/new/f.jp2, and checks that progress adds up to its size when it gets there."""
    target = tmp_path / "new" / "f.jp2"

    def get(size=SIZE, digest=SHA3, token=None):
        told = []
        fetch(session, f"{server.url}/f", target, size=size, digest=digest, token=token, progress=told.append)
        assert sum(told) == len(DATA)
        assert target.read_bytes() == DATA
        assert list(target.parent.iterdir()) == [target]

    get.target, get.part = target, target.with_name("f.jp2.part")
    target.parent.mkdir()
    return get


def ranges(server) -> list[str | None]:
    return [headers.get("Range") for _, _, headers, _ in server.requests]


def test_addresses_are_those_of_the_data_space():
    granule = "GRANULE/L2A_T32TNT_A017394_20200705T101917"
    nodes = f"https://download.dataspace.copernicus.eu/odata/v1/Products({ITEM[0]})/Nodes({ITEM[1]}.SAFE)"
    real = Endpoints(**CopernicusConfig().urls())
    assert node_url(real, *ITEM) == nodes
    assert file_url(real, *ITEM, f"{granule}/MTD_TL.xml") == (
        f"{nodes}/Nodes(GRANULE)/Nodes(L2A_T32TNT_A017394_20200705T101917)/Nodes(MTD_TL.xml)/$value"
    )


def test_recorded_folder_listing(server, endpoints, session, shared_data):
    recorded = json.loads((shared_data / "cdse_answers/nodes_listing_example.json").read_text())
    path = f"/odata/v1/Products({ITEM[0]})/Nodes({ITEM[1]}.SAFE)/Nodes"
    server.scripts[path] = [Answer.json(recorded), Answer.json({"value": []})]
    assert list_nodes(session, endpoints, *ITEM) == [
        ("S2A_MSIL1C_20180927T051221_N0206_R033_T42FXL_20180927T073143.SAFE", 0)
    ]
    with pytest.raises(ItemError, match="listing of another shape"):
        list_nodes(session, endpoints, *ITEM)


@pytest.mark.parametrize(("size", "digest"), [(len(DATA), SHA3), (None, None)])
def test_whole_file(server, get, size, digest):
    server.scripts["/f"] = [Answer(200, DATA)]
    get(size, digest)
    assert ranges(server) == [None]


def test_empty_file(server, session, tmp_path):
    server.scripts["/f"] = [Answer(200, b"")]
    fetch(session, f"{server.url}/f", tmp_path / "f", size=0)
    assert (tmp_path / "f").read_bytes() == b""


@pytest.mark.slow
def test_dropped_connections_are_resumed_where_they_ended(server, get):
    block = 1 << 16  # what is written at a time
    server.scripts["/f"] = [
        ranged(DATA, cut=18 * block + 9),
        ranged(DATA, cut=0),
        ranged(DATA, cut=block),
        ranged(DATA),
    ]
    get()
    assert ranges(server) == [None] + [f"bytes={blocks * block}-" for blocks in (18, 18, 19)]


def test_what_an_earlier_run_has_left_is_used(server, get):
    get.part.write_bytes(DATA[:2_999_999])
    server.scripts["/f"] = [ranged(DATA)]
    get()
    assert ranges(server) == ["bytes=2999999-"]


def test_a_whole_part_needs_no_request(server, get):
    get.part.write_bytes(DATA)
    get()
    assert server.requests == []


@pytest.mark.parametrize("size", [len(DATA), None])
@pytest.mark.parametrize("left", [b"rubbish" + DATA[7:1000], DATA + b"tail"])
def test_a_wrong_part_is_thrown_away(server, get, left, size):
    get.part.write_bytes(left)
    server.scripts["/f"] = [ranged(DATA)]
    get(size)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, DATA),
        Answer(206, DATA[900:], {"Content-Range": f"bytes 900-{len(DATA) - 1}/{len(DATA)}"}),
        Answer(206, DATA[1000:], {"Content-Range": f"bytes 1000-{len(DATA)}/{len(DATA) + 1}"}),
        Answer(206, DATA[1000:]),
    ],
    ids=["200", "another start", "another size", "no Content-Range"],
)
def test_what_does_not_continue_the_part_starts_from_zero(server, get, answer):
    get.part.write_bytes(DATA[:1000])
    server.scripts["/f"] = [answer, ranged(DATA)]
    get()
    assert ranges(server) == ["bytes=1000-"] + ([None] if answer.status == 206 else [])


def test_wrong_bytes_are_fetched_once_more(server, get):
    server.scripts["/f"] = [Answer(200, DATA[:-1] + b"x"), Answer(200, DATA)]
    get()


@pytest.mark.parametrize(
    ("body", "reason"), [(DATA[:-1] + b"x", "SHA3-256 is .*, twice"), (DATA[:-1], "2999999 bytes instead of 3000000")]
)
def test_wrong_bytes_twice_are_an_error(server, get, body, reason):
    server.scripts["/f"] = [Answer(200, body)]
    with pytest.raises(CorruptFileError, match=reason) as error:
        get()
    assert error.value.path == get.target
    assert list(get.target.parent.iterdir()) == []


@pytest.mark.slow
def test_giving_up_keeps_the_part(server, get, monkeypatch):
    monkeypatch.setattr(transfer, "_BREAKS", 1)
    server.scripts["/f"] = [ranged(DATA, cut=1 << 16), ranged(DATA, cut=0)]
    with pytest.raises(ItemError, match="broke off at byte 65536, 2 times"):
        get()
    assert get.part.read_bytes() == DATA[: 1 << 16]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer.json({"code": "DAT-ZIP-604", "message": "Token not found"}, 401), "HTTP 401 DAT-ZIP-604 Token not"),
        (Answer.json({"code": "DAT-ZIP-100", "message": "Max session number exceeded"}, 429), "429 DAT-ZIP-100 Max"),
        (Answer.json({"code": "X", "message": "offline"}), "sent a message instead: .*offline"),
        (Answer(404), "HTTP 404"),
    ],
)
def test_refusals_carry_the_words_of_the_service_and_leave_no_file(server, get, answer, words):
    server.scripts["/f"] = [answer]
    with pytest.raises(ItemError, match=f"f.jp2: .*{words}"):
        get(None, None)
    assert list(get.target.parent.iterdir()) == []


@pytest.mark.parametrize(("status", "gone"), [(404, True), (410, True), (403, False), (422, False)])
def test_what_the_archive_does_not_have_is_left_out(server, get, status, gone):
    server.scripts["/f"] = [Answer(status)]
    with pytest.raises(ItemError) as error:
        get(None, None)
    assert isinstance(error.value, LeftOutError) == gone


def test_too_many_connections_are_waited_out(server, get):
    busy = Answer.json({"code": "DAT-ZIP-100", "message": "Max session number exceeded"}, 429)
    server.scripts["/f"] = [busy, busy, Answer(200, DATA)]
    get()


def test_an_ended_token_is_renewed_once(server, endpoints, session, get):
    def tokens(number):
        return Answer.json(
            {
                "access_token": f"A{number}",
                "refresh_token": "R",
                "expires_in": 600,
                "refresh_expires_in": 3600,
            }
        )

    ended = Answer.json({"code": "DAT-ZIP-109", "message": "token expired"}, 401)
    server.scripts["/token"] = [tokens(1), tokens(2)]
    server.scripts["/f"] = [ended, Answer(200, DATA)]
    source = TokenSource(endpoints, session, "me", "secret")
    get(token=source)
    asked = [(path, headers.get("Authorization")) for _, path, headers, _ in server.requests]
    assert asked == [("/token", None), ("/f", "Bearer A1"), ("/token", None), ("/f", "Bearer A2")]

    get.target.unlink()
    server.requests.clear()
    server.scripts["/f"] = [ended]
    with pytest.raises(ItemError, match="DAT-ZIP-109"):
        get(token=source)
    assert [path for _, path, *_ in server.requests] == ["/f", "/token", "/f"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_the_part_stays(server, get, monkeypatch, number):
    def fsync(descriptor):
        raise OSError(number, "full")

    server.scripts["/f"] = [ranged(DATA, cut=1000)]
    monkeypatch.setattr(transfer, "_BREAKS", 0)
    with pytest.raises(ItemError):
        get()
    monkeypatch.setattr(transfer.os, "fsync", fsync)
    server.scripts["/f"] = [ranged(DATA[:2000])]
    with pytest.raises(DiskFullError, match=rf"{get.target.parent}: no space left, f.jp2 needs \d+ bytes more"):
        get()
    assert get.part.exists()
