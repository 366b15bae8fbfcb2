"""Pictures of a page: within it while they are few, beside it when they are many, never more bytes than it bears."""

import base64

import numpy as np
import pytest

from cloudjob.errors import ItemError
from cloudjob.pages import gallery

NOISE = np.random.default_rng(1).integers(0, 256, (384, 384, 3), np.uint8)  # the worst that can be compressed


def test_few_pictures_are_in_the_page_and_many_beside_it(tmp_path):
    flat = np.full((8, 8, 3), 90, np.uint8)
    few = gallery.Gallery(tmp_path / "pictures", gallery.WITHIN)
    found = few.add("A", {"cloudy": flat, "restored": flat})
    assert base64.b64decode(found["cloudy"].split("base64,")[1])[8:12] == b"WEBP"
    assert few.paths == []
    many = gallery.Gallery(tmp_path / "pictures", gallery.WITHIN + 1)
    assert many.add("A b", {"cloudy": flat}) == {"cloudy": "pictures/A%20b-cloudy.webp"}
    assert [path.name for path in many.paths] == ["A b-cloudy.webp"]
    assert many.side < few.side


def test_500_scenes_of_noise_stay_below_the_bytes_of_a_page(tmp_path):
    found = gallery.Gallery(tmp_path / "pictures", 500)
    found.add("A", dict.fromkeys(("cloudy", "restored", "mask", "uncertainty"), NOISE))
    assert 500 * sum(path.stat().st_size for path in found.paths) <= 20 << 20


def test_pictures_of_an_earlier_page_go(tmp_path):
    found = gallery.Gallery(tmp_path / "pictures", 99)
    found.add("new", {"sheet": NOISE[:8]})
    (tmp_path / "pictures" / "old-sheet.webp").touch()
    found.sweep()
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["new-sheet.webp"]


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    with pytest.raises(ItemError, match=r"a\.png"):
        gallery.opened(tmp_path / "a.png")
