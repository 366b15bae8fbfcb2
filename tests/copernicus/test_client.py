"""Fetching a product's files from an archive that lacks some of them."""

import numpy as np
import pytest
from affine import Affine

from cloudjob.archive.safe import write_product
from cloudjob.archive.server import ArchiveServer
from cloudjob.copernicus.client import Client
from cloudjob.copernicus.session import Endpoints
from cloudjob.errors import LeftOutError
from cloudjob.sentinel2.product import (
    Product,
    preview_files,
    read_classi,
    read_cloud_probability,
    read_manifest,
    read_scl,
    read_snow_probability,
)


@pytest.fixture
def safe(tmp_path):
    half = np.zeros((30, 30), np.uint8)
    return write_product(
        tmp_path / "archive",
        name="S2C_MSIL2A_20250605T222541_N0511_R029_T05WPS_20250606T001122",
        bands=np.full((4, 60, 60), 2000, np.uint16),
        scl=half + 5,
        cloud_probability=half,
        snow_probability=half,
        crs="EPSG:32605",
        transform=Affine(10, 0, 499980, 0, -10, 7700040),
        offset=-1000,
        sun_elevation=30,
        sun_azimuth=180,
    )


@pytest.fixture
def fetched(safe, tmp_path, monkeypatch):
    """A function that fetches the small files of the product, without those that the archive does not have any more."""
    monkeypatch.setenv("CDSE_USERNAME", "me")
    monkeypatch.setenv("CDSE_PASSWORD", "word")

    def fetch(*gone):
        with ArchiveServer(safe.parent) as server:
            for path in [path for part in gone for path in safe.rglob(f"*{part}*")]:
                path.unlink()
            base = f"{server.url}/odata/v1"
            token = f"{server.url}/auth/realms/CDSE/protocol/openid-connect/token"
            client = Client(Endpoints(stac="", catalogue=base, download=base, token=token), connections=2)
            (entry,) = server.entries
            wanted = preview_files(read_manifest(safe / "manifest.safe"))
            return client.files(entry.id, entry.name, wanted, tmp_path / "run")

    return fetch


def test_a_quality_mask_that_the_archive_lacks_costs_that_mask(fetched, tmp_path):
    assert len(fetched("MSK_SNWPRB", "MSK_CLASSI")) == 7
    product = Product.open(tmp_path / "run")
    assert read_snow_probability(product) is None
    assert read_classi(product) is None
    assert read_cloud_probability(product).shape == read_scl(product).shape


def test_a_band_or_the_classification_that_the_archive_lacks_costs_the_product(fetched):
    with pytest.raises(LeftOutError, match="SCL"):
        fetched("SCL_20m")
