"""Who is left out at preview: what is excluded, and what the archive no longer has."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudjob.config import source
from cloudjob.copernicus import client
from cloudjob.errors import LeftOutError
from cloudjob.files import write_jsonl, write_text
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.sentinel2 import product
from cloudjob.stages import preview

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "test.yaml"
NAMES = [f"S2A_MSIL2A_202403{day:02d}T222541_N0510_R029_T05WPS_20240402T001122" for day in (1, 11, 21)]


class Client:
    """Stands in for the Data Space: it has what is not `gone`."""

    gone: tuple[str, ...] = ()

    def __init__(self, *arguments, **options):
        pass

    def file(self, product_id: str, name: str, path: str, folder: Path) -> Path:
        if name in self.gone:
            raise LeftOutError(f"{path}: HTTP 404")
        write_text(folder / path, name)
        return folder / path

    def files(self, *arguments) -> list[Path]:
        return []


@pytest.fixture
def folder(tmp_path, monkeypatch) -> RunFolder:
    monkeypatch.setattr(client, "Client", Client)
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


def test_what_the_archive_does_not_have_is_left_out(folder, monkeypatch):
    monkeypatch.setattr(Client, "gone", (NAMES[1],))
    assert run(folder).left_out == {NAMES[1]: "manifest.safe: HTTP 404"}
    assert run(folder).left_out == {NAMES[1]: "manifest.safe: HTTP 404"}


def test_an_archive_that_has_nothing_is_the_wrong_one(folder, monkeypatch):
    exclude = f"search.exclude=[{NAMES[2]}]"
    monkeypatch.setattr(Client, "gone", tuple(NAMES))
    summary = run(folder, exclude)
    assert summary.failed == dict.fromkeys(NAMES[:2], "manifest.safe: HTTP 404; is copernicus.download right?")
    assert list(summary.left_out) == [NAMES[2]]
    monkeypatch.setattr(Client, "gone", ())
    assert run(folder, exclude).done == NAMES[:2]
