"""Any raster with four bands: which they are, what their numbers mean, where there are none."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
from own_images import DEGREES, UTM, ground, netcdf, write
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from cloudjob.errors import ConfigError, OwnFileError
from cloudjob.restoration.foreign import Image

GROUND = ground(24, 30)
DN = np.rint(GROUND * 10_000).astype(np.int32) + 1000


def test_reflectance_in_degrees(tmp_path):
    image = Image.open(write(tmp_path / "a.tif", GROUND, **DEGREES))
    assert (image.grid.crs, image.grid.transform, image.grid.shape) == ("EPSG:4326", DEGREES["transform"], (24, 30))
    np.testing.assert_array_equal(image.read(), DN)
    np.testing.assert_array_equal(image.read(Window(4, 2, 9, 8)), DN[:, 2:10, 4:13])
    assert (image.notes, image.acquired, image.sun_elevation) == ([], None, None)


@pytest.mark.parametrize(
    ("values", "tags", "given", "offset", "notes"),
    [
        (DN, {"scale": 1e-4, "offset": -0.1}, {}, 0, 0),
        (DN - 1000, {}, {}, 0, 1),  # a guess, which is said
        (DN, {}, {}, 1000, 1),
        (DN, {}, {"offset": -0.1}, 0, 1),
        (DN, {}, {"scale": 1e-4, "offset": -0.1}, 0, 0),
        (DN, {"scale": 5.0, "offset": 3.0}, {"scale": 1e-4, "offset": -0.1}, 0, 0),
        (DN, {"scale": 1e-4, "offset": 3.0}, {"offset": -0.1}, 0, 0),
    ],
)
@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_what_the_numbers_mean(tmp_path, values, tags, given, offset, notes, dtype):
    image = Image.open(
        write(tmp_path / "a.tif", values.astype(dtype), nodata=-1 if dtype == "int16" else 0, **tags, **UTM), **given
    )
    np.testing.assert_array_equal(image.read(), DN + offset)
    assert len(image.notes) == notes
    assert all("says no scale" in note for note in image.notes)


def test_bytes_are_no_reflectance(tmp_path):
    path = write(tmp_path / "a.tif", (GROUND * 255).astype("uint8"), **UTM)
    with pytest.raises(ConfigError, match="say --scale and --offset"):
        Image.open(path)
    assert Image.open(path, scale=1 / 255).read().max() <= 5500


@pytest.mark.parametrize(("times", "dtype"), [(100, "float32"), (20, "uint16")])
def test_what_is_neither_reflectance_nor_10000_times_it(tmp_path, times, dtype):
    path = write(tmp_path / "a.tif", (GROUND * times).astype(dtype), nodata=np.nan if dtype == "float32" else 0, **UTM)
    with pytest.raises(ConfigError, match="neither reflectance nor 10000 times as much; say --scale"):
        Image.open(path)
    assert Image.open(path, scale=1 / times).read().max() < 6500


def test_complex_numbers_are_no_reflectance(tmp_path):
    with pytest.raises(ConfigError, match="complex numbers"):
        Image.open(write(tmp_path / "a.tif", GROUND.astype("complex64"), **UTM))


@pytest.mark.parametrize("where", ["file", "item"])
def test_a_scale_that_the_file_has_wrong_is_named(tmp_path, where):
    path = write(
        tmp_path / "a.tif",
        DN.astype("uint16"),
        nodata=0,
        **({"scale": 2.0, "offset": 0.0} if where == "file" else {}),
        **UTM,
    )
    if where == "item":
        bands = [{"name": name, "raster:scale": 0} for name in ("B04", "B03", "B02", "B08")]
        item = {"assets": {"a": {"href": "a.tif", "bands": bands}}, "properties": {}}
        (tmp_path / "a.json").write_text(json.dumps(item))
    with pytest.raises(ConfigError, match=r"a\.tif: (by scale 2|scale 0).*say --scale"):
        Image.open(path)


def test_a_file_of_nothing_is_opened_all_the_same(tmp_path):
    assert not Image.open(write(tmp_path / "a.tif", np.full_like(GROUND, np.nan), **UTM)).read().any()
    assert not Image.open(write(tmp_path / "b.tif", np.zeros((4, 5, 5), "uint16"), nodata=0, **UTM)).read().any()


@pytest.mark.parametrize(
    ("dtype", "filler", "nodata", "notes"),
    [
        ("float32", np.nan, np.nan, 0),
        ("float32", np.nan, None, 0),
        ("float32", -9999, -9999, 0),
        ("float32", -9999, None, 1),
        ("float32", 0, None, 1),
        ("uint16", 0, 0, 0),
        ("uint16", 0, None, 1),
        ("uint16", 65535, None, 1),
        ("int16", -32768, None, 1),
    ],
)
def test_where_there_are_no_data(tmp_path, dtype, filler, nodata, notes):
    values = GROUND.copy() if dtype == "float32" else DN.copy()
    values = values.astype(dtype)
    values[:, :5, :7] = filler
    image = Image.open(
        write(tmp_path / "a.tif", values, nodata=nodata, **UTM),
        **({} if dtype == "float32" else {"scale": 1e-4, "offset": -0.1}),
    )
    dn = image.read()
    assert not dn[:, :5, :7].any()
    np.testing.assert_array_equal(dn[:, 5:], DN[:, 5:])
    assert len(image.notes) == notes


def test_without_data_in_one_band_there_are_none(tmp_path):
    values = GROUND.copy()
    values[2, 3, 4] = np.nan
    dn = Image.open(write(tmp_path / "a.tif", values, **UTM)).read()
    assert not dn[:, 3, 4].any()
    assert np.count_nonzero(dn == 0) == 4


def test_a_single_band_of_zero_is_a_dark_pixel(tmp_path):
    values = GROUND.copy()
    values[2, 3, 4] = 0
    assert Image.open(write(tmp_path / "a.tif", values, **UTM)).read()[2, 3, 4] == 1000


def test_an_alpha_band_says_where_there_are_no_data(tmp_path):
    values = np.concatenate([DN, np.full((1, 24, 30), 65535)]).astype("uint16")
    values[4, :2] = 0
    path = write(tmp_path / "a.tif", values, names=None, scale=1e-4, offset=-0.1, **UTM)
    with rasterio.open(path, "r+") as image:
        image.colorinterp = [*(ColorInterp[name] for name in ("red", "green", "blue", "nir", "alpha"))]
    image = Image.open(path)
    assert not image.read()[:, :2].any()
    np.testing.assert_array_equal(image.read()[:, 2:], DN[:, 2:])


@pytest.mark.parametrize("packed", [False, True])
def test_netcdf(tmp_path, packed):
    values = GROUND.copy()
    values[:, 0] = np.nan
    image = Image.open(netcdf(tmp_path / "a.nc", values, UTM, packed=packed))
    assert (image.grid.crs, image.grid.shape) == ("EPSG:32631", (24, 30))
    assert image.grid.transform.almost_equals(UTM["transform"], 1e-6)
    np.testing.assert_array_equal(image.read()[:, 1:], DN[:, 1:])
    assert not image.read()[:, 0].any()


def test_bands_by_colour_by_the_item_beside_it_and_as_asked(tmp_path):
    path = write(tmp_path / "a.tif", GROUND[[2, 1, 0, 3]], names=None, **UTM)
    with pytest.raises(
        ConfigError, match=r"does not tell which of its bands are which: it has 1, 2, 3, 4; .*--bands 1,2,3,4, where"
    ):
        Image.open(path)
    np.testing.assert_array_equal(Image.open(path, bands="3,2,1,4").read(), DN)
    bands = [{"eo:common_name": name} for name in ("blue", "green", "red", "nir")]
    item = {"assets": {"a": {"href": "a.tif", "bands": bands}}, "properties": {"view:sun_elevation": 40}}
    (tmp_path / "a.json").write_text(json.dumps(item))
    image = Image.open(path)
    np.testing.assert_array_equal(image.read(), DN)
    assert image.sun_elevation == 40
    (tmp_path / "a.json").unlink()
    with rasterio.open(path, "r+") as opened:
        opened.colorinterp = [ColorInterp[name] for name in ("blue", "green", "red", "undefined")]
    image = Image.open(path)
    np.testing.assert_array_equal(image.read(), DN)
    assert "by their colours its bands 3, 2, 1, 4 are" in image.notes[0]


def test_without_a_place(tmp_path):
    image = Image.open(write(tmp_path / "a.tif", GROUND))
    assert image.grid.crs is None
    np.testing.assert_array_equal(image.read(), DN)


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("S2B_MSIL2A_20240310T222035_N0510_R122_T05WPS_20240311T012735", datetime(2024, 3, 10, 22, 20, 35, tzinfo=UTC)),
        ("field_2024-03-10", datetime(2024, 3, 10, tzinfo=UTC)),
        ("20240310_scene", datetime(2024, 3, 10, tzinfo=UTC)),
        ("tile_20249999_20240310", datetime(2024, 3, 10, tzinfo=UTC)),
        ("120240310", None),
        ("scene", None),
    ],
)
def test_when_by_the_name(tmp_path, name, when):
    assert Image.open(write(tmp_path / f"{name}.tif", GROUND, **UTM)).acquired == when


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.tif").write_text("no image")
    with pytest.raises(OwnFileError, match=r"a\.tif: not readable as an image"):
        Image.open(tmp_path / "a.tif")
