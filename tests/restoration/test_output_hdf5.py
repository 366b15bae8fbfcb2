"""The .h5 is what other tools make of it: h5py, xarray, GDAL's netCDF and HDF5 drivers."""

import json

import h5py
import numpy as np
import pytest
import rasterio
import scene_files
from rasterio.crs import CRS
from scene_files import ATTRIBUTES, NORTH, PRODUCT, WEST, file, pixels

from cloudjob.errors import CorruptFileError
from cloudjob.restoration import output

HEIGHT, WIDTH = 30, 20


@pytest.fixture(scope="module")
def scene():
    return pixels(HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def h5(scene, tmp_path_factory):
    return file(scene_files.write(tmp_path_factory.mktemp("h5"), scene), ".h5")


def test_h5py_finds_the_numbers_as_they_were(h5, scene):
    with h5py.File(h5) as found:
        assert set(found) == {"reflectance", "reconstructed", "uncertainty", "x", "y", "band", "spatial_ref", "time"}
        for name in ("reflectance", "reconstructed", "uncertainty"):
            assert found[name].dtype == getattr(scene, name).dtype
            np.testing.assert_array_equal(found[name][...], getattr(scene, name))
        assert found["band"].asstr()[...].tolist() == ["B04", "B03", "B02", "B08"]
        facts = dict(found.attrs)
    assert {name: facts[name] for name in ATTRIBUTES} == ATTRIBUTES
    assert facts["Conventions"] == "CF-1.11"
    assert facts["title"] == f"{PRODUCT} without clouds"
    assert facts["references"] == "Contains modified Copernicus Sentinel data 2024"


def test_layers_have_their_axes_attached(h5):
    """Readers guess them by their lengths where they are not."""
    with h5py.File(h5) as found:
        for name, axes in {
            "reflectance": ("band", "y", "x"),
            "uncertainty": ("band", "y", "x"),
            "reconstructed": ("y", "x"),
        }.items():
            attached = [[scale.name for scale in dimension.values()] for dimension in found[name].dims]
            assert attached == [[f"/{axis}"] for axis in axes]
        for axis in ("band", "y", "x"):
            assert h5py.h5ds.get_scale_name(found[axis].id) == axis.encode()


@pytest.mark.parametrize(("shape", "chunk"), [((30, 20), (30, 20)), ((515, 16), (512, 16)), ((16, 515), (16, 512))])
def test_layers_are_chunked_compressed_and_checksummed(tmp_path, shape, chunk):
    scene = pixels(*shape, uncertainty=False)
    with h5py.File(file(scene_files.write(tmp_path, scene), ".h5")) as found:
        assert "uncertainty" not in found
        for name, chunks in {"reflectance": (1, *chunk), "reconstructed": chunk}.items():
            layer = found[name]
            assert (layer.chunks, layer.compression, layer.compression_opts) == (chunks, "gzip", 1)
            assert layer.shuffle
            assert layer.fletcher32
            np.testing.assert_array_equal(layer[...], getattr(scene, name))


def test_a_flipped_byte_is_noticed(h5, tmp_path):
    content = bytearray(h5.read_bytes())
    with h5py.File(h5) as found:
        chunk = found["reflectance"].id.get_chunk_info(0)
    for place in (chunk.size // 2, chunk.size - 1):  # of the pixels, and of the checksum alone
        content[chunk.byte_offset + place] ^= 1
        (tmp_path / "scene.h5").write_bytes(content)
        with pytest.raises(CorruptFileError, match="cannot be read"):
            output.read_h5(tmp_path / "scene.h5")
        content[chunk.byte_offset + place] ^= 1


def test_read_h5_gives_image_and_flags(h5, scene, tmp_path):
    image, flags = output.read_h5(h5)
    np.testing.assert_array_equal(image, scene.reflectance)
    np.testing.assert_array_equal(flags, scene.reconstructed)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["reflectance"] = image
    for name in ("other.h5", "none.h5"):
        with pytest.raises(CorruptFileError) as caught:
            output.read_h5(tmp_path / name)
        assert caught.value.path == tmp_path / name


def test_coordinates_are_the_centres_of_pixels_and_the_time_of_sensing(h5):
    with h5py.File(h5) as found:
        np.testing.assert_array_equal(found["x"], WEST + 5 + 10 * np.arange(WIDTH))
        np.testing.assert_array_equal(found["y"], NORTH - 5 - 10 * np.arange(HEIGHT))
        assert found["time"].attrs["units"] == "seconds since 1970-01-01T00:00:00Z"
        assert found["time"][()] == 1710109235.024


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_reads_reflectance_as_float32_with_coordinates_at_the_centres_of_pixels(h5, scene, engine):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip({"h5netcdf": "h5netcdf", "netcdf4": "netCDF4"}[engine])
    with xarray.open_dataset(h5, engine=engine) as data:
        assert dict(data.sizes) == {"band": 4, "y": HEIGHT, "x": WIDTH}
        assert data.reflectance.dims == ("band", "y", "x")
        assert data.reconstructed.dims == ("y", "x")
        assert data.uncertainty.dims == ("band", "y", "x")
        assert data.reflectance.dtype == data.uncertainty.dtype == np.float32
        assert data.reconstructed.dtype == np.uint8
        np.testing.assert_array_equal(data.x, WEST + 5 + 10 * np.arange(WIDTH))
        np.testing.assert_array_equal(data.y, NORTH - 5 - 10 * np.arange(HEIGHT))
        assert data.band.values.tolist() == ["B04", "B03", "B02", "B08"]
        assert str(data.time.values).startswith("2024-03-10T22:20:35.024")
        image = data.reflectance.values
        known = scene.reflectance > 0
        assert np.isnan(image[~known]).all()
        np.testing.assert_allclose(image[known], (scene.reflectance[known] - 1000.0) / 10000, atol=1e-6)
        np.testing.assert_allclose(data.uncertainty.values, scene.uncertainty / 10000, atol=1e-8)
        np.testing.assert_array_equal(data.reconstructed.values, scene.reconstructed)


def test_attributes_are_those_of_the_cf_conventions(h5):
    with h5py.File(h5) as found:
        attributes = {name: dict(found[name].attrs) for name in found}
    image, flags, spread = (attributes[name] for name in ("reflectance", "reconstructed", "uncertainty"))
    assert (image["scale_factor"], image["add_offset"], image["units"]) == (np.float32(1e-4), np.float32(-0.1), "1")
    assert image["scale_factor"].dtype == image["add_offset"].dtype == spread["scale_factor"].dtype == np.float32
    assert image["_FillValue"] == 0
    assert image["_FillValue"].dtype == np.uint16
    assert image["long_name"] == "surface reflectance"
    assert "add_offset" not in spread  # a deviation has none
    assert "_FillValue" not in spread
    assert flags["flag_values"].tolist() == [0, 1, 2, 255]
    assert flags["flag_values"].dtype == np.uint8
    assert flags["flag_meanings"] == "observed reconstructed blended_edge no_data"
    assert "_FillValue" not in flags
    assert "scale_factor" not in flags
    assert {layer["grid_mapping"] for layer in (image, flags, spread)} == {"spatial_ref"}
    for axis in ("x", "y"):
        assert attributes[axis]["standard_name"] == f"projection_{axis}_coordinate"
        assert (attributes[axis]["units"], attributes[axis]["axis"]) == ("m", axis.upper())


def test_a_scene_of_unknown_place_has_no_grid_mapping(tmp_path):
    scene = pixels(8, 9, uncertainty=False)
    stem = scene_files.write(tmp_path, scene, crs=None)
    with h5py.File(file(stem, ".h5")) as found:
        assert "spatial_ref" not in found
        assert "grid_mapping" not in found["reflectance"].attrs
    with rasterio.open(file(stem, ".tif")) as found:
        assert found.crs is None
        np.testing.assert_array_equal(found.read(), scene.layers)


def test_gdal_finds_layers_place_names_and_numbers_whatever_driver_opens_it(h5, scene):
    with rasterio.open(h5) as source:  # as gdalinfo and QGIS do: by the HDF5 driver
        assert source.driver == "HDF5"
        found = {name.rpartition("/")[2]: name for name in source.subdatasets}
    assert set(found) == {"reflectance", "reconstructed", "uncertainty"}
    for path in (found["reflectance"], f"netcdf:{h5}:reflectance"):
        with rasterio.open(path) as source:
            assert source.crs == CRS.from_epsg(32605)
            assert source.transform[:6] == (10, 0, WEST, 0, -10, NORTH)
            assert source.nodata == 0
            np.testing.assert_allclose(source.scales, 1e-4, rtol=1e-7)
            np.testing.assert_allclose(source.offsets, -0.1, rtol=1e-7)
            np.testing.assert_array_equal(source.read(), scene.reflectance)
    for name in ("reconstructed", "uncertainty"):
        with rasterio.open(found[name]) as source:
            assert source.crs == CRS.from_epsg(32605)
            assert source.transform[:6] == (10, 0, WEST, 0, -10, NORTH)
            np.testing.assert_array_equal(source.read().squeeze(), getattr(scene, name))
    with rasterio.open(found["reflectance"]) as source:
        assert source.descriptions == ("B04", "B03", "B02", "B08")
        assert [each.name for each in source.colorinterp[:3]] == ["red", "green", "blue"]
    with rasterio.open(found["uncertainty"]) as source:
        assert source.descriptions == tuple(f"uncertainty_{band}" for band in ("B04", "B03", "B02", "B08"))
        assert source.nodata is None


@pytest.mark.slow
def test_compliance_checker_finds_nothing_wrong(h5, tmp_path):
    pytest.importorskip("compliance_checker")
    from compliance_checker.runner import CheckSuite, ComplianceChecker

    CheckSuite.load_all_available_checkers()
    nc, report = tmp_path / "scene.nc", tmp_path / "report.json"
    nc.write_bytes(h5.read_bytes())  # it takes the format from the name
    ComplianceChecker.run_checker(str(nc), ["cf:1.11"], 0, "normal", output_filename=str(report), output_format="json")
    found = json.loads(report.read_text())["cf:1.11"]
    assert found["scored_points"] > 100
    assert found["high_count"] == 0, found["high_priorities"]
    # Of the lower ones the one that unsigned numbers, which CF has since 1.9, are packed.
    wrong = [message for each in found["medium_priorities"] + found["low_priorities"] for message in each["msgs"]]
    assert all("not of type byte, short, or int" in message for message in wrong), wrong
