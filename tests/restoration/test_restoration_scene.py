"""A whole scene: every tile restored once by some rank, put together, with an uncertainty where something changed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from worlds import together as together_on

from cloudjob.diffusion.conditions import Normalisation
from cloudjob.diffusion.recipe import Recipe
from cloudjob.errors import InterruptedJob
from cloudjob.pixels import CLEAR, CLOUD, NO_DATA
from cloudjob.restoration import guess
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.restorer import Restorer
from cloudjob.restoration.scene import Layout, make_guess, put_together, restore, restore_tiles, restored, stripes
from cloudjob.restoration.team import Team
from cloudjob.restoration.tiles import Tile

NORM = Normalisation(mean=(0.2,) * 4, std=(0.1,) * 4)


class Painter:
    """Restores each tile with a number of its own: 0.01 for each column it begins at, 0.2 for each member."""

    device, at_once, recipe = torch.device("cpu"), 1, SimpleNamespace(norm=NORM, first_guess="similar")

    def __init__(self):
        self.asked: list[list[Tile]] = []

    def tiles(self, batch, places: list[Tile], members: int, *, guess, group: int):
        height, width = places[0].height, places[0].width
        assert batch.cloudy.shape == (len(places), 4, height, width)
        assert guess.ground.shape == guess.deviation.shape == batch.cloudy.shape
        self.asked.append(places)
        self.group = group
        found = [[self.value(tile, member) for member in range(members)] for tile in places]
        return torch.tensor(found)[..., None, None, None].expand(-1, -1, 4, height, width)

    def value(self, tile: Tile, member: int) -> float:
        return 0.01 * tile.col + 0.2 * member


@pytest.fixture
def conditions() -> SceneConditions:
    """Cloud all over but for a clear stripe and a corner without data; its core is what lies 4 pixels within."""
    mask = np.full((40, 80), CLOUD, np.uint8)
    mask[:, 50:56], mask[:3, :3] = CLEAR, NO_DATA
    core = mask.copy()
    core[:, 46:60] = CLEAR
    cloudy = np.full((4, 40, 80), 7000, np.uint16)
    return SceneConditions(cloudy, mask, core, (), 30.0, ())


def painted(conditions, folder, painter=None, *, size=32, members=2, **options) -> Painter:
    painter = painter or Painter()
    conditions.save(folder)
    team = Team(folder, **options)
    team.begin()
    layout = Layout(size, 8, members)
    make_guess(team, painter, layout)
    restore_tiles(team, painter, layout)
    return painter


def together(conditions, folder, factors):
    put_together(Team(folder), Layout(32, 8), factors=factors)
    return restored(folder)


def test_a_file_holds_all_members_of_a_tile_as_digital_numbers(conditions, tmp_path):
    painter = painted(conditions, tmp_path)
    assert [(tile.row, tile.col) for (tile,) in painter.asked] == [(row, col) for row in (0, 8) for col in (0, 24, 48)]
    names = {path.name for path in tmp_path.glob("tile-*")}
    assert names == {f"tile-0000{row}-000{col:02d}.npy" for row in (0, 8) for col in (0, 24, 48)}
    found = np.load(tmp_path / "tile-00008-00024.npy")
    assert found.shape == (2, 4, 32, 32)
    assert found.dtype == np.uint16
    assert [np.unique(member).tolist() for member in found] == [[3400], [5400]]  # 0.24 and 0.44 of reflectance


@pytest.mark.parametrize(
    ("at_once", "size", "members", "group", "tiles"),
    [
        (1, 32, 2, 1, 1),
        (16, 32, 1, 16, 16),
        (1, 256, 2, 1, 1),
        (1, 288, 2, 1, 1),
        (16, 256, 1, 16, 16),
        (16, 256, 3, 16, 5),
        (16, 512, 1, 4, 4),
        (16, 256, 20, 16, 1),
    ],
)
def test_a_network_is_always_given_as_much(conditions, tmp_path, at_once, size, members, group, tiles):
    """Samples of about the same area, of as many tiles at a time, of which the last one may be repeated."""
    painter = Painter()
    painter.at_once = at_once
    painted(conditions, tmp_path, painter, size=size, members=members)
    assert painter.group == group
    assert {len(places) for places in painter.asked} == {tiles}


def test_what_is_finished_is_kept(conditions, tmp_path):
    np.save(tmp_path / "tile-00000-00024.npy", np.zeros((2, 4, 32, 32), np.uint16))
    painter = painted(conditions, tmp_path)
    assert [Tile(0, 24, 32, 32)] not in painter.asked
    assert len(painter.asked) == 5
    assert not np.load(tmp_path / "tile-00000-00024.npy").any()


def test_a_wish_to_stop_ends_it_between_two_tiles(conditions, tmp_path):
    painter = Painter()
    with pytest.raises(InterruptedJob, match="finished tiles are kept"):
        painted(conditions, tmp_path, painter, stopped=lambda: len(painter.asked) == 2)
    assert len(list(tmp_path.glob("tile-*"))) == 2
    painted(conditions, tmp_path)
    again = painted(conditions, tmp_path, stopped=lambda: True)  # nothing is left to do
    assert again.asked == []


def test_put_together_it_is_a_scene_with_an_uncertainty_where_something_changed(conditions, tmp_path):
    painted(conditions, tmp_path)
    factors = [1.0, 2.0, 0.5, 3.0]
    image, flags, uncertainty = together(conditions, tmp_path, factors)
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
    painted(conditions, tmp_path, members=1)
    image, _, uncertainty = together(conditions, tmp_path, None)
    assert uncertainty is None
    assert image[0, 20, 70] == 5800


def test_no_pixel_leaves_the_valid_range(conditions, tmp_path):
    """However far off the network is; nan is no data, which 0 is as a file of a tile has it, and never in a scene."""

    class Mad(Painter):
        def value(self, tile, member):
            return {0: -1e6, 24: 1e6, 48: np.nan}[tile.col]

    painted(conditions, tmp_path, Mad(), members=1)
    values = [np.unique(np.load(tmp_path / f"tile-00000-000{col:02d}.npy")).tolist() for col in (0, 24, 48)]
    assert values == [[1], [65535], [0]]
    image, *_ = together(conditions, tmp_path, None)
    assert image.min() == 1
    assert [image[0, 20, col] for col in (10, 40, 70)] == [1, 65535, 1]


def test_a_scene_without_cloud_comes_back_as_it_was(tmp_path):
    cloudy = np.random.default_rng(0).integers(0, 65536, (4, 40, 80)).astype(np.uint16)
    mask = np.zeros((40, 80), np.uint8)
    given = SceneConditions(cloudy, mask, mask, (), 30.0, ())
    assert painted(given, tmp_path).asked == []
    image, flags, uncertainty = together(given, tmp_path, [1.0] * 4)
    np.testing.assert_array_equal(image, cloudy)
    assert not flags.any()
    assert not uncertainty.any()


def test_the_restored_scene_is_read_by_stripes(conditions, tmp_path):
    painted(conditions, tmp_path)
    whole = together(conditions, tmp_path, [1.0] * 4)
    found = list(stripes(Team(tmp_path), rows=16))
    assert [top for top, *_ in found] == [0, 16, 32]
    for number, array in enumerate(whole, 1):
        np.testing.assert_array_equal(np.concatenate([stripe[number] for stripe in found], -2), array)
    painted(conditions, tmp_path / "one", members=1)
    together(conditions, tmp_path / "one", None)
    assert next(stripes(Team(tmp_path / "one")))[3] is None
    with pytest.raises(InterruptedJob):
        next(stripes(Team(tmp_path, stopped=lambda: True)))


@pytest.mark.slow
@pytest.mark.parametrize("first_guess", ["similar", "surroundings"])
@pytest.mark.parametrize("process", ["corrective", "residual", "regression", "ddpm-residual"])
def test_a_scene_comes_out_the_same_by_however_many_ranks(tmp_path, monkeypatch, process, first_guess):
    """The bytes of all that is written, with a real network; and where ranks stop and others go on."""
    monkeypatch.setattr(guess, "WINDOW", 64)
    rng, threads = np.random.default_rng(0), torch.get_num_threads()
    torch.set_num_threads(1)
    mask = np.where(rng.random((5, 6)) < 0.5, CLOUD, CLEAR).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    cloudy, *references = rng.integers(0, 9000, (3, 4, *mask.shape)).astype(np.uint16)
    given = SceneConditions(cloudy, mask, mask, tuple(references), 30.0, (5.0, -8.0))
    recipe = Recipe.of("tiny", process, mean=[0.2] * 4, std=[0.1] * 4, first_guess=first_guess)
    torch.manual_seed(0)
    made = Restorer(recipe, recipe.network().eval(), seed=3, sampler="euler", steps=2)

    def bytes_of(folder, size: int, *, stop_after: int | None = None) -> dict[str, bytes]:
        given.save(folder)
        for attempt in range(1 if stop_after is None else 4):
            left = [stop_after if attempt < 3 and stop_after is not None else 10**6]

            def stopped(left=left) -> bool:
                left[0] -= 1
                return left[0] < 0

            def work(ranks, stopped=stopped):
                restore(Team(folder, ranks, stopped=stopped), made, Layout(32, 8, 2), factors=[1.0] * 4)

            (folder / "over").unlink(missing_ok=True)
            found = together_on(size + attempt, work)
            assert {type(each) for each in found} <= {type(None), InterruptedJob}, found
        assert found == [None] * len(found)
        return {path.name: path.read_bytes() for path in folder.glob("*.npy")}

    whole = bytes_of(tmp_path / "1", 1)
    first = "guess.npy" if first_guess == "surroundings" else "guess-00000-00000.npy"
    assert {first, "restored.npy", "reconstructed.npy", "uncertainty.npy"} < set(whole)
    assert bytes_of(tmp_path / "3", 3) == whole
    assert bytes_of(tmp_path / "stopped", 1, stop_after=4) == whole
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("members", "size"), [(1, 32), (3, 32), (3, 64)])
def test_members_cost_a_pass_a_step_each_and_one_of_the_mean_for_all(conditions, tmp_path, members, size):
    recipe, asked = Recipe.of("tiny", "corrective", mean=[0.2] * 4, std=[0.1] * 4), []
    network = recipe.network().eval()
    network.register_forward_hook(lambda _, told, out: asked.append("mean" if told[0] is None else "detail"))
    made = Restorer(recipe, network, seed=3, sampler="euler", steps=2)
    painted(conditions, tmp_path, made, size=size, members=members)
    tiles = len(list(tmp_path.glob("tile-*")))
    assert (asked.count("mean"), asked.count("detail")) == (tiles, tiles * members * 2)
