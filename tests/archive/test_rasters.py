from datetime import date

import numpy as np
import pytest
import rasterio
from affine import Affine

from cloudjob.archive.make import make_from_rasters
from cloudjob.archive.rasters import compare, product_from_raster
from cloudjob.errors import ConfigError, CorruptFileError
from cloudjob.sentinel2.product import Product, read_bands, read_scl

NAME = "S2A_MSIL2A_20240101T143841_N0510_R030_T21JUJ_20240101T174541"
PLACE = Affine(10, 0, 586575.2660298267, 0, -10, 6095301.162749865)


def write(path, pixels, crs="EPSG:32605", transform=PLACE):
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile) as image:
        image.write(pixels)
    return path


@pytest.fixture
def bands():
    dn = np.random.default_rng(1).integers(1200, 2500, (4, 51, 40)).astype(np.uint16)
    dn[:, :8, :6] = 0
    dn[2, 20, 20] = 0  # dark in one band: not missing
    return dn


def convert(folder, raster, **changes):
    options = {"name": NAME, "raster": raster, "mask": "clear", "other": None, "offset": -1000} | changes
    return Product.open(product_from_raster(folder, **options))


@pytest.mark.parametrize(("offset", "name"), [(-1000, NAME), (0, NAME.replace("N0510", "N0214"))])
def test_pixels_and_place_come_back(tmp_path, bands, offset, name):
    product = convert(tmp_path, write(tmp_path / "a.tif", bands), offset=offset, name=name)
    missing = (bands == 0).all(0)
    expected = np.where(missing, 0, np.maximum(bands, 1).astype(int) + 1000 + offset)
    assert np.array_equal(read_bands(product), expected)
    assert product.transform == PLACE
    assert not np.isin(read_scl(product), (3, 8, 9, 10)).any()
    assert (read_scl(product)[:4, :3] == 0).all()
    assert (read_scl(product) == 0).sum() == 12


def test_mask_of_zero_and_one_is_cloud(tmp_path, bands):
    mask = np.zeros((51, 40), np.uint8)
    mask[30:40, 10:20] = 1
    product = convert(tmp_path, write(tmp_path / "a.tif", bands), mask=write(tmp_path / "m.tif", mask))
    scl = read_scl(product)
    assert (scl[15:20, 5:10] == 9).all()
    assert (scl == 9).sum() == 25


def test_mask_with_higher_values_holds_house_classes(tmp_path, bands):
    mask = np.zeros((51, 40), np.uint8)
    mask[30:34, 10:14], mask[40:44, 10:14], mask[44:48, 20:24] = 1, 2, 3
    product = convert(tmp_path, write(tmp_path / "a.tif", bands), mask=write(tmp_path / "m.tif", mask))
    scl = read_scl(product)
    assert [(scl == cls).sum() for cls in (9, 3, 10)] == [4, 4, 4]
    assert (scl[15:17, 5:7] == 9).all()


@pytest.fixture
def place(shared_data):
    """Random bands on the pixels of the real masks, the folder of these, and their transform."""
    transform = Affine(10, 0, 500_000, 0, -10, 5_412_000)
    bands = np.random.default_rng(0).integers(1200, 2500, (4, 128, 128)).astype(np.uint16)
    return bands, shared_data / "real_cases" / "masks", transform


def scl_of(tmp_path, place, mask, **options):
    bands, _, transform = place
    name = NAME.replace("21JUJ", "33UWP")
    return read_scl(
        convert(
            tmp_path,
            write(tmp_path / "a.tif", bands, crs="EPSG:32633", transform=transform),
            mask=mask,
            name=name,
            **options,
        )
    )


def in_20m(flags):
    return flags.reshape(64, 2, 64, 2).any((1, 3))


@pytest.mark.slow
def test_a_real_mask_of_0_and_255_is_cloud_wherever_it_is_not_0(tmp_path, place):
    path = place[1] / "cloud_0_255.tif"
    with rasterio.open(path) as image:
        cloud = image.read(1) > 0
    for values in (None, "binary"):
        assert np.array_equal(scl_of(tmp_path, place, path, values=values) == 9, in_20m(cloud))


