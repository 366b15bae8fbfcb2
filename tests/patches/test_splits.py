"""No acquisition and no ground is in two splits."""

from itertools import combinations

import numpy as np
import pytest
import shapely
from affine import Affine
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.errors import ConfigError
from cloudjob.patches import splits, windows

RULE = {"by": "tile", "seed": 0, "val_share": 0.15, "test_share": 0.15, "folds": 5, "fold": 0}
RULE |= {"held_out": None, "test_tiles": []}
TILES = st.sets(st.integers(1, 60), min_size=1, max_size=40).map(lambda ns: [f"{n:02d}WPS" for n in sorted(ns)])


def pairs_of(tiles: list[str], each: int = 2) -> list[dict]:
    return [{"pair": f"{tile}_{n}", "tile": tile, "acquisitions": {}} for tile in tiles for n in range(each)]


def tiles_of(pairs: list[dict], found: dict[str, str], split: str) -> set[str]:
    return {pair["tile"] for pair in pairs if found[pair["pair"]] == split}


@given(TILES, st.integers(0, 5))
def test_every_tile_is_in_one_split_and_training_is_never_empty(tiles, seed):
    pairs = pairs_of(tiles)
    found = splits.assign(pairs, **RULE | {"seed": seed})
    parts = [tiles_of(pairs, found, split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(tiles)
    train, val, test = map(len, parts)
    assert train >= 1
    assert test == (0 if len(tiles) == 1 else max(1, round(0.15 * len(tiles))))
    assert val == min(test, len(tiles) - 1 - test)  # the shares are the same
    assert found == splits.assign(pairs[::-1], **RULE | {"seed": seed})


@pytest.mark.parametrize("share", ["val_share", "test_share"])
def test_a_share_of_nothing_takes_nothing(share):
    pairs = pairs_of([f"{number:02d}WPS" for number in range(1, 10)])
    found = splits.assign(pairs, **RULE | {share: 0.0})
    assert set(found.values()) == {"train", {"val_share": "test", "test_share": "val"}[share]}


def test_tiles_are_divided_in_the_order_of_their_hashes_with_the_seed():
    """As `echo -n "0 35VLG" | sha256sum` sorts them; shards made again get the splits that they had."""
    pairs = pairs_of(["05WPS", "32TQM", "32TQN", "33TUM", "33UUP", "35VLG"], 1)
    rule = RULE | {"test_share": 0.2, "val_share": 0.3}
    for seed, test, val in ((0, "35VLG", {"32TQN", "05WPS"}), (1, "33UUP", {"32TQM", "35VLG"})):
        found = splits.assign(pairs, **rule | {"seed": seed})
        assert (tiles_of(pairs, found, "test"), tiles_of(pairs, found, "val")) == ({test}, val)


@given(TILES, st.integers(0, 5))
def test_another_tile_moves_few_of_the_others(tiles, seed):
    """It moves the border of test by one tile, that of validation by two."""
    before = splits.assign(pairs_of(tiles, 1), **RULE | {"seed": seed})
    after = splits.assign(pairs_of([*tiles, "61WPS"], 1), **RULE | {"seed": seed})
    assert sum(after[pair] != split for pair, split in before.items()) <= 3


@given(TILES, st.integers(2, 8), st.integers(0, 5))
def test_over_the_folds_every_tile_is_tested_once_and_validates_once(tiles, folds, seed):
    pairs = pairs_of(tiles)
    rule = RULE | {"by": "fold", "seed": seed, "folds": folds}
    if folds > len(tiles):
        with pytest.raises(ConfigError, match=f"folds = {folds}: more than the {len(tiles)} tiles"):
            splits.assign(pairs, **rule)
        return
    runs = [splits.assign(pairs, **rule | {"fold": fold}) for fold in range(folds)]
    for split, times in [("test", 1), ("val", int(folds > 2)), ("train", folds - 1 - int(folds > 2))]:
        assert all(sum(found[pair["pair"]] == split for found in runs) == times for pair in pairs)
    for found in runs:
        assert tiles_of(pairs, found, "train")
        for a, b in combinations(("train", "val", "test"), 2):
            assert not tiles_of(pairs, found, a) & tiles_of(pairs, found, b)


@given(TILES, st.data(), st.sampled_from(["tile", "fold"]))
def test_tiles_kept_for_testing_are_tested_on_and_the_others_divided_as_if_alone(tiles, data, by):
    kept = data.draw(st.lists(st.sampled_from([*tiles, "61WPS"]), unique=True))  # the last one has no pair
    others = [tile for tile in tiles if tile not in kept]
    rule = RULE | {"by": by, "folds": 2}
    if by == "fold" and len(others) < 2:
        with pytest.raises(ConfigError, match=f"folds = 2: more than the {len(others)} tiles"):
            splits.assign(pairs_of(tiles), **rule | {"test_tiles": kept})
        return
    found = splits.assign(pairs_of(tiles), **rule | {"test_tiles": kept})
    alone = splits.assign(pairs_of(others), **rule)
    assert found == alone | {pair["pair"]: "test" for pair in pairs_of([tile for tile in tiles if tile in kept])}


def test_one_pair_is_held_out():
    pairs = pairs_of(["05WPS", "05WPT"])
    found = splits.assign(pairs, **RULE | {"by": "pair", "held_out": "05WPT_1"})
    assert found == {"05WPS_0": "train", "05WPS_1": "train", "05WPT_0": "train", "05WPT_1": "test"}


def test_a_pair_that_is_not_there_cannot_be_held_out():
    with pytest.raises(ConfigError, match=r"held_out = 05WPT_7: no accepted pair .* 05WPT_"):
        splits.assign(pairs_of(["05WPS", "05WPT"]), **RULE | {"by": "pair", "held_out": "05WPT_7"})
    with pytest.raises(ConfigError, match="there are 05WPS_0, 05WPS_1"):
        splits.assign(pairs_of(["05WPS"]), **RULE | {"by": "pair", "held_out": "entirely different"})


def test_three_names_that_are_half_alike_are_offered():
    names = ["none like it", "abcdeVWXYZ", "abcdeVWXY1", "abcdeVWXY2", "abcdeVWXY3"]
    pairs = [{"pair": name, "tile": "05WPS"} for name in names]
    with pytest.raises(ConfigError, match=r"there are (abcdeVWXY\w, ){2}abcdeVWXY\w$"):
        splits.assign(pairs, **RULE | {"by": "pair", "held_out": "abcdefghij"})


@pytest.mark.parametrize("by", ["tile", "fold", "pair"])
def test_no_pairs_no_splits(by):
    assert splits.assign([], **RULE | {"by": by, "held_out": "05WPS_0" if by == "pair" else None}) == {}


@st.composite
def grouped(draw):
    """Pairs in splits, of few acquisitions, so that many are shared; a pair's own differ."""
    found, assigned = [], {}
    for number in range(draw(st.integers(0, 12))):
        dates = draw(st.permutations([f"S2A_{day:02d}" for day in range(draw(st.integers(5, 20)))]))
        roles = ("cloudy", "clear", *splits.REFERENCES)[: draw(st.integers(2, 5))]
        name = f"pair{number}"
        found.append({"pair": name, "tile": "05WPS", "acquisitions": dict(zip(roles, dates, strict=False))})
        assigned[name] = draw(st.sampled_from(["train", "val", "test"]))
    return found, assigned


@examples(300)
@given(grouped())
def test_no_acquisition_is_in_two_splits_and_none_is_given_up_for_nothing(case):
    pairs, assigned = case
    found = splits.conflicts(pairs, assigned)
    assert list(found) == [pair["pair"] for pair in pairs]
    used = {"test": set(), "val": set(), "train": set()}
    for pair in pairs:
        answer = found[pair["pair"]]
        assert set(answer["without"]) <= set(splits.REFERENCES)
        if not answer["drop"]:
            kept = {take for role, take in pair["acquisitions"].items() if role not in answer["without"]}
            used[assigned[pair["pair"]]] |= kept
    for a, b in combinations(used.values(), 2):
        assert not a & b
    above = {"test": set(), "val": used["test"], "train": used["test"] | used["val"]}
    for pair in pairs:
        taken, take = above[assigned[pair["pair"]]], pair["acquisitions"]
        answer = found[pair["pair"]]
        lost = take["cloudy"] in taken or take["clear"] in taken
        assert bool(answer["drop"]) == lost
        assert answer["without"] == [role for role in splits.REFERENCES if take.get(role) in taken and not lost]


def test_the_reason_names_the_acquisition_and_who_uses_it():
    pairs = [
        {"pair": "a", "tile": "05WPS", "acquisitions": {"cloudy": "S2A_1", "clear": "S2A_2", "reference": "S2A_3"}},
        {"pair": "b", "tile": "05WPT", "acquisitions": {"cloudy": "S2A_3", "clear": "S2A_4"}},
        {"pair": "c", "tile": "05WPU", "acquisitions": {"cloudy": "S2A_5", "clear": "S2A_6", "reference": "S2A_1"}},
    ]
    found = splits.conflicts(pairs, {"a": "test", "b": "train", "c": "val"})
    assert found["a"] == {"drop": None, "without": []}
    assert found["b"]["drop"] == "its cloudy acquisition S2A_3 is used by a, in split test"
    assert found["c"] == {"drop": None, "without": ["reference"]}


@examples(30)
@given(
    st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=9),
    st.sampled_from(["tile", "fold", "pair"]),
    st.integers(0, 99),
)
def test_no_ground_is_in_two_splits(corners, by, seed):
    """Tiles as Sentinel-2's, at a tenth: 10 km apart and 10.98 km wide, so that neighbours share a strip."""
    rng = np.random.default_rng(seed)
    transforms = {f"T{x}{y}": Affine(10, 0, 5e5 + 1e4 * x, 0, -10, 78e5 - 1e4 * y) for x, y in sorted(corners)}
    footprints = {tile: shapely.box(t.c, t.f - 10980, t.c + 10980, t.f) for tile, t in transforms.items()}
    pairs = pairs_of(list(transforms))
    held_out = pairs[seed % len(pairs)]["pair"] if by == "pair" else None
    assigned = splits.assign(pairs, **RULE | {"by": by, "folds": 2, "held_out": held_out, "seed": seed})

    ground = {"test": [], "val": [], "train": []}
    for pair in pairs:
        split, transform = assigned[pair["pair"]], transforms[pair["tile"]]
        above = splits.ORDER[: splits.ORDER.index(split)]
        taken = [footprints[other["tile"]] for other in pairs if assigned[other["pair"]] in above]
        row, col = rng.integers(0, 1098 - 64 + 1, (2, 40))
        every = windows.Windows(row, col, np.zeros(40, np.float32), 64)
        kept = windows.off_ground(every, transform=transform, excluded=taken)
        left, top = transform.c + 10 * kept.col, transform.f - 10 * kept.row
        ground[split].append(shapely.union_all(shapely.box(left, top - 640, left + 640, top)))
        alone = all(footprints[pair["tile"]].disjoint(other) for other in taken)
        assert len(kept) == 40 or not alone
        assert len(kept) > 0 or pair["tile"] in {p["tile"] for p in pairs if assigned[p["pair"]] in above}
    for a, b in combinations(ground.values(), 2):
        assert shapely.union_all(a).intersection(shapely.union_all(b)).area == 0
    assert any(not polygon.is_empty for polygon in ground["test"])


def test_the_fold_after_the_tested_one_validates():
    """Whose turn a tile is comes from the folds before: what validates now is tested next."""
    pairs = [{"pair": f"pair-{n}", "tile": f"05W{'MNPQRST'[n]}U"} for n in range(7)]
    rule = RULE | {"by": "fold", "folds": 4}
    runs = [splits.assign(pairs, **rule | {"fold": fold}) for fold in range(4)]
    for here, following in zip(runs, [*runs[1:], runs[0]], strict=True):
        assert {pair for pair in here if here[pair] == "val"} == {
            pair for pair in following if following[pair] == "test"
        }
