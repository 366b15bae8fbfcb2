"""Products of a site's own disk: wherever they lie, as folders or as archives."""

import hashlib
import os
import zipfile

import pytest

from cloudjob.copernicus.checks import Wanted
from cloudjob.copernicus.sources import Remote
from cloudjob.copernicus.sources.folder import Folder
from cloudjob.copernicus.transfer import Limits, fetch
from cloudjob.errors import ConfigError, CorruptFileError, LeftOutError, SystemTroubleError

NAME = "S2A_MSIL2A_20240303T222035_N0510_R122_T05WPS_20240304T012735"
OTHER = "S2B_MSIL2A_20240305T222035_N0510_R122_T05WPS_20240306T012735"
PLACES = ("", "2024/03/03", "Sentinel-2/MSI/L2A/2024/03/03", "Sentinel-2/MSI/L2A_N0500/2024/03/03", "05/W/PS/any")
DATA = os.urandom(100_000)


@pytest.fixture(params=PLACES)
def place(request, tmp_path):
    found = tmp_path / "site" / request.param
    found.mkdir(parents=True)
    (tmp_path / "site" / f"{OTHER}.SAFE").mkdir()
    return found


def packed(place, ending=".SAFE.zip", top=f"{NAME}.SAFE/"):
    with zipfile.ZipFile(place / (NAME + ending), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{top}GRANULE/f", DATA)
    return place / (NAME + ending)


def get(source, target, path="GRANULE/f"):
    file = Wanted(path, len(DATA), ("MD5", hashlib.md5(DATA).hexdigest()))
    fetch(lambda start: source.open(Remote(NAME), path, start), target, file, limits=Limits(retries=0, pause=0))


def test_a_folder_is_found_where_it_lies(place, tmp_path):
    (place / f"{NAME}.SAFE" / "GRANULE").mkdir(parents=True)
    (place / f"{NAME}.SAFE" / "GRANULE" / "f").write_bytes(DATA)
    source = Folder(tmp_path / "site")
    assert source.local(Remote(NAME), "GRANULE/f").read_bytes() == DATA
    with pytest.raises(LeftOutError, match="GRANULE/g: not there"):
        source.local(Remote(NAME), "GRANULE/g")


@pytest.mark.parametrize(("ending", "top"), [(".SAFE.zip", f"{NAME}.SAFE/"), (".zip", f"{NAME}.SAFE/"), (".zip", "")])
def test_so_is_an_archive(place, tmp_path, ending, top):
    packed(place, ending, top)
    source = Folder(tmp_path / "site")
    assert source.local(Remote(NAME), "GRANULE/f") is None
    (tmp_path / "f.part").write_bytes(DATA[:70_000])
    get(source, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


def test_what_is_not_there_is_left_out(tmp_path):
    packed(tmp_path)
    with pytest.raises(LeftOutError, match=f"holds no {OTHER}.SAFE, nor a zip of it"):
        Folder(tmp_path).local(Remote(OTHER), "f")
    with pytest.raises(LeftOutError, match=r"SAFE.zip: holds no GRANULE/g"):
        get(Folder(tmp_path), tmp_path / "g", "GRANULE/g")
    with pytest.raises(ConfigError, match=r"copernicus.folder: .*/nowhere is no folder"):
        Folder(tmp_path / "nowhere")


def test_a_broken_archive_is_named(tmp_path):
    archive = packed(tmp_path)
    data = bytearray(archive.read_bytes())
    data[5000] ^= 255
    archive.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"SAFE.zip: .*GRANULE/f cannot be read"):
        get(Folder(tmp_path), tmp_path / "f")
    archive.write_bytes(data[:9000])
    with pytest.raises(CorruptFileError, match=r"SAFE.zip: no zip archive"):
        get(Folder(tmp_path), tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_an_archive_that_may_not_be_read_is_left_alone(tmp_path, monkeypatch):
    packed(tmp_path)

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(SystemTroubleError, match="Permission denied"):
        get(Folder(tmp_path), tmp_path / "f")
