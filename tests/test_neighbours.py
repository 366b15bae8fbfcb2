"""A run in which one product is withdrawn and four others fail, each in a stage of its own: the rest is restored."""

import hashlib
import re
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from front_door import CONFIG

from cloudjob.archive import server as archive_server
from cloudjob.archive.make import make_synthetic
from cloudjob.archive.server import ArchiveServer
from cloudjob.cli.dispatch import main
from cloudjob.copernicus.transfer import Limits
from cloudjob.errors import ItemError
from cloudjob.files import read_json, read_jsonl
from cloudjob.hpc import stop
from cloudjob.run.folder import RunFolder
from cloudjob.stages import infer

TILES = ["04WFD", "05WMU"]
CLEAR = [date(2024, 3, 4), date(2024, 3, 20)]
FAULTS = ("withdrawn", "truncated", "mask", "metadata", "infer")  # of one cloudy product each
SETTINGS = {
    "masks": {"cloud_m": 0, "shadow_m": 0, "cirrus_m": 0},
    "pair": {"max_days": 60},
    "shard": {"split": {"test_tiles": TILES[1:]}},
    "train": {"process": "regression", "samples": 8, "batch_size": 4},
    "infer": {"tile": 64, "overlap": 16, "steps": 1},
}


class Faulty(archive_server.Handler):
    """Lists what it does not serve, and serves some files broken. Its STAC knows no checksums."""

    def _send_json(self, status, body, headers=None):
        for item in body.get("features", []):
            for asset in item["assets"].values():
                asset.pop("file:checksum", None)
        super()._send_json(status, body, headers)

    def _product(self, text):
        entry = super()._product(text)
        if entry.name in self.server.withdrawn:
            raise archive_server._zipper(404, "DAT-ZIP-110", f"Product not found: {text}")
        return entry

    def _send_file(self, entry, path, account):
        if broken := self.server.broken.get(entry.product.folder / path):
            entry = SimpleNamespace(open=lambda _: broken.open("rb"), length=lambda _: broken.stat().st_size)
        super()._send_file(entry, path, account)


class Archive:
    """A served archive with the faults, each of one cloudy product."""

    def __init__(self, folder: Path, cloudy: list[date]):
        self.folder = folder / "archive"
        make_synthetic(self.folder, tiles=TILES, size=96, clear=CLEAR, cloudy=cloudy, cloud=(0.2, 0.3), seed=5)
        self.server = ArchiveServer(self.folder)
        self.server.RequestHandlerClass = Faulty
        self.cloudy = sorted(entry.name for entry in self.server.entries if entry.sensing.date() in cloudy)
        self.of = dict(zip(FAULTS, self.cloudy[1::2], strict=False))
        self.server.withdrawn = {self.of["withdrawn"]}
        self.server.broken = {}
        band, half = self.file("truncated", "*_B03_10m.jp2"), folder / "half.jp2"
        half.write_bytes(band.read_bytes()[:-100])
        self.server.broken[band] = half
        for fault, pattern in (("mask", "*_SCL_20m.jp2"), ("metadata", "MTD_TL.xml")):
            self.break_as_listed(folder, self.file(fault, pattern))

    def file(self, fault: str, pattern: str) -> Path:
        (found,) = (self.folder / f"{self.of[fault]}.SAFE").rglob(pattern)
        return found

    def break_as_listed(self, folder: Path, path: Path) -> None:
        """The file is served broken, and the manifest says so: only a reader can tell."""
        listed = next(parent for parent in path.parents if parent.suffix == ".SAFE") / "manifest.safe"
        wrong, manifest = folder / f"broken-{path.name}", folder / f"manifest-of-{path.name}"
        wrong.write_bytes(path.read_bytes()[:12] + bytes(988))
        lines = listed.read_text().split("\n")
        (at,) = (number for number, line in enumerate(lines) if f'/{path.name}"' in line)  # the size is above it
        kind = re.search('checksumName="(.*)"', lines[at + 1])[1]
        found = hashlib.new(kind.lower().replace("-", "_"), wrong.read_bytes()).hexdigest()
        lines[at - 1] = re.sub(r'size="\d+"', 'size="1000"', lines[at - 1])
        lines[at + 1] = re.sub(">.*<", f">{found}<", lines[at + 1])
        manifest.write_text("\n".join(lines))
        self.server.broken |= {path: wrong, listed: manifest}


