import csv
import hashlib
import itertools
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cloudjob.archive.safe import write_product
from cloudjob.errors import CorruptFileError, ItemError
from cloudjob.sentinel2.product import (
    ManifestEntry,
    Product,
    band_files,
    check_file,
    preview_files,
    read_b11,
    read_b11_20m,
    read_bands,
    read_classi,
    read_cloud_probability,
    read_manifest,
    read_overview,
    read_reduced,
    read_scl,
    read_snow_probability,
    stripes,
)
from cloudjob.sentinel2.radiometry import to_convention

NAME = "S2C_MSIL2A_20250605T222541_N0511_R029_T05WPS_20250606T001122"
GRANULE = "GRANULE/L2A_T05WPS_A003901_20250605T222541"
SHAPE = (301, 206)  # neither divides by 6
IMAGES = [f"R10m/T05WPS_20250605T222541_{band}_10m" for band in ("B02", "B03", "B04", "B08")]
IMAGES += ["R20m/T05WPS_20250605T222541_SCL_20m"]
IMAGES += [f"R60m/T05WPS_20250605T222541_{band}_60m" for band in ("B04", "B03", "B02", "B11")]
OFFSETS_60M = (-903, -902, -901, -911)
MASKS = ["MSK_CLDPRB_20m", "MSK_SNWPRB_20m"]


def find(shared_data: Path, pattern: str) -> Path:
    return next(shared_data.glob(pattern))


@pytest.fixture(scope="module")
def t29unu(shared_data) -> Path:
    return find(shared_data, "safe_T29UNU/*.SAFE")


