"""Bands in the shape of their source: what reads the source reads them."""

import shutil
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import rasterio
import scene_files
from scene_files import file, pixels

from cloudjob.archive.make import make_synthetic
from cloudjob.errors import DiskFullError
from cloudjob.restoration.output import like_source
from cloudjob.sentinel2.product import Product, read_bands

SIZE = 96


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    asked = {"tiles": ["06WVC"], "size": SIZE, "seed": 2, "cloud": (0.4, 0.4)}
    (name,) = make_synthetic(folder, clear=[date(2024, 3, 1)], cloudy=[], **asked)
    return folder / f"{name}.SAFE"


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_the_product_is_read_as_its_source_is(source, tmp_path, packed):
    place = source
    if packed:
        place = tmp_path / shutil.make_archive(tmp_path / source.name, "zip", source.parent, source.name)
    product = Product.open(place)
    assert like_source.is_safe(product)
    scene = pixels(SIZE, SIZE, uncertainty=False)
    known = {"name": product.name.name, "crs": product.crs, "transform": product.transform}
    tif = file(scene_files.write(tmp_path, scene, **known), ".tif")
    target = tmp_path / "out" / source.name
    files = like_source.write(tif, product, target)
    assert {path for path in target.rglob("*") if path.is_file()} == set(files)
    assert len(files) == 6
    found = Product.open(target)
    assert (found.name, found.transform, found.offsets) == (product.name, product.transform, product.offsets)
    highest = 32767 + 1000 + product.offsets["B04"]  # 15 bits
    expected = np.where(scene.reflectance, scene.reflectance.clip(1001 + product.offsets["B04"], highest), 0)
    np.testing.assert_array_equal(read_bands(found), expected)
    for path in files:
        if path.suffix == ".jp2":
            with rasterio.open(path) as image:
                assert image.crs.to_string() == product.crs
                assert image.transform == product.transform
                assert image.tags(1, ns="IMAGE_STRUCTURE") == {"NBITS": "15"} | image.tags(1, ns="IMAGE_STRUCTURE")


@pytest.mark.slow
def test_numbers_are_those_of_the_sources_baseline(source, tmp_path):
    """Before 04.00 there was no offset: what is below 0 is the smallest number that is data."""
    product = Product.open(source)
    before = replace(product, offsets=dict.fromkeys(product.offsets, 0))
    scene = pixels(SIZE, SIZE, uncertainty=False)
    tif = file(scene_files.write(tmp_path, scene), ".tif")
    bands = [path for path in like_source.write(tif, before, tmp_path / "out") if path.suffix == ".jp2"]
    expected = np.where(scene.reflectance, (scene.reflectance.astype(int) - 1000).clip(1, 32767), 0)
    for path, band in zip(bands, expected, strict=True):
        with rasterio.open(path) as image:
            np.testing.assert_array_equal(image.read(1), band)


@pytest.mark.slow
def test_a_full_disk_is_said(source, tmp_path, disk):
    product = Product.open(source)
    tif = file(scene_files.write(tmp_path, pixels(SIZE, SIZE, uncertainty=False)), ".tif")
    large = replace(product, shape=(2000, 2000))  # more than there is room for
    with pytest.raises(DiskFullError, match="1 MiB free"):
        like_source.write(tif, large, disk(1) / "out")
    assert not list(disk(1).rglob("*.jp2"))


def test_what_is_no_safe_product_is_said(source, tmp_path):
    shutil.copytree(source, tmp_path / source.name)
    for band in (tmp_path / source.name).rglob("*_10m.jp2"):
        band.rename(band.with_suffix(".tif"))
    assert not like_source.is_safe(Product.open(tmp_path / source.name))
