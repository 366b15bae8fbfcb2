import contextlib
import dataclasses
import json
import socketserver
import threading
import time

import pytest
from scripted_server import Answer, Server

from cloudjob.copernicus.patience import Patience, weather
from cloudjob.copernicus.session import _origin, ask, get_json, host_of, open_session
from cloudjob.errors import ConfigError, InterruptedJob, ItemError

WAF = {"error": "WAF", "message": "Rate limit exceeded", "status": 429}


@pytest.mark.parametrize("trouble", [Answer.json(WAF, 429), Answer(500), Answer(503)])
def test_passing_trouble_is_waited_out(server, session, trouble):
    server.scripts["/x"] = [trouble, trouble, Answer.json({"ok": 1})]
    assert get_json(session, "POST", f"{server.url}/x", json={"asked": 1}) == {"ok": 1}
    assert [body for *_, body in server.requests] == ['{"asked": 1}'] * 3


def test_half_an_answer_is_no_answer(server, session):
    server.scripts["/x"] = [Answer(200, b'{"a": 1} ', cut=8)]
    with pytest.raises(ItemError, match=r"no answer .*IncompleteRead"):
        get_json(session, "GET", f"{server.url}/x")


def test_retry_after_is_obeyed_and_a_stop_ends_the_wait(server, endpoints):
    server.scripts["/x"] = [Answer(429, headers={"Retry-After": "1"})]
    begun = time.monotonic()
    with (
        open_session(endpoints, stopped=lambda: time.monotonic() > begun + 0.5) as session,
        pytest.raises(InterruptedJob, match="HTTP 429"),
    ):
        get_json(session, "GET", f"{server.url}/x")
    assert 0.5 < time.monotonic() - begun < 1
    assert len(server.requests) == 1


def test_what_asks_for_more_than_our_patience_is_not_waited_for(server, session):
    server.scripts["/x"] = [Answer.json({"code": "Q", "message": "quota"}, 429, **{"Retry-After": "18000"})]
    with pytest.raises(ItemError, match=r"HTTP 429 Q quota\. It asks to wait 5 h\. Either .* run the same command"):
        get_json(session, "GET", f"{server.url}/x")
    assert len(server.requests) == 1


def test_a_quota_that_is_used_up_is_called_so(server, session):
    server.scripts["/x"] = [Answer.json({"code": "Q", "message": "Monthly quota exceeded"}, 403)]
    with pytest.raises(ItemError, match=r"HTTP 403 Q Monthly quota exceeded\. Either .* its quota is used up"):
        get_json(session, "GET", f"{server.url}/x")


def test_an_odd_retry_after_counts_as_none(server, session):
    server.scripts["/x"] = [Answer(503, headers={"Retry-After": "soon"}), Answer(200, b"{}")]
    assert get_json(session, "GET", f"{server.url}/x") == {}


def test_a_stop_is_heard_while_the_service_is_silent(server, endpoints):
    begun, ended = time.monotonic(), threading.Event()

    def silent(request) -> Answer:
        ended.wait(10)
        return Answer()

    server.scripts["/x"] = [silent]
    with (
        open_session(endpoints, stopped=lambda: time.monotonic() > begun + 0.1) as session,
        pytest.raises(InterruptedJob),
    ):
        ask(session, "GET", f"{server.url}/x")
    ended.set()
    assert time.monotonic() - begun < 1


class Dripping(socketserver.BaseRequestHandler):
    """One byte every 20 ms, for ever."""

    def handle(self):
        with contextlib.suppress(OSError):  # the client has had enough
            self.request.sendall(self.server.begins)
            while self.request.send(b"x"):
                time.sleep(0.02)
        self.server.left.set()


@pytest.mark.parametrize(
    "begins", [b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Long: "]
)
def test_an_answer_that_never_ends_is_given_up(endpoints, begins):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Dripping) as server:
        server.daemon_threads, server.block_on_close, server.left = True, False, threading.Event()
        server.begins = begins
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        session = open_session(endpoints, patience=Patience(retries=0, seconds=0.6))
        with pytest.raises(ItemError, match="not whole after"):
            ask(session, "GET", f"http://127.0.0.1:{server.server_address[1]}/x")
        assert server.left.wait(10)  # nobody reads on
        server.shutdown()


def test_a_silent_service_is_given_up(server, endpoints):
    ended = threading.Event()

    def silent(request) -> Answer:
        ended.wait(10)
        return Answer()

    server.scripts["/x"] = [silent]
    session = open_session(endpoints, patience=Patience(retries=0, seconds=0.6))
    with pytest.raises(ItemError, match=r"no answer .*timed out"):
        ask(session, "GET", f"{server.url}/x")
    ended.set()


