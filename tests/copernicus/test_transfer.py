import contextlib
import errno
import gzip
import hashlib
import json
import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import Answer, ranged

from cloudjob import files
from cloudjob.config.acquisition import CopernicusConfig
from cloudjob.copernicus import transfer
from cloudjob.copernicus.checks import Check, Wanted
from cloudjob.copernicus.patience import Patience
from cloudjob.copernicus.session import Endpoints
from cloudjob.copernicus.sources import Remote, https
from cloudjob.copernicus.sources.https import file_url, list_nodes, node_url
from cloudjob.copernicus.transfer import Limits, fetch
from cloudjob.errors import CorruptFileError, DiskFullError, InterruptedJob, ItemError, LeftOutError

SIZE = 3_000_000
DATA = b"\x00\x00\x00\x0cjP  \r\n\x87\n" + random.Random(0).randbytes(SIZE - 12)
SHA3 = ("SHA3-256", hashlib.sha3_256(DATA).hexdigest().upper())  # as manifests write it
ITEM = ("8e7057cf-af5f-46de-868e-fe5a8faa2d9c", "S2B_MSIL2A_20200705T101559_N0500_R065_T32TNT_20230530T175912")


QUICK = Limits(Patience(retries=3, seconds=15), slowest=1000)


class Nobody:
    """An account without tokens or limits."""

    def bearer(self, *, rejected=""):
        return "T"

    def slot(self):
        return contextlib.nullcontext()


@pytest.fixture
def get(server, endpoints, session, tmp_path):
    """Fetches DATA as <tmp_path>/new/f.jp2 from /f; returns the number of bytes that arrived."""
    target = tmp_path / "new" / "f.jp2"

    def get(size=SIZE, digest=SHA3, account=None, limits=QUICK, stopped=lambda: False, data=DATA):
        told = []
        source = https.Https(endpoints, account or Nobody(), lambda: session)
        fetch(
            lambda start: source.open(Remote("P"), target.name, start),
            target,
            Wanted(target.name, size, digest),
            limits=limits,
            stopped=stopped,
            tell=told.append,
        )
        assert target.read_bytes() == data
        assert list(target.parent.iterdir()) == [target]
        return sum(told)

    get.target, get.part = target, target.with_name("f.jp2.part")
    target.parent.mkdir()
    return get


@pytest.fixture(autouse=True)
def short_addresses(monkeypatch):
    monkeypatch.setattr(https, "file_url", lambda endpoints, product_id, product, path: f"{endpoints.download[:-9]}/f")


def left(get) -> list[Path]:
    return list(get.target.parent.iterdir())


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


@pytest.mark.parametrize(("size", "digest"), [(SIZE, SHA3), (SIZE, None), (None, SHA3), (None, None)])
def test_whole_file(server, get, size, digest):
    server.scripts["/f"] = [Answer(200, DATA)]
    assert get(size, digest) == SIZE
    assert ranges(server) == [None]


def test_empty_file(server, get):
    server.scripts["/f"] = [Answer(200, b"")]
    assert get(0, None, data=b"") == 0


def test_dropped_connections_are_resumed_where_they_ended(server, get):
    server.scripts["/f"] = [ranged(DATA, cut=1_200_000), ranged(DATA, cut=0), ranged(DATA, cut=50_000), ranged(DATA)]
    assert get() == SIZE
    assert ranges(server) == [None] + [f"bytes={start}-" for start in (1_200_000, 1_200_000, 1_250_000)]


def test_what_earlier_runs_have_left_is_used(server, get):
    get.part.write_bytes(DATA[:1000])
    get.part.with_name("f.jp2.0123abcd.part").write_bytes(DATA[: SIZE - 1])
    server.scripts["/f"] = [ranged(DATA)]
    assert get() == 1
    assert ranges(server) == [f"bytes={SIZE - 1}-"]


def test_a_whole_part_needs_no_request(server, get):
    get.part.write_bytes(DATA)
    get()
    assert server.requests == []


def test_who_wrote_a_part_before_writes_into_it_no_more(server, get):
    """A suspended process that wakes up, and had the part open."""
    with get.part.open("wb", buffering=0) as other:
        other.write(DATA[:1000])

        def answer(request):
            other.write(b"what it had read")
            return ranged(DATA)(request)

        server.scripts["/f"] = [answer]
        get()


@pytest.mark.parametrize("size", [SIZE, None])
@pytest.mark.parametrize("left", [b"rubbish" + DATA[7:1000], DATA[:900] + b"x" * 100, DATA + b"tail"])
def test_a_wrong_part_is_thrown_away(server, get, left, size):
    get.part.write_bytes(left)
    server.scripts["/f"] = [ranged(DATA)]
    get(size)
    if not left.startswith(DATA[:900]) or (size and len(left) > size):
        assert ranges(server) == [None]  # it shows before anything is asked for


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, DATA),
        Answer(206, DATA[900:], {"Content-Range": f"bytes 900-{SIZE - 1}/{SIZE}"}),
        Answer(206, DATA[1000:]),
        Answer(416),
        Answer(400),
        Answer(403),
    ],
    ids=["200", "another start", "no Content-Range", "416", "400", "403"],
)
def test_what_does_not_continue_the_part_starts_from_zero(server, get, answer):
    get.part.write_bytes(DATA[:1000])
    server.scripts["/f"] = [answer, ranged(DATA)]
    assert get() == SIZE
    assert ranges(server) == ["bytes=1000-"] + ([] if answer.status == 200 else [None])


