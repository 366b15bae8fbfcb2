"""Images of one's own as conditions: as whole arrays give them, by however many ranks and threads, in little memory."""

from datetime import date

import numpy as np
import pytest
from affine import Affine
from own_images import UTM, clouded, ground, write
from scene_conditions import equal, made_by

from cloudjob.archive.make import make_synthetic
from cloudjob.errors import InterruptedJob, OwnFileError
from cloudjob.pixels import CLEAR
from cloudjob.restoration import own_arrays, own_dates
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.foreign import Image
from cloudjob.restoration.own_scene import OwnScene
from cloudjob.restoration.own_source import Options
from cloudjob.restoration.team import Team
from cloudjob.sentinel2.foreign_masks import Grid
from cloudjob.sentinel2.product import Product

SHAPE = (150, 130)
IMAGE, CLOUD = clouded(ground(*SHAPE), rows=slice(40, 70), cols=slice(30, 90))
LARGE = {"crs": UTM["crs"], "transform": UTM["transform"] @ Affine.translation(-20, -30)}


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(own_dates, "_ROWS", 64)
    monkeypatch.setattr(own_dates, "_STRIPE", 16)


@pytest.fixture
def files(tmp_path):
    """An image, a mask of it, a clear date on its pixels with a cloud of its own, and one on a larger grid."""
    write(tmp_path / "image_2024-05-10.tif", IMAGE, **UTM)
    write(tmp_path / "mask.tif", CLOUD[None].astype(np.uint8), names=None, **UTM)
    near, _ = clouded(0.8 * ground(*SHAPE), rows=slice(60, 100), cols=slice(60, 110))
    write(tmp_path / "near_2024-05-05.tif", near, **UTM)
    write(tmp_path / "far.tif", np.pad(1.1 * ground(*SHAPE), [(0, 0), (30, 30), (20, 20)], mode="edge"), **LARGE)
    return tmp_path


def opened(files, *clear, mask="mask.tif", grown=False) -> OwnScene:
    paths = [files / name for name in clear]
    return OwnScene.open(files / "image_2024-05-10.tif", paths, mask and files / mask, Options(grown=grown))


def made(folder, scene: OwnScene, *, size=1, threads=1, said=None, **options) -> SceneConditions:
    def work(ranks):
        team = Team(folder, ranks, threads=threads, **options)
        scene.make(team, **({"say": said.append} if said is not None and team.rank == 0 else {}))

    return made_by(size, folder, work)


def of_arrays(files, scene: OwnScene, clear: list[np.ndarray], *, grown=False) -> SceneConditions:
    """The same from whole arrays, one after the other; `clear` are DN that are empty where they are not clear."""
    dn = Image.open(files / "image_2024-05-10.tif").read()
    how = {"grown": grown, "pixel_m": 10, "sun_elevation": scene.image.sun_elevation, "days": scene.days}
    return own_arrays.conditions(dn, own_arrays.classes(CLOUD, SHAPE, None), clear, **how)


def clear_part(path) -> np.ndarray:
    """DN of a date on its own pixels, empty where the rough test finds cloud or its growth."""
    from cloudjob.restoration import cloud_test

    image = Image.open(path)
    dn = image.read()
    mask = own_dates.grown(cloud_test.classes(dn), image.grid, Options().mask_settings)
    assert (mask == CLEAR).any()
    return np.where(mask == CLEAR, dn, 0)


@pytest.mark.parametrize(("size", "threads"), [(1, 1), (1, 3), (3, 1), (2, 2)])
def test_they_are_those_of_whole_arrays(files, tmp_path, size, threads):
    scene = opened(files, "near_2024-05-05.tif", "far.tif")
    near, far = clear_part(files / "near_2024-05-05.tif"), clear_part(files / "far.tif")
    assert (near == 0).any()
    assert (far != 0).all()
    expected = of_arrays(files, scene, [near, far[:, 30:-30, 20:-20]])
    assert expected.reference_days == (-5, None)
    equal(made(tmp_path / "work", scene, size=size, threads=threads), expected)


