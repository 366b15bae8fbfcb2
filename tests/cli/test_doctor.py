"""cloudjob doctor --online against the embedded archive, whole and with a part that is out of reach."""

import socket
from datetime import date

import pytest
import yaml
from front_door import CONFIG

from cloudjob.archive.make import make_synthetic
from cloudjob.archive.server import ArchiveServer
from cloudjob.cli import doctor
from cloudjob.cli.dispatch import main
from cloudjob.copernicus import account

PATHS = {
    "stac": "/v1",
    "catalogue": "/odata/v1",
    "download": "/odata/v1",
    "token": "/auth/realms/CDSE/protocol/openid-connect/token",
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    make_synthetic(folder, tiles=["05WPS"], size=64, clear=[], cloudy=[date(2024, 6, 13)], seed=1, cloud=(0.3, 0.5))
    with ArchiveServer(folder) as running:
        yield running


@pytest.fixture
def visit(archive, tmp_path, monkeypatch, capsys):
    """A function that takes addresses other than the archive's, and gives exit code and lines."""
    for name in ("CDSE_TOTP", "CDSE_TOTP_SECRET", "CDSE_TOKEN_FILE", "CDSE_S3_ACCESS_KEY", "CDSE_S3_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CDSE_USERNAME", "me")
    monkeypatch.setenv("CDSE_PASSWORD", "secret")
    monkeypatch.setattr(doctor, "_PATIENCE", 3.0)

    def run(**others) -> tuple[int, list[str]]:
        addresses = {name: archive.url + path for name, path in PATHS.items()} | others
        settings = yaml.safe_load(CONFIG.read_text())
        settings["copernicus"] = {**addresses, "account_folder": str(tmp_path / "account")}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        code = main(["doctor", str(tmp_path / "config.yaml"), "--online"])
        return code, capsys.readouterr().out.splitlines()

    return run


def test_all_is_well(visit, archive):
    code, lines = visit()
    assert code == 0
    assert [line.split()[0] for line in lines] == ["STAC", "OData", "identity", "download", "S3"]
    assert all("127.0.0.1" in line for line in lines[:4])
    assert [line.split(maxsplit=2)[2] for line in lines[:4]] == [
        "answers",
        "answers",
        "accepts the credentials",
        "sends files",
    ]


def test_each_problem_has_a_line_of_its_own(visit, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        code, lines = visit(stac=f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
    assert code == 4
    assert "PROBLEM: cannot be reached from" in lines[0]
    assert "Connection refused" in lines[0]
    assert [line.split()[-1] for line in lines[1:4]] == ["answers", "credentials", "files"]
    account._kept.clear()
    monkeypatch.delenv("CDSE_USERNAME")
    code, lines = visit()
    assert code == 4
    assert "PROBLEM: no credentials of the Copernicus Data Space: set CDSE_USERNAME" in lines[2]
    assert lines[3].endswith("answers; not asked for a file, since nobody is signed in")


def test_without_a_task_it_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 2
    assert "--online" in capsys.readouterr().err
