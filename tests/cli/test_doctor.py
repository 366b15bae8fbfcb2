"""cloudjob doctor --online against the embedded archive, whole and with a part that is out of reach."""

import json
import socket
import threading
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml
from front_door import CONFIG, good

from cloudjob.archive.make import make_synthetic
from cloudjob.archive.server import ArchiveServer
from cloudjob.cli import doctor
from cloudjob.cli.dispatch import main
from cloudjob.copernicus import account

SERVICES = ("STAC", "OData", "identity", "download", "S3")
PATHS = {
    "stac": "/v1",
    "catalogue": "/odata/v1",
    "download": "/odata/v1",
    "token": "/auth/realms/CDSE/protocol/openid-connect/token",
}


@pytest.fixture(autouse=True)
def in_a_folder_of_ones_own(tmp_path, monkeypatch):
    """The run folder that a configuration names by default is looked for there; the tests' own may be read-only."""
    monkeypatch.chdir(tmp_path)


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
        code = main(
            [
                "doctor",
                str(tmp_path / "config.yaml"),
                "--run-dir",
                str(tmp_path / "run"),
                "--online",
                "--quick",
                "--json",
            ]
        )
        found = json.loads(capsys.readouterr().out)["findings"]
        online = [each for each in found if each["topic"] in SERVICES]
        return code, [" ".join((each["topic"], each["words"])) for each in online]

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

    assert lines[4].endswith("not asked: CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET_KEY are not set")


@pytest.fixture
def storage(monkeypatch):
    """A function that has an S3 server answer with a status and a body; and the requests that it got."""
    pytest.importorskip("botocore")
    monkeypatch.setenv("CDSE_S3_ACCESS_KEY", "KEY")
    monkeypatch.setenv("CDSE_S3_SECRET_KEY", "hidden")
    answer, requests = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, self.headers["Authorization"]))
            status, body = answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def answers(status: int, body: str) -> str:
            answer[:] = status, body.encode()
            return f"http://127.0.0.1:{server.server_port}"

        yield answers, requests
        server.shutdown()


def test_the_s3_storage_accepts_the_keys_or_refuses_them(visit, storage):
    answers, requests = storage
    url = answers(200, "<ListBucketResult/>")
    code, lines = visit(s3=url)
    assert (code, lines[4].split(maxsplit=2)) == (0, ["S3", url.removeprefix("http://"), "accepts the keys"])
    ((path, signed),) = requests
    assert path == "/eodata?list-type=2&prefix=Sentinel-2%2FMSI%2FL2A%2F&max-keys=1&encoding-type=url"
    assert "Credential=KEY/" in signed
    answers(403, "<Error><Code>InvalidAccessKeyId</Code></Error>")
    code, lines = visit(s3=url)
    assert code == 4
    assert "refuses the keys (InvalidAccessKeyId): they end on the day" in lines[4]
    assert "hidden" not in "".join(lines)


def test_an_s3_storage_that_is_out_of_reach(visit, storage):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        code, lines = visit(s3=f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert code == 4
    assert "no answer (Could not connect" in lines[4]


def test_each_problem_has_a_line_of_its_own(visit, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        code, lines = visit(stac=f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
    assert code == 4
    assert "cannot be reached from" in lines[0]
    assert "Connection refused" in lines[0]
    assert [line.split()[-1] for line in lines[1:4]] == ["answers", "credentials", "files"]
    account._kept.clear()
    monkeypatch.delenv("CDSE_USERNAME")
    code, lines = visit()
    assert code == 4
    assert "no credentials of the Copernicus Data Space: set CDSE_USERNAME" in lines[2]
    assert lines[3].endswith("answers; not asked for a file, since nobody is signed in")


def spoken(capsys, *arguments: str) -> tuple[int, dict[str, str]]:
    code = main(["doctor", *map(str, arguments), "--json"])
    return code, {each["topic"]: each["state"] for each in json.loads(capsys.readouterr().out)["findings"]}


def test_what_a_run_needs_is_there_and_said_in_a_table_and_in_json(tmp_path, capsys):
    code, states = spoken(capsys, CONFIG, "--quick", "--run-dir", tmp_path / "run")
    assert code == 0
    assert list(states) == [
        *("Python", "packages", "MPI", "/dev/shm", "run folder", "locking", "free space", "PROJ, GDAL", "paths"),
        "credentials",
    ]
    assert "fail" not in states.values()
    assert not (tmp_path / "run").exists()
    assert main(["doctor", str(CONFIG), "--quick"]) == 0
    assert "ok    credentials   none are needed" in capsys.readouterr().out
    assert main(["doctor", str(CONFIG), "--quick", "--quiet"]) == 0
    assert "ok " not in capsys.readouterr().out


def test_a_path_that_is_not_there_is_named_with_its_cure(tmp_path, capsys, monkeypatch):
    wrong = ("--set", f"train.init_from={tmp_path / 'no.pt'}", "--quick", "-q")
    monkeypatch.delenv("APPTAINER_CONTAINER", raising=False)  # set where the tests run in the image
    assert main(["doctor", str(CONFIG), *wrong]) == 0
    said = capsys.readouterr().out
    assert f"warn  paths         train.init_from: {tmp_path / 'no.pt'} is not there, and what" in said
    assert "; correct it" in said
    monkeypatch.setenv("APPTAINER_CONTAINER", "/a.sif")
    assert main(["doctor", str(CONFIG), *wrong]) == 0
    assert "SITE_BINDS" in capsys.readouterr().out


def test_credentials_are_told_by_their_variables_alone(tmp_path, capsys, monkeypatch):
    real = str(CONFIG.with_name("north_slope.yaml"))
    for name in ("CDSE_USERNAME", "CDSE_PASSWORD", "CDSE_TOKEN_FILE", "CDSE_TOTP", "CDSE_TOTP_SECRET"):
        monkeypatch.delenv(name, raising=False)
    assert main(["doctor", real, "--quick"]) == 0
    assert "warn  credentials   no credentials of the Copernicus" in capsys.readouterr().out
    monkeypatch.setenv("CDSE_USERNAME", "me")
    monkeypatch.setenv("CDSE_PASSWORD", "hidden")
    assert main(["doctor", real, "--quick"]) == 0
    said = capsys.readouterr().out
    assert "ok    credentials   CDSE_USERNAME, CDSE_PASSWORD set" in said
    assert "hidden" not in said
    monkeypatch.delenv("CDSE_S3_ACCESS_KEY", raising=False)
    assert main(["doctor", real, "--quick", "--set", "copernicus.source=s3"]) == 0
    assert "CDSE_S3_ACCESS_KEY" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_examination_looks_at_torch_and_the_compiler_too(capsys):
    _, states = spoken(capsys)
    assert {"torch", "GPU", "compile"} <= set(states)


@pytest.mark.slow
def test_libraries_of_others_do_not_lead_proj_astray():
    foreign = {"PROJ_LIB": "/opt/proj/7.2/share/proj", "GDAL_DATA": "/nowhere"}
    assert "ok    PROJ, GDAL" in good("doctor", "--quick", env=foreign).stdout


def test_what_fails_ends_with_4_and_stays_in_quiet(capsys):
    assert main(["doctor", "--quick", "--quiet", "--run-dir", "/proc/nowhere"]) == 4
    out = capsys.readouterr().out
    assert out.startswith("fail  run folder    /proc: ")
    assert "name one elsewhere with --run-dir" in out