def test_a_range_of_a_file_of_another_size_starts_from_zero(server, get):
    get.part.write_bytes(DATA[:1000])
    server.scripts["/f"] = [
        Answer(206, DATA[1000:] + b"x", {"Content-Range": f"bytes 1000-{SIZE}/{SIZE + 1}"}),
        ranged(DATA),
    ]
    get()


@pytest.mark.parametrize("wrong", [DATA[:-1] + b"x", DATA + b"x"])
def test_wrong_bytes_are_fetched_once_more_even_without_retries(server, get, wrong):
    server.scripts["/f"] = [Answer(200, wrong), Answer(200, DATA)]
    get(limits=Limits(Patience(retries=0)))


def test_wrong_bytes_again_and_again_are_an_error(server, get):
    server.scripts["/f"] = [Answer(200, DATA[:-1] + b"x")]
    with pytest.raises(CorruptFileError, match=r"SHA3-256 is .* instead of .*; 5 tries") as error:
        get()
    assert error.value.path == get.target
    assert len(server.requests) == 5  # once more, then `retries`
    assert left(get) == []


def test_a_file_that_is_another_by_now_is_named_as_corrupt(server, get):
    """Its own length is whole for the server: who asks may find that the manifest has changed too."""
    server.scripts["/f"] = [ranged(DATA[:-5])]
    with pytest.raises(CorruptFileError, match=f"{SIZE - 5} bytes instead of {SIZE}"):
        get()


def test_a_source_that_never_continues_and_always_breaks_off_is_given_up(server, get):
    server.scripts["/f"] = [Answer(200, DATA, cut=2_000_000)]
    with pytest.raises(ItemError, match=r"broke off.*; 5 tries"):
        get()


def test_what_stays_short_is_an_error_that_keeps_the_part(server, get):
    server.scripts["/f"] = [ranged(DATA, cut=70_000), ranged(DATA, cut=0)]
    with pytest.raises(ItemError, match=r"f.jp2: .*broke off.*; 5 tries"):
        get()
    (part,) = left(get)
    assert part.read_bytes() == DATA[:70_000]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<!DOCTYPE html><p>Maintenance", {"Content-Type": "text/html; charset=utf-8"}),
        Answer.json({"code": "X", "message": "Maintenance"}),
        Answer(200, b"<!DOCTYPE html><p>Maintenance" + bytes(100)),
        Answer(200, gzip.compress(DATA[:100]), {"Content-Encoding": "gzip"}),
        Answer(206, DATA[:100], {"Content-Range": f"bytes 0-99/{SIZE}"}),
    ],
    ids=["HTML", "JSON", "HTML that says nothing", "encoded", "206 unasked"],
)
@pytest.mark.parametrize("known", [True, False])
def test_messages_with_status_200_are_no_file(server, get, answer, known):
    expected = (SIZE, SHA3) if known else (None, None)
    server.scripts["/f"] = [answer, answer, Answer(200, DATA)]
    get(*expected)
    get.target.unlink()
    server.scripts["/f"] = [answer]
    words = "sent a message instead: .*Maintenance" if answer.headers.get("Content-Type") else ""
    with pytest.raises(ItemError, match=rf"f.jp2: .*{words}"):
        get(*expected)
    assert left(get) == []


@pytest.mark.parametrize("body", [b"<!DOCTYPE html>\n<html>", b"  <HTML>", b'{"code": 1}'])
def test_a_page_is_no_metadata(body):
    for name in ("MTD_TL.xml", "manifest.safe"):
        check = Check(Wanted(name))
        check.add(body)
        assert "is no XML" in check.wrong()
        check = Check(Wanted(name))
        check.add(b'\xef\xbb\xbf<?xml version="1.0"?><n1:Level-2A>')
        assert check.wrong() is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer.json({"code": "DAT-ZIP-604", "message": "Token not found"}, 401), "HTTP 401 DAT-ZIP-604 Token not"),
        (Answer.json({"code": "X", "message": "offline"}, 422), "HTTP 422 X offline"),
        (Answer(404), "HTTP 404"),
    ],
)
def test_refusals_carry_the_words_of_the_service_and_leave_no_file(server, get, answer, words):
    server.scripts["/f"] = [answer]
    with pytest.raises(ItemError, match=f"f.jp2: .*{words}"):
        get(None, None)
    assert left(get) == []


@pytest.mark.parametrize(("status", "gone"), [(404, True), (410, True), (403, False), (422, False)])
def test_what_the_archive_does_not_have_is_left_out(server, get, status, gone):
    server.scripts["/f"] = [Answer(status)]
    with pytest.raises(ItemError) as error:
        get(None, None)
    assert isinstance(error.value, LeftOutError) == gone


