"""Products of a site's own disk, wherever they lie: which are read in place, and which file by file."""

import pytest

from cloudjob.copernicus.sources import Remote
from cloudjob.copernicus.sources.folder import Folder
from cloudjob.errors import ConfigError, LeftOutError
from cloudjob.sentinel2 import layouts

NAME = "S2A_MSIL2A_20240303T222035_N0510_R122_T05WPS_20240304T012735"
OTHER = "S2B_MSIL2A_20240305T222035_N0510_R122_T05WPS_20240306T012735"
PLACES = ("", "2024/03/03", "Sentinel-2/MSI/L2A/2024/03/03", "Sentinel-2/MSI/L2A_N0500/2024/03/03", "05/W/PS/any")
PRODUCT = Remote(NAME)


def source(root):
    return Folder(root, products=layouts.named, by_manifest=layouts.by_manifest)


@pytest.fixture(params=PLACES)
def place(request, tmp_path):
    found = tmp_path / "site" / request.param
    found.mkdir(parents=True)
    (tmp_path / "site" / f"{OTHER}.SAFE").mkdir()
    return found


def test_a_folder_is_found_where_it_lies(place, tmp_path):
    (place / f"{NAME}.SAFE" / "GRANULE").mkdir(parents=True)
    for path in ("GRANULE/f", "manifest.safe"):
        (place / f"{NAME}.SAFE" / path).write_text(path)
    found = source(tmp_path / "site")
    assert found.whole(PRODUCT) is None
    assert found.local(PRODUCT, "GRANULE/f").read_text() == "GRANULE/f"
    with pytest.raises(LeftOutError, match="GRANULE/g: not there"):
        found.local(PRODUCT, "GRANULE/g")


@pytest.mark.parametrize("ending", [".SAFE.zip", ".zip"])
def test_an_archive_is_read_in_place(place, tmp_path, ending):
    (place / f"{NAME}{ending}").touch()
    assert source(tmp_path / "site").whole(PRODUCT) == place / f"{NAME}{ending}"


def test_so_is_a_folder_without_the_files_of_its_manifest(place, tmp_path):
    folder = place / f"{NAME}.SAFE"
    (folder / "GRANULE" / "L2A" / "IMG_DATA" / "R10m").mkdir(parents=True)
    assert source(tmp_path / "site").whole(PRODUCT) == folder
    (folder / "manifest.safe").touch()
    assert source(tmp_path / "site").whole(PRODUCT) is None
    (folder / "GRANULE" / "L2A" / "IMG_DATA" / "R10m" / "T05WPS_B02_10m.tif").touch()
    assert source(tmp_path / "site").whole(PRODUCT) == folder


def test_what_is_not_there_is_left_out(tmp_path):
    (tmp_path / f"{NAME}.zip").touch()
    with pytest.raises(LeftOutError, match=f"holds no {OTHER}"):
        source(tmp_path).whole(Remote(OTHER))
    with pytest.raises(ConfigError, match=r"copernicus.folder: .*/nowhere is no folder"):
        source(tmp_path / "nowhere")
