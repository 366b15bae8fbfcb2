import json
import threading
from urllib.parse import parse_qs

import pytest
from scripted_server import Answer

from cloudjob.copernicus import token as module
from cloudjob.copernicus.token import TokenSource, from_environment
from cloudjob.errors import ConfigError, ItemError

REFUSED = Answer.json({"error": "invalid_grant", "error_description": "Invalid user credentials"}, 401)
VARIABLES = ("CDSE_USERNAME", "CDSE_PASSWORD", "CDSE_TOTP", "CDSE_TOKEN_FILE")


def tokens(number: int, life: float = 600) -> Answer:
    return Answer.json(
        {
            "access_token": f"A{number}",
            "refresh_token": f"R{number}",
            "expires_in": life,
            "refresh_expires_in": 3600,
        }
    )


def forms(server) -> list[dict]:
    return [{k: v[0] for k, v in parse_qs(body).items()} for *_, body in server.requests]


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_one_sign_in_then_refreshed_at_80_percent_of_life(server, endpoints, session, clock):
    server.scripts["/token"] = [tokens(1), tokens(2), tokens(3)]
    source = TokenSource(endpoints, session, "me", "secret", "123456")
    for moment, expected in ((0, "A1"), (479, "A1"), (480, "A2"), (959, "A2"), (961, "A3")):
        clock.now = 1000 + moment
        assert source.bearer() == expected
    assert forms(server) == [
        {
            "client_id": "cdse-public",
            "grant_type": "password",
            "username": "me",
            "password": "secret",
            "totp": "123456",
        },
        {"client_id": "cdse-public", "grant_type": "refresh_token", "refresh_token": "R1"},
        {"client_id": "cdse-public", "grant_type": "refresh_token", "refresh_token": "R2"},
    ]


def test_many_threads_share_one_sign_in_and_one_renewal(server, endpoints, session):
    server.scripts["/token"] = [tokens(1), tokens(2)]
    source = TokenSource(endpoints, session, "me", "secret")
    found = []

    def work():
        first = source.bearer()
        barrier.wait()
        found.append((first, source.bearer(rejected=first)))

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [("A1", "A2")] * 8
    assert [form["grant_type"] for form in forms(server)] == ["password", "refresh_token"]


def test_sign_in_again_only_when_the_refresh_token_is_refused(server, endpoints, session, clock):
    server.scripts["/token"] = [tokens(1), Answer.json({"error": "invalid_grant"}, 400), tokens(2)]
    source = TokenSource(endpoints, session, "me", "secret")
    source.bearer()
    clock.now += 5000
    assert source.bearer() == "A2"
    assert [form["grant_type"] for form in forms(server)] == ["password", "refresh_token", "password"]


def test_a_wrong_password_is_sent_once_and_never_shown(server, endpoints, session):
    server.scripts["/token"] = [REFUSED]
    source = TokenSource(endpoints, session, "me", "very-secret")
    for _ in range(3):
        with pytest.raises(ConfigError, match=r"CDSE_PASSWORD.*HTTP 401 invalid_grant Invalid user") as error:
            source.bearer()
        assert "very-secret" not in str(error.value) + repr(source)
    assert len(server.requests) == 1


def test_trouble_at_the_service_is_no_refusal(server, endpoints, session):
    source = TokenSource(endpoints, session, "me", "secret")
    server.scripts["/token"] = [Answer(503)]
    with pytest.raises(ItemError, match="HTTP 503"):
        source.bearer()
    server.scripts["/token"] = [Answer.json({"unexpected": 1})]
    with pytest.raises(ItemError, match="holds no token"):
        source.bearer()
    server.scripts["/token"] = [tokens(1)]
    assert source.bearer() == "A1"


def test_credentials_of_the_environment(server, endpoints, session, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"CDSE_USERNAME and CDSE_PASSWORD .*CDSE_TOTP.*CDSE_TOKEN_FILE"):
        from_environment(endpoints, session)
    monkeypatch.setenv("CDSE_USERNAME", "me")
    monkeypatch.setenv("CDSE_PASSWORD", "secret")
    server.scripts["/token"] = [tokens(1)]
    assert from_environment(endpoints, session).bearer() == "A1"
    assert "totp" not in forms(server)[0]


def test_token_file_is_private_and_renewed_in_place(server, endpoints, session, tmp_path, monkeypatch):
    path = tmp_path / "token.json"
    monkeypatch.setenv("CDSE_TOKEN_FILE", str(path))
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        from_environment(endpoints, session)
    path.write_text('{"refresh_token": "R0"}')
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        from_environment(endpoints, session)
    path.chmod(0o600)
    server.scripts["/token"] = [tokens(1), Answer.json({"error": "invalid_grant"}, 400)]
    source = from_environment(endpoints, session)
    assert source.bearer() == "A1"
    assert forms(server)[0]["refresh_token"] == "R0"
    assert json.loads(path.read_text())["refresh_token"] == "R1"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match=r"token\.json"):
        source.bearer(rejected="A1")
    path.write_text("{}")
    with pytest.raises(ConfigError, match="JSON with refresh_token"):
        from_environment(endpoints, session)