@pytest.fixture(params=[5, pytest.param(20, marks=pytest.mark.long)], ids=["ten scenes", "forty scenes"])
def archive(request, tmp_path, monkeypatch):
    cloudy = [date(2024, 2, 20) + timedelta(days=2 * number) for number in range(request.param)]
    made = Archive(tmp_path, cloudy)
    monkeypatch.setattr(stop, "install", lambda path: None)  # signals belong to the test's own process
    monkeypatch.setattr(Limits, "rest", lambda *arguments: None)
    monkeypatch.setenv("CDSE_USERNAME", "u")
    monkeypatch.setenv("CDSE_PASSWORD", "p")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with made.server as server:
        settings = yaml.safe_load(CONFIG.read_text())
        del settings["archive"]
        for section, values in SETTINGS.items():
            settings[section] = settings.get(section, {}) | values
        urls = {"stac": "/v1", "catalogue": "/odata/v1", "download": "/odata/v1"}
        urls["token"] = "/auth/realms/CDSE/protocol/openid-connect/token"
        settings["copernicus"] = {name: server.url + path for name, path in urls.items()}
        settings["copernicus"]["account_folder"] = str(tmp_path / "account")
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings))
        yield made


@pytest.mark.slow
def test_what_fails_keeps_no_neighbour_from_its_restoration(archive, tmp_path, monkeypatch, capsys):
    command = ["run", str(tmp_path / "a.yaml"), "--run-dir", str(tmp_path / "run")]
    folder, write = RunFolder(tmp_path / "run"), infer._write

    def failing(config, folder, item, *rest):
        if item.name == archive.of["infer"]:
            raise ItemError("the disk has a fault")
        return write(config, folder, item, *rest)

    monkeypatch.setattr(infer, "_write", failing)
    assert main(command) == 4
    said = capsys.readouterr().err
    print(said)
    restored = {path.stem for path in folder.root.glob("outputs/*/*.h5")}
    assert restored == set(archive.cloudy) - set(archive.of.values())
    for stage, fault, reason in (
        ("preview", "metadata", "MTD_TL.xml: not readable as XML"),
        ("pair", "mask", "SCL_20m.jp2: cannot be decoded"),
        ("download", "truncated", "bytes instead of"),
        ("infer", "infer", "the disk has a fault"),
    ):
        assert re.search(rf"failed {archive.of[fault]}: .*{re.escape(reason)}", said), fault
        assert read_json(folder.records / stage / f"{archive.of[fault]}.json")["status"] == "failed"
    assert f"left out {archive.of['withdrawn']}: manifest.safe" in said
    assert listed(capsys, folder, "preview") == {archive.of["withdrawn"]}
    assert {row["product"] for row in read_jsonl(folder.scores)} == restored
    assert set(read_json(folder.evaluation)["lacking"]) == {archive.of["truncated"], archive.of["infer"]}
    assert folder.report.exists()

    before = records_of(folder)
    weights = sorted(path.name for path in folder.checkpoints.iterdir())
    archive.server.broken.clear()
    monkeypatch.setattr(infer, "_write", write)
    assert main(command) == 0
    print(capsys.readouterr().err)
    changed = {key for key, content in records_of(folder).items() if before.get(key) != content}
    mended = {archive.of[fault] for fault in FAULTS[1:]}
    assert {name for stage, name in changed if stage == "infer"} == mended
    products = {name for stage, name in changed if stage in ("preview", "pair", "download", "infer", "evaluate")}
    assert products - {archive.of["withdrawn"]} == mended  # that one has been asked for again
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == weights
    assert {path.stem for path in folder.root.glob("outputs/*/*.h5")} == restored | mended
    assert "lacking" not in read_json(folder.evaluation)

    archive.server.withdrawn.clear()  # served again
    assert main(command) == 0
    assert {path.stem for path in folder.root.glob("outputs/*/*.h5")} == set(archive.cloudy)
    assert listed(capsys, folder, "preview") == set()


def records_of(folder: RunFolder) -> dict[tuple[str, str], bytes]:
    return {(path.parent.name, path.stem): path.read_bytes() for path in folder.records.glob("*/*.json")}


def listed(capsys, folder: RunFolder, stage: str) -> set[str]:
    """What `cloudjob items --left-out` names."""
    capsys.readouterr()
    assert main(["items", stage, str(folder.root), "--left-out"]) == 0
    return {line.split("\t")[1] for line in capsys.readouterr().out.splitlines()}
