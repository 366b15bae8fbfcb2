"""The pictures of a pair: of one size, each of its own date, the masks where the clouds are."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cloudjob.pages import pictures, review
from cloudjob.pixels import CLEAR, CLOUD
from cloudjob.sentinel2 import render
from cloudjob.sentinel2.labels import Label
from cloudjob.sentinel2.masks import Settings
from cloudjob.sentinel2.scene_masks import Preview

SETTINGS = Settings(brighter=1, cloud_m=0)  # no second opinion, nothing grown: masks are what they are given as
SHAPE = (1860, 1800)  # pixels of 10 m


def preview(reflectance: tuple[float, float, float], cloudy_rows: slice) -> Preview:
    """A date of one colour, with a cloud over these rows of 20 m."""
    core = np.full((SHAPE[0] // 2, SHAPE[1] // 2), CLEAR, np.uint8)
    core[cloudy_rows] = CLOUD
    colour = np.array([round(value * 10000) + 1000 for value in reflectance], np.uint16)
    rgb = np.broadcast_to(colour[:, None, None], (3, SHAPE[0] // 6, SHAPE[1] // 6)).copy()
    return Preview(SimpleNamespace(shape=SHAPE, sensing_time=0), core, 2, core == 99, rgb)


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, np.ndarray], dict]:
    cloudy, clear = preview((0.4, 0.3, 0.2), slice(0, 310)), preview((0.2, 0.15, 0.1), slice(0, 0))
    files, facts = pictures.of_pair(cloudy, clear, SETTINGS, gain=1.0)
    return {kind: np.asarray(Image.open(io.BytesIO(file))).astype(int) for kind, file in files.items()}, facts


def test_all_kinds_are_there_and_of_one_size_below_the_limit(made):
    images, facts = made
    assert tuple(images) == ("cloudy", "cloudy-mask", "clear", "clear-mask", "difference")
    assert set(images) == set(review.PICTURES)
    # 1860 pixels do not fit into 915 pixels of 20 m: the pictures are of 40 m
    assert {image.shape[:2] for image in images.values()} == {(465, 450)}
    assert facts["size"] == [450, 465]


def test_each_picture_is_of_its_own_date(made):
    images, _ = made
    for kind, expected in (("cloudy", (102, 76, 51)), ("clear", (51, 38, 26))):
        assert np.abs(images[kind][5:-5, 5:-5] - expected).max() <= 3  # lossy
    cloud = render.OUTLINES[CLOUD][1]
    assert (images["cloudy-mask"][:155, :, :3] == cloud).all()
    assert (images["cloudy-mask"][154, :, 3] == 255).all()  # the outline
    assert (images["cloudy-mask"][160:, :, 3] == 0).all()
    assert (images["clear-mask"][..., 3] == 0).all()


def test_the_dates_are_made_equally_bright_before_their_difference(made):
    images, facts = made
    assert facts["gain"] == 2.0
    assert np.abs(images["difference"][5:-5, 5:-5] - render.SAME).max() <= 3


def test_the_stretch_is_the_gain_times_reflectance():
    date = preview((0.1, 0.1, 0.1), slice(0, 0))
    files, _ = pictures.of_pair(date, date, SETTINGS, gain=2.5)
    image = np.asarray(Image.open(io.BytesIO(files["cloudy"]))).astype(int)
    assert np.abs(image - 64).max() <= 3


def test_under_clouds_alone_the_brightness_cannot_be_compared():
    files, facts = pictures.of_pair(
        preview((0.4, 0.4, 0.4), slice(None)), preview((0.1, 0.1, 0.1), slice(0, 0)), SETTINGS, gain=1.0
    )
    assert facts["gain"] is None
    change = np.asarray(Image.open(io.BytesIO(files["difference"]))).astype(int)
    assert np.abs(change[5:-5, 5:-5] - render.BRIGHTER).max() <= 4  # cloudy minus clear


def test_each_date_is_the_second_opinion_on_the_other():
    """Haze that no classification knows: brighter in blue than on the other date, so that it is doubtful here."""
    hazy, dark = preview((0.3, 0.3, 0.3), slice(0, 0)), preview((0.1, 0.1, 0.1), slice(0, 0))
    doubted = dict(render.OUTLINES.values())["unknown"]
    second = Settings(brighter=0.04, cloud_m=0)
    for cloudy, clear, role in ((hazy, dark, "cloudy"), (dark, hazy, "clear")):
        files, _ = pictures.of_pair(cloudy, clear, second, gain=1.0)
        for each in ("cloudy", "clear"):
            mask = np.asarray(Image.open(io.BytesIO(files[f"{each}-mask"])))
            assert (mask[..., 3] > 0).all() == (each == role)
            assert each != role or (mask[..., :3] == doubted).all()


def test_a_small_scene_is_shown_at_20_m(monkeypatch):
    monkeypatch.setitem(globals(), "SHAPE", (1830, 600))
    _, facts = pictures.of_pair(*[preview((0.1, 0.1, 0.1), slice(0, 0))] * 2, SETTINGS, gain=1.0)
    assert facts["size"] == [300, pictures.SIDE]


def test_how_much_of_a_mask_a_person_corrected_is_among_the_facts(made):
    assert "by_hand" not in made[1]
    cloudy, clear = preview((0.4, 0.3, 0.2), slice(0, 310)), preview((0.2, 0.15, 0.1), slice(0, 0))
    by_hand = np.zeros(cloudy.core.shape, bool)
    by_hand[: len(by_hand) // 2] = True
    _, facts = pictures.of_pair(replace(cloudy, by_hand=by_hand), clear, SETTINGS, gain=1.0)
    assert facts["by_hand"] == {"cloudy": 0.5}


@pytest.mark.parametrize("factor", [1, 2])
def test_what_a_person_changed_is_yellow_and_nothing_else(monkeypatch, factor):
    rgb = np.full((3, SHAPE[0] // 6, SHAPE[1] // 6), 3000, np.uint16)
    monkeypatch.setattr(pictures, "read_overview", lambda product: rgb)
    core = np.zeros((SHAPE[0] // factor, SHAPE[1] // factor), np.uint8)
    by_hand = np.zeros(core.shape, bool)
    by_hand[400 // factor : 800 // factor, 80 // factor] = True
    label = Label(core, by_hand, core, factor, "")
    png = np.asarray(Image.open(io.BytesIO(pictures.of_label(SimpleNamespace(shape=SHAPE), label, gain=1.0))))
    assert png.shape == (465, 2 * 450 + 8, 3)  # of 40 m, side by side
    expected = np.zeros((465, 450), bool)
    expected[100:200, 20] = True
    assert np.array_equal((png[:, 458:] == (255, 230, 0)).all(-1), expected)
    assert (png[:, :450] == 51).all()
    assert (png[:, 458:][~expected] == 51).all()
