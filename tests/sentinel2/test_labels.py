"""Masks that a person corrects: as they are exported, what was changed of them, and that it is final."""

import shutil
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import rasterio
from affine import Affine
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cloudjob.archive.make import make_synthetic
from cloudjob.errors import OwnFileError
from cloudjob.pixels import CLASSES, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN
from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.corrected import corrected, exported
from cloudjob.sentinel2.labels import Label, export
from cloudjob.sentinel2.pairing import _thinned
from cloudjob.sentinel2.product import Product
from cloudjob.sentinel2.scene import masks_of_pair, open_masks
from cloudjob.sentinel2.scene_masks import Preview, dark, suspect

SETTINGS = masks.Settings()
SHAPE = (48, 48)  # of 20 m: 96 pixels of 10 m, and 16 of 60 m
CORES = arrays(np.uint8, (16, 16), elements=st.sampled_from([CLEAR, *CLASSES.values()])).map(
    lambda cells: masks.upsampled(cells, 3, SHAPE)
)


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """A clear and a cloudy product of 96 x 96 pixels."""
    folder = tmp_path_factory.mktemp("archive")
    asked = {"tiles": ["06WVC"], "size": 96, "seed": 2, "cloud": (0.4, 0.4)}
    names = make_synthetic(folder, clear=[date(2024, 3, 1)], cloudy=[date(2024, 3, 11)], **asked)
    return [Product.open(folder / f"{name}.SAFE") for name in names]


@pytest.fixture(scope="module")
def read(products):
    """Their previews, read once: to be copied, never changed."""
    return [Preview.open(product, SETTINGS) for product in products]


def paint(folder, product, values, rows=slice(None), cols=slice(None)):
    """As an editor does it: in the file."""
    with rasterio.open(folder / f"{product.name.name}.tif", "r+") as image:
        pixels = image.read(1)
        pixels[rows, cols] = values
        image.write(pixels, 1)


@pytest.mark.slow
def test_what_is_exported_counts_as_corrected_only_once_somebody_changes_it(tmp_path, products):
    product, name = products[1], products[1].name.name
    core = Preview.open(product, SETTINGS).core
    assert export(product, core, 2, tmp_path)
    assert corrected(tmp_path, name) is None
    assert Label.read(product, tmp_path) is None
    assert export(product, np.full_like(core, CLOUD), 2, tmp_path)  # the settings changed: nobody's work is lost
    assert export(product, core, 2, tmp_path)
    with rasterio.open(tmp_path / f"{name}.tif") as image:
        assert (image.crs, image.transform.a, image.nodata) == (product.crs, 20, NO_DATA)
        assert np.array_equal(image.read(1), core)
        assert image.tags()["TIFFTAG_IMAGEDESCRIPTION"].startswith("0 clear, 1 cloud, 2 shadow")
        assert image.colormap(1)[CLOUD][:3] == (255, 0, 255)
    paint(tmp_path, product, CLOUD, slice(4, 9), slice(7, 11))
    label = Label.read(product, tmp_path)
    there = np.zeros(SHAPE, bool)
    there[4:9, 7:11] = core[4:9, 7:11] != CLOUD
    assert np.array_equal(label.by_hand, there)
    assert np.array_equal(label.core, np.where(there, CLOUD, core))
    assert sum(label.changes().values()) == there.sum()
    assert not export(product, core, 2, tmp_path)
    assert np.array_equal(Label.read(product, tmp_path).by_hand, there)


def test_what_was_saved_anew_but_not_changed_is_nobodys(tmp_path, products):
    product = products[0]
    export(product, np.zeros(SHAPE, np.uint8), 2, tmp_path)
    with rasterio.open(tmp_path / f"{product.name.name}.tif", "r+") as image:
        image.update_tags(AREA="looked at")
    assert corrected(tmp_path, product.name.name)
    assert Label.read(product, tmp_path) is None


def test_a_mask_from_elsewhere_is_a_persons_whole(tmp_path, products, read):
    product = products[0]
    export(product, np.full(SHAPE, SHADOW, np.uint8), 2, tmp_path)
    exported(tmp_path, product.name.name).unlink()
    label = Label.read(product, tmp_path)
    assert label.by_hand.all()
    assert label.changes() == {"elsewhere to shadow": 48 * 48}
    preview = Preview.open(product, SETTINGS, labels=tmp_path)
    assert np.array_equal(masks_of_pair({"cloudy": read[1], "clear": preview}, SETTINGS)["clear"].mask, preview.core)


def test_a_mask_may_come_back_at_10_m(tmp_path, products):
    product = products[0]
    core = np.zeros(SHAPE, np.uint8)
    core[:, 24:] = CLOUD
    export(product, core, 2, tmp_path)
    fine = masks.upsampled(core, 2, (96, 96))
    fine[1, 1] = CLOUD
    other = tmp_path / "other"
    export(product, fine, 1, other)
    shutil.copy(other / f"{product.name.name}.tif", tmp_path)
    label = Label.read(product, tmp_path)
    assert (label.factor, label.by_hand.sum(), label.changes()) == (1, 1, {"clear to cloud": 1})
    assert np.array_equal(label.core, fine)


