"""The embedded archive from the front door: made, served, and in the Data Space's place while stages need it."""

import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from cloudjob.archive import server
from cloudjob.cli import archive
from cloudjob.cli.dispatch import main
from cloudjob.config import source
from cloudjob.errors import LeftOutError
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


def test_a_port_that_is_taken_or_is_none_is_said_in_a_line(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        for number, words in ((port, "Address already in use"), ("99999", "0-65535")):
            assert main(["archive", "serve", str(tmp_path), "--port", number]) == 2
            said = capsys.readouterr().err
            assert said.startswith(f"cloudjob: --port {number}: ")
            assert words in said
            assert said.count("\n") == 1


def test_while_items_need_it_the_configuration_names_a_server_that_answers(config_file, tmp_path, needs):
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
    assert threading.active_count() == threads
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
