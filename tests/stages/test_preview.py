"""Who is left out at preview: what is excluded, and what the archive no longer has."""

import contextlib
import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudjob.config import source
from cloudjob.copernicus.transfer import Limits
from cloudjob.errors import LeftOutError
from cloudjob.files import write_jsonl
from cloudjob.run import fetching, records
from cloudjob.run.folder import RunFolder
from cloudjob.sentinel2 import product
from cloudjob.stages import preview

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "test.yaml"
JPEG_2000 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
NAMES = [f"S2A_MSIL2A_202403{day:02d}T222541_N0510_R029_T05WPS_20240402T001122" for day in (1, 11, 21)]


class Source:
    """Stands in for the Data Space: it has what is not `gone`."""

    def __init__(self, gone: tuple[str, ...] = ()):
        self.gone, self.asked = gone, []

    def whole(self, product):
        return None

    def local(self, product, path):
        return None

    def slot(self):
        return contextlib.nullcontext()

    def open(self, product, path, start):
        if product.name in self.gone:
            raise LeftOutError(f"{path}: HTTP 404")
        self.asked.append(path)
        return Body(JPEG_2000 if path.endswith("jp2") else b"<xml/>")


class Body:
    def __init__(self, content):
        self.start, self.blocks = 0, [content, b""]

    def read(self):
        return self.blocks.pop(0)

    def stop(self):
        pass

    close = stop


@pytest.fixture
def have(monkeypatch):
    """Lets the archive have all but these products."""
    monkeypatch.setattr(Limits, "rest", lambda *arguments: None)

    def have(*gone: str) -> None:
        monkeypatch.setattr(fetching, "_source", lambda folder, settings: Source(gone))

    have()
    return have


@pytest.fixture
def folder(tmp_path, monkeypatch, have) -> RunFolder:
    monkeypatch.setattr(product, "read_manifest", lambda path: [])
    monkeypatch.setattr(product.Product, "open", lambda folder: SimpleNamespace(offsets={}, sun_elevation=15.0))
    found = RunFolder(tmp_path)
    write_jsonl(found.scenes, [{"product": name, "id": name} for name in NAMES])
    return found


def run(folder: RunFolder, *overrides: str) -> records.Summary:
    return preview.run(source.load(CONFIG, list(overrides))[0], folder)


def test_what_is_excluded_is_left_out_and_comes_back_when_it_is_no_longer(folder):
    exclude = f"search.exclude=[{NAMES[1]}.SAFE]"
    assert run(folder).done == NAMES
    summary = run(folder, exclude)
    assert (summary.skipped, summary.left_out) == ([NAMES[0], NAMES[2]], {NAMES[1]: "named in search.exclude"})
    assert records.output_digest(folder, "preview", NAMES[1]) == ""
    assert run(folder, exclude).left_out == summary.left_out
    assert run(folder).done == [NAMES[1]]


def test_what_the_archive_does_not_have_is_left_out(folder, have):
    have(NAMES[1])
    assert run(folder).left_out == {NAMES[1]: "manifest.safe: HTTP 404"}
    assert run(folder).left_out == {NAMES[1]: "manifest.safe: HTTP 404"}


def test_an_archive_that_has_nothing_is_the_wrong_one(folder, have):
    exclude = f"search.exclude=[{NAMES[2]}]"
    have(*NAMES)
    summary = run(folder, exclude)
    assert summary.failed == dict.fromkeys(NAMES[:2], "manifest.safe: HTTP 404; is copernicus.download right?")
    assert list(summary.left_out) == [NAMES[2]]
    have()
    assert run(folder, exclude).done == NAMES[:2]


def test_another_resolution_of_b11_costs_that_file_alone(folder, monkeypatch):
    paths = [f"IMG_DATA/R{metres}m/T05WPS_B11_{metres}m.jp2" for metres in (20, 60)]
    entries = [product.ManifestEntry(path, 12, "MD5", hashlib.md5(JPEG_2000).hexdigest()) for path in paths]
    source = Source()
    monkeypatch.setattr(product, "read_manifest", lambda path: entries)
    monkeypatch.setattr(fetching, "_source", lambda folder, settings: source)

    def asked(*overrides: str) -> list[str]:
        source.asked.clear()
        run(folder, *overrides)
        return [path for path in source.asked if path.endswith("jp2")]

    fine = "masks.b11=20"
    assert asked() == paths[1:] * 3
    assert (asked(), asked(fine), asked(fine), asked()) == ([], paths[:1] * 3, [], [])
    assert run(folder).skipped == NAMES
