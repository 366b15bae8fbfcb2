import json
import time

import pytest
import requests
from scripted_server import Answer

from cloudjob.copernicus.session import ask, get_json, open_session
from cloudjob.errors import ItemError

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


@pytest.mark.slow
def test_retry_after_is_obeyed_and_otherwise_the_wait_doubles(server):
    with open_session(retries=3, backoff=0.05) as session:
        server.scripts["/x"] = [Answer(429, headers={"Retry-After": "1"}), Answer(200, b"{}")]
        started = time.monotonic()
        get_json(session, "GET", f"{server.url}/x")
        assert 1 <= time.monotonic() - started < 3
        server.scripts["/y"] = [Answer(429), Answer(429), Answer(429), Answer(200, b"{}")]
        started = time.monotonic()
        get_json(session, "GET", f"{server.url}/y")
        assert 0.05 + 0.1 + 0.2 <= time.monotonic() - started < 2


def test_retry_after_of_hours_is_cut():
    retry = open_session().get_adapter("https://x").max_retries
    assert retry.parse_retry_after("86400") == 300
    assert retry.new(total=1).parse_retry_after("86400") == 300


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
        assert str(caught.value) == f"{host}: HTTP {error['status']} {body['code']} {body['message']}"


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


def test_nobody_there_is_an_item_error(session):
    with pytest.raises(ItemError, match=r"127\.0\.0\.1:9: no answer"):
        ask(session, "GET", "http://127.0.0.1:9/x")


def test_netrc_does_not_replace_the_token(server, session, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.scripts["/x"] = [Answer(302, headers={"Location": f"{server.url}/y"})]
    server.scripts["/y"] = [Answer(200)]
    ask(session, "GET", f"{server.url}/x", headers={"Authorization": "Bearer T"})
    assert [headers.get("Authorization") for _, _, headers, _ in server.requests] == ["Bearer T", "Bearer T"]


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ("https://catalogue.dataspace.copernicus.eu/a", "https://download.dataspace.copernicus.eu/a", True),
        ("https://download.dataspace.copernicus.eu/a", "http://download.dataspace.copernicus.eu/a", False),
        ("https://download.dataspace.copernicus.eu/a", "https://dataspace.copernicus.eu.example.org/a", False),
        ("https://example.org/a", "https://download.dataspace.copernicus.eu/a", False),
    ],
)
def test_the_token_stays_within_the_data_space(session, old, new, kept):
    response = requests.Response()
    response.request = requests.Request("GET", old).prepare()
    following = requests.Request("GET", new, headers={"Authorization": "Bearer T"}).prepare()
    session.rebuild_auth(following, response)
    assert ("Authorization" in following.headers) == kept
