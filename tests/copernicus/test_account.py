import json
import os
import subprocess
import sys
import threading
import time
from urllib.parse import parse_qs

import pytest
from conftest import QUICK
from scripted_server import Answer
from test_credentials import SECRET, VARIABLES

from cloudjob.archive.server import ArchiveServer
from cloudjob.copernicus import account as module
from cloudjob.copernicus import credentials
from cloudjob.copernicus.account import open_account
from cloudjob.copernicus.session import Endpoints
from cloudjob.errors import ConfigError, InterruptedJob, ItemError

REFUSED = Answer.json({"error": "invalid_grant", "error_description": "Invalid user credentials"}, 401)
LOST = Answer.json({"error": "invalid_grant"}, 400)


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


def grants(server) -> list[str]:
    return [form["grant_type"] for form in forms(server)]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that are added to the time of day."""
    real = time.time

    class Clock:
        later = 0.0

    monkeypatch.setattr(module.time, "time", lambda: real() + Clock.later)
    return Clock


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CDSE_USERNAME", "me")
    monkeypatch.setenv("CDSE_PASSWORD", "very-secret")
    return monkeypatch


@pytest.fixture
def new(endpoints, tmp_path):
    """A function that makes the account as another process would have it."""

    def make(**options):
        module._kept.clear()
        return open_account(endpoints, **{"folder": tmp_path, "patience": QUICK, "lease_patience": 2.0, **options})

    return make


def test_one_sign_in_then_refreshed_at_80_percent_of_life(server, new, clock):
    server.scripts["/token"] = [tokens(1), tokens(2), tokens(3)]
    account = new()
    for moment, expected in ((0, "A1"), (478, "A1"), (481, "A2"), (959, "A2"), (963, "A3")):
        clock.later = moment
        assert account.bearer() == expected
    assert forms(server) == [
        {"client_id": "cdse-public", "grant_type": "password", "username": "me", "password": "very-secret"},
        {"client_id": "cdse-public", "grant_type": "refresh_token", "refresh_token": "R1"},
        {"client_id": "cdse-public", "grant_type": "refresh_token", "refresh_token": "R2"},
    ]


def test_nothing_is_sent_or_needed_before_the_first_use(server, new, environment):
    environment.delenv("CDSE_USERNAME")
    account = new()
    with pytest.raises(ConfigError, match="no credentials"):
        account.check()
    with pytest.raises(ConfigError, match="no credentials"), account.slot():
        pass
    assert not server.requests


def test_many_threads_share_one_sign_in_and_one_renewal(server, new):
    server.scripts["/token"] = [tokens(1), tokens(2)]
    account = new()
    found = []

    def work():
        first = account.bearer()
        barrier.wait()
        found.append((first, account.bearer(rejected=first)))

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [("A1", "A2")] * 8
    assert grants(server) == ["password", "refresh_token"]


def test_who_waited_for_another_to_sign_in_takes_its_token(server, new):
    server.scripts["/token"] = [tokens(1), tokens(2)]
    accounts, found = [new() for _ in range(6)], []
    threads = [threading.Thread(target=lambda each=each: found.append(each.bearer())) for each in accounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["A1"] * 6
    assert grants(server) == ["password"]


def test_other_processes_take_the_token_from_the_file(server, new, clock):
    server.scripts["/token"] = [tokens(1), tokens(2), tokens(3)]
    first = new()
    assert first.bearer() == new().bearer() == "A1"
    clock.later = 500
    assert [new().bearer(), first.bearer()] == ["A2", "A2"]  # the refresh token may be good once alone
    assert new().bearer(rejected="A2") == "A3"
    assert [form.get("refresh_token") for form in forms(server)] == [None, "R1", "R2"]


def test_a_lost_refresh_leads_to_one_more_sign_in(server, new, clock):
    server.scripts["/token"] = [tokens(1), LOST, tokens(2)]
    new().bearer()
    clock.later = 5000
    assert new().bearer() == "A2"
    assert grants(server) == ["password", "refresh_token", "password"]


def test_the_token_of_another_service_is_not_sent_here(server, new, tmp_path):
    server.scripts["/token"] = [tokens(1), tokens(2)]
    new().bearer()
    (path,) = tmp_path.glob("*/token.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"service": "https://elsewhere.eu/token"}))
    assert new().bearer() == "A2"
    assert grants(server) == ["password", "password"]


def test_a_wrong_password_is_sent_once_by_all_and_never_shown(server, new, environment):
    server.scripts["/token"] = [REFUSED]
    account = new()
    for each in (account, account, new()):
        with pytest.raises(
            ConfigError, match=r"CDSE_PASSWORD.*HTTP 401 invalid_grant Invalid user.*Sign in by hand"
        ) as error:
            each.check()
        assert "very-secret" not in str(error.value) + repr(each)
    assert len(server.requests) == 1
    environment.setenv("CDSE_PASSWORD", "mended")
    server.scripts["/token"] = [tokens(1)]
    assert new().bearer() == "A1"


def test_trouble_at_the_service_is_no_refusal(server, new):
    server.scripts["/"] = [Answer(200)]
    server.scripts["/token"] = [Answer(503)]
    account = new()
    with pytest.raises(ItemError, match="HTTP 503"):
        account.bearer()
    server.scripts["/token"] = [Answer(200, b"<html>"), Answer.json({"unexpected": 1})]
    with pytest.raises(ItemError, match="holds no token"):
        account.bearer()
    server.scripts["/token"] = [Answer(200, b"<html>"), Answer.json({"message": "later"}), tokens(1)]
    assert account.bearer() == "A1"


def test_a_single_code_is_sent_once(server, new, environment, clock):
    environment.setenv("CDSE_TOTP", "123456")
    server.scripts["/token"] = [tokens(1), LOST]
    assert new().bearer() == "A1"
    assert forms(server)[0]["totp"] == "123456"
    clock.later = 5000
    with pytest.raises(ConfigError, match="CDSE_TOTP has been sent already"):
        new().bearer()
    environment.setenv("CDSE_TOTP", "654321")
    server.scripts["/token"] = [LOST, tokens(2)]
    assert new().bearer() == "A2"
    assert [form.get("totp") for form in forms(server)] == ["123456", None, None, "654321"]


def test_a_secret_makes_a_new_code_for_each_try(server, new, environment):
    environment.setattr(credentials, "STEP", 0.2)
    environment.setattr(module, "STEP", 0.2)
    environment.setenv("CDSE_TOTP_SECRET", SECRET)
    server.scripts["/token"] = [Answer(503), Answer(503), tokens(1)]
    assert new().bearer() == "A1"
    codes = [form["totp"] for form in forms(server)]
    assert len(set(codes)) == len(codes) == 3


def test_a_code_that_never_left_this_machine_is_not_used_up(new, environment, endpoints):
    """Nobody listens: the same form is tried again, and the reason is said."""
    environment.setenv("CDSE_TOTP", "123456")
    nobody = Endpoints(endpoints.stac, endpoints.catalogue, endpoints.download, "http://127.0.0.1:9/token")
    account = new()
    account._url = nobody.token
    with pytest.raises(ItemError, match="Connection refused"):
        account.check()


def test_the_token_file_is_private(server, new, tmp_path):
    server.scripts["/token"] = [tokens(1)]
    new().bearer()
    (path,) = tmp_path.glob("*/token.json")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        new().bearer()


def test_where_modes_cannot_be_set_the_token_stays_in_memory(server, new, tmp_path, environment):
    said = []
    real = os.open
    environment.setattr(os, "open", lambda path, flags, mode=0o777, **more: real(path, flags, 0o666, **more))
    server.scripts["/token"] = [tokens(1), tokens(2)]
    account = new(said=said.append)
    assert account.bearer() == account.bearer() == "A1"
    assert account.bearer(rejected="A1") == "A2"
    assert not list(tmp_path.glob("*/token.json")) + list(tmp_path.glob("*/.tmp*"))
    assert len(said) == 1
    assert "mode 600 cannot be set here; the token is kept in memory" in said[0]


def test_a_saved_token_answer_will_do(server, new, tmp_path, environment):
    path = tmp_path / "saved.json"
    environment.delenv("CDSE_USERNAME")
    environment.setenv("CDSE_TOKEN_FILE", str(path))
    for text in (None, "{}", "["):
        if text:
            path.write_text(text)
            path.chmod(0o600)
        with pytest.raises(ConfigError, match=r"saved\.json: no token answer of .*JSON with refresh_token"):
            new().bearer()
    environment.setenv("CDSE_USERNAME", "me")
    with pytest.raises(ConfigError, match="no token answer"):  # nor is it overwritten
        new().bearer()
    environment.delenv("CDSE_USERNAME")
    path.write_text('{"refresh_token": "R0"}')
    server.scripts["/token"] = [tokens(1), LOST]
    account = new()
    assert account.bearer() == "A1"
    assert forms(server)[0]["refresh_token"] == "R0"
    assert json.loads(path.read_text())["refresh_token"] == "R1"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match=r"saved\.json"):
        account.bearer(rejected="A1")


def test_a_folder_that_cannot_be_written_is_named(new, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/.*Set copernicus\.account_folder"):
        new(folder=tmp_path / "file").check()


def test_never_more_than_four_connections(new):
    accounts = [new() for _ in range(3)]
    at_once, most, lock, all_four = 0, 0, threading.Lock(), threading.Barrier(4)

    def work(account):
        nonlocal at_once, most
        with account.slot():
            with lock:
                at_once += 1
                most = max(most, at_once)
            all_four.wait(60)
            with lock:
                at_once -= 1

    threads = [threading.Thread(target=work, args=(accounts[number % 3],)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 4


def test_who_waits_for_a_connection_says_so_and_hears_a_stop(new, environment):
    environment.setattr(module, "_SHORT", 0.0)
    holder, said = new(job="4711"), []
    begun = None
    waiting = new(said=said.append, stopped=lambda: begun is not None and time.monotonic() > begun + 0.2)
    with holder.slot(), holder.slot(), holder.slot(), holder.slot():
        begun = time.monotonic()
        with pytest.raises(InterruptedJob, match="stopped while waiting for one of the account's four"), waiting.slot():
            pass
        assert time.monotonic() - begun < 1
    assert f"in use by process {os.getpid()} of job 4711 on " in said[0]
    begun = None
    with waiting.slot():  # all four are free again
        pass


PROCESS = """
import sys
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor
from cloudjob.copernicus.account import open_account
from cloudjob.copernicus.session import Endpoints, ask, open_session
url, folder, *paths = sys.argv[1:]
token = url + "/auth/realms/CDSE/protocol/openid-connect/token"
endpoints = Endpoints(url + "/v1", url + "/odata/v1", url + "/odata/v1", token)
account = open_account(endpoints, folder=Path(folder))

