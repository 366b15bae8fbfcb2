"""The client against the embedded archive: the same products by both catalogues, fetched and verified."""

from dataclasses import asdict
from datetime import UTC, date, datetime

import numpy as np
import pytest
from affine import Affine
from rasterio.warp import transform as warp_points
from shapely import union_all
from shapely.geometry import shape

from cloudjob.archive.safe import write_product
from cloudjob.copernicus.account import open_account
from cloudjob.copernicus.area import rings
from cloudjob.copernicus.catalogue import search_odata, search_stac
from cloudjob.copernicus.checks import Wanted, known
from cloudjob.copernicus.session import Endpoints
from cloudjob.copernicus.sources import Remote
from cloudjob.copernicus.sources.https import Https, list_nodes
from cloudjob.copernicus.transfer import Limits, fetch
from cloudjob.sentinel2 import geometry
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
    fine = preview_files(entries, b11=20)
    (swir,) = (entry.path for entry in fine if entry.path.endswith("_B11_20m.jp2"))
    assert known(swir, scene.checksums).digest
    for entry in {*preview_files(entries), *fine, *band_files(entries)}:
        get(entry.path, size=entry.size, digest=(entry.algorithm, entry.digest))
        check_file(safe, entry)
        if entry.path in scene.checksums:
            expected = Wanted(entry.path, entry.size, (entry.algorithm, entry.digest))
            assert known(entry.path, scene.checksums) == expected
    product = Product.open(safe)
    assert read_scl(product).shape == (150, 150)
    assert read_overview(product).shape == (3, 50, 50)
    assert np.array_equal(read_bands(product), read_bands(Product.open(folder / safe.name)))


PLACES = {  # where the middle of a product lies, by its tile
    "01WCR": (180.0, 68.0),
    "60WWD": (180.0, 68.0),
    "01KAB": (-180.0, -16.9),
    "01KBB": (-179.85, -16.9),
    "60CWS": (177.1, -79.9),
    "31XEM": (3.2, 83.9),
    "29NRA": (-6.001, 0.2),
    "29MRV": (-6.001, -0.2),
}


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """Products of 600 x 600 m at 180 degrees, near the poles and the equator, and the endpoints that serve them."""
    folder = tmp_path_factory.mktemp("everywhere")
    half = np.zeros((30, 30), np.uint8)
    for tile, (lon, lat) in PLACES.items():
        crs = geometry.tile_corner(tile)[0]
        (x,), (y,) = warp_points("EPSG:4326", crs, [lon], [lat])
        write_product(
            folder,
            name=f"S2D_MSIL2A_20270601T222541_N0512_R029_T{tile}_20270602T001122",
            bands=np.full((4, 60, 60), 2000, np.uint16),
            scl=half + 5,
            cloud_probability=half,
            snow_probability=half,
            crs=crs,
            transform=Affine(10, 0, x - 300, 0, -10, y + 300),
            offset=-1000,
            sun_elevation=30,
            sun_azimuth=180,
        )
    with server.ArchiveServer(folder) as running:
        yield Endpoints(stac=f"{running.url}/v1", catalogue=f"{running.url}/odata/v1", download="", token="")


@pytest.mark.slow
@pytest.mark.parametrize("search", [search_stac, search_odata])
def test_the_area_finds_what_it_touches_everywhere_on_earth(everywhere, session, search):
    query = {"start": datetime(2027, 6, 1, tzinfo=UTC), "end": datetime(2027, 6, 2, tzinfo=UTC), "cloud": (0, 100)}

    def found(west, south, east, north):
        ring = [(west, south), (east, south), (east, north), (west, north), (west, south)]
        asked = rings([ring], "search.polygon")
        return {scene.tile: scene for part in asked for scene in search(session, everywhere, polygon=part, **query)}

    assert found(-180, -90, 180, 90).keys() == PLACES.keys()
    assert found(-90, -90, 90, 90).keys() == {"31XEM", "29NRA", "29MRV"}  # and not what lies at 180 degrees
    for west, east in ((179.9, 180), (-180, -179.9), (179.9, 180.1), (180.002, 180.1), (-180.1, -180.002)):
        assert found(west, 60, east, 70).keys() == {"01WCR", "60WWD"}
        assert found(west, -20, east, -10).keys() == {"01KAB"}
    assert found(179.9, -20, 180.2, -10).keys() == found(-180.1, -20, -179.8, -10).keys() == {"01KAB", "01KBB"}
    for tile, (lon, lat) in PLACES.items():
        scene = found(lon - 0.01, lat - 0.001, lon + 0.01, lat + 0.001)[tile]
        ground = shape(scene.footprint)
        assert ground.is_valid
        assert ground.area == pytest.approx((0.6 / 111.2) ** 2 / np.cos(np.radians(lat)), rel=0.05)
        crs = geometry.tile_corner(tile)[0]
        near = union_all(geometry.ground_near(scene.footprint, crs, (lon, lat)))
        assert near.area == pytest.approx(600 * 600, rel=1e-3)


def test_a_box_goes_on_beyond_180_degrees(everywhere, session):
    def found(*bbox):
        answer = session.post(f"{everywhere.stac}/search", json={"limit": 99, "bbox": bbox}).json()
        return {item["id"][39:44] for item in answer["features"]}

    assert found(179.9, -20, -179.8, -10) == {"01KAB", "01KBB"}
    assert found(-179.9, -20, 179.9, -10) == {"01KBB"}
    assert found(179.999, -90, -179.999, 90) == {"01WCR", "60WWD", "01KAB"}


def test_the_items_of_the_archive_say_on_which_side_they_lie(everywhere, session):
    found = session.post(f"{everywhere.stac}/search", json={"limit": 99}).json()["features"]
    items = {item["id"][38:44]: item for item in found}
    for tile, (lon, _) in PLACES.items():
        west, _, east, _ = items[f"T{tile}"]["bbox"]
        assert (west > east, items[f"T{tile}"]["geometry"]["type"]) == (
            (True, "MultiPolygon") if abs(lon) == 180 else (False, "Polygon")
        )
        assert (east - west) % 360 < 0.1
