"""The GeoTIFF and the views of its bands are what GDAL and rio-cogeo make of them."""

import re

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import scene_files
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from scene_files import ATTRIBUTES, NORTH, WEST, file, pixels

from cloudjob.restoration.output import tiff

NAMES = ("B04", "B03", "B02", "B08", "reconstructed", *(f"uncertainty_{band}" for band in ("B04", "B03", "B02", "B08")))


@pytest.fixture(scope="module")
def scene():
    return pixels(30, 20)


@pytest.fixture(scope="module")
def stem(scene, tmp_path_factory):
    return scene_files.write(tmp_path_factory.mktemp("tif"), scene)


def test_the_geotiff_has_bands_place_scale_colours_and_origin(stem, scene):
    with rasterio.open(file(stem, ".tif")) as source:
        np.testing.assert_array_equal(source.read(), scene.layers)
        assert source.dtypes == ("uint16",) * 9
        assert source.crs == CRS.from_epsg(32605)
        assert source.transform[:6] == (10, 0, WEST, 0, -10, NORTH)
        assert source.nodata == 0
        assert source.descriptions == NAMES
        assert source.scales == (*[1e-4] * 4, 1, *[1e-4] * 4)
        assert source.offsets == (*[-0.1] * 4, *[0] * 5)
        assert [each.name for each in source.colorinterp[:5]] == ["red", "green", "blue", "nir", "undefined"]
        tags = source.tags()
    assert {name: tags[name] for name in ATTRIBUTES} == {name: str(value) for name, value in ATTRIBUTES.items()}
    assert tags["copyright"] == "Contains modified Copernicus Sentinel data 2024"


def test_a_view_is_a_band_with_its_own_no_data(stem, scene):
    for number, name in enumerate(NAMES):
        with rasterio.open(file(stem, f"_{name}.vrt")) as source:
            assert (source.count, source.descriptions) == (1, (name,))
            assert source.crs == CRS.from_epsg(32605)
            assert source.transform[:6] == (10, 0, WEST, 0, -10, NORTH)
            flag = name == "reconstructed"
            assert source.dtypes == ("uint8" if flag else "uint16",)
            assert source.nodata == (255 if flag else 0 if number < 4 else None)
            assert (source.scales, source.offsets) == ((1 if flag else 1e-4,), (-0.1 if number < 4 else 0,))
            np.testing.assert_array_equal(source.read(1), scene.layers[number])


def test_views_go_with_their_file_where_it_is_moved(scene, tmp_path, monkeypatch):
    stem = scene_files.write(tmp_path / "here", scene, name="mine & <yours>")
    (tmp_path / "there & <then>").mkdir()
    moved = stem.parent.rename(tmp_path / "there & <then>" / "moved")
    monkeypatch.chdir(moved)
    for path in (moved / f"{stem.name}_B08.vrt", f"{stem.name}_B08.vrt"):
        with rasterio.open(path) as source:
            np.testing.assert_array_equal(source.read(1), scene.reflectance[3])


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(1, 1200), st.integers(1, 1200), st.integers(1, 700))
def test_any_size_by_any_rows_is_read_back(tmp_path_factory, height, width, rows):
    scene = pixels(height, width, uncertainty=False)
    stem = scene_files.write(tmp_path_factory.mktemp("any"), scene, rows=rows)
    with rasterio.open(file(stem, ".tif")) as source:
        np.testing.assert_array_equal(source.read(), scene.layers)
        factors = len(source.overviews(1))
    levels = [2**n for n in range(1, 12) if max(height, width) > 512 * 2 ** (n - 1)]
    assert factors == len(levels)
    for level in range(len(levels)):
        with rasterio.open(file(stem, ".tif"), overview_level=level) as small:
            assert small.shape == tuple(-(-side // levels[level]) for side in (height, width))


@pytest.mark.slow
def test_it_is_cloud_optimized_with_averaged_overviews_and_sharp_flags(tmp_path):
    scene = pixels(1400, 1100, uncertainty=False)
    path = file(scene_files.write(tmp_path, scene), ".tif")
    with rasterio.open(path) as source:
        assert source.block_shapes == [(512, 512)] * 5
        assert source.compression.name == "deflate"
        assert source.interleaving.name == "band"
        assert source.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "2"
        assert source.overviews(1) == [2, 4]
    with rasterio.open(path, overview_level=0) as small:
        found = small.read()
        assert small.nodata == 0
    parts = scene.reflectance.reshape(4, 700, 2, 550, 2)
    known = np.maximum((parts > 0).sum((2, 4)), 1)
    np.testing.assert_allclose(found[:4], parts.sum((2, 4)) / known, atol=0.5)
    np.testing.assert_array_equal(found[4], scene.reconstructed[::2, ::2])
    with rasterio.open(path, overview_level=1) as smaller:
        np.testing.assert_array_equal(smaller.read(5), scene.reconstructed[::4, ::4])
    with rasterio.open(file(path.with_suffix(""), "_B02.vrt"), overview_level=0) as small:
        np.testing.assert_array_equal(small.read(1), found[2])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(30, 20), (513, 600), (1100, 2100)])
def test_rio_cogeo_finds_it_valid(tmp_path, shape):
    rio_cogeo = pytest.importorskip("rio_cogeo")
    path = file(scene_files.write(tmp_path, pixels(*shape)), ".tif")
    assert rio_cogeo.cog_validate(path, strict=True) == (True, [], [])


def test_a_file_beyond_4_gib_has_offsets_of_64_bits(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(tiff, "LARGEST", 0)
    path = file(scene_files.write(tmp_path, scene), ".tif")
    assert path.read_bytes()[:4] == b"II\x2b\0"
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(source.read(), scene.layers)
        assert source.crs == CRS.from_epsg(32605)
        assert source.descriptions == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3413", "EPSG:2193", "EPSG:32761", "ESRI:54009"])
def test_places_of_any_kind_are_kept(tmp_path, scene, crs):
    """Also where the authority has latitude, or northing, first: as GDAL itself writes a view."""
    place = Affine(0.001, 0, 170.5, 0, -0.002, -40) if crs == "EPSG:4326" else Affine(10, 0, 5000, 0, -20, 7000)
    stem = scene_files.write(tmp_path, scene, crs=crs, transform=place)
    for path in (file(stem, ".tif"), file(stem, "_B04.vrt"), f"HDF5:{file(stem, '.h5')}://reflectance"):
        with rasterio.open(path) as source:
            assert source.crs == CRS.from_user_input(crs)
            np.testing.assert_allclose(source.transform, place)
            np.testing.assert_allclose(source.bounds, rasterio.transform.array_bounds(30, 20, place))
    rasterio.shutil.copy(file(stem, ".tif"), tmp_path / "gdal.vrt", driver="VRT")
    theirs, ours, beside = (
        set(re.findall(r"<SRS dataAxis.*?>", path.read_text()))
        for path in (tmp_path / "gdal.vrt", file(stem, "_B04.vrt"), file(stem, ".h5.aux.xml"))
    )
    assert ours == beside == theirs
