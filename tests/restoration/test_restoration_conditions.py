"""The conditions of a scene: what is kept for the ranks, and what a tile is told."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cloudjob.diffusion.batch import Batch
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, REFERENCES, SHADOW, UNKNOWN
from cloudjob.restoration import conditions
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.tiles import Tile


def scene(shape: tuple[int, int] = (40, 50), *, days: tuple[float | None, ...] = (-4.5, 3.0)) -> SceneConditions:
    """Random pixels, a few of them without data."""
    rng = np.random.default_rng(3)
    cloudy, *others = rng.integers(0, 65536, (1 + len(days), 4, *shape)).astype(np.uint16)
    cloudy[:, 2, 3] = 0
    for other in others:
        other[:, 4:6] = 0
    mask, core = rng.choice([CLEAR, CLOUD, SHADOW, CIRRUS, UNKNOWN, NO_DATA], (2, *shape)).astype(np.uint8)
    return SceneConditions(cloudy, mask, core, tuple(others), 27.25, days)


def images(given: SceneConditions) -> dict[str, np.ndarray]:
    return {"cloudy": given.cloudy, "mask": given.mask, **dict(zip(REFERENCES, given.references, strict=False))}


# --- save and load -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("days", [(), (None,), (-4.5, None), (-4.5, 3.0, 9.0)])
def test_what_was_saved_comes_back_mapped(tmp_path, days):
    before = scene(days=days)
    assert not SceneConditions.saved(tmp_path)
    before.save(tmp_path / "work")
    assert SceneConditions.saved(tmp_path / "work")
    after = SceneConditions.load(tmp_path / "work")
    assert len(after.references) == len(days)
    pairs = [(getattr(before, name), getattr(after, name)) for name in ("cloudy", "mask", "core")]
    for was, is_now in [*pairs, *zip(before.references, after.references, strict=True)]:
        assert isinstance(is_now, np.memmap)
        assert is_now.dtype == was.dtype
        np.testing.assert_array_equal(is_now, was)
    assert (after.sun_elevation, after.reference_days) == (27.25, days)
    numbers = json.loads((tmp_path / "work" / "numbers.json").read_text())
    assert numbers == {"sun_elevation": 27.25, "reference_days": list(days)}
    (tmp_path / "work" / "numbers.json").unlink()  # set aside as broken
    assert not SceneConditions.saved(tmp_path / "work")


@pytest.mark.parametrize("last", ["cloudy", "core", "references", "mask"])
def test_a_save_that_was_cut_short_is_none(tmp_path, monkeypatch, last):
    save, broken = np.save, getattr(scene(), last)
    broken = broken[-1] if last == "references" else broken

    def until(path, array):
        if array.shape == broken.shape and (array == broken).all():
            raise KeyboardInterrupt
        save(path, array)

    monkeypatch.setattr(conditions.np, "save", until)
    with pytest.raises(KeyboardInterrupt):
        scene().save(tmp_path)
    assert not SceneConditions.saved(tmp_path)
    assert not list(tmp_path.glob(".tmp-*"))


# --- tiles -------------------------------------------------------------------------------------------------------
def test_only_tiles_with_something_hidden_are_restored():
    mask = np.zeros((64, 128), np.uint8)
    mask[:] = UNKNOWN
    mask[40:, :20] = NO_DATA
    for place, hidden in (((5, 5), CLOUD), ((40, 70), SHADOW), ((63, 127), CIRRUS)):
        mask[place] = hidden
    found = SceneConditions(np.zeros((4, 64, 128)), mask, mask, (), 1.0, ()).cloudy_tiles(size=32, overlap=0)
    assert found == [Tile(0, 0, 32, 32), Tile(32, 64, 32, 32), Tile(32, 96, 32, 32)]


def test_what_a_tile_has_at_its_edge_alone_is_left_to_its_neighbour():
    mask = np.zeros((32, 80), np.uint8)
    mask[10:20, 26:28] = CLOUD
    given = SceneConditions(np.zeros((4, 32, 80)), mask, mask, (), 1.0, ())
    assert [tile.col for tile in given.cloudy_tiles(size=32, overlap=8)] == [0]
    mask[10, 28] = CLOUD
    assert [tile.col for tile in given.cloudy_tiles(size=32, overlap=8)] == [0, 24]


def test_tiles_overlap_as_it_was_asked_for():
    mask = np.full((32, 80), CLOUD, np.uint8)
    found = SceneConditions(np.zeros((4, 32, 80)), mask, mask, (), 1.0, ()).cloudy_tiles(size=32, overlap=8)
    assert [tile.col for tile in found] == [0, 24, 48]


# --- what a tile is told -----------------------------------------------------------------------------------------
def window(array: np.ndarray, tile: Tile, fill: int) -> np.ndarray:
    """The same cut, by padding all of the scene."""
    padded = np.pad(array, [(0, 0)] * (array.ndim - 2) + [(100, 100)] * 2, constant_values=fill)
    return padded[..., *Tile(tile.row + 100, tile.col + 100, tile.height, tile.width).slices]


# The last two hang over the scene.
PLACES = [Tile(0, 0, 32, 32), Tile(8, 18, 32, 32), Tile(20, 30, 32, 32), Tile(-7, -20, 32, 32)]


def test_a_tile_is_told_of_itself():
    given = scene()
    told = given.arrays(PLACES)
    for number, tile in enumerate(PLACES):
        for name, image in images(given).items():
            np.testing.assert_array_equal(told[name][number], window(image, tile, NO_DATA if name == "mask" else 0))
    batch = Batch.of(told)
    assert batch.mask.dtype == torch.uint8
    assert batch.references.shape == (4, 2, 4, 32, 32)
    assert batch.reference_days.tolist() == [[-4.5, 3.0]] * 4
    assert batch.sun_elevation.tolist() == [27.25] * 4
    assert batch.target_days.tolist() == [0] * 4  # the ground of the cloudy day is asked for
    assert batch.target is None
    assert batch.donor is None


def test_a_tile_without_another_date_is_told_of_none():
    batch = Batch.of(scene(days=()).arrays(PLACES[:1]))
    assert batch.references.shape == (1, 0, 4, 32, 32)
    assert batch.reference_days.shape == (1, 0)


def test_what_nobody_knows_is_told_as_unknown():
    dark = Batch.of(replace(scene(days=(None, 2.0)), sun_elevation=None).arrays(PLACES[:1]))
    assert dark.sun_elevation.isnan().all()
    assert dark.references.shape[1] == 2
    assert dark.reference_days.isnan().tolist() == [[True, False]]
