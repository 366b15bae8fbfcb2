"""The first guess of a scene by similarity: in any windows, and by any ranks, as of the whole scene at once."""

import numpy as np
import pytest
import torch
from worlds import together

from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.similarity import REACH, similar
from cloudjob.errors import InterruptedJob
from cloudjob.pixels import CLEAR, CLOUD, NO_DATA, SHADOW
from cloudjob.restoration import guess
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.guess import Similar
from cloudjob.restoration.team import Team
from cloudjob.restoration.tiles import Tile, tiles

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread(torch_threads):
    torch.set_num_threads(1)


def scene(shape: tuple[int, int], dates: int) -> SceneConditions:
    """Ground of three kinds under small clouds, with holes in each date; one corner is wholly clear."""
    rng = np.random.default_rng(7)
    kind = rng.integers(0, 3, [-(-side // 10) for side in shape]).repeat(10, 0).repeat(10, 1)[: shape[0], : shape[1]]
    ground = np.array([[1500, 1400, 1300, 4000], [3000, 2600, 2000, 3300], [1800, 1900, 2300, 1200]])[kind]
    ground = np.moveaxis(ground, -1, 0) + rng.integers(0, 100, (4, *shape))
    coarse = rng.choice([CLEAR, CLOUD, SHADOW], [-(-side // 32) for side in shape], p=[0.6, 0.3, 0.1])
    coarse[-4:, -4:] = CLEAR
    mask = coarse.repeat(32, 0).repeat(32, 1)[: shape[0], : shape[1]].astype(np.uint8)
    cloudy = np.where(mask == CLOUD, 9000, ground).astype(np.uint16)
    others = [(ground * (0.9 + 0.05 * number)).astype(np.uint16) for number in range(dates)]
    cloudy[:, 5:9, 3:20], mask[5:9, 3:20] = 0, NO_DATA
    for number, other in enumerate(others):
        other[:, 40 * number : 40 * number + 60, 50:100] = 0
    return SceneConditions(cloudy, mask, mask, tuple(others), 30.0, (None,) * dates)


def whole(given: SceneConditions) -> tuple[np.ndarray, np.ndarray]:
    """The first guess of all of it, and its deviation; beyond the scene there is nothing."""
    height, width = given.mask.shape
    batch = Batch.of(given.arrays([Tile(-REACH, -REACH, height + 2 * REACH, width + 2 * REACH)]))
    known = batch.mask == CLEAR
    ground, deviation = similar(batch.cloudy, batch.references, known, margin=REACH, origin=(-REACH, -REACH))
    return ground[0].numpy(), deviation[0].numpy()


def assert_as_whole(given: SceneConditions, first: Similar, places: list[Tile]) -> None:
    ground, deviation = whole(given)
    for tile in places:
        batch = Batch.of(given.arrays([tile]))
        found = first.cut(batch, [tile])
        assert found.ground.dtype == found.deviation.dtype == batch.cloudy.dtype
        height, width = ground[:, *tile.slices].shape[1:]
        np.testing.assert_allclose(found.ground[0, :, :height, :width], ground[:, *tile.slices], atol=6e-5)
        there = deviation[:, *tile.slices]
        np.testing.assert_allclose(found.deviation[0, :, :height, :width], there, atol=6e-6, rtol=2e-4)
        clear = batch.mask[0] == CLEAR
        assert torch.equal(found.ground[0][:, clear], batch.cloudy[0][:, clear])
        assert not found.deviation[0][:, clear].any()
        assert found.ground[0, :, height:].isnan().all()


@pytest.mark.parametrize(("dates", "window", "ranks"), [(0, 128, 1), (1, 192, 2), (3, 128, 3), (2, 1024, 1)])
def test_it_is_that_of_the_whole_scene_whatever_the_windows_and_ranks(tmp_path, monkeypatch, dates, window, ranks):
    monkeypatch.setattr(guess, "WINDOW", window)
    given = scene((300, 410), dates)
    given.save(tmp_path)
    places = [*given.cloudy_tiles(size=96, overlap=32), Tile(250, 0, 96, 96)]

    def work(rank):
        Similar.of(tmp_path, CPU, places).make(Team(tmp_path, rank))

    assert together(ranks, work) == [None] * ranks
    assert_as_whole(given, Similar.of(tmp_path, CPU, places), places)


@pytest.mark.parametrize("window", [128, 320])
def test_the_middle_of_a_large_cloud_is_as_of_the_whole_scene(tmp_path, monkeypatch, window):
    """Though a window there holds no clear pixel: no seam between windows, and the light of the day is right."""
    monkeypatch.setattr(guess, "WINDOW", 1024)
    given = scene((700, 760), 2)
    given.mask[20:, 10:] = CLOUD
    clear = given.cloudy.copy()
    given.cloudy[:, 20:, 10:] = 9000
    places = [Tile(row, col, 96, 96) for row in (380, 604) for col in (300, 664)]
    found = {}
    for size in (1024, window):
        monkeypatch.setattr(guess, "WINDOW", size)
        given.save(tmp_path / str(size))
        first = Similar.of(tmp_path / str(size), CPU, places)
        first.make(Team(tmp_path / str(size)))
        found[size] = first.cut(Batch.of(given.arrays(places)), places)
    assert len(first.windows) > 1
    for name in ("ground", "deviation"):
        one, other = (getattr(found[size], name) for size in (1024, window))
        torch.testing.assert_close(one, other, rtol=0, atol=1.1e-4)
    ground = [clear[:, *tile.slices] for tile in places]
    seen = Batch.of({"cloudy": np.stack(ground), "mask": np.zeros((4, 96, 96), np.uint8)}).cloudy
    error = (found[window].ground - seen)[seen < 0.6]  # else a cloud was there already
    assert error.abs().median() < 0.01


def test_windows_without_anything_to_guess_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(guess, "WINDOW", 64)
    mask = np.zeros((200, 200), np.uint8)
    mask[70:90, 10:20] = CLOUD
    mask[:10, 190:], mask[100:, 100:] = NO_DATA, NO_DATA
    given = SceneConditions(np.full((4, 200, 200), 2000, np.uint16), mask, mask, (), None, ())
    given.save(tmp_path)
    places = given.cloudy_tiles(size=64, overlap=0)
    first = Similar.of(tmp_path, CPU, places)
    assert first.windows == (Tile(64, 0, 64, 64),)
    first.make(Team(tmp_path))
    assert [path.name for path in tmp_path.glob("guess-*")] == ["guess-00064-00000.npy"]
    assert_as_whole(given, first, places)


def test_what_is_made_is_kept_and_the_rest_made_by_whoever_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(guess, "WINDOW", 128)
    given = scene((300, 410), 1)
    files = {}
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        given.save(folder)
        first = Similar.of(folder, CPU, tiles((300, 410), size=96, overlap=0))
        if name == "stopped":
            asked = []
            with pytest.raises(InterruptedJob):
                first.make(Team(folder, stopped=lambda asked=asked: asked.append(1) or len(asked) == 4))
            kept = {path: path.stat().st_mtime_ns for path in folder.glob("guess-*")}
            assert len(kept) == 3
            (folder / "over").unlink()
        assert together(2, lambda rank, first=first, folder=folder: first.make(Team(folder, rank))) == [None] * 2
        files[name] = {path.name: path.read_bytes() for path in folder.glob("guess-*")}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert files["stopped"] == files["whole"]
