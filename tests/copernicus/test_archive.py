"""The client against the embedded archive: the same products by both catalogues, fetched and verified."""

from dataclasses import asdict
from datetime import UTC, date, datetime

import numpy as np
import pytest

from cloudjob.copernicus.account import open_account
from cloudjob.copernicus.catalogue import digest_of, search_odata, search_stac
from cloudjob.copernicus.checks import Wanted
from cloudjob.copernicus.session import Endpoints
from cloudjob.copernicus.sources import Remote
from cloudjob.copernicus.sources.https import Https, list_nodes
from cloudjob.copernicus.transfer import Limits, fetch
from cloudjob.sentinel2.product import (
    Product,
    band_files,
    check_file,
    preview_files,
    read_bands,
    read_manifest,
    read_overview,
    read_scl,
)

server = pytest.importorskip("cloudjob.archive.server")
make = pytest.importorskip("cloudjob.archive.make")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    names = make.make_synthetic(
        folder,
        tiles=["05WPS"],
        size=300,
        clear=[date(2024, 6, 3)],
        cloudy=[date(2024, 6, 13)],
        seed=1,
        cloud=(0.3, 0.5),
    )
    with server.ArchiveServer(folder) as running:
        yield folder, sorted(names), running.url


@pytest.fixture
def credentials(monkeypatch):
    monkeypatch.setenv("CDSE_USERNAME", "me")
    monkeypatch.setenv("CDSE_PASSWORD", "secret")
    return monkeypatch


@pytest.mark.slow
def test_search_and_fetch(archive, session, tmp_path, credentials):
    folder, names, url = archive
    endpoints = Endpoints(
        stac=f"{url}/v1",
        catalogue=f"{url}/odata/v1",
        download=f"{url}/odata/v1",
        token=f"{url}/auth/realms/CDSE/protocol/openid-connect/token",
    )
    query = {
        "polygon": [(-170, 60), (-130, 60), (-130, 75), (-170, 75), (-170, 60)],
        "start": datetime(2024, 6, 1, tzinfo=UTC),
        "end": datetime(2024, 7, 1, tzinfo=UTC),
        "cloud": (0, 100),
        "page_size": 1,
    }
    stac, odata = search_stac(session, endpoints, **query), search_odata(session, endpoints, **query)
    assert [scene.product for scene in stac] == [scene.product for scene in odata] == names
    assert [scene.id for scene in stac] == [scene.id for scene in odata]
    assert [scene.product for scene in search_stac(session, endpoints, **{**query, "cloud": (20, 100)})] == names[1:]

    scene = stac[0]
    assert ("manifest.safe", (folder / f"{names[0]}.SAFE/manifest.safe").stat().st_size) in list_nodes(
        session, endpoints, scene.id, scene.product
    )
    source = Https(endpoints, open_account(endpoints, folder=tmp_path), lambda: session)
    safe = tmp_path / f"{scene.product}.SAFE"

    def get(path, **expected):
        file = Wanted(path, **expected)
        fetch(lambda start: source.open(Remote.of(asdict(scene)), path, start), safe / path, file, limits=Limits())

    get("manifest.safe")
    entries = read_manifest(safe / "manifest.safe")
    for entry in preview_files(entries) + band_files(entries):
        get(entry.path, size=entry.size, digest=(entry.algorithm, entry.digest))
        check_file(safe, entry)
        if known := scene.checksums.get(entry.path):
            assert (known["size"], digest_of(known["multihash"])) == (entry.size, (entry.algorithm, entry.digest))
    product = Product.open(safe)
    assert read_scl(product).shape == (150, 150)
    assert read_overview(product).shape == (3, 50, 50)
    assert np.array_equal(read_bands(product), read_bands(Product.open(folder / safe.name)))
