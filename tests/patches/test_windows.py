"""Window selection against brute force; splits share no ground."""

import numpy as np
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box

from cloudjob.patches import splits, windows


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(8, 4), (8, 3), (16, 16)]))
def test_selection_equals_brute_force(seed, sizes):
    window, stride = sizes
    rng = np.random.default_rng(seed)
    mask = rng.choice([0, 1, 2, 3, 255], (37, 41), p=[0.8, 0.1, 0.05, 0.045, 0.005]).astype(np.uint8)
    target = rng.choice([0, 1, 2], (37, 41), p=[0.99, 0.005, 0.005]).astype(np.uint8)
    valid = rng.random((37, 41)) > 0.003
    found = windows.select(mask, target, valid, window=window, stride=stride, cloud=(0.05, 0.3), target_max_cloud=0.02)
    expected = []
    for row in range(0, 37 - window + 1, stride):
        for col in range(0, 41 - window + 1, stride):
            cut = np.s_[row : row + window, col : col + window]
            share = np.isin(mask[cut], (1, 3)).mean()
            if (
                0.05 <= share <= 0.3
                and (target[cut] > 0).mean() <= 0.02
                and valid[cut].all()
                and not (mask[cut] == 255).any()
            ):
                expected.append((row, col, share))
    assert found == expected


def test_windows_on_the_ground_of_another_split_are_left_out():
    transform = Affine(10, 0, 500000, 0, -10, 7800000)
    found = [(0, 0, 0.1), (0, 100, 0.1), (100, 0, 0.1)]
    taken = [box(501000, 7799000, 502000, 7800000)]  # columns 100 to 200, rows 0 to 100
    assert windows.off_ground(found, window=64, transform=transform, taken=taken) == [found[0], found[2]]
    assert windows.off_ground(found, window=64, transform=transform, taken=[]) == found


@given(st.sets(st.integers(0, 99), min_size=1, max_size=60), st.integers(0, 5))
def test_every_tile_is_in_one_split_and_training_is_never_empty(numbers, seed):
    tiles = [f"{number:02d}WPS" for number in numbers]
    found = splits.split_tiles(tiles, seed=seed, val_share=0.15, test_share=0.15)
    assert set(found) == set(tiles)
    counts = {split: list(found.values()).count(split) for split in ("train", "val", "test")}
    assert counts["train"] >= 1
    assert counts["test"] >= (len(tiles) > 1)
    assert counts["val"] >= (len(tiles) > 2)
    assert found == splits.split_tiles(tiles[::-1] * 2, seed=seed, val_share=0.15, test_share=0.15)