def test_what_may_be_of_a_moment_is_asked_for_three_times(server, session):
    server.scripts["/x"] = [Answer(404), Answer(200, b"there")]
    assert ask(session, "GET", f"{server.url}/x", moment=(404,)).content == b"there"
    server.scripts["/y"] = [Answer(404)]
    assert ask(session, "GET", f"{server.url}/y", moment=(404,)).status_code == 404
    assert ask(session, "GET", f"{server.url}/z").status_code == 404
    assert [path for _, path, *_ in server.requests] == ["/x"] * 2 + ["/y"] * 3 + ["/z"]


def test_a_form_may_be_made_anew_for_each_try(server, session):
    server.scripts["/x"] = [Answer(503), Answer(200)]
    codes = iter("ab")
    ask(session, "POST", f"{server.url}/x", data=lambda: {"code": next(codes)})
    assert [body for *_, body in server.requests] == ["code=a", "code=b"]


def test_what_fails_by_itself_is_told_from_a_service_that_is_down(server, endpoints):
    """One request is answered with 503 for ever, while the service answers others: that one is given up alone."""
    said = []
    server.scripts["/x"] = [Answer(503)]
    with open_session(endpoints, patience=Patience(retries=2, seconds=0.9), said=said.append) as session:
        assert ask(session, "GET", f"{server.url}/x").status_code == 503
        assert [path for _, path, *_ in server.requests] == ["/x"] * 3 + ["/"]
        assert not said
        server.scripts["/"] = [Answer(503)]
        host = host_of(server.url)
        with pytest.raises(ItemError, match=f"{host}: no answer since ..:.. .HTTP 503"):
            ask(session, "GET", f"{server.url}/x")
        assert said[0].startswith(f"{host}: no answer since ")
        assert said[0].endswith("waiting up to 1 s")


def test_lasting_refusal_says_who_and_why(server, session, shared_data):
    recorded = [e for e in json.loads((shared_data / "cdse_answers/errors.json").read_text()) if "body" in e]
    recorded = [e for e in recorded if e["status"] and e["body"].startswith("{")]
    assert len(recorded) == 3
    for number, error in enumerate(recorded):
        body = json.loads(error["body"])
        server.scripts[f"/{number}"] = [Answer.json(body, error["status"])]
        host = server.url.removeprefix("http://")
        with pytest.raises(ItemError) as caught:
            get_json(session, "GET", f"{server.url}/{number}")
        words, _, advice = str(caught.value).partition(". ")
        assert words == f"{host}: HTTP {error['status']} {body['code']} {body['message']}"
        assert ("its quota is used up" in advice) == (error["status"] == 429)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer.json(WAF, 403), "HTTP 403 WAF Rate limit exceeded"),
        (Answer.json({"error": {"code": "E1", "message": "no"}}, 400), "HTTP 400 E1 no"),
        (Answer.json({"detail": "$top"}, 422), r"HTTP 422 .* \$top"),
        (Answer.json(["odd"], 400), "HTTP 400 Bad Request .*odd"),
        (Answer(404, b"<html>"), "HTTP 404 Not Found <html>"),
        (Answer(200, b"<html>"), "not a JSON object but '<html>'"),
        (Answer(200, b"[]"), "not a JSON object"),
        (Answer(204, b""), "not a JSON object"),
    ],
)
def test_odd_answers_are_told_apart(server, session, answer, words):
    server.scripts["/x"] = [answer]
    with pytest.raises(ItemError, match=words):
        get_json(session, "GET", f"{server.url}/x")


def test_a_portal_in_between_is_asked_again(server, session):
    server.scripts["/x"] = [Answer(200, b"<html>sign in</html>"), Answer(200, b"{}")]
    assert get_json(session, "GET", f"{server.url}/x") == {}
    server.scripts["/y"] = [Answer.json({"message": "later"}), Answer.json({"value": []})]
    assert get_json(session, "GET", f"{server.url}/y", holding="value") == {"value": []}
    server.scripts["/y"] = [Answer.json({"message": "later"})]
    with pytest.raises(ItemError, match=r"not a JSON object with value but .*later"):
        get_json(session, "GET", f"{server.url}/y", holding="value")


@pytest.mark.parametrize(
    ("url", "words"),
    [("http://127.0.0.1:9/x", "Connection refused"), ("http://nowhere.invalid/x", "")],
)
def test_a_host_that_was_never_reached_is_named_within_seconds(endpoints, url, words):
    said = []
    with open_session(endpoints, patience=Patience(seconds=4), said=said.append) as session:
        with pytest.raises(ItemError, match=f"{host_of(url)}: cannot be reached from .*{words}.*login or transfer"):
            ask(session, "GET", url)
        assert len(said) == 1
        assert said[0].endswith("waiting up to 0 s")  # a twentieth of the patience with one that has answered before
        begun = time.monotonic()
        with pytest.raises(ItemError, match="cannot be reached"):
            ask(session, "GET", url)
        assert time.monotonic() - begun < 0.05


