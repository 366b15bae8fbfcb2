"""Products as they lie about: some no product, some not whole. What is wrong is said, and the others are served."""

import hashlib
import json
import re
import shutil
from datetime import date

import pytest
import requests

from cloudjob.archive import catalogue
from cloudjob.archive.make import make_synthetic
from cloudjob.archive.server import ArchiveServer
from cloudjob.cli.dispatch import main
from cloudjob.errors import SystemTroubleError
from cloudjob.sentinel2.product import read_manifest

PERCENTAGES = ("DARK_FEATURES_PERCENTAGE", "SNOW_ICE_PERCENTAGE")  # the first has another name in newer baselines


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six products of two clear dates and one cloudy one, all whole: to be copied."""
    folder = tmp_path_factory.mktemp("archive")
    days = {"clear": [date(2024, 3, 4), date(2024, 3, 20)], "cloudy": [date(2024, 3, 10)]}
    names = make_synthetic(folder, tiles=["05WMU", "05WPS"], size=96, seed=5, cloud=(0.2, 0.3), **days)
    return folder, sorted(names)


@pytest.fixture
def wild(made, tmp_path):
    """A folder with copies of them, and their names."""
    return shutil.copytree(made[0], tmp_path / "wild"), made[1]


def listed(folder):
    said = []
    return [entry.name for entry in catalogue.entries(folder, said.append)], said


def edit(path, *changes):
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.slow
def test_what_is_no_whole_product_is_named_and_the_others_are_listed(wild):
    folder, names = wild
    path = {name: folder / f"{name}.SAFE" for name in names}
    level_1c = path[names[0]].rename(folder / path[names[0]].name.replace("MSIL2A", "MSIL1C"))
    (level_1c / "MTD_MSIL2A.xml").rename(level_1c / "MTD_MSIL1C.xml")
    (path[names[1]] / "manifest.safe").unlink()
    edit(path[names[2]] / "MTD_MSIL2A.xml", ("EXT_POS_LIST", "NO_LIST"))
    shutil.copytree(path[names[3]], folder / "S2_copy.SAFE")
    (folder / "S2_empty.SAFE").mkdir()
    (folder / "notes.txt").touch()
    found, said = listed(folder)
    assert set(found) == set(names[3:])
    for name, words in (
        (level_1c.name, "a Level-1C product; Level-2A is read as"),
        (path[names[1]].name, "manifest.safe: missing"),
        (path[names[2]].name, "MTD_MSIL2A.xml: no element EXT_POS_LIST"),
        ("S2_copy.SAFE", f"the product of {path[names[3]].name}"),
        ("S2_empty.SAFE", "MTD_MSIL2A.xml: missing"),
    ):
        (line,) = [line for line in said if line.startswith(f"archive: left out {name}: ")]
        assert words in line
    assert len(said) == 5
    assert path[names[3]] in [entry.product.folder for entry in catalogue.entries(folder, str)]


def test_missing_files_are_named_and_what_is_there_is_served(wild, tmp_path):
    folder, names = wild
    product = folder / f"{names[0]}.SAFE"
    gone = sorted(path.relative_to(product).as_posix() for path in product.rglob("R60m/*.jp2"))
    for path in gone:
        (product / path).unlink()
    (product / f"{names[0]}-ql.jpg").unlink()
    (tile,) = product.rglob("MTD_TL.xml")
    tile.write_text(re.sub(r"(<AZIMUTH_ANGLE[^>]*>)[^<]*", r"\1nan", tile.read_text()))
    edit(product / "MTD_MSIL2A.xml", *((name, f"OTHER_{name}") for name in PERCENTAGES))
    said = []
    with ArchiveServer(folder, said=said.append) as server:
        found = requests.post(f"{server.url}/v1/search", json={"limit": 100}).text
        rows = requests.get(f"{server.url}/odata/v1/Products?$expand=Attributes&$expand=Assets").json()["value"]
        item = next(each for each in json.loads(found)["features"] if each["id"] == names[0])
        manifest = item["assets"]["safe_manifest"]
        address = manifest["alternate"]["https"]["href"]
        nodes = requests.get(address.removesuffix("/Nodes(manifest.safe)/$value") + "/Nodes").json()["result"]
        form = {"grant_type": "password", "username": "ann", "password": "x"}
        token = requests.post(f"{server.url}/auth/realms/CDSE/protocol/openid-connect/token", data=form).json()
        bearer = {"Authorization": f"Bearer {token['access_token']}"}
        served = requests.get(address, headers=bearer).content
        tail = requests.get(address, headers=bearer | {"Range": "bytes=100-"}).content
    assert tail == served[100:]
    assert {len(served)} == {
        manifest["file:size"],
        *(n["ContentLength"] for n in nodes if n["Name"] == "manifest.safe"),
    }
    assert manifest["file:checksum"].endswith(hashlib.md5(served).hexdigest())
    (tmp_path / "manifest.safe").write_bytes(served)
    whole = [entry for entry in read_manifest(product / "manifest.safe") if entry.path not in gone]
    assert read_manifest(tmp_path / "manifest.safe") == whole
    (line,) = said
    assert line.startswith(f"archive: {names[0]}: {len(gone)} files of its manifest are missing: ")
    assert line.endswith(" ..." if len(gone) > 5 else gone[-1])
    assert "NaN" not in found
    assert item["properties"]["view:sun_azimuth"] is None
    assert (item["properties"]["eo:snow_cover"], item["properties"]["statistics"]["dark_area"]) == (None, None)
    assert "thumbnail" not in item["assets"]
    assert not [key for key in item["assets"] if key.endswith("_60m")]
    assert "B04_10m" in item["assets"]
    row = next(each for each in rows if each["Name"] == f"{names[0]}.SAFE")
    assert row["Assets"] == []
    assert len([each for each in rows if each["Assets"]]) == len(names) - 1
    assert all(attribute["Value"] is not None for attribute in row["Attributes"])


def test_real_products_of_which_hardly_a_file_is_there(shared_data, tmp_path):
    real = [*shared_data.glob("l2a_metadata/*.SAFE"), *shared_data.glob("safe_T29UNU/*.SAFE")]
    for folder in real:
        (tmp_path / folder.name.removeprefix("esa_")).symlink_to(folder)
    said = []
    found = catalogue.entries(tmp_path, said.append)
    assert len(found) == len(said) == len(real) == 3
    assert all("files of its manifest are missing: " in line for line in said)
    for entry in found:
        item = catalogue.stac_item(entry, "http://here")
        json.dumps([item, catalogue.odata_row(entry, "http://here", ["Attributes", "Assets"])], allow_nan=False)
        assert {"granule_metadata", "product_metadata", "safe_manifest"} <= item["assets"].keys()
        with entry.open("manifest.safe") as file:
            (tmp_path / "manifest.safe").write_bytes(file.read())
        listed = {each.path for each in read_manifest(tmp_path / "manifest.safe")}
        assert {path for path in listed if not (entry.product.folder / path).is_file()} == {
            entry.product.files[key] for key in catalogue._NEEDED if entry.product.files[key] in entry.missing
        }


def test_what_the_system_refuses_is_no_reason_to_go_without_it(wild, monkeypatch):
    def refused(folder):
        raise SystemTroubleError("too many open files")

    monkeypatch.setattr(catalogue, "Entry", refused)
    with pytest.raises(SystemTroubleError):
        listed(wild[0])


CONFIG = """archive: {{path: {folder}}}
search:
  polygon: [[-175.0, 60], [-175.0, 75], [-135.0, 75], [-135.0, 60], [-175.0, 60]]
  clear: {{start: 2024-03-01, end: 2024-03-30, cloud: [0, 5]}}
  cloudy: {{start: 2024-03-01, end: 2024-03-30, cloud: [5, 100]}}
