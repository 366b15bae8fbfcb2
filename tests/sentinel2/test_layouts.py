"""One product of the archive in every layout in which people have such products: the same pixels come out of each."""

import contextlib
import copy
import json
import re
import shutil
import zipfile
from itertools import count

import numpy as np
import pytest
from affine import Affine
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from product_layouts import (
    cogs,
    copied,
    linked,
    planetary_computer,
    psd_142,
    without,
    without_60m,
    zipped,
)

from cloudjob.archive.safe import write_product
from cloudjob.errors import CorruptFileError, ItemError
from cloudjob.sentinel2 import layouts
from cloudjob.sentinel2.masks import Settings
from cloudjob.sentinel2.product import (
    Product,
    read_b11,
    read_b11_20m,
    read_bands,
    read_classi,
    read_cloud_probability,
    read_overview,
    read_reduced,
    read_scl,
    read_snow_probability,
)
from cloudjob.sentinel2.scene_masks import Preview

ROWS, COLUMNS = 120, 96


def name_of(baseline, satellite="S2A"):
    return f"{satellite}_MSIL2A_20250605T222541_N{baseline.replace('.', '')}_R029_T05WPS_20250606T001122"


@pytest.fixture(scope="module")
def ground():
    """Pixels in our DN convention, none of them negative, and masks."""
    rng = np.random.default_rng(1)
    rows, columns = ROWS // 2, COLUMNS // 2
    return {
        "bands": rng.integers(1001, 6000, (4, ROWS, COLUMNS)).astype(np.uint16),
        "scl": rng.integers(1, 12, (rows, columns)).astype(np.uint8),
        "cloud_probability": rng.integers(0, 101, (rows, columns)).astype(np.uint8),
        "snow_probability": rng.integers(0, 101, (rows, columns)).astype(np.uint8),
        "b11": rng.integers(1001, 6000, (ROWS // 6, COLUMNS // 6)).astype(np.uint16),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory, ground):
    """A function that writes the ground as a SAFE folder of a baseline, once."""
    done = {}

    def make(baseline, satellite="S2A"):
        if (baseline, satellite) not in done:
            done[baseline, satellite] = write_product(
                tmp_path_factory.mktemp("archive"),
                name=name_of(baseline, satellite),
                crs="EPSG:32605",
                transform=Affine(10, 0, 499980, 0, -10, 7700040),
                offset=-1000 if baseline >= "04.00" else 0,
                sun_elevation=30,
                sun_azimuth=180,
                b11_20m=ground["b11"].repeat(3, 0).repeat(3, 1),
                **ground,
            )
        return done[baseline, satellite]

    return make


C1, L2A = "sentinel-2-c1-l2a", "sentinel-2-l2a"
QUALITY = {"MSK_CLDPRB", "MSK_SNWPRB", "MSK_CLASSI"}
# (baseline, satellite, layout, source, what of the masks it lacks)
READ = [
    *((f"02.0{minor}", "S2A", "SAFE of PSD 14.2", psd_142, {"MSK_CLASSI"}) for minor in (4, 5, 6)),
    *((b, "S2B", "SAFE", copied, {"MSK_CLASSI"}) for b in ("02.07", "02.12", "02.14", "03.00", "03.01")),
    *((b, "S2A", "SAFE", copied, set()) for b in ("04.00", "05.00", "05.09", "05.10", "05.11", "05.12", "99.99")),
    *((b, "S2C", "SAFE", copied, set()) for b in ("05.00", "05.11", "05.12")),
    ("05.12", "S2D", "SAFE", copied, set()),
    ("05.10", "S2A", "SAFE without quality masks", without(*QUALITY), QUALITY),
    ("05.10", "S2A", "SAFE without one quality mask", without("MSK_SNWPRB"), {"MSK_SNWPRB"}),
    ("05.11", "S2C", "SAFE without R60m", without_60m, set()),
    ("02.12", "S2B", "Planetary Computer", planetary_computer, QUALITY),
    ("05.11", "S2C", "Planetary Computer", planetary_computer, QUALITY),
    ("02.14", "S2B", "zip", zipped(zipfile.ZIP_STORED), {"MSK_CLASSI"}),
    ("05.11", "S2C", "zip", zipped(), set()),
    ("05.11", "S2C", "zip of another name", zipped(ending=".zip"), set()),
    ("05.11", "S2C", "zip without a folder in it", zipped(top=""), set()),
    ("05.11", "S2C", "zip behind a link", linked, set()),
    ("02.12", "S2B", "Earth Search v0", cogs(L2A, v0=True), QUALITY),
    ("04.00", "S2B", "Earth Search v0", cogs(L2A, v0=True, applied=True), QUALITY),
    ("05.11", "S2C", "Planetary Computer's item", cogs("planetary-computer", v0=True), QUALITY),
    ("02.12", "S2B", "Earth Search v1", cogs(L2A), QUALITY),
    ("05.09", "S2B", "Earth Search v1", cogs(L2A, applied=True), QUALITY),
    ("05.09", "S2B", "Earth Search v1", cogs(L2A, applied=False), QUALITY),
    ("05.00", "S2A", "Earth Search Collection 1", cogs(C1, masks=True), {"MSK_CLASSI"}),
    ("05.11", "S2C", "Earth Search Collection 1", cogs(C1, masks=True, by_asset=True), {"MSK_CLASSI"}),
]


FIRST = {case[2]: case for case in reversed(READ)}.values()  # one of each layout is quick


@pytest.mark.parametrize(
    ("baseline", "satellite", "layout", "source", "lacks"),
    [case if case in FIRST else pytest.param(*case, marks=pytest.mark.slow) for case in READ],
)
def test_every_layout_gives_the_same_pixels(made, ground, tmp_path, baseline, satellite, layout, source, lacks):
    product = Product.open(source(made(baseline, satellite), tmp_path))
    assert (product.name.name, product.baseline) == (name_of(baseline, satellite), baseline)
    assert (product.crs, product.shape) == ("EPSG:32605", (ROWS, COLUMNS))
    assert product.transform[:6] == (10, 0, 499980, 0, -10, 7700040)
    assert product.sun_elevation == pytest.approx(30)
    assert np.array_equal(read_bands(product), ground["bands"])
    assert np.array_equal(read_scl(product), ground["scl"])
    cells = ground["bands"][:3].reshape(3, ROWS // 6, 6, COLUMNS // 6, 6).mean((2, 4))
    assert np.abs(read_overview(product) - cells).max() <= 0.5
    assert read_reduced(product, 2).shape == (4, ROWS // 2, COLUMNS // 2)
    expected = {"B11": (read_b11, "b11"), "MSK_CLDPRB": (read_cloud_probability, "cloud_probability")}
    expected |= {"MSK_SNWPRB": (read_snow_probability, "snow_probability")}
    for key, (read, pixels) in expected.items():
        found = read(product)
        assert (found is None) == (key in lacks), key
        assert found is None or np.array_equal(found, ground[pixels]), key
    assert np.array_equal(read_b11_20m(product), ground["b11"].repeat(3, 0).repeat(3, 1))
    assert (read_classi(product) is None) == ("MSK_CLASSI" in lacks)
    assert Preview.open(product, Settings()).core.shape == ground["scl"].shape


def test_a_file_that_an_archive_lacks_is_missing(made, tmp_path):
    folder = without("B08_10m")(made("05.11", "S2C"), tmp_path)
    product = Product.open(zipped()(folder, tmp_path))
    with pytest.raises(CorruptFileError, match=r"\.SAFE\.zip/S2C_.*\.SAFE/GRANULE/.*_B08_10m\.jp2: missing"):
        read_bands(product)


def test_a_damaged_file_in_an_archive_is_named(made, tmp_path):
    folder = copied(made("05.11", "S2C"), tmp_path)
    (band,) = folder.rglob("*B03_10m.jp2")
    band.write_bytes(band.read_bytes()[:-500])
    with pytest.raises(CorruptFileError, match=r"\.zip/.*B03_10m\.jp2: cannot be decoded"):
        read_bands(Product.open(zipped()(folder, tmp_path)))


def test_an_archive_of_two_products_is_refused(made, tmp_path):
    site = tmp_path / "site"
    copied(made("05.11", "S2C"), site)
    copied(made("02.14", "S2B"), site)
    with pytest.raises(ItemError, match=r"site\.SAFE\.zip: holds 2 products; unpack it"):
        Product.open(zipped()(site, tmp_path))


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_an_archive_that_is_none_is_named(made, tmp_path, damage):
    archive = zipped()(made("05.11", "S2C"), tmp_path)
    archive.write_bytes(archive.read_bytes()[:-1000] if damage == "cut" else b"<html>busy</html>")
    with pytest.raises(CorruptFileError, match=r"\.SAFE\.zip: not a whole zip archive"):
        Product.open(archive)


def item_of(folder):
    return json.loads((folder / "item.json").read_text())


def rewritten(folder, **properties):
    """The item with these properties, or without those that are None."""
    found = item_of(folder)
    found["properties"] = {k: v for k, v in (found["properties"] | properties).items() if v is not None}
    (folder / "item.json").write_text(json.dumps(found))
    return folder


def test_a_flag_that_the_pixels_contradict_is_not_believed(made, tmp_path):
    """As of some of Earth Search's items: false, though the offset was applied. Applied once more, half of the scene
    would be darker than black."""
    folder = cogs(L2A, applied=True)(made("05.09", "S2B"), tmp_path)
    rewritten(folder, **{"earthsearch:boa_offset_applied": False})
    with pytest.raises(
        ItemError, match=r'\d\d% of B04 would be darker than black; set "earthsearch:boa_offset_applied"'
    ):
        Product.open(folder)


def test_an_item_that_does_not_tell_of_its_offset_is_refused(made, tmp_path):
    folder = cogs(L2A, v0=True)(made("05.09", "S2B"), tmp_path)
    with pytest.raises(ItemError, match=r"item\.json: baseline 05\.09, but no earthsearch:boa_offset_applied"):
        Product.open(folder)


def test_what_an_item_does_not_know(made, tmp_path):
    folder = cogs(L2A)(made("02.12", "S2B"), tmp_path)
    product = Product.open(folder)
    assert product.percentages == {"SNOW_ICE_PERCENTAGE": 7, "Cloud_Coverage_Assessment": 12.5}
    rewritten(folder, **{"view:sun_elevation": None, "eo:cloud_cover": None})
    product = Product.open(folder)
    assert product.sun_elevation == pytest.approx(43.2, abs=0.2)  # nearly in the south, at 90 - 69.4 + 22.6 degrees
    assert list(product.percentages) == ["SNOW_ICE_PERCENTAGE"]
    (folder / "SCL.tif").unlink()
    with pytest.raises(CorruptFileError, match=r"item: its metadata \(baseline 02\.12\) name no SCL_20m"):
        read_scl(Product.open(folder))
    rewritten(folder, datetime="soon")
    with pytest.raises(CorruptFileError, match=r"item\.json: the STAC item of no Level-2A product: .*soon"):
        Product.open(folder)
    rewritten(folder, datetime="2025-06-05T22:25:41Z", **{"s2:product_uri": "S2A_MSIL1C_20250605T222541.SAFE"})
    with pytest.raises(CorruptFileError, match=r"not the name of a Sentinel-2 Level-2A product"):
        Product.open(folder)


@pytest.fixture(scope="module")
def c1(made, tmp_path_factory):
    folder = cogs(C1)(made("05.11", "S2C"), tmp_path_factory.mktemp("c1"))
    return folder, item_of(folder)


@examples(20)
@given(data=st.data())
def test_an_item_of_any_other_shape_is_read_or_refused(c1, data):
    folder, whole = c1
    changed = copy.deepcopy(whole)
    at, key = changed, data.draw(st.sampled_from(sorted(whole)))
    while isinstance(at[key], dict) and data.draw(st.booleans()):
        at, key = at[key], data.draw(st.sampled_from(sorted(at[key])))
    at[key] = data.draw(st.sampled_from([None, [], {}, "", "x", 7, [[]], {"x": {}}, [{}], True, float("nan")]))
    path = folder / "item.json"
    path.write_text(json.dumps(changed))
    with contextlib.suppress(ItemError):
        Product.open(folder)


def test_an_item_without_its_files_is_refused(made, tmp_path):
    folder = cogs(L2A)(made("02.12", "S2B"), tmp_path)
    (folder / "B04.tif").unlink()
    with pytest.raises(CorruptFileError, match=r"the file of its asset red \(B04\) does not lie beside it"):
        Product.open(folder)
    shutil.copy(folder / "SCL.tif", folder / "B04.tif")
    with pytest.raises(CorruptFileError, match=r"B04\.tif: pixels of 20 x 20 in EPSG:32605, expected 10 m"):
        Product.open(folder)


REFUSED = {
    "S2A_MSIL1C_20250605T222541_N0511_R029_T05WPS_20250606T001122.SAFE/MTD_MSIL1C.xml": "a Level-1C product",
    "l1c/MTD_MSIL1C.xml": "a Level-1C product",
    "S2A_USER_PRD_MSIL2A.SAFE/S2A_USER_MTD_SAFL2A_PDMC_20160101T000000.xml": r"before baseline 02\.04 \(PSD 13\)",
    "maja/SENTINEL2A_20180101-105440-457_L2A_T31TCJ_D_V1-4_MTD_ALL.xml": r"MAJA \(THEIA\)",
    "X0069_Y0043/20180823_LEVEL2_SEN2A_BOA.tif": "FORCE",
    "S2A_MSIL2A_20250605T222541_N0511_R029_T05WPS_20250606T001122.zarr/.zmetadata": r"EOPF \(Zarr\)",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("file", "words"), REFUSED.items())
def test_what_cannot_be_read_is_refused_by_its_layout(tmp_path, file, words, packed):
    path = tmp_path / file
    path.parent.mkdir()
    path.touch()
    place = path.parent
    if packed:
        place = zipped()(place, tmp_path)
    with pytest.raises(ItemError, match=rf"{re.escape(str(place))}: .*{words}; Level-2A is read as SAFE") as error:
        Product.open(place)
    assert not isinstance(error.value, CorruptFileError)  # which would be set aside


@pytest.mark.slow
def test_products_are_found_at_any_depth(made, tmp_path):
    source = made("05.11", "S2C")
    number = count()

    def place():
        folder = tmp_path / "site" / f"{next(number)}" / "deep"
        folder.mkdir(parents=True)
        return folder

    makers = (copied, planetary_computer, zipped(), zipped(ending=".zip"), cogs(C1))
    expected = {make(source, place()) for make in makers}
    download = zipped()(source, place())
    expected.add(download.rename(download.with_name("download.zip")))
    level_1c = place() / "S2A_MSIL1C_20250605T222541_N0511_R029_T05WPS_20250606T001122.SAFE"
    level_1c.mkdir()
    expected.add(level_1c)
    broken = place() / f"{name_of('05.10')}.SAFE"
    (broken / "GRANULE").mkdir(parents=True)
    expected.add(broken)
    copied(source, tmp_path / "site" / ".tmp-1")
    (tmp_path / "site" / "notes.zip").write_text("no archive")
    (tmp_path / "site" / "loop").symlink_to(tmp_path / "site")
    (place() / "link").symlink_to(tmp_path / "site" / "0")
    found = layouts.below(tmp_path / "site")
    assert {path.resolve() for path in found} == expected
    assert len(found) == len(expected)
    assert layouts.below(source) == [source]
    readable = [path for path in found if path.resolve() not in (level_1c, broken)]
    assert {Product.open(path).name.name for path in readable} == {source.stem}
    named = layouts.named(tmp_path / "site")
    assert named.keys() == {source.stem, name_of("05.10")}
    assert named[source.stem] in readable
    assert {path for path in readable if layouts.by_manifest(path)} == {
        path for path in found if path.parent.parent.name == "0"
    }
