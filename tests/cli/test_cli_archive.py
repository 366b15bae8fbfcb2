"""The embedded archive from the front door: made, served, and in the Data Space's place while stages need it."""

import os
import re
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from cloudjob.archive import hostile, server
from cloudjob.cli import archive
from cloudjob.cli.dispatch import main
from cloudjob.config import source
from cloudjob.errors import ConfigError, InputError, LeftOutError
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item

CONFIG = """archive:
  synthetic: {tiles: [05WPS], size: 64, clear: [2024-03-01], cloudy: [2024-03-09]}
search:
  polygon: [[-162.0, 68.5], [-162.0, 71.5], [-140.0, 71.5], [-162.0, 68.5]]
  clear: {start: 2024-03-01, end: 2024-03-30, cloud: [0, 1]}
  cloudy: {start: 2024-03-01, end: 2024-03-30, cloud: [5, 50]}
"""


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def needs(monkeypatch) -> dict[str, list[Item]]:
    """The items of each stage."""
    found = {stage: [] for stage in ("search", "preview", "download", "shard")}
    monkeypatch.setattr(
        archive, "stage_module", lambda stage: SimpleNamespace(items=lambda config, folder: found[stage])
    )
    for name in ("CDSE_USERNAME", "CDSE_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "mine")  # put back at the end, whatever is set meanwhile
        monkeypatch.delenv(name)
    return found


@pytest.mark.slow
def test_made_once_and_kept(config_file, tmp_path, capsys):
    command = ["archive", "make", str(config_file), "--run-dir", str(tmp_path / "run")]
    assert main(command) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(names) == 2
    folders = [tmp_path / "run" / "archive" / f"{name}.SAFE" for name in names]
    before = [folder.stat().st_mtime_ns for folder in folders]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == names
    assert [folder.stat().st_mtime_ns for folder in folders] == before
    elsewhere = ["--set", f"archive.path={tmp_path / 'elsewhere'}"]
    assert main([*command, *elsewhere]) == 0
    assert {path.name for path in (tmp_path / "elsewhere").glob("*.SAFE")} == {folder.name for folder in folders}


def test_nothing_to_make_and_nothing_to_serve_are_said(config_file, tmp_path, capsys):
    config_file.write_text(CONFIG[CONFIG.index("search:") :])
    assert main(["archive", "make", str(config_file)]) == 2
    assert "has no section archive" in capsys.readouterr().err
    assert main(["archive", "serve", str(tmp_path / "none")]) == 2
    assert "make one with cloudjob archive make" in capsys.readouterr().err


def test_serving_lasts_until_it_is_interrupted(tmp_path, monkeypatch, capsys):
    waited = []

    def interrupt(seconds: float):
        waited.append(seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(archive.time, "sleep", interrupt)
    assert main(["archive", "serve", str(tmp_path), "--port", "0"]) == 75
    assert waited
    assert f"serving {tmp_path} at http://" in capsys.readouterr().err


def test_a_file_of_faults_makes_the_server_hostile_and_its_mistakes_are_named(tmp_path, monkeypatch, capsys):
    made = []

    def record(folder, **options):
        made.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(hostile, "HostileServer", record)
    text, journal = tmp_path / "faults.yaml", str(tmp_path / "journal.jsonl")
    command = ["archive", "serve", str(tmp_path), "--port", "0", "--faults", str(text), "--journal", journal]
    text.write_text("shorts: 0.1\n")
    assert main(command) == 2
    assert f"{text}:1  shorts: unknown key; did you mean short?" in capsys.readouterr().err
    text.write_text("short: 0.1\nlatency: 0.2\n")
    assert main([*command, "--seed", "3"]) == 75
    (options,) = made
    assert {name for name, rate in options["rates"].items() if rate} == {"short"}
    assert (options["rules"].latency, options["seed"], str(options["journal"])) == (0.2, 3, journal)


def test_a_port_that_is_taken_or_is_none_is_said_in_a_line(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        for number, words in ((port, "Address already in use"), ("99999", "0-65535")):
            assert main(["archive", "serve", str(tmp_path), "--port", number]) == 2
            said = capsys.readouterr().err
            assert said.startswith(f"cloudjob: --port {number}: ")
            assert words in said
            assert said.count("\n") == 1


def test_while_items_need_it_the_configuration_names_a_server_that_answers(config_file, tmp_path, needs, monkeypatch):
    monkeypatch.setenv("CDSE_PASSWORD", "of the real Data Space")
    monkeypatch.setenv("CDSE_TOKEN_FILE", str(tmp_path / "of the real one"))
    config, folder = source.load(config_file)[0], RunFolder(tmp_path / "run")
    needs["preview"] = [Item("preview", "a", {}, {})]
    threads = threading.active_count()
    with archive.data_space(config, folder, ["preview", "shard"]) as served:
        addresses = served.copernicus.urls()
        assert requests.get(addresses["stac"], timeout=10).ok
        assert all(address.startswith("http://127.0.0.1:") for address in addresses.values())
        assert served.copernicus.connections == config.copernicus.connections
        assert len(list(folder.archive.glob("*.SAFE"))) == 2
        assert (os.environ["CDSE_USERNAME"], os.environ["CDSE_PASSWORD"]) == ("embedded", "embedded")
        assert "CDSE_TOKEN_FILE" not in os.environ
    assert threading.active_count() <= threads  # some of earlier tests may have ended meanwhile
    with pytest.raises(requests.ConnectionError):
        requests.get(addresses["stac"], timeout=10)


def test_where_no_item_needs_it_nothing_is_made(config_file, tmp_path, needs, monkeypatch):
    config, folder = source.load(config_file)[0], RunFolder(tmp_path / "run")
    monkeypatch.setattr(server, "ArchiveServer", None)
    done = Item("search", "a", {}, {})
    records.work(folder, "search", [done], lambda item: ([], None))
    needs["search"] = [done]
    needs["shard"] = [Item("shard", "a", {}, {})]  # missing, but made without the network
    for stages in (["search", "shard"], ["shard"]):
        with archive.data_space(config, folder, stages) as found:
            assert found is config
    assert not folder.archive.exists()

    def gone(item):
        raise LeftOutError("HTTP 404")

    for stage in ("preview", "download"):  # search asks again for what is gone
        records.work(folder, stage, [Item(stage, "P", {}, {})], gone)
        with pytest.raises(TypeError), archive.data_space(config, folder, ["search"]):
            pass
        with archive.data_space(config, folder, ["shard"]) as found:
            assert found is config
        records.path(folder, stage, "P").unlink()
    folder.force = True
    with pytest.raises(TypeError), archive.data_space(config, folder, ["search"]):
        pass


@pytest.fixture
def served(tmp_path, needs):
    """A configuration of a Data Space on this machine, and the sign-ins that it saw."""
    seen, refuse = [], []

    class Strict(server.Handler):
        def _grant(self, form):
            seen.append(form["grant_type"])
            return super()._grant({} if refuse else form)

    with server.ArchiveServer(tmp_path / "none", handler=Strict) as running:
        text = CONFIG[CONFIG.index("search:") :] + f"copernicus: {{account_folder: {tmp_path}/account, patience: 2"
        urls = {"stac": "/v1", "catalogue": "/odata/v1", "download": "/odata/v1"}
        urls["token"] = "/auth/realms/CDSE/protocol/openid-connect/token"
        text += "".join(f", {name}: {running.url}{path}" for name, path in urls.items()) + "}\n"
        (tmp_path / "b.yaml").write_text(text)
        yield SimpleNamespace(file=tmp_path / "b.yaml", seen=seen, refuse=refuse, needs=needs)


def sign_in(served, folder: RunFolder, *stages: str) -> None:
    archive.sign_in(source.load(served.file)[0], folder, stages)


def test_credentials_are_checked_before_anything_long_starts(served, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    served.needs["search"] = [Item("search", "a", {}, {})]
    with pytest.raises(ConfigError, match="no credentials"):
        sign_in(served, folder, "search", "preview")
    monkeypatch.setenv("CDSE_USERNAME", "me")
    monkeypatch.setenv("CDSE_PASSWORD", "mine")
    served.refuse.append(True)
    with pytest.raises(ConfigError, match="credentials refused"):
        sign_in(served, folder, "search", "preview")
    assert not folder.root.exists()
    served.refuse.clear()
    monkeypatch.setenv("CDSE_PASSWORD", "right")
    sign_in(served, folder, "search", "preview")
    assert served.seen == ["password", "password"]


def test_who_fetches_nothing_needs_no_credentials(served, tmp_path):
    folder = RunFolder(tmp_path / "run")
    done, other = Item("preview", "a", {}, {}), Item("preview", "b", {}, {})
    records.work(folder, "preview", [done], lambda item: ([], None))
    served.needs["preview"] = [done]
    served.needs["search"] = [Item("search", "a", {}, {})]
    sign_in(served, folder, "search")
    sign_in(served, folder, "preview", "shard")
    served.needs["preview"].append(other)
    folder.only = ["a"]
    sign_in(served, folder, "preview")
    folder.only = ["b"]
    with pytest.raises(ConfigError, match="no credentials"):
        sign_in(served, folder, "preview")


def test_what_an_earlier_stage_will_list_is_expected_to_be_fetched(served, tmp_path, monkeypatch):
    def nothing_yet(config, folder):
        raise InputError("scenes.jsonl is not there yet")

    monkeypatch.setattr(archive, "stage_module", lambda stage: SimpleNamespace(items=nothing_yet))
    sign_in(served, RunFolder(tmp_path / "run"), "preview", "pair")  # which says so itself
    with pytest.raises(ConfigError, match="no credentials"):
        sign_in(served, RunFolder(tmp_path / "run"), "search", "preview")


def test_a_service_that_is_out_of_reach_keeps_nobody_from_the_rest(served, tmp_path, monkeypatch):
    folder, said = RunFolder(tmp_path / "run"), []
    folder.say = said.append
    monkeypatch.setenv("CDSE_USERNAME", "me")
    monkeypatch.setenv("CDSE_PASSWORD", "mine")
    served.needs["preview"] = [Item("preview", "a", {}, {})]
    text = served.file.read_text()
    served.file.write_text(re.sub(r"token: http://[^/]*", "token: http://127.0.0.1:9", text))
    sign_in(served, folder, "preview")
    assert "127.0.0.1:9: no answer since" in said[0]
    assert "cloudjob: 127.0.0.1:9: cannot be reached from" in said[-1]