def test_a_host_that_answered_before_is_waited_for(endpoints):
    said, begun = [], time.monotonic()
    weather("127.0.0.1:9").good(said.append)
    session = open_session(endpoints, patience=Patience(seconds=0.5), said=said.append)
    with pytest.raises(ItemError, match=r"9: no answer since ..:.. \(Connection refused\); run the same command"):
        ask(session, "GET", "http://127.0.0.1:9/x")
    assert time.monotonic() - begun > 0.5
    assert len(said) == 1


def test_no_address_is_a_mistake_of_the_configuration(session):
    with pytest.raises(ConfigError, match="stac/search: no address"):
        ask(session, "GET", "stac/search")


def test_netrc_does_not_replace_the_token(server, session, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.scripts["/x"] = [Answer(302, headers={"Location": f"{server.url}/y"})]
    server.scripts["/y"] = [Answer(200)]
    ask(session, "GET", f"{server.url}/x", headers={"Authorization": "Bearer T"})
    assert [headers.get("Authorization") for _, _, headers, _ in server.requests] == ["Bearer T", "Bearer T"]


@pytest.fixture
def elsewhere():
    server = Server()
    server.scripts["/y"] = [Answer(200, b"elsewhere")]
    yield server
    server.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nothing_goes_to_a_host_that_the_configuration_does_not_name(server, session, elsewhere, method, status):
    server.scripts["/x"] = [Answer(status, headers={"Location": f"{elsewhere.url}/y"})]
    headers = {"Authorization": "Bearer T"}
    with pytest.raises(ItemError, match=f"it redirects to {elsewhere.url}, a host that"):
        ask(session, method, f"{server.url}/x", headers=headers, data={"password": "secret"})
    assert not elsewhere.requests


def test_a_token_goes_to_the_hosts_of_the_configuration_and_a_password_stays(server, endpoints, elsewhere):
    named = dataclasses.replace(endpoints, download=f"{elsewhere.url}/odata")
    server.scripts["/x"] = [Answer(307, headers={"Location": f"{elsewhere.url}/y"})]
    with open_session(named, patience=Patience(retries=0, seconds=9)) as session:
        response = ask(session, "GET", f"{server.url}/x", headers={"Authorization": "Bearer T"})
        assert response.content == b"elsewhere"
        assert elsewhere.requests[0][2]["Authorization"] == "Bearer T"
        with pytest.raises(ItemError, match="it redirects to"):
            ask(session, "POST", f"{server.url}/x", data={"password": "secret"})
    assert len(elsewhere.requests) == 1


def test_a_form_follows_a_redirect_within_its_host(server, session):
    server.scripts["/x"] = [Answer(301, headers={"Location": "/x/"})]
    server.scripts["/x/"] = [Answer(200)]
    ask(session, "POST", f"{server.url}/x", data={"a": 1})
    assert [(path, body) for _, path, _, body in server.requests] == [("/x", "a=1"), ("/x/", "a=1")]
    server.scripts["/x/"] = [Answer(301, headers={"Location": "/x"})]
    with pytest.raises(ItemError, match="redirects more than 5 times"):
        ask(session, "GET", f"{server.url}/x")


def test_https_does_not_become_http():
    assert _origin("https://a.eu/x") == _origin("https://a.eu:443/y") != _origin("http://a.eu:443/x")
    assert _origin("https://dataspace.copernicus.eu/x") != _origin("https://dataspace.copernicus.eu.example.org/x")


def test_what_comes_after_an_outage_is_a_trouble_of_its_own(server, endpoints):
    """The first answers of a service that is back may be 429: they are not counted with its silence."""
    port = int(server.url.rpartition(":")[2])
    server.scripts["/x"] = [Answer(503)] * 6 + [Answer(429), Answer(429), Answer(200)]
    server.scripts["/"] = [Answer(503)]
    with open_session(endpoints, patience=Patience(retries=2, seconds=9)) as session:
        assert ask(session, "GET", f"http://127.0.0.1:{port}/x").status_code == 200


def test_no_credential_of_a_header_is_shown(session):
    with pytest.raises(ItemError, match="header") as error:
        ask(session, "GET", "http://127.0.0.1:9/x", headers={"Authorization": "Bearer SECRET\n"})
    assert "SECRET" not in str(error.value)
