"""preview and download of products that lie on a disk of the site, in every layout: by links alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from product_layouts import cogs, copied, planetary_computer, small_safe, without, zipped

from cloudjob.config import source
from cloudjob.errors import ItemError
from cloudjob.files import read_json, write_jsonl
from cloudjob.run import decisions, fetching, records
from cloudjob.run.folder import RunFolder
from cloudjob.sentinel2.product import Product, read_bands, read_cloud_probability, read_scl
from cloudjob.stages import download, preview

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "test.yaml"
NAME = "S2C_MSIL2A_20250605T222541_N0511_R029_T05WPS_20250606T001122"
LAYOUTS = {
    "SAFE": copied,
    "SAFE without a quality mask": without("MSK_SNWPRB"),
    "Planetary Computer": planetary_computer,
    "zip": zipped(),
    "zip of another name": lambda safe, to: zipped()(safe, to).rename(to / "download.zip"),
    "Earth Search": cogs("sentinel-2-c1-l2a", masks=True),
}


@pytest.fixture(scope="module")
def safe(tmp_path_factory):
    return small_safe(tmp_path_factory.mktemp("archive"), NAME)


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site" / "deep"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def run(tmp_path, site, monkeypatch):
    """Runs a stage on the site's product; the summary, and the run folder."""
    pair = {"cloudy": NAME, "clear": NAME, "reference": None}
    monkeypatch.setattr(decisions, "accepted_pairs", lambda folder: [pair])
    monkeypatch.setattr(decisions, "unpaired", lambda folder, **rules: [])
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    write_jsonl(folder.scenes, [{"product": NAME, "id": "1", "size": 10**9}])
    config, _ = source.load(CONFIG, ["copernicus.source=path", f"copernicus.folder={site.parent}"])
    return lambda stage: (stage.run(config, folder), folder)


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_taken_from_a_folder_of_the_site(safe, site, run, layout):
    LAYOUTS[layout](safe, site)
    before = files_below(site)
    for stage in (preview, download):
        summary, folder = run(stage)
        assert summary.done == [NAME], summary
        summary, _ = run(stage)
        assert summary.skipped == [NAME]
    product = Product.open(folder.safe(NAME))
    assert folder.safe(NAME).is_symlink() == (not layout.startswith("SAFE"))
    assert np.array_equal(read_bands(product), read_bands(Product.open(safe)))
    assert read_scl(product).min() == 5
    assert (read_cloud_probability(product) is None) == (layout == "Planetary Computer")
    assert files_below(site) == before
    assert ("four bands" in summary.note) == layout.startswith("SAFE")


def test_what_an_archive_holds_is_recorded(safe, site, run):
    archive = zipped()(safe, site)
    digests = []
    for _ in range(2):
        summary, folder = run(preview)
        assert summary.done == [NAME]
        digests.append(read_json(records.path(folder, "preview", NAME))["result"]["archive"])
        shutil.rmtree(folder.records)
        (safe / "note").write_text("more")
        archive.unlink()
        zipped()(safe, site)
    (safe / "note").unlink()
    assert len(set(digests)) == 2


def test_a_broken_band_of_an_archive_fails_its_download(safe, site, run):
    archive = zipped()(safe, site)
    assert run(preview)[0].done == [NAME]
    data = bytearray(archive.read_bytes())
    band = Product.open(archive).files["B08_10m"].encode()
    data[data.index(band) + len(band) + 500] ^= 255  # within the member that follows its name
    archive.write_bytes(data)
    (message,) = run(download)[0].failed.values()
    assert f"{NAME}.SAFE" in message
    assert archive.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "gone"), [(preview, "SCL"), (download, "B08")])
def test_a_needed_file_that_is_not_there_costs_the_product(safe, site, run, stage, gone):
    folder = planetary_computer(safe, site)
    if stage is download:
        run(preview)
    next(folder.rglob(f"*{gone}*.tif")).unlink()
    summary, _ = run(stage)
    assert gone in str({**summary.left_out, **summary.failed})


def test_nothing_is_written_behind_a_link_when_the_source_is_another(safe, site, run):
    planetary_computer(safe, site)
    _, folder = run(preview)
    assert fetching.in_place(folder, NAME)

    class Remote:
        name = NAME

    class Other:
        def whole(self, product):
            return None

    assert not fetching.link_whole(folder, Other(), Remote())
    assert not folder.safe(NAME).is_symlink()
    folder.safe(NAME).mkdir()

    class Site:
        def whole(self, product):
            return site

    with pytest.raises(ItemError, match="holds files of another source; delete it"):
        fetching.link_whole(folder, Site(), Remote())