def fetch(path):
    with open_session(endpoints) as session, account.slot():
        answer = ask(session, "GET", url + path, headers={"Authorization": "Bearer " + account.bearer()})
        assert answer.status_code == 200, answer.status_code

with ThreadPoolExecutor(4) as pool:
    list(pool.map(fetch, paths))
"""


class CountingServer(ArchiveServer):
    """Notes every sign-in, and how many files of the account it sent at a time."""

    def __init__(self, folder):
        super().__init__(folder)
        self.signed_in = self.sending = self.most = self.sent = 0
        self.lock = threading.Lock()
        handler = self.RequestHandlerClass

        class Counting(handler):
            def _grant(handler_self, form):
                self.signed_in += form.get("grant_type") == "password"
                return super()._grant(form)

            def _node(handler_self, product, steps):
                handler_self._account()
                with self.lock:
                    self.sending += 1
                    self.most = max(self.most, self.sending)
                time.sleep(0.05)
                with self.lock:
                    self.sending -= 1
                    self.sent += 1
                return {}

        self.RequestHandlerClass = Counting


@pytest.mark.slow
def test_five_processes_have_one_sign_in_and_four_connections(tmp_path):
    paths = [f"/odata/v1/Products({number})/$value" for number in range(8)]
    with CountingServer(tmp_path / "none") as server:
        command = [sys.executable, "-c", PROCESS, server.url, str(tmp_path / "account"), *paths]
        running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(5)]
        failed = [process.communicate(timeout=120)[1] for process in running if process.wait(120)]
    assert not failed, failed[0]
    assert server.sent == 40
    assert server.signed_in == 1
    assert 1 < server.most <= 4
