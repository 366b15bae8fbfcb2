"""A whole scene: every tile restored once by some rank, put together, with an uncertainty where something changed."""

import numpy as np
import pytest
import torch

from cloudjob.errors import InterruptedJob
from cloudjob.pixels import CLEAR, CLOUD, NO_DATA
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.scene import put_together, restore_tiles
from cloudjob.restoration.tiles import Tile

SIZE = {"size": 32, "overlap": 8}


class Painter:
    """Restores each tile with a number of its own: 0.01 for each column it begins at, 0.2 for each member."""

    device = torch.device("cpu")

    def __init__(self):
        self.tiles: list[tuple[Tile, int]] = []

    def tile(self, batch, tile: Tile, member: int, *, margin: int):
        assert batch.cloudy.shape == (1, 4, tile.height + 2 * margin, tile.width + 2 * margin)
        self.tiles.append((tile, member))
        self.margin = margin
        return np.full((1, 4, tile.height, tile.width), 0.01 * tile.col + 0.2 * member, np.float32)


@pytest.fixture
def conditions() -> SceneConditions:
    """Cloud all over but for a clear stripe and a corner without data; its core is what lies 4 pixels within."""
    mask = np.full((40, 80), CLOUD, np.uint8)
    mask[:, 50:56], mask[:3, :3] = CLEAR, NO_DATA
    core = mask.copy()
    core[:, 46:60] = CLEAR
    cloudy = np.full((4, 40, 80), 7000, np.uint16)
    return SceneConditions(cloudy, mask, core, None, 30.0, None)


def restore(conditions, folder, **options) -> Painter:
    painter = Painter()
    restore_tiles(conditions, painter, folder, **(SIZE | {"members": 2} | options))
    return painter


def test_a_file_holds_all_members_of_a_tile_as_digital_numbers(conditions, tmp_path):
    painter = restore(conditions, tmp_path)
    assert [tile.col for tile, _ in painter.tiles] == [col for col in (0, 24, 48) * 2 for _ in range(2)]
    assert [tile.row for tile, _ in painter.tiles] == [0] * 6 + [8] * 6
    assert [member for _, member in painter.tiles] == [0, 1] * 6
    assert painter.margin == 32  # as far as the next tile
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"tile-0000{row}-000{col:02d}.npy" for row in (0, 8) for col in (0, 24, 48)}
    found = np.load(tmp_path / "tile-00008-00024.npy")
    assert found.shape == (2, 4, 32, 32)
    assert found.dtype == np.uint16
    assert [np.unique(member).tolist() for member in found] == [[3400], [5400]]  # 0.24 and 0.44 of reflectance


def test_ranks_share_the_tiles_out(conditions, tmp_path):
    ranks = [restore(conditions, tmp_path, rank=rank, ranks=4, members=1) for rank in range(4)]
    starts = [[(tile.row, tile.col) for tile, _ in painter.tiles] for painter in ranks]
    assert starts == [[(0, 0), (8, 24)], [(0, 24), (8, 48)], [(0, 48)], [(8, 0)]]


def test_what_is_finished_is_kept(conditions, tmp_path):
    np.save(tmp_path / "tile-00000-00024.npy", np.zeros((2, 4, 32, 32), np.uint16))
    painter = restore(conditions, tmp_path)
    assert Tile(0, 24, 32, 32) not in {tile for tile, _ in painter.tiles}
    assert len(painter.tiles) == 10
    assert not np.load(tmp_path / "tile-00000-00024.npy").any()


def test_a_wish_to_stop_ends_it_between_two_tiles(conditions, tmp_path):
    answers = iter([False, False, True])
    with pytest.raises(InterruptedJob, match="finished tiles are kept"):
        restore(conditions, tmp_path, stopped=lambda: next(answers))
    assert len(list(tmp_path.iterdir())) == 2
    restore(conditions, tmp_path)
    restore(conditions, tmp_path, stopped=lambda: True)  # nothing is left to do


def test_put_together_it_is_a_scene_with_an_uncertainty_where_something_changed(conditions, tmp_path):
    restore(conditions, tmp_path)
    factors = [1.0, 2.0, 0.5, 3.0]
    image, flags, uncertainty = put_together(conditions, tmp_path, **SIZE, factors=factors)
    clear = conditions.mask == CLEAR
    assert (image.shape, image.dtype) == ((4, 40, 80), np.uint16)
    assert (image[:, clear] == 7000).all()
    assert (image[:, :3, :3] == 7000).all()
    # the mean of the members, 0.1, 0.34 and 0.58, in the middle of a tile and half-way between two
    assert [image[0, 20, col] for col in (10, 40, 70)] == [2000, 4400, 6800]
    assert abs(int(image[0, 20, 27]) + int(image[0, 20, 28]) - 2 * 3200) <= 1
    assert (flags[:3, :3] == NO_DATA).all()
    assert [flags[20, col] for col in (10, 48, 53, 57, 70)] == [1, 2, 0, 2, 1]
    # half of 0.2 is the members' deviation
    changed = (flags == 1) | (flags == 2)
    assert uncertainty.dtype == np.uint16
    for band, factor in zip(uncertainty, factors, strict=True):
        assert set(band[changed].tolist()) == {1000 * factor}
        assert not band[~changed].any()


def test_one_member_has_no_uncertainty(conditions, tmp_path):
    restore(conditions, tmp_path, members=1)
    image, _, uncertainty = put_together(conditions, tmp_path, **SIZE, factors=None)
    assert uncertainty is None
    assert image[0, 20, 70] == 5800


def test_no_pixel_leaves_the_valid_range(conditions, tmp_path):
    """However far off the network is; nan is no data, which 0 is as a file of a tile has it, and never in a scene."""

    class Mad(Painter):
        def tile(self, batch, tile, member, *, margin):
            wild = {0: -1e6, 24: 1e6, 48: np.nan}[tile.col]
            return np.full((1, 4, tile.height, tile.width), wild, np.float32)

    restore_tiles(conditions, Mad(), tmp_path, **SIZE, members=1)
    values = [np.unique(np.load(tmp_path / f"tile-00000-000{col:02d}.npy")).tolist() for col in (0, 24, 48)]
    assert values == [[1], [65535], [0]]
    image, *_ = put_together(conditions, tmp_path, **SIZE, factors=None)
    assert image.min() == 1
    assert [image[0, 20, col] for col in (10, 40, 70)] == [1, 65535, 1]


def test_a_scene_without_cloud_comes_back_as_it_was(tmp_path):
    cloudy = np.random.default_rng(0).integers(0, 65536, (4, 40, 80)).astype(np.uint16)
    mask = np.zeros((40, 80), np.uint8)
    given = SceneConditions(cloudy, mask, mask, None, 30.0, None)
    assert restore(given, tmp_path).tiles == []
    image, flags, uncertainty = put_together(given, tmp_path, **SIZE, factors=[1.0] * 4)
    np.testing.assert_array_equal(image, cloudy)
    assert not flags.any()
    assert not uncertainty.any()
