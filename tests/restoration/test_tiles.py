"""Tiles cover a scene with the overlap that was asked for; their weights sum to 1 where they overlap."""

from itertools import pairwise

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.restoration.tiles import Tile, own_parts, taper, tiles


def places(shape: tuple[int, int], size: int, overlap: int) -> list[tuple[int, int]]:
    found = tiles(shape, size=size, overlap=overlap)
    assert {(tile.height, tile.width) for tile in found} == {(size, size)}
    return [(tile.row, tile.col) for tile in found]


def test_tiles_lie_row_by_row_and_the_last_is_shifted_inwards():
    assert places((100, 75), 64, 32) == [(0, 0), (0, 11), (32, 0), (32, 11), (36, 0), (36, 11)]
    assert places((64, 160), 64, 16) == [(0, 0), (0, 48), (0, 96)]  # the last one by the step itself
    assert places((64, 161), 64, 16) == [(0, 0), (0, 48), (0, 96), (0, 97)]
    assert places((128, 128), 64, 0) == [(0, 0), (0, 64), (64, 0), (64, 64)]


def test_a_scene_no_larger_than_a_tile_is_one_tile():
    for shape in ((64, 64), (20, 17), (1, 64)):
        assert places(shape, 64, 32) == [(0, 0)]
    assert places((20, 70), 64, 32) == [(0, 0), (0, 6)]


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([32, 64]), st.integers(0, 32))
def test_tiles_cover_every_pixel_stay_inside_and_overlap(height, width, size, overlap):
    overlap = min(overlap, size // 2)
    found = tiles((height, width), size=size, overlap=overlap)
    covered = np.zeros((height, width), int)
    for tile in found:
        covered[tile.slices] += 1
        assert tile.row + size <= max(height, size)
        assert tile.col + size <= max(width, size)
    assert covered.min() >= 1
    for starts in (sorted({tile.row for tile in found}), sorted({tile.col for tile in found})):
        assert starts[0] == 0
        assert all(0 < after - before <= size - overlap for before, after in pairwise(starts))
    assert len(set(found)) == len(found)


def test_slices_cut_rows_then_columns():
    image = np.arange(60).reshape(6, 10)
    np.testing.assert_array_equal(
        image[Tile(row=2, col=3, height=2, width=4).slices], [[23, 24, 25, 26], [33, 34, 35, 36]]
    )


@pytest.mark.parametrize(
    ("size", "overlap", "ramp"),
    [
        (5, 0, [1, 1, 1, 1, 1]),
        (3, 1, [0.5, 1, 0.5]),
        (6, 2, [0.14644661, 0.85355339, 1, 1, 0.85355339, 0.14644661]),  # (1 - cos(pi/4)) / 2, (1 - cos(3 pi/4)) / 2
        (6, 3, [0.0669873, 0.5, 0.9330127, 0.9330127, 0.5, 0.0669873]),
        (4, 3, [0.0669873, 0.5, 0.5, 0.0669873]),  # ramps that meet: the lower one counts
    ],
)
def test_weights_are_a_raised_cosine_over_the_overlap(size, overlap, ramp):
    weights = taper(size, overlap)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, np.outer(ramp, ramp), rtol=1e-6)


@given(st.sampled_from([32, 64]), st.integers(0, 32))
def test_weights_are_positive_and_those_of_neighbours_sum_to_one(size, overlap):
    overlap = min(overlap, size // 2)
    weights = taper(size, overlap)
    assert weights.min() > 0
    step = size - overlap
    total = np.zeros((size + 2 * step, size + 2 * step))
    for row in range(0, 3 * step, step):
        for col in range(0, 3 * step, step):
            total[row : row + size, col : col + size] += weights
    inner = slice(overlap, len(total) - overlap)
    np.testing.assert_allclose(total[inner, inner], 1, rtol=1e-6)


@examples(60)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([32, 64, 96]), st.sampled_from([0, 1, 8, 15, 16]))
def test_each_pixel_is_of_one_tiles_own_part_and_well_within_it(height, width, size, overlap):
    """Half of the overlap away from its edges, but for those of the scene."""
    owners = np.zeros((height, width), int)
    found = own_parts((height, width), size=size, overlap=overlap)
    assert [tile for tile, _ in found] == tiles((height, width), size=size, overlap=overlap)
    for tile, own in found:
        owners[own] += 1
        for part, inner, length in zip(tile.slices, own, (height, width), strict=True):
            assert inner.start == 0 or inner.start - part.start >= overlap // 2
            assert inner.stop >= length or part.stop - inner.stop >= overlap // 2
    assert (owners == 1).all()