def write_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, rows, columns = array.shape
    profile = {
        "driver": "JP2OpenJPEG",
        "dtype": array.dtype,
        "count": bands,
        "height": rows,
        "width": columns,
    }
    with rasterio.open(path, "w", **profile, QUALITY="100", REVERSIBLE="YES") as image:
        image.write(array)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A product of 301 x 206 pixels with all that is read, and its pixels."""
    folder = tmp_path_factory.mktemp("written") / f"{NAME}.SAFE"
    rng = np.random.default_rng(1)
    rows, columns = SHAPE
    pixels = {path: rng.integers(0, 4000, (1, rows, columns), dtype=np.uint16) for path in IMAGES[:4]}
    pixels[IMAGES[4]] = rng.integers(0, 12, (1, 151, 103), dtype=np.uint8)
    pixels |= {path: rng.integers(0, 4000, (1, 51, 35), dtype=np.uint16) for path in IMAGES[5:]}
    for path, array in pixels.items():
        write_image(folder / GRANULE / f"IMG_DATA/{path}.jp2", array)
    for name in MASKS:
        pixels[name] = rng.integers(0, 101, (1, 151, 103), dtype=np.uint8)
        write_image(folder / GRANULE / f"QI_DATA/{name}.jp2", pixels[name])
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{i}">{-900 - i}</BOA_ADD_OFFSET>' for i in range(13))
    images = "".join(f"<IMAGE_FILE>{GRANULE}/IMG_DATA/{path}</IMAGE_FILE>" for path in IMAGES)
    (folder / "MTD_MSIL2A.xml").write_text(
        f"""<x:User xmlns:x="urn:any"><PRODUCT_URI>{NAME}.SAFE</PRODUCT_URI>
        <PROCESSING_BASELINE>05.11</PROCESSING_BASELINE>{images}
        <BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>{offsets}
        <x:Cloud_Coverage_Assessment>12.5</x:Cloud_Coverage_Assessment>
        <NODATA_PIXEL_PERCENTAGE>6.46E-4</NODATA_PIXEL_PERCENTAGE></x:User>"""
    )
    masks = "".join(f"<MASK_FILENAME>{GRANULE}/QI_DATA/{name}.jp2</MASK_FILENAME>" for name in MASKS)
    (folder / GRANULE / "MTD_TL.xml").write_text(
        f"""<Tile>{masks}<SENSING_TIME>2025-06-05T22:26:01.5Z</SENSING_TIME>
        <HORIZONTAL_CS_CODE>EPSG:32605</HORIZONTAL_CS_CODE>
        <Size resolution="20"><NROWS>151</NROWS><NCOLS>103</NCOLS></Size>
        <Size resolution="10"><NROWS>301</NROWS><NCOLS>206</NCOLS></Size>
        <Geoposition resolution="10"><ULX>499980.25</ULX><ULY>7700040</ULY></Geoposition>
        <Mean_Sun_Angle><ZENITH_ANGLE unit="deg">50.5</ZENITH_ANGLE></Mean_Sun_Angle></Tile>"""
    )
    return folder, pixels


@pytest.fixture
def small(written, tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """A copy of it, which a test may damage."""
    folder, pixels = written
    return shutil.copytree(folder, tmp_path / folder.name), dict(pixels)


def test_real_metadata_with_offset(t29unu):
    product = Product.open(t29unu)
    assert product.name.tile == "29UNU"
    assert product.baseline == "04.00"
    assert product.offsets == dict.fromkeys(("B04", "B03", "B02", "B08", "B11"), -1000)
    assert product.quantification == 10000
    assert product.crs == "EPSG:32629"
    assert product.transform[:6] == (10, 0, 499980, 0, -10, 5900040)
    assert product.shape == (10980, 10980)
    assert product.sun_elevation == pytest.approx(90 - 57.820574357679)
    assert product.sensing_time == datetime(2022, 10, 5, 11, 56, 49, 581767, tzinfo=UTC)
    assert product.percentages["Cloud_Coverage_Assessment"] == 59.769726


@pytest.mark.parametrize("tile", ["T22HBD", "T01CCV"])
def test_real_metadata_before_the_offset(shared_data, tile):
    product = Product.open(find(shared_data, f"l2a_metadata/*{tile}*.SAFE"))
    assert product.offsets == dict.fromkeys(("B04", "B03", "B02", "B08", "B11"), 0)
    assert read_classi(product) is None  # this baseline has none
    assert read_b11(product) is None  # not fetched


@pytest.mark.slow
def test_scene_classification_agrees_with_esas_own_percentages(t29unu):
    product = Product.open(t29unu)
    counts = np.bincount(read_scl(product).ravel(), minlength=12)
    percent = 100 * counts / counts[1:].sum()
    percent[0] = 100 * counts[0] / counts.sum()
    with (t29unu.parent / "ESA_percentages_vs_SCL20.csv").open() as file:
        recorded = {row["item"]: float(row["ESA_MTD_MSIL2A"]) for row in csv.DictReader(file)}
    classes = {
        "NODATA_PIXEL_PERCENTAGE": 0,
        "CLOUD_SHADOW_PERCENTAGE": 3,
        "VEGETATION_PERCENTAGE": 4,
        "NOT_VEGETATED_PERCENTAGE": 5,
        "WATER_PERCENTAGE": 6,
        "UNCLASSIFIED_PERCENTAGE": 7,
        "MEDIUM_PROBA_CLOUDS_PERCENTAGE": 8,
        "HIGH_PROBA_CLOUDS_PERCENTAGE": 9,
        "THIN_CIRRUS_PERCENTAGE": 10,
        "SNOW_ICE_PERCENTAGE": 11,
    }
    for item, scl_class in classes.items():
        assert percent[scl_class] == pytest.approx(product.percentages[item], abs=1e-4), item
        assert product.percentages[item] == recorded[item]
    cloud = percent[[8, 9, 10]].sum()
    assert cloud == pytest.approx(product.percentages["Cloud_Coverage_Assessment"], abs=1e-4)


@pytest.mark.slow
def test_real_masks_have_the_size_of_their_grids(t29unu):
    product = Product.open(t29unu)
    probability = read_cloud_probability(product)
    assert probability.shape == (5490, 5490)
    assert probability.max() == 100
    classi = read_classi(product)
    assert classi.shape == (3, 1830, 1830)
    assert set(np.unique(classi)) <= {0, 1}


def test_kept_files_match_the_real_manifests(shared_data, t29unu):
    t22hbd = find(shared_data, "l2a_metadata/*T22HBD*.SAFE")
    for folder, algorithm, expected in ((t29unu, "SHA3-256", 32), (t22hbd, "MD5", 2)):
        kept = [e for e in read_manifest(folder / "manifest.safe") if (folder / e.path).exists()]
        assert [e.algorithm for e in kept] == [algorithm] * expected
        for entry in kept:
            check_file(folder, entry)


def test_a_manifest_that_does_not_describe_its_files_is_reported(shared_data):
    folder = find(shared_data, "l2a_metadata/*T01CCV*.SAFE")
    entries = {e.path: e for e in read_manifest(folder / "manifest.safe")}
    with pytest.raises(CorruptFileError, match=r"MTD_MSIL2A\.xml: 51365 bytes, the manifest says 444"):
        check_file(folder, entries["MTD_MSIL2A.xml"])


def test_selection_of_files_from_real_manifests(shared_data, t29unu):
    entries = read_manifest(t29unu / "manifest.safe")
    assert [e.path.split("_")[-2] for e in band_files(entries)] == ["B04", "B03", "B02", "B08"]
    preview = preview_files(entries)
    assert len(preview) == 10
    (coarse,), (fine,) = (
        {entry.path for entry in one} - {entry.path for entry in other}
        for one, other in itertools.permutations([preview, preview_files(entries, b11=20)])
    )
    assert (coarse[-11:], fine[-11:]) == ("B11_60m.jp2", "B11_20m.jp2")
    lacking = [entry for entry in entries if entry.path != fine]
    assert preview_files(lacking, b11=20) == preview_files(lacking) == preview
    assert sum(e.size for e in preview) < 0.03 * sum(e.size for e in entries)
    with pytest.raises(ItemError, match=r"L2A_T29UNU_A038058_20221005T115407.* B08"):
        band_files([e for e in entries if "B08" not in e.path])
    old = preview_files(read_manifest(find(shared_data, "l2a_metadata/*T22HBD*.SAFE") / "manifest.safe"))
    assert len(old) == 9  # no MSK_CLASSI before baseline 04.00


def test_incomplete_manifest_names_the_entry(shared_data, tmp_path):
    with pytest.raises(CorruptFileError, match=r"broken_manifest\.safe: byteStream number 1: KeyError\('href'\)"):
        read_manifest(shared_data / "cdse_answers/cdsetool/broken_manifest.safe")
    escape = tmp_path / "manifest.safe"
    escape.write_text(
        '<m><byteStream size="1"><fileLocation href="./../../x"/><checksum checksumName="MD5">0</checksum>'
        "</byteStream></m>"
    )
    with pytest.raises(CorruptFileError, match="not a path inside the product"):
        read_manifest(escape)


@pytest.mark.parametrize(
    "checksum",
    [
        "",
        "<checksum/>",
        '<checksum checksumName="SHA3-256"></checksum>',
        '<checksum checksumName="CRC32">0a0b0c0d</checksum>',
        '<checksum checksumName="MD5">N/A</checksum>',
        f'<checksum checksumName="MD5">{"0" * 32}</checksum>',
    ],
)
def test_a_manifest_without_a_usable_checksum_still_gives_the_size(tmp_path, checksum):
    (tmp_path / "manifest.safe").write_text(
        f'<m><byteStream size="3"><fileLocation href="./a"/>{checksum}</byteStream></m>'
    )
    (tmp_path / "a").write_bytes(b"abc")
    (entry,) = read_manifest(tmp_path / "manifest.safe")
    assert entry == ManifestEntry("a", 3, "", "")
    check_file(tmp_path, entry)
    (tmp_path / "a").write_bytes(b"abcd")
    with pytest.raises(CorruptFileError, match="4 bytes, the manifest says 3"):
        check_file(tmp_path, entry)


def test_check_file_finds_missing_short_and_changed_files(tmp_path):
    (tmp_path / "a").write_bytes(b"cloud")
    digest = hashlib.sha3_256(b"cloud").hexdigest()
    check_file(tmp_path, ManifestEntry("a", 5, "SHA3-256", digest))
    for entry, reason in (
        (ManifestEntry("b", 5, "SHA3-256", digest), "missing"),
        (ManifestEntry("a", 6, "SHA3-256", digest), "5 bytes, the manifest says 6"),
        (ManifestEntry("a", 5, "MD5", digest), "MD5 is"),
    ):
        with pytest.raises(CorruptFileError, match=reason):
            check_file(tmp_path, entry)


def test_bands_come_in_house_order_and_convention(small):
    folder, pixels = small
    product = Product.open(folder)
    assert product.transform.c == 499980.25
    assert product.percentages["NODATA_PIXEL_PERCENTAGE"] == 6.46e-4
    dn = read_bands(product)
    assert dn.dtype == np.uint16
    for index, (path, band_id) in enumerate(((IMAGES[2], 3), (IMAGES[1], 2), (IMAGES[0], 1), (IMAGES[3], 7))):
        source = pixels[path][0].astype(int)
        assert np.array_equal(dn[index], np.where(source == 0, 0, source + 100 - band_id)), path


def test_the_20_m_and_60_m_grids_are_rounded_up(small):
    folder, pixels = small
    product = Product.open(folder)
    assert np.array_equal(read_scl(product), pixels[IMAGES[4]][0])
    for path, band, offset in zip(IMAGES[5:], [*read_overview(product), read_b11(product)], OFFSETS_60M, strict=True):
        assert np.array_equal(band, to_convention(pixels[path][0], offset=offset)), path
    for name, read in zip(MASKS, (read_cloud_probability, read_snow_probability), strict=True):
        assert np.array_equal(read(product), pixels[name][0])


def test_what_was_not_fetched_or_is_not_named_is_none(small):
    folder, _ = small
    product = Product.open(folder)
    readers = {"B11_60m": read_b11, "MSK_CLDPRB_20m": read_cloud_probability, "MSK_SNWPRB_20m": read_snow_probability}
    for key, read in readers.items():
        (folder / product.files[key]).unlink()
        assert read(product) is None
        assert read(replace(product, files={})) is None


@pytest.mark.slow
def test_stripes_are_the_bands_from_north_to_south(small):
    folder, _ = small
    product = Product.open(folder)
    for rows in (100, 301, 1024):
        copies = [(top, pixels.copy()) for top, pixels in stripes([product, product], rows=rows)]
        assert [top for top, _ in copies] == list(range(0, 301, rows))
        assert np.array_equal(np.concatenate([pixels for _, pixels in copies], 2), [read_bands(product)] * 2)


def test_products_of_different_size_are_refused(small):
    product = Product.open(small[0])
    with pytest.raises(ItemError, match=r"\(301, 206\).*\(301, 207\)"):
        next(stripes([product, replace(product, shape=(301, 207))]))


@pytest.mark.parametrize("step", [1, 2, 4, 8, 16])
@pytest.mark.slow
def test_small_images_are_reduced_by_their_means(small, step):
    product = Product.open(small[0])
    whole = read_bands(product).astype(float)
    reduced = read_reduced(product, step)
    assert reduced.dtype == np.uint16
    assert reduced.shape == (4, -(-301 // step), -(-206 // step))
    for row, col in ((0, 0), (5, 7), (17, 11)):
        cell = whole[:, row * step : (row + 1) * step, col * step : (col + 1) * step]
        expected = np.where((cell == 0).any((1, 2)), 0, cell.mean((1, 2)))
        assert np.abs(reduced[:, row, col] - expected).max() <= 0.5


# Below 04.00 ESA gives no offset.
BASELINES = {"02.07": 0, "02.14": 0, "03.01": 0, **dict.fromkeys(("04.00", "05.00", "05.09"), -1000)}
BASELINES |= dict.fromkeys(("05.10", "05.11", "05.12"), -1000)
DIGITAL_NUMBERS = st.tuples(st.integers(16, 60), st.integers(16, 60)).flatmap(
    lambda shape: arrays(np.uint16, (5, *shape), elements=st.integers(0, 31767), fill=st.integers(0, 31767))
)


@pytest.mark.slow
@pytest.mark.parametrize(("baseline", "offset"), BASELINES.items())
@examples(5)
@given(source=DIGITAL_NUMBERS)
def test_digital_numbers_come_back_through_every_baseline(tmp_path_factory, baseline, offset, source):
    """`source`: what ESA stores, 1 to 31767 and 0 for no data, in bands and B11, whatever the offset."""
    ours = np.where(source == 0, 0, source.astype(int) + offset + 1000).astype(np.uint16)
    rows, columns = ours.shape[1:]
    half = np.zeros((-(-rows // 2), -(-columns // 2)), np.uint8)
    folder = write_product(
        tmp_path_factory.mktemp("archive"),
        name=NAME.replace("N0511", f"N{baseline.replace('.', '')}"),
        bands=ours[:4],
        scl=half,
        cloud_probability=half,
        snow_probability=half,
        b11=ours[4, : -(-rows // 6), : -(-columns // 6)],
        crs="EPSG:32605",
        transform=Affine(10, 0, 499980, 0, -10, 7700040),
        offset=offset,
        sun_elevation=30,
        sun_azimuth=180,
    )
    product = Product.open(folder)
    assert product.baseline == baseline
    assert set(product.offsets.values()) == {offset}
    assert np.array_equal(read_bands(product), ours[:4])
    assert np.array_equal(read_b11(product), ours[4, : -(-rows // 6), : -(-columns // 6)])


def test_an_image_of_another_size_is_corrupt(small):
    folder, _ = small
    write_image(folder / GRANULE / f"IMG_DATA/{IMAGES[3]}.jp2", np.ones((1, 301, 205), np.uint16))
    with pytest.raises(CorruptFileError, match=r"B08_10m\.jp2.*\(1, 301, 205\).*\(1, 301, 206\)"):
        read_bands(Product.open(folder))


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "ALL_CPUS"])
@pytest.mark.parametrize("cut", [None, 0, 200, 0.5, -5000, -1])
def test_truncated_jpeg_2000_is_never_read_as_pixels(t29unu, tmp_path, monkeypatch, cut, threads):
    monkeypatch.setenv("GDAL_NUM_THREADS", threads)
    product = Product.open(t29unu)
    for path in ("MTD_MSIL2A.xml", product.files["SCL_20m"].split("/IMG_DATA")[0] + "/MTD_TL.xml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(t29unu / path, tmp_path / path)
    scl = tmp_path / product.files["SCL_20m"]
    if cut is not None:
        scl.parent.mkdir(parents=True)
        data = (t29unu / product.files["SCL_20m"]).read_bytes()
        scl.write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    with pytest.raises(CorruptFileError) as error:
        read_scl(Product.open(tmp_path))
    assert error.value.path == scl


def test_truncated_band_is_named(small):
    folder, _ = small
    path = folder / GRANULE / f"IMG_DATA/{IMAGES[1]}.jp2"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match=r"B03_10m\.jp2: cannot be decoded"):
        read_bands(Product.open(folder))


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("MTD_MSIL2A.xml", "PRODUCT_URI", "OTHER", "no element PRODUCT_URI"),
        (
            "MTD_MSIL2A.xml",
            "IMAGE_FILE",
            "OTHER",
            r"no element IMAGE_FILE; .* \(baseline 05\.11\) is not known",
        ),
        ("MTD_MSIL2A.xml", 'band_id="7"', 'band_id="77"', "no element BOA_ADD_OFFSET"),
        ("MTD_MSIL2A.xml", ">10000<", ">ten<", "BOA_QUANTIFICATION_VALUE.*'ten'"),
        ("MTD_MSIL2A.xml", "</x:User>", "", "not readable as XML"),
        ("MTD_MSIL2A.xml", "<x:User", '<!DOCTYPE d [<!ENTITY e "e">]><x:User', "EntitiesForbidden"),
        (f"{GRANULE}/MTD_TL.xml", "ULX", "X", r"no element Geoposition ULX; .* \(baseline 05\.11\) is not known"),
        (f"{GRANULE}/MTD_TL.xml", 'resolution="10"', 'resolution="60"', "no element Geoposition"),
        (f"{GRANULE}/MTD_TL.xml", "2025-06-05", "yesterday", "SENSING_TIME"),
    ],
)
def test_missing_or_unreadable_metadata_name_file_and_element(small, file, old, new, reason):
    folder, _ = small
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(CorruptFileError, match=reason) as error:
        Product.open(folder)
    assert error.value.path == folder / file


def test_metadata_of_psd_142_are_read(shared_data):
    product = Product.open(shared_data / "real_cases" / "psd142_N0205")
    assert (product.baseline, product.name.tile, product.shape) == ("02.05", "34VFJ", (10980, 10980))
    assert (product.quantification, set(product.offsets.values())) == (10000, {0})
    assert product.sun_elevation == pytest.approx(90 - 46.9)
    granule = "GRANULE/L2A_T34VFJ_A011330_20170823T094252"
    assert product.files["MSK_CLDPRB_20m"] == f"{granule}/QI_DATA/L2A_T34VFJ_20170823T094031_CLD_20m.jp2"
    assert product.files["B08_10m"] == f"{granule}/IMG_DATA/R10m/L2A_T34VFJ_20170823T094031_B08_10m.jp2"
    for band in ("B02", "B03", "B04", "B11"):
        assert f"{band}_60m" in product.files


@pytest.mark.slow
def test_a_product_of_psd_142_has_the_pixels_of_the_same_in_the_layout_of_today(small):
    folder, pixels = small
    for path in [*folder.rglob("*.jp2")]:
        old = path.name.replace("MSK_CLDPRB", "L2A_T05WPS_CLD").replace("MSK_SNWPRB", "L2A_T05WPS_SNW")
        path.rename(path.with_name(old if "L2A" in old else f"L2A_{old}"))
    user, tile = folder / "MTD_MSIL2A.xml", folder / GRANULE / "MTD_TL.xml"
    text = user.read_text().replace("/T05WPS_", "/L2A_T05WPS_").replace("PRODUCT_URI", "PRODUCT_URI_2A")
    text = text.replace("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE")
    masks = "".join(f"<IMAGE_FILE>{GRANULE}/QI_DATA/L2A_T05WPS_{name}_20m</IMAGE_FILE>" for name in ("CLD", "SNW"))
    first, rest = text.split("<IMAGE_FILE>", 1)
    user.write_text(f"{first}{masks}<IMAGE_FILE>{rest}".replace("IMAGE_FILE>", "IMAGE_FILE_2A>"))
    tile.write_text(re.sub(r"<MASK_FILENAME>.*?</MASK_FILENAME>", "", tile.read_text()))
    product = Product.open(folder)
    assert np.array_equal(read_scl(product), pixels[IMAGES[4]][0])
    assert np.array_equal(read_cloud_probability(product), pixels["MSK_CLDPRB_20m"][0])
    assert np.array_equal(read_snow_probability(product), pixels["MSK_SNWPRB_20m"][0])
    assert np.array_equal(read_b11(product), to_convention(pixels[IMAGES[8]][0], offset=-911))
    assert read_bands(product).shape == (4, *SHAPE)
    entries = [ManifestEntry(path, 1, "MD5", "") for path in product.files.values()]
    names = [entry.path.rsplit("_", 2)[1] for entry in preview_files(entries)]
    assert sorted(names) == ["B02", "B03", "B04", "B11", "CLD", "SCL", "SNW"]


@pytest.mark.slow
@pytest.mark.parametrize("metres", [20, 10])
def test_without_60_m_pictures_are_made_from_what_is_there(small, metres):
    folder, pixels = small
    product = Product.open(folder)
    files = {key: path for key, path in product.files.items() if not key.endswith("_60m")}
    rng = np.random.default_rng(0)
    if metres == 20:
        for band in ("B04", "B03", "B02", "B11"):
            pixels[band] = rng.integers(1000, 4000, (1, 151, 103)).astype(np.uint16)
            files[f"{band}_20m"] = f"{GRANULE}/IMG_DATA/R20m/T05WPS_20250605T222541_{band}_20m.jp2"
            write_image(folder / files[f"{band}_20m"], pixels[band])
    else:
        pixels |= {band: pixels[path] for band, path in zip(("B04", "B03", "B02"), IMAGES[2::-1], strict=True)}
    product = replace(product, files=files)
    overview, swir, fine = read_overview(product), read_b11(product), read_b11_20m(product)
    assert (fine is None) == (metres == 10)
    assert fine is None or np.array_equal(fine, to_convention(pixels["B11"][0], offset=-911))
    assert overview.shape == (3, 51, 35)
    assert (swir is None) == (metres == 10)
    step = 60 // metres
    for band, offset, found in zip(("B04", "B03", "B02"), OFFSETS_60M, overview, strict=False):
        for row, col in ((0, 0), (7, 20), (49, 33)):
            cell = to_convention(pixels[band][0], offset=offset)[step * row :, step * col :][:step, :step]
            assert found[row, col] == pytest.approx(0 if (cell == 0).any() else cell.mean(), abs=0.5)
    chosen = preview_files([ManifestEntry(path, 1, "MD5", "") for path in files.values()])
    keys = {Path(entry.path).stem[-7:] for entry in chosen}
    assert {f"B04_{metres}m", f"B02_{metres}m"} <= keys
    assert ("B11_20m" in keys) == (metres == 20)
    assert f"B08_{metres}m" not in keys
    with pytest.raises(CorruptFileError, match=r"\(baseline 05\.11\) name no B04_60m"):
        read_overview(replace(product, files={key: path for key, path in files.items() if "B04" not in key}))


def in_tile(folder, old, new):
    path = folder / GRANULE / "MTD_TL.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return Product.open(folder)


@pytest.mark.parametrize("zenith", ["NaN", "inf", None])
def test_a_sun_that_the_metadata_do_not_know_is_computed(small, zenith):
    """At 22:26 UTC the sun stands nearly in the south of 153 west, at 90 - 69.4 + 22.6 degrees."""
    whole = '<Mean_Sun_Angle><ZENITH_ANGLE unit="deg">50.5</ZENITH_ANGLE></Mean_Sun_Angle>'
    opened = in_tile(small[0], whole, "" if zenith is None else whole.replace("50.5", zenith))
    assert opened.sun_elevation == pytest.approx(43.2, abs=0.1)
    nowhere = in_tile(small[0], "EPSG:32605", "EPSG:99999")
    assert nowhere.sun_elevation is None


def test_real_metadata_without_the_sun(shared_data, small):
    """At midsummer near 66.2 N, 180 E, a quarter of an hour before noon by the sun: nearly 90 - 66.2 + 23.4 degrees."""
    text = (shared_data / "real_cases/nan_sun/MTD_TL.xml").read_text()
    assert ">NaN</ZENITH_ANGLE>" in text
    (small[0] / GRANULE / "MTD_TL.xml").write_text(text)
    opened = Product.open(small[0])
    assert opened.sun_elevation == pytest.approx(47.12, abs=0.05)
    assert all(np.isfinite(value) for value in opened.percentages.values())


@pytest.mark.parametrize("tile", ["T22HBD", "T01CCV", "T29UNU"])
def test_the_computed_sun_is_that_of_real_metadata(shared_data, tile, tmp_path):
    source = find(shared_data, f"*/*{tile}*.SAFE")
    (tl,) = source.glob("GRANULE/*/MTD_TL.xml")
    text = tl.read_text()
    place = tmp_path / tl.relative_to(source)
    place.parent.mkdir(parents=True)
    shutil.copy(source / "MTD_MSIL2A.xml", tmp_path)
    place.write_text(text.replace("Mean_Sun_Angle", "Mean_Sun"))
    assert Product.open(tmp_path).sun_elevation == pytest.approx(Product.open(source).sun_elevation, abs=0.2)


def test_numbers_that_are_not_known_are_left_out_or_corrupt(small):
    path = small[0] / "MTD_MSIL2A.xml"
    text = path.read_text()
    path.write_text(text.replace("6.46E-4", "NaN"))
    assert list(Product.open(small[0]).percentages) == ["Cloud_Coverage_Assessment"]
    path.write_text(text.replace(">10000<", ">NaN<"))
    with pytest.raises(CorruptFileError, match=r"BOA_QUANTIFICATION_VALUE.*NaN is no number"):
        Product.open(small[0])
    path.write_text(text)
    with pytest.raises(CorruptFileError, match=r"ULX.*inf is no number"):
        in_tile(small[0], "<ULX>499980.25", "<ULX>inf")


def test_a_time_without_a_zone_is_in_utc(small):
    assert in_tile(small[0], "22:26:01.5Z", "22:26:01.5").sensing_time == datetime(
        2025, 6, 5, 22, 26, 1, 500000, tzinfo=UTC
    )


def test_missing_metadata_file_is_named(tmp_path):
    with pytest.raises(CorruptFileError, match=r"MTD_MSIL2A\.xml: missing"):
        Product.open(tmp_path)