"""


@pytest.mark.slow
def test_a_run_on_a_folder_of_products_goes_on_without_those_that_lack_a_file(wild, tmp_path, capsys):
    folder, names = wild
    cloudy = [name for name in names if "_20240310T" in name]
    for path in folder.glob("*/*-ql.jpg"):
        path.unlink()
    shutil.copytree(folder / f"{names[0]}.SAFE", level_1c := folder / f"{names[0].replace('L2A', 'L1C')}.SAFE")
    (level_1c / "MTD_MSIL2A.xml").rename(level_1c / "MTD_MSIL1C.xml")
    next((folder / f"{cloudy[0]}.SAFE").rglob("*_SCL_20m.jp2")).unlink()
    (clear,) = (name for name in names if "_20240304T" in name and cloudy[1].split("_")[5] in name)
    for pattern in ("R60m/*.jp2", "MSK_*.jp2"):
        for path in (folder / f"{clear}.SAFE").rglob(pattern):
            path.unlink()
    before = sorted(path for path in folder.rglob("*"))
    config = tmp_path / "a.yaml"
    config.write_text(CONFIG.format(folder=folder))
    assert main(["run", str(config), "--run-dir", str(tmp_path / "run"), "--until", "download"]) == 0
    said = capsys.readouterr().err
    assert re.search(rf"left out {level_1c.name}: .*: a Level-1C product", said)
    assert "1 files of its manifest are missing: GRANULE" in said
    assert f"left out {cloudy[0]}" in said
    rows = [json.loads(line) for line in (tmp_path / "run" / "pairs.jsonl").read_text().splitlines()]
    assert {row["cloudy"] for row in rows} == set(cloudy[1:])
    assert [row["clear"] for row in rows if row["accepted"]] == [clear]
    assert sorted(path for path in folder.rglob("*")) == before  # nothing is written there


def test_a_folder_that_is_not_there_is_said(tmp_path, capsys):
    config = tmp_path / "a.yaml"
    config.write_text(CONFIG.format(folder=tmp_path / "none"))
    assert main(["search", str(config), "--run-dir", str(tmp_path / "run")]) == 2
    assert f"archive: no such folder: {tmp_path / 'none'}" in capsys.readouterr().err
