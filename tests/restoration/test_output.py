"""Outputs are what other tools make of them: h5py, xarray, GDAL's netCDF and GeoTIFF drivers, STAC readers, Pillow."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from rasterio.crs import CRS
from rasterio.warp import transform as warp
from shapely.geometry import Polygon, shape

from cloudjob.errors import CorruptFileError
from cloudjob.restoration import output
from cloudjob.restoration.output import Restored
from cloudjob.sentinel2.render import true_colour

PRODUCT = "S2B_MSIL2A_20240310T222035_N0510_R122_T05WPS_20240311T012735"
REFERENCE = "S2A_MSIL2A_20240304T222541_N0510_R029_T05WPS_20240305T001122"
ATTRIBUTES = {
    "source_products": f"{PRODUCT} {REFERENCE}",
    "checkpoint_sha256": "ab" * 32,
    "config_sha256": "cd" * 32,
    "seed": 3,
    "sampler": "euler",
    "steps": 2,
    "members": 2,
    "uncertainty_factors": "1.0000 1.5000",
    "cloudjob_version": "0.1.0",
}
HEIGHT, WIDTH = 30, 20
WEST, NORTH = 600000.0, 7900020.0


@pytest.fixture(scope="module")
def scene() -> Restored:
    rng = np.random.default_rng(0)
    image = rng.integers(1, 65536, (4, HEIGHT, WIDTH)).astype(np.uint16)
    flags = rng.choice([0, 1, 2], (HEIGHT, WIDTH)).astype(np.uint8)
    image[:, :2, :3], flags[:2, :3] = 0, 255
    return Restored(
        product=PRODUCT,
        reflectance=image,
        reconstructed=flags,
        uncertainty=rng.integers(0, 900, (4, HEIGHT, WIDTH)).astype(np.uint16),
        crs="EPSG:32605",
        transform=Affine(10, 0, WEST, 0, -10, NORTH),
        sensing_time="2024-03-10T22:20:35.024Z",
        attributes=ATTRIBUTES,
    )


@pytest.fixture(scope="module")
def h5(scene, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("h5") / "scene.h5"
    output.write_h5(path, scene)
    return path


@pytest.fixture(scope="module")
def tif(scene, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tif") / "scene.tif"
    output.write_cog(path, scene)
    return path


def test_the_data_are_credited_to_the_year_of_sensing(scene):
    assert scene.attribution == "Contains modified Copernicus Sentinel data 2024"


# --- HDF5, netCDF ------------------------------------------------------------------------------------------------
def test_h5py_finds_the_numbers_as_they_were(h5, scene):
    with h5py.File(h5) as file:
        assert set(file) == {"reflectance", "reconstructed", "uncertainty", "x", "y", "band", "spatial_ref"}
        for name in ("reflectance", "reconstructed", "uncertainty"):
            assert file[name].dtype == getattr(scene, name).dtype
            np.testing.assert_array_equal(file[name][...], getattr(scene, name))
        assert file["band"].asstr()[...].tolist() == ["B04", "B03", "B02", "B08"]
        facts = dict(file.attrs)
    assert {name: facts[name] for name in ATTRIBUTES} == ATTRIBUTES
    assert facts["Conventions"] == "CF-1.10"
    assert facts["title"] == f"{PRODUCT} without clouds"
    assert facts["references"] == "Contains modified Copernicus Sentinel data 2024"


def test_layers_have_their_axes_attached(h5):
    """Readers guess them by their lengths where they are not."""
    with h5py.File(h5) as file:
        for name, axes in {
            "reflectance": ("band", "y", "x"),
            "uncertainty": ("band", "y", "x"),
            "reconstructed": ("y", "x"),
        }.items():
            attached = [[scale.name for scale in dimension.values()] for dimension in file[name].dims]
            assert attached == [[f"/{axis}"] for axis in axes]
        for axis in ("band", "y", "x"):
            assert h5py.h5ds.get_scale_name(file[axis].id) == axis.encode()


def test_layers_are_chunked_compressed_and_checksummed(h5, tmp_path, scene):
    with h5py.File(h5) as file:
        for name, chunks in {
            "reflectance": (1, HEIGHT, WIDTH),
            "uncertainty": (1, HEIGHT, WIDTH),
            "reconstructed": (HEIGHT, WIDTH),
        }.items():
            layer = file[name]
            assert (layer.chunks, layer.compression, layer.compression_opts) == (chunks, "gzip", 4)
            assert layer.shuffle
            assert layer.fletcher32
    large = replace(
        scene,
        reflectance=np.ones((4, 600, 520), np.uint16),
        reconstructed=np.ones((600, 520), np.uint8),
        uncertainty=None,
    )
    output.write_h5(tmp_path / "large.h5", large)
    with h5py.File(tmp_path / "large.h5") as file:
        assert file["reflectance"].chunks == (1, 512, 512)
        assert file["reconstructed"].chunks == (512, 512)
        assert "uncertainty" not in file


def test_a_flipped_byte_is_noticed(h5, tmp_path):
    content = bytearray(h5.read_bytes())
    with h5py.File(h5) as file:
        chunk = file["reflectance"].id.get_chunk_info(0)
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    (tmp_path / "scene.h5").write_bytes(content)
    with pytest.raises(CorruptFileError, match="cannot be read"):
        output.read_h5(tmp_path / "scene.h5")


def test_read_h5_gives_image_and_flags(h5, scene, tmp_path):
    image, flags = output.read_h5(h5)
    np.testing.assert_array_equal(image, scene.reflectance)
    np.testing.assert_array_equal(flags, scene.reconstructed)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["reflectance"] = image
    for name in ("other.h5", "none.h5"):
        with pytest.raises(CorruptFileError) as caught:
            output.read_h5(tmp_path / name)
        assert caught.value.path == tmp_path / name


def test_coordinates_are_the_centres_of_pixels(h5):
    with h5py.File(h5) as file:
        axes = {name: [axis[0].name for axis in file[name].dims] for name in ("reflectance", "reconstructed")}
        assert axes == {"reflectance": ["/band", "/y", "/x"], "reconstructed": ["/y", "/x"]}
        np.testing.assert_array_equal(file["x"], WEST + 5 + 10 * np.arange(WIDTH))
        np.testing.assert_array_equal(file["y"], NORTH - 5 - 10 * np.arange(HEIGHT))
        assert file["band"].asstr()[:].tolist() == ["B04", "B03", "B02", "B08"]


@pytest.mark.slow
def test_xarray_reads_reflectance_with_coordinates_at_the_centres_of_pixels(h5, scene):
    import xarray

    with xarray.open_dataset(h5, engine="h5netcdf") as data:
        assert dict(data.sizes) == {"band": 4, "y": HEIGHT, "x": WIDTH}
        assert data.reflectance.dims == ("band", "y", "x")
        assert data.reconstructed.dims == ("y", "x")
        assert data.uncertainty.dims == ("band", "y", "x")
        np.testing.assert_array_equal(data.x, WEST + 5 + 10 * np.arange(WIDTH))
        np.testing.assert_array_equal(data.y, NORTH - 5 - 10 * np.arange(HEIGHT))
        assert data.band.values.tolist() == ["B04", "B03", "B02", "B08"]
        image = data.reflectance.values
        known = scene.reflectance > 0
        assert np.isnan(image[~known]).all()
        np.testing.assert_allclose(image[known], (scene.reflectance[known] - 1000.0) / 10000, atol=1e-6)
        np.testing.assert_allclose(data.uncertainty.values, scene.uncertainty / 10000, atol=1e-9)
        np.testing.assert_array_equal(data.reconstructed.values, scene.reconstructed)


def test_attributes_are_those_of_the_cf_conventions(h5):
    with h5py.File(h5) as file:
        attributes = {name: dict(file[name].attrs) for name in file}
    image, flags, spread = (attributes[name] for name in ("reflectance", "reconstructed", "uncertainty"))
    assert (image["scale_factor"], image["add_offset"], image["units"]) == (1e-4, -0.1, "1")
    assert image["_FillValue"] == 0
    assert image["_FillValue"].dtype == np.uint16
    assert image["long_name"] == "surface reflectance"
    assert (spread["scale_factor"], spread["units"]) == (1e-4, "1")
    assert "add_offset" not in spread  # a deviation has none
    assert "_FillValue" not in spread
    assert spread["long_name"] == "standard deviation over members"
    assert flags["flag_values"].tolist() == [0, 1, 2, 255]
    assert flags["flag_values"].dtype == np.uint8
    assert flags["flag_meanings"] == "observed reconstructed blended_edge no_data"
    assert flags["long_name"] == "what was done to the pixel"
    assert "_FillValue" not in flags
    assert "scale_factor" not in flags
    assert {layer["grid_mapping"] for layer in (image, flags, spread)} == {"spatial_ref"}
    for axis in ("x", "y"):
        found = attributes[axis]
        assert found["standard_name"] == f"projection_{axis}_coordinate"
        assert (found["units"], found["axis"]) == ("m", axis.upper())
    assert "standard_name" not in attributes["band"]


def test_the_grid_mapping_is_that_of_the_scene(h5):
    with h5py.File(h5) as file:
        grid = dict(file["spatial_ref"].attrs)
        assert file["spatial_ref"][()] == 0  # a scalar, whose attributes count
    assert grid["grid_mapping_name"] == "transverse_mercator"
    assert grid["GeoTransform"] == f"{WEST} 10.0 0.0 {NORTH} 0.0 -10.0"
    assert CRS.from_wkt(grid["crs_wkt"]) == CRS.from_epsg(32605)
    assert grid["spatial_ref"] == grid["crs_wkt"]


def test_gdal_reads_the_same_place_and_numbers_from_it(h5, scene):
    with rasterio.open(f"netcdf:{h5}:reflectance") as source:
        assert source.crs == CRS.from_epsg(32605)
        assert source.transform == scene.transform
        assert source.nodata == 0
        assert source.scales == (1e-4,) * 4
        assert source.offsets == (-0.1,) * 4
        np.testing.assert_array_equal(source.read(), scene.reflectance)
    with rasterio.open(f"netcdf:{h5}:reconstructed") as source:
        assert source.transform == scene.transform
        np.testing.assert_array_equal(source.read(1), scene.reconstructed)


def test_bytes_depend_on_the_scene_alone(h5, scene, tmp_path):
    output.write_h5(tmp_path / "again.h5", scene)
    assert (tmp_path / "again.h5").read_bytes() == h5.read_bytes()


# --- GeoTIFF -----------------------------------------------------------------------------------------------------
def test_the_geotiff_has_bands_place_scale_and_origin(tif, scene):
    with rasterio.open(tif) as source:
        np.testing.assert_array_equal(source.read(), scene.reflectance)
        assert source.dtypes == ("uint16",) * 4
        assert source.crs == CRS.from_epsg(32605)
        assert source.transform == scene.transform
        assert source.nodata == 0
        assert source.descriptions == ("B04", "B03", "B02", "B08")
        assert source.scales == (1e-4,) * 4
        assert source.offsets == (-0.1,) * 4
        tags = source.tags()
    assert {name: tags[name] for name in ATTRIBUTES} == {name: str(value) for name, value in ATTRIBUTES.items()}
    assert tags["copyright"] == "Contains modified Copernicus Sentinel data 2024"


def test_it_is_cloud_optimized_with_averaged_overviews(scene, tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(1, 65536, (4, 600, 700)).astype(np.uint16)
    path = tmp_path / "large.tif"
    output.write_cog(path, replace(scene, reflectance=image, reconstructed=np.zeros((600, 700), np.uint8)))
    with rasterio.open(path) as source:
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.block_shapes == [(512, 512)] * 4
        assert source.compression.name == "deflate"
        assert source.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "2"
        assert source.overviews(1) == [2]
    with rasterio.open(path, overview_level=0) as small:
        expected = image.reshape(4, 300, 2, 350, 2).mean((2, 4))
        np.testing.assert_allclose(small.read(), expected, atol=1)


# --- PNG ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "step"), [((30, 20), 1), ((1024, 64), 1), ((64, 1025), 2), ((2049, 16), 3), ((16, 3072), 3)]
)
def test_the_preview_is_true_colour_of_at_most_1024_pixels_a_side(scene, tmp_path, shape, step):
    image = np.random.default_rng(0).integers(0, 20000, (4, *shape)).astype(np.uint16)
    given = replace(scene, reflectance=image, reconstructed=np.zeros(shape, np.uint8))
    output.write_png(tmp_path / "a.png", given, gain=1.5)
    shown = np.asarray(Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())))
    np.testing.assert_array_equal(shown, true_colour(image, gain=1.5)[::step, ::step])


# --- STAC --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def item(scene, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("stac")
    files = {key: folder / f"elsewhere.{key}" for key in ("h5", "tif", "png")}
    for key, path in files.items():
        path.write_bytes(key.encode() * 100)
    output.write_item(folder / "item.json", scene, files)
    text = (folder / "item.json").read_text(encoding="utf-8")
    assert text.startswith('{\n "type"')
    assert text.endswith("\n}\n")
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))


def test_the_item_says_what_it_is_and_where(item, scene):
    assert (item["type"], item["stac_version"], item["id"]) == ("Feature", "1.1.0", PRODUCT)
    assert item["stac_extensions"] == [
        "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
        "https://stac-extensions.github.io/file/v2.1.0/schema.json",
        "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
        "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    ]
    corners = [(WEST, NORTH - 300), (WEST + 200, NORTH - 300), (WEST + 200, NORTH), (WEST, NORTH)]
    lons, lats = warp("EPSG:32605", "EPSG:4326", *map(list, zip(*corners, strict=True)))
    assert item["geometry"]["type"] == "Polygon"
    (ring,) = item["geometry"]["coordinates"]
    expected = list(zip([*lons, lons[0]], [*lats, lats[0]], strict=True))
    np.testing.assert_allclose(ring, expected, atol=6e-8, rtol=0)  # 7 digits are a centimetre
    assert ring == [[round(value, 7) for value in corner] for corner in ring]
    np.testing.assert_allclose(item["bbox"], [min(lons), min(lats), max(lons), max(lats)], atol=6e-8, rtol=0)


@given(st.sampled_from([1, 60]), st.floats(-78, 78), st.floats(-0.4, 1.4))
def test_across_180_degrees_the_item_has_two_parts_and_a_box_that_does_not_span_the_globe(zone, latitude, east):
    """A tile, of which the part `east` lies west of 180 degrees; against its corners in longitudes from 0 to 360."""
    crs, width = f"EPSG:{326 if latitude > 0 else 327}{zone:02d}", 109800
    (at,), (south,) = warp("EPSG:4326", crs, [180], [latitude])
    left = at - east * width
    ring = [[left, south], [left + width, south], [left + width, south + width], [left, south + width], [left, south]]
    geometry, bbox = output._footprint(crs, ring)
    lons = [lon % 360 for lon in warp(crs, "EPSG:4326", *zip(*ring, strict=True))[0]]
    across = min(lons) < 180 < max(lons)
    assume(min(abs(lon - 180) for lon in lons) > 1e-6)
    assert shape(geometry).is_valid
    assert (bbox[0] % 360, bbox[2] % 360) == pytest.approx((min(lons), max(lons)), abs=1e-6)
    assert (geometry["type"] == "MultiPolygon", bbox[0] > bbox[2]) == (across, across)
    parts = geometry["coordinates"] if across else [geometry["coordinates"]]
    assert max(east - west for west, _, east, _ in (Polygon(*part).bounds for part in parts)) < 15


def test_the_properties_tell_how_it_was_made(item):
    properties = item["properties"]
    assert properties["datetime"] == "2024-03-10T22:20:35.024Z"
    assert properties["proj:code"] == "EPSG:32605"
    assert properties["proj:shape"] == [HEIGHT, WIDTH]
    assert properties["proj:transform"] == [10, 0, WEST, 0, -10, NORTH]
    assert properties["processing:software"] == {"cloudjob": "0.1.0"}
    assert properties["processing:level"] == "L3"
    assert properties["attribution"] == "Contains modified Copernicus Sentinel data 2024"
    assert {name: properties[f"cloudjob:{name}"] for name in ATTRIBUTES} == ATTRIBUTES
    assert [(link["rel"], link["href"], link["title"]) for link in item["links"]] == [
        ("derived_from", name, name) for name in (PRODUCT, REFERENCE)
    ]


def test_the_assets_have_sizes_and_multihashes(item):
    kinds = {
        "h5": ("application/x-hdf5", ["data"]),
        "tif": ("image/tiff; application=geotiff; profile=cloud-optimized", ["data"]),
        "png": ("image/png", ["overview"]),
    }
    assert set(item["assets"]) == set(kinds)
    for key, asset in item["assets"].items():
        content = key.encode() * 100
        assert asset["href"] == f"./{PRODUCT}.{key}"
        assert (asset["type"], asset["roles"]) == kinds[key]
        assert asset["file:size"] == len(content)
        # 0x12 is SHA-256, 0x20 its 32 bytes
        assert bytes.fromhex(asset["file:checksum"]) == b"\x12\x20" + hashlib.sha256(content).digest()
        if key == "png":
            assert not {"bands", "data_type", "nodata"} & set(asset)
            continue
        assert (asset["data_type"], asset["nodata"]) == ("uint16", 0)
        assert asset["bands"] == [
            {"name": name, "raster:scale": 1e-4, "raster:offset": -0.1} for name in ("B04", "B03", "B02", "B08")
        ]