def test_a_real_mask_of_cloudsen12_says_what_it_means(tmp_path, place):
    path = place[1] / "cloudsen12_0clear_1thick_2thin_3shadow.tif"
    with rasterio.open(path) as image:
        values = image.read(1)
    scl = scl_of(tmp_path, place, path, values="cloudsen12")
    assert np.array_equal(scl == 9, in_20m(values == 1))
    assert np.array_equal(scl == 10, in_20m(values == 2) & ~in_20m(values == 1))
    with pytest.raises(ConfigError, match=r"its value 2 means \(values found: 0, 1, 2\)"):
        scl_of(tmp_path, place, path, values={"cloud": [1]})


def test_a_mask_on_other_pixels_is_resampled_and_that_is_said(tmp_path, place):
    said = []
    coarse = np.zeros((64, 64), np.uint8)
    coarse[10:20, 30:40] = 4  # nobody knows
    mask = write(tmp_path / "m.tif", coarse, crs="EPSG:32633", transform=place[2] @ Affine.scale(2))
    scl = scl_of(tmp_path, place, mask, said=said.append)
    assert np.array_equal(scl == 1, coarse == 4)
    assert len(said) == 1
    assert "64 x 64 pixels of 20.0" in said[0]


def test_comparison_finds_a_bright_cloud_and_its_shadow():
    ground = np.full((4, 60, 60), 2800, np.uint16)
    cloudy = ground.copy()
    cloudy[:, 10:30, 10:30] = 6000
    cloudy[:, 36:54, 36:54] = 1500
    classes = compare(cloudy, ground)
    assert (classes[7:13, 7:13] == 9).all()
    assert (classes[20:25, 20:25] == 3).all()
    assert not compare(ground, ground).any()


def test_unusable_rasters_are_named(tmp_path, bands):
    with pytest.raises(ConfigError, match="UTM zone"):
        convert(tmp_path, write(tmp_path / "a.tif", bands, crs="EPSG:4326"))
    with pytest.raises(ConfigError, match="pixels of 10 m"):
        convert(tmp_path, write(tmp_path / "b.tif", bands, transform=Affine(20, 0, 0, 0, -20, 0)))
    with pytest.raises(ConfigError, match=r"c\.tif.*expected"):
        convert(tmp_path, write(tmp_path / "c.tif", bands[:3]))
    with pytest.raises(ConfigError, match="give its cloud mask"):
        convert(tmp_path, write(tmp_path / "d.tif", bands), mask=None)
    with pytest.raises(CorruptFileError, match="missing"):
        convert(tmp_path, tmp_path / "absent.tif")
    mask = write(tmp_path / "m.tif", np.zeros((9, 9), np.uint8))
    with pytest.raises(ConfigError, match=r"m\.tif: 9 x 9 pixels .* expected 51 x 40"):
        convert(tmp_path, tmp_path / "d.tif", mask=mask)


@pytest.mark.slow
def test_pairs_of_one_tile_and_day_do_not_collide(tmp_path, bands):
    pairs = []
    for index in range(3):
        cloudy = write(tmp_path / f"cloudy{index}.tif", bands + np.uint16(1000 + index))
        clear = write(tmp_path / f"clear{index}.tif", bands + np.uint16(index))
        days = {"cloudy_date": date(2018, 10, 3), "clear_date": date(2018, 10, 13)}
        pairs.append({"tile": "39UWB", "cloudy": cloudy, "clear": clear, "mask": None, "offset": 0, **days})
    names = make_from_rasters(tmp_path / "archive", pairs=pairs)
    assert len(set(names)) == 6
    assert len({Product.open(tmp_path / "archive" / f"{n}.SAFE").name.sensing for n in names}) == 6
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "archive").rglob("*")}
    assert make_from_rasters(tmp_path / "archive", pairs=pairs) == names
    assert make_from_rasters(tmp_path / "archive", pairs=pairs[1:]) == names[2:]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "archive").rglob("*")} == before


@pytest.mark.slow
def test_real_pair_with_offset_and_odd_width(tmp_path, shared_data):
    folder = shared_data / "turb_L2A_218px"
    clear, cloudy = (folder / f"{day}_B04B03B02B08.tif" for day in ("20231217", "20240101"))
    days = {"cloudy_date": date(2024, 1, 1), "clear_date": date(2023, 12, 17)}
    pair = {"tile": "21JUJ", "cloudy": cloudy, "clear": clear, "mask": None, "offset": -1000, **days}
    for name, source in zip(make_from_rasters(tmp_path, pairs=[pair]), (cloudy, clear), strict=True):
        with rasterio.open(source) as image:
            pixels = image.read()
        assert np.array_equal(read_bands(Product.open(tmp_path / f"{name}.SAFE")), pixels)
        assert "_N0510_" in name
