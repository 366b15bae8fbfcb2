"""Products that the archive writes are read back, by our reader and by plain tools, as ESA's are."""

import hashlib
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.warp import transform as warp_points

from cloudjob.archive import safe
from cloudjob.sentinel2 import product as reader

NEW = "S2B_MSIL2A_20240301T222541_N0510_R029_T05WPS_20240302T001122"
OLD = "S2A_MSIL2A_20200301T222541_N0214_R029_T05WPS_20200302T001122"
ROWS, COLUMNS = 218, 219
TRANSFORM = Affine(10, 0, 586575.2660298267, 0, -10, 6095301.162749865)


def arguments(name):
    rng = np.random.default_rng(5)
    half = (-(-ROWS // 2), -(-COLUMNS // 2))
    bands = rng.integers(1001, 32000, (4, ROWS, COLUMNS)).astype(np.uint16)
    scl = rng.choice([2, 3, 5, 6, 8, 9, 10, 11], half).astype(np.uint8)
    bands[:, :20, :30], scl[:10, :15] = 0, 0
    return {
        "name": name,
        "bands": bands,
        "scl": scl,
        "cloud_probability": rng.integers(0, 101, half).astype(np.uint8),
        "snow_probability": rng.integers(0, 101, half).astype(np.uint8),
        "b11": rng.integers(1001, 32000, (-(-ROWS // 6), -(-COLUMNS // 6))).astype(np.uint16),
        "b11_20m": rng.integers(1001, 32000, half).astype(np.uint16),
        "crs": "EPSG:32605",
        "transform": TRANSFORM,
        "offset": -1000 if name == NEW else 0,
        "sun_elevation": 14.25,
        "sun_azimuth": 181.5,
    }


@pytest.fixture(scope="module", params=[NEW, OLD], ids=["N0510", "N0214"])
def written(request, tmp_path_factory):
    given = arguments(request.param)
    return safe.write_product(tmp_path_factory.mktemp("archive"), **given), given


def texts(path, name):
    return [e.text for e in ElementTree.parse(path).iter() if e.tag.rpartition("}")[2] == name]


def test_reader_of_the_project_gets_back_what_was_written(written):
    folder, given = written
    product = reader.Product.open(folder)
    assert (product.crs, product.transform, product.shape) == ("EPSG:32605", TRANSFORM, (ROWS, COLUMNS))
    assert product.offsets == dict.fromkeys(("B04", "B03", "B02", "B08", "B11"), given["offset"])
    assert product.sun_elevation == pytest.approx(14.25)
    assert product.name.name == given["name"]
    assert np.array_equal(reader.read_bands(product), given["bands"])
    assert np.array_equal(reader.read_scl(product), given["scl"])
    assert np.array_equal(reader.read_cloud_probability(product), given["cloud_probability"])
    assert np.array_equal(reader.read_snow_probability(product), given["snow_probability"])
    assert np.array_equal(reader.read_b11(product), given["b11"])
    assert np.array_equal(reader.read_b11_20m(product), given["b11_20m"])


def test_plain_rasterio_reads_lossless_pixels_in_esas_numbers(written):
    folder, given = written
    for index, band in enumerate(("B04", "B03", "B02", "B08")):
        with rasterio.open(next(folder.glob(f"GRANULE/*/IMG_DATA/R10m/*_{band}_10m.jp2"))) as image:
            assert image.dtypes == ("uint16",)
            assert image.tags(1, ns="IMAGE_STRUCTURE")["NBITS"] == "15"
            assert (image.crs.to_epsg(), image.transform) == (32605, TRANSFORM)
            expected = np.where(
                given["bands"][index] == 0, 0, given["bands"][index].astype(int) - 1000 - given["offset"]
            )
            assert np.array_equal(image.read(1), expected)


def test_images_are_tiled_as_esas(tmp_path):
    pixels = np.arange(1500 * 1100, dtype=np.uint32).reshape(1500, 1100) % 30000
    safe._write_jp2(
        tmp_path / "x.jp2", pixels.astype(np.uint16), "EPSG:32605", TRANSFORM, resolution=10, block=1024, bits=15
    )
    with rasterio.open(tmp_path / "x.jp2") as image:
        assert image.block_shapes == [(1024, 1024)]
        assert image.overviews(1) == [2, 4, 8, 16]
        assert np.array_equal(image.read(1), pixels)
    assert [p.name for p in tmp_path.iterdir()] == ["x.jp2"]


def test_manifest_lists_every_file_with_its_digest(written):
    folder, given = written
    algorithm = "SHA3-256" if given["name"] == NEW else "MD5"
    streams = [e for e in ElementTree.parse(folder / "manifest.safe").iter() if e.tag == "byteStream"]
    listed = {}
    for stream in streams:
        path = folder / stream.find("fileLocation").attrib["href"]
        content = path.read_bytes()
        assert stream.find("checksum").attrib["checksumName"] == algorithm
        function = hashlib.sha3_256 if algorithm == "SHA3-256" else hashlib.md5
        assert stream.find("checksum").text.lower() == function(content).hexdigest()
        assert int(stream.attrib["size"]) == len(content)
        listed[path.relative_to(folder).as_posix()] = stream
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert on_disk - set(listed) == {"manifest.safe", f"{given['name']}-ql.jpg"}
    entries = reader.read_manifest(folder / "manifest.safe")
    for entry in entries:
        reader.check_file(folder, entry)
    assert len(reader.band_files(entries)) == 4
    assert len(reader.preview_files(entries)) == (10 if given["name"] == NEW else 9)


def test_percentages_are_esas(written):
    folder, given = written
    counts = np.bincount(given["scl"].ravel(), minlength=12)
    valid = counts[1:].sum()
    (no_data,) = texts(folder / "MTD_MSIL2A.xml", "NODATA_PIXEL_PERCENTAGE")
    assert float(no_data) == pytest.approx(100 * counts[0] / given["scl"].size, abs=1e-5)
    (cloud,) = texts(folder / "MTD_MSIL2A.xml", "Cloud_Coverage_Assessment")
    assert float(cloud) == pytest.approx(100 * counts[8:11].sum() / valid, abs=1e-5)
    (snow,) = texts(next(folder.glob("GRANULE/*/MTD_TL.xml")), "SNOW_ICE_PERCENTAGE")
    assert float(snow) == pytest.approx(100 * counts[11] / valid, abs=1e-5)


def test_offset_element_is_there_only_where_there_is_an_offset(written):
    folder, given = written
    assert texts(folder / "MTD_MSIL2A.xml", "BOA_ADD_OFFSET") == (["-1000"] * 13 if given["name"] == NEW else [])


def test_image_and_mask_paths_of_the_metadata_exist(written):
    folder, given = written
    images = texts(folder / "MTD_MSIL2A.xml", "IMAGE_FILE")
    masks = texts(next(folder.glob("GRANULE/*/MTD_TL.xml")), "MASK_FILENAME")
    assert all((folder / f"{path}.jp2").is_file() for path in images)
    assert all((folder / path).is_file() for path in masks)
    assert any("MSK_CLASSI" in path for path in masks) == (given["name"] == NEW)


def test_footprint_is_the_closed_outline_of_the_pixels(written):
    folder, _ = written
    numbers = [float(n) for n in texts(folder / "MTD_MSIL2A.xml", "EXT_POS_LIST")[0].split()]
    assert numbers[:2] == numbers[-2:]
    x, y = warp_points("EPSG:4326", "EPSG:32605", numbers[1::2], numbers[0::2])
    right, bottom = TRANSFORM.c + 10 * COLUMNS, TRANSFORM.f - 10 * ROWS
    assert min(x) == pytest.approx(TRANSFORM.c, abs=1e-3)
    assert (max(x), min(y)) == (pytest.approx(right, abs=1e-3), pytest.approx(bottom, abs=1e-3))


def test_coarse_pixels_leave_no_data_out_and_classes_by_majority():
    dn = np.zeros((7, 6), np.uint16)
    dn[0, :3] = 2000, 2002, 2004
    assert safe._mean_60m(dn).tolist() == [[2002], [0]]
    mask = np.zeros((4, 3), bool)
    mask[:2] = [[1, 1, 1], [1, 1, 0]]
    assert safe._majority_60m(mask).tolist() == [[1], [0]]


@pytest.mark.slow
def test_same_arguments_give_the_same_bytes_and_nothing_else_is_left(tmp_path):
    given = arguments(NEW)
    trees = []
    for place in ("one", "two"):
        folder = safe.write_product(tmp_path / place, **given)
        trees.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
        assert [p.name for p in (tmp_path / place).iterdir()] == [f"{NEW}.SAFE"]
    assert trees[0] == trees[1]


@pytest.mark.slow
def test_without_b11_the_rest_is_the_same(tmp_path):
    given = arguments(NEW)
    trees = []
    for place, without in (("with", {}), ("without", {"b11": None, "b11_20m": None})):
        folder = safe.write_product(tmp_path / place, **given | without)
        trees.append({p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert {name[-12:] for name in trees[0].keys() - trees[1].keys()} == {"_B11_20m.jp2", "_B11_60m.jp2"}
    changed = {name for name in trees[1] if trees[1][name] != trees[0][name]}
    assert changed == {"MTD_MSIL2A.xml", "manifest.safe"}
    assert reader.read_b11(reader.Product.open(tmp_path / "without" / f"{NEW}.SAFE")) is None


def test_bands_larger_than_a_stripe_are_converted_whole():
    dn = np.arange(2100 * 3, dtype=np.uint16).reshape(2100, 3) + np.uint16(30_000)
    dn[1023:1026] = 0
    for offset in (0, -1000):
        expected = np.where(dn == 0, 0, np.clip(dn.astype(int) - 1000 - offset, 1, 32767))
        assert np.array_equal(safe._as_esa(dn, offset), expected)


def test_a_failure_leaves_no_product(tmp_path, monkeypatch):
    monkeypatch.setattr(safe.metadata, "manifest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        safe.write_product(tmp_path, **arguments(NEW))
    assert not (tmp_path / f"{NEW}.SAFE").exists()