def test_a_kill_while_exporting_leaves_no_mask_that_nobody_corrected(tmp_path, products, monkeypatch):
    from cloudjob.sentinel2 import labels

    product, name = products[0], products[0].name.name
    export(product, np.zeros(SHAPE, np.uint8), 2, tmp_path)

    def killed(path, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(labels, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        export(product, np.ones(SHAPE, np.uint8), 2, tmp_path)
    assert corrected(tmp_path, name) is None
    assert not (tmp_path / f"{name}.tif").exists()


def test_a_class_that_does_not_exist_and_other_ground_are_refused(tmp_path, products):
    export(products[0], np.zeros(SHAPE, np.uint8), 2, tmp_path)
    paint(tmp_path, products[0], 7, 3, 3)
    with pytest.raises(OwnFileError, match=r"its value 7 means \(values found: 0, 7\); write 0 clear, 1 cloud"):
        Preview.open(products[0], SETTINGS, labels=tmp_path)
    with rasterio.open(tmp_path / f"{products[0].name.name}.tif", "r+") as image:
        image.transform = Affine(20, 0, 0, 0, -20, 0)
    paint(tmp_path, products[0], 0)
    with pytest.raises(OwnFileError, match="expected 96 x 96 pixels"):
        Preview.open(products[0], SETTINGS, labels=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["scl", "raster"])
def test_a_corrected_mask_replaces_that_of_any_source(tmp_path, products, source):
    own, folder = tmp_path / "own", tmp_path / "labels"
    other = np.full(SHAPE, UNKNOWN, np.uint8)
    settings = replace(SETTINGS, source=source, folder=own if source == "raster" else None)
    for product in products:
        export(product, other, 2, own)
        exported(own, product.name.name).unlink()
    for product in products:
        found = open_masks({"cloudy": products[1], "clear": products[0]}, settings, labels=folder)
        role = "cloudy" if product is products[1] else "clear"
        export(product, found[role].core, 2, folder)
    expected = open_masks({"cloudy": products[1], "clear": products[0]}, settings, labels=folder)["cloudy"].core
    assert (expected == UNKNOWN).all() == (source == "raster")
    paint(folder, products[1], SHADOW, slice(10, 20), slice(10, 20))
    expected = expected.copy()
    expected[10:20, 10:20] = SHADOW
    found = open_masks({"cloudy": products[1], "clear": products[0]}, settings, labels=folder)["cloudy"]
    assert np.array_equal(found.core, expected)
    assert np.array_equal(found.mask, masks.grow(expected, SETTINGS, pixel_m=20))


@examples(40)
@given(CORES, arrays(bool, SHAPE), st.integers(0, 4))
def test_what_a_person_says_is_final_and_the_rest_is_doubted_as_ever(read, core, by_hand, factor):
    """Over ground that is hazy as a whole, so that the second opinion doubts all that is clear."""
    hazy = replace(read[1], core=core, scl=None, rgb=read[0].rgb + np.uint16(3000))
    other = replace(read[0], core=np.zeros(SHAPE, np.uint8))
    plain = masks_of_pair({"cloudy": hazy, "clear": other}, SETTINGS)["cloudy"]
    said = masks_of_pair({"cloudy": replace(hazy, by_hand=by_hand), "clear": other}, SETTINGS)["cloudy"]
    assert np.array_equal(said.core, np.where(by_hand, core, plain.core))
    assert np.array_equal(said.mask[by_hand], core[by_hand])
    assert not ((said.mask == CLEAR) & (plain.mask != CLEAR) & ~by_hand & (core != CLEAR)).any()
    assert not (suspect(replace(hazy, by_hand=by_hand), other, SETTINGS) & by_hand).any()


def test_a_persons_pixels_are_not_dark_and_stay_theirs_when_thinned(read):
    here = np.zeros(SHAPE, bool)
    here[:24] = True
    bare = {"core": np.zeros(SHAPE, np.uint8), "snow": np.zeros(SHAPE, bool), "scl": None}
    black, bright = (
        replace(date, **bare, rgb=np.full_like(date.rgb, dn), b11=np.full_like(date.b11, dn))
        for date, dn in zip(reversed(read), (1200, 2000), strict=True)
    )
    assert dark(black, [bright], SETTINGS).any(axis=1).sum() > 40
    found = dark(replace(black, by_hand=here), [bright], SETTINGS)
    assert found[24:].any()
    assert not found[:24].any()
    thinned = _thinned(replace(black, by_hand=here), 6)
    assert np.array_equal(thinned.by_hand, here[::3, ::3])