@pytest.mark.parametrize("grown", [False, True])
def test_without_a_clear_date(files, tmp_path, grown):
    scene, said = opened(files, grown=grown), []
    found = made(tmp_path / "work", scene, size=2, said=said)
    equal(found, of_arrays(files, scene, [], grown=grown))
    assert found.references == ()
    assert said == []


def test_by_the_rough_test_and_what_is_said_is_said_once(files, tmp_path):
    write(files / "image_2024-05-10.tif", clouded(IMAGE, rows=slice(0, 140), cols=slice(0, 130))[0], **UTM)
    write(files / "near_2024-05-05.tif", clouded(IMAGE, rows=slice(0, 150), cols=slice(0, 130))[0], **UTM)
    scene, said = opened(files, "near_2024-05-05.tif", mask=None), []
    found = made(tmp_path / "work", scene, size=3, said=said)
    assert (found.mask != CLEAR).mean() > 0.9
    assert not found.references[0].any()
    assert len(said) == 2
    assert "the rough test takes" in said[0]
    assert said[1] == "near_2024-05-05.tif: not one clear pixel of it lies on image_2024-05-10.tif"


MASKS = {
    "nothing": (np.zeros(SHAPE, bool), "nothing of it is hidden, and so nothing is restored"),
    "all": (np.ones(SHAPE, bool), "not one pixel of it is clear by the mask"),
}


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_that_hides_nothing_or_all_is_told(files, tmp_path, mask):
    values, why = MASKS[mask]
    write(files / "mask.tif", values[None].astype(np.uint8), names=None, **UTM)
    said = []
    made(tmp_path / "work", opened(files), said=said)
    assert len(said) == 1
    assert why in said[0]


@pytest.mark.parametrize("mask", ["mask.tif", None])
def test_an_image_without_data_is_refused(files, tmp_path, mask):
    write(files / "image_2024-05-10.tif", np.full_like(IMAGE, np.nan), **UTM)
    with pytest.raises(OwnFileError, match=r"image_2024-05-10\.tif: has no pixel with data in all four bands"):
        made(tmp_path / "work", opened(files, mask=mask), size=2)


@pytest.mark.slow
def test_a_product_is_a_clear_date_of_a_raster_on_other_pixels(files, tmp_path):
    days = {"clear": [date(2024, 3, 12)], "cloudy": [date(2024, 3, 8)]}
    names = make_synthetic(tmp_path, tiles=["05WPS"], size=192, seed=3, cloud=(0.2, 0.2), **days)
    clear = tmp_path / next(f"{name}.SAFE" for name in names if "_20240312T" in name)
    where = Grid.of(Product.open(clear), 1)
    place = {"crs": where.crs, "transform": where.transform @ Affine.translation(5.5, 7)}
    write(files / "image_2024-05-10.tif", IMAGE, **place)
    write(files / "mask.tif", CLOUD[None].astype(np.uint8), names=None, **place)
    scene = opened(files, clear)
    found = made(tmp_path / "one", scene)
    equal(made(tmp_path / "more", scene, size=3, threads=2), found)
    assert (found.references[0] != 0).all(0).mean() > 0.8
    assert found.reference_days == scene.days
    assert scene.days[0] < -50


def test_it_goes_on_where_it_was_stopped(files, tmp_path):
    scene, asked = opened(files, "near_2024-05-05.tif", "far.tif"), []
    whole = made(tmp_path / "whole", scene)
    with pytest.raises(InterruptedJob):
        made(tmp_path / "work", scene, stopped=lambda: len(asked) > 20 or asked.append(1))
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work" / "done").iterdir()}
    assert kept
    (tmp_path / "work" / "over").unlink()
    equal(made(tmp_path / "work", scene), whole)
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work" / "done").iterdir()}
    assert {name: now[name] for name in kept} == kept