def test_what_is_not_there_for_a_moment_is_not_gone(server, get):
    server.scripts["/f"] = [Answer(404), Answer(404), Answer(200, DATA)]
    get()


def test_a_token_that_is_refused_is_asked_for_anew(server, get):
    class Account(Nobody):
        def __init__(self):
            self.asked = []

        def bearer(self, *, rejected=""):
            self.asked.append(rejected)
            return f"A{len(self.asked)}"

    ended = Answer.json({"code": "DAT-ZIP-109", "message": "token expired"}, 401)
    server.scripts["/f"] = [ended, ended, ended, ended, ranged(DATA, cut=9), ended, ranged(DATA)]
    account = Account()
    get(account=account)
    assert [headers["Authorization"] for _, _, headers, _ in server.requests] == [f"Bearer A{n}" for n in range(1, 8)]
    assert account.asked == ["", "A1", "", "A3", "", "", "A6"]


@pytest.mark.parametrize("size", [SIZE, None])
def test_a_body_that_drips_is_given_up_and_begun_anew(server, get, size):
    server.scripts["/f"] = [Answer(200, DATA, drip=0.02), ranged(DATA)]
    get(size)
    assert len(server.requests) == 2
    get.target.unlink()
    server.scripts["/f"] = [Answer(200, DATA, drip=0.02)]
    with pytest.raises(ItemError, match=r"bytes in 0.05 s, which is too slow; \d tries"):
        get(limits=Limits(Patience(retries=2, seconds=1.5), slowest=1000))


def test_an_answer_without_end_is_given_up(server, get):
    server.scripts["/f"] = [Answer(200, DATA, drip=0.001)]
    with pytest.raises(ItemError, match=r"not whole after 0.1 s; 1 tries"):
        get(limits=Limits(Patience(retries=0), longest=0.1, slowest=0))


def test_a_stop_ends_a_body_that_sends_nothing(server, get):
    begin, stop = time.monotonic(), threading.Event()
    get.part.write_bytes(DATA[:1000])
    server.scripts["/f"] = [Answer(206, DATA[1000:], {"Content-Range": f"bytes 1000-{SIZE - 1}/{SIZE}"}, drip=3)]
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(InterruptedJob, match=r"f.jp2: stopped"):
        get(stopped=stop.is_set, limits=Limits(Patience(seconds=30)))
    assert time.monotonic() - begin < 1
    assert [part.stat().st_size for part in left(get)] == [1000]


def test_a_stop_ends_the_wait_for_another_try(server, get):
    server.scripts["/f"] = [Answer(404)]
    begin = time.monotonic()
    with pytest.raises(InterruptedJob):
        get(stopped=lambda: bool(server.requests), limits=Limits())
    assert time.monotonic() - begin < 1


def test_a_connection_is_kept_for_the_next_file(server, get):
    server.scripts["/f"] = [Answer(200, DATA)]
    for _ in range(3):
        get()
        get.target.unlink()
    assert server.connections == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_the_part_stays(server, get, monkeypatch, number):
    def flush(path):
        raise OSError(number, "full")

    server.scripts["/f"] = [ranged(DATA)]
    monkeypatch.setattr(transfer, "flush", flush)
    with pytest.raises(DiskFullError, match=rf"{get.target.parent}: no space left, f.jp2 needs {SIZE} bytes"):
        get()
    (part,) = left(get)
    assert part.read_bytes() == DATA


def test_who_lost_its_lease_gives_no_name(server, get, monkeypatch):
    def lost():
        raise InterruptedJob("another process took it over")

    def answer(request):
        monkeypatch.setattr(files, "guards", [lost])
        return Answer(200, DATA)

    server.scripts["/f"] = [answer]
    with pytest.raises(InterruptedJob, match="took it over"):
        get()
    assert not get.target.exists()


@given(
    data=st.binary(max_size=300),
    cuts=st.lists(st.integers(0, 300), max_size=6),
    part=st.binary(max_size=40),
    whole=st.booleans(),
)
def test_whatever_breaks_off_the_file_is_right_or_not_there(data, cuts, part, whole, tmp_path_factory):
    """Bodies that end anywhere, parts of anything: all that gets the final name is the data."""
    target = tmp_path_factory.mktemp("f") / "f"
    target.with_name("f.part").write_bytes(data[: len(part)] if whole else part)
    left = list(cuts)

    class Body:
        def __init__(self, start):
            self.start, self.rest = start, data[start:][: left.pop() if left else None]

        def read(self):
            block, self.rest = self.rest[:7], self.rest[7:]
            return block

        def stop(self):
            pass

        close = stop

    file = Wanted("f", len(data), ("MD5", hashlib.md5(data).hexdigest()))
    with contextlib.suppress(ItemError):
        fetch(Body, target, file, limits=Limits(Patience(retries=3, seconds=1), slowest=0))
    assert not target.exists() or target.read_bytes() == data
    assert target.exists() or len(cuts) > 3
