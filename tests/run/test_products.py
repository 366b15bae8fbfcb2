"""What is read of a product is what its record says; else it is set aside, or named where it is another's."""

from pathlib import Path

import pytest
from product_layouts import planetary_computer, small_safe, zipped

from cloudjob.config import source
from cloudjob.errors import DamagedProductError
from cloudjob.files import write_jsonl
from cloudjob.run import decisions, products, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.sentinel2.product import Product
from cloudjob.stages import download, preview

NAME = "S2C_MSIL2A_20250605T222541_N0511_R029_T05WPS_20250606T001122"
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "test.yaml"


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A product whose mask and band are fetched, and its truth."""
    made = RunFolder(tmp_path / "run")
    paths = {
        "preview": [made.safe(NAME) / "SCL_20m.jp2"],
        "download": [made.safe(NAME) / "B04_10m.jp2", made.truth(NAME), made.drifting / "05WPS.tif"],
    }
    for stage, files in paths.items():

        def fetch(item: Item, files=files):
            for path in files:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(path.name.encode() * 100)
            return files, {"of": item.name}

        records.work(made, stage, [Item(stage, NAME, {}, {})], fetch)
    return made


def flip(path: Path, place: int = 50) -> None:
    """Another byte, the size as before."""
    data = bytearray(path.read_bytes())
    data[place] ^= 255
    path.write_bytes(data)


def why(folder: RunFolder, stage: str) -> str | None:
    return records.why(folder, Item(stage, NAME, {}, {}))


@pytest.mark.parametrize(("stage", "file"), [("preview", "SCL_20m.jp2"), ("download", "B04_10m.jp2")])
def test_a_file_of_the_right_size_with_another_byte_is_set_aside_and_fetched_again(folder, stage, file):
    products.check(folder, NAME, truth=True)
    assert [why(folder, each) for each in ("preview", "download")] == [None, None]
    path = folder.safe(NAME) / file
    flip(path)
    with pytest.raises(DamagedProductError, match=f"{file}: its SHA-256 is .* when {stage} had it; set aside"):
        products.check(folder, NAME)
    assert not path.exists()
    assert Path(f"{path}.corrupt").exists()
    assert f"{file}: its SHA-256" in why(folder, stage)
    assert why(folder, "download" if stage == "preview" else "preview") is None


@pytest.mark.parametrize(
    ("file", "asked", "looks"),
    [
        ("B04_10m.jp2", {"bands": False, "truth": True}, False),
        ("SCL_20m.jp2", {"bands": False}, True),
        (f"{NAME}.tif", {}, False),
        (f"{NAME}.tif", {"bands": False, "truth": True}, True),
        ("05WPS.tif", {"bands": False}, True),  # where the ground drifts: part of the masks
    ],
)
def test_only_what_the_item_needs_is_looked_at(folder, file, asked, looks):
    (path,) = folder.root.rglob(file)
    flip(path)
    if looks:
        with pytest.raises(DamagedProductError, match=file):
            products.check(folder, NAME, **asked)
    else:
        products.check(folder, NAME, **asked)
    assert path.exists() != looks


def test_a_file_is_read_once_while_it_is_the_same(folder):
    products._hashed.clear()
    products.check(folder, NAME)
    known = dict(products._hashed)
    assert len(known) == 3
    products.check(folder, NAME)
    assert products._hashed == known
    flip(folder.safe(NAME) / "B04_10m.jp2")
    with pytest.raises(DamagedProductError):
        products.check(folder, NAME)


def test_a_file_that_is_gone_is_missing(folder):
    (folder.safe(NAME) / "B04_10m.jp2").unlink()
    with pytest.raises(DamagedProductError, match=r"B04_10m\.jp2: missing"):
        products.check(folder, NAME)


def test_a_restored_product_is_held_against_its_record(folder):
    path = folder.output(NAME, ".h5")

    def restore(item: Item):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(100))
        return [path], None

    records.work(folder, "infer", [Item("infer", NAME, {}, {})], restore)
    products.check_output(folder, NAME)
    flip(path)
    with pytest.raises(DamagedProductError, match="when infer had it; set aside"):
        products.check_output(folder, NAME)
    assert why(folder, "infer").startswith("failed")


# --- read where it lies --------------------------------------------------------------------------------------------
@pytest.fixture
def linked(tmp_path, monkeypatch):
    """A function: the run folder in which a product in this layout is read where it lies, and the place."""
    safe = small_safe(tmp_path / "archive", NAME)
    monkeypatch.setattr(decisions, "accepted_pairs", lambda folder: [{"cloudy": NAME, "clear": NAME, "reference": ""}])
    monkeypatch.setattr(decisions, "unpaired", lambda folder, **rules: [])
    (site := tmp_path / "site").mkdir()

    def run(layout) -> tuple[RunFolder, Path]:
        place, made = layout(safe, site), RunFolder(tmp_path / "run")
        made.root.mkdir()
        write_jsonl(made.scenes, [{"product": NAME, "id": "1", "size": 10**9}])
        config, _ = source.load(CONFIG, ["copernicus.source=path", f"copernicus.folder={site}"])
        for stage in (preview, download):
            assert stage.run(config, made).done == [NAME]
        products.check(made, NAME)
        return made, place

    return run


@pytest.mark.slow
def test_a_linked_band_is_named_and_stays_where_it_is(linked):
    folder, place = linked(planetary_computer)
    (band,) = place.rglob("*B08*.tif")
    flip(band, band.stat().st_size // 2)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for _ in range(2):  # to look at it again does not make it good
        with pytest.raises(DamagedProductError, match=f"{band.name}: its SHA-256.*--only {NAME} --force"):
            products.check(folder, NAME)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert records.record(folder, "download", NAME)["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["member", "archive"])
def test_an_archive_is_held_against_its_checksums(linked, what):
    folder, archive = linked(zipped())
    data = bytearray(archive.read_bytes())
    if what == "member":
        band = Product.open(archive).files["B08_10m"].encode()
        data[data.index(band) + len(band) + 500] ^= 255
    else:
        data[data.rindex(b"B08_10m") - 40] ^= 1  # in the directory at its end
    archive.write_bytes(data)
    products._hashed.clear()
    with pytest.raises(DamagedProductError, match=f"--only {NAME} --force"):
        products.check(folder, NAME)
    assert archive.exists()
