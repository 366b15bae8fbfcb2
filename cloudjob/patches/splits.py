"""Which pair trains, validates or tests, and what must be left out so that splits share no acquisition."""

import difflib
import hashlib

from cloudjob.errors import ConfigError

ORDER = ("test", "val", "train")  # of two splits that want the same, the earlier one gets it


def assign(
    pairs: list[dict],
    *,
    by: str,
    seed: int,
    val_share: float,
    test_share: float,
    folds: int,
    fold: int,
    held_out: str | None,
    test_tiles: list[str],
) -> dict[str, str]:
    """Pair -> train, val or test, of pairs that know their names (`pair`) and their `tile`.

    By "tile": these shares of the tiles; by "fold": one of `folds` groups of tiles is tested on, the next validates;
    a tile goes whole into one split. `test_tiles` are tested on whatever these say, and shares and folds are of the
    others. By "pair": `held_out` is tested on, the others train.
    """
    if not pairs:
        return {}
    if by == "pair":
        return _hold_out([pair["pair"] for pair in pairs], held_out)
    # a hash, so that another tile in the list moves few of the others
    key = {pair["tile"]: hashlib.sha256(f"{seed} {pair['tile']}".encode()).hexdigest() for pair in pairs}
    tiles = sorted(key.keys() - set(test_tiles), key=key.get)
    split = _fold(tiles, folds, fold) if by == "fold" else _shares(tiles, val_share, test_share)
    split |= dict.fromkeys(test_tiles, "test")
    return {pair["pair"]: split[pair["tile"]] for pair in pairs}


def _shares(tiles: list[str], val_share: float, test_share: float) -> dict[str, str]:
    """With two tiles one is tested on, with one there is nothing to hold out: all of it trains."""
    number = len(tiles)
    test = min(max(round(test_share * number), test_share > 0), number - 1)
    val = min(max(round(val_share * number), val_share > 0), number - 1 - test)
    names = ["test"] * test + ["val"] * val
    return {tile: names[rank] if rank < len(names) else "train" for rank, tile in enumerate(tiles)}


def _fold(tiles: list[str], folds: int, fold: int) -> dict[str, str]:
    """With two folds the other one trains, and nothing validates."""
    if folds > len(tiles):
        raise ConfigError(
            f"shard.split.folds = {folds}: more than the {len(tiles)} tiles of the accepted pairs that may "
            "train; take fewer, or split by tile or pair"
        )
    names = {fold: "test"} | ({(fold + 1) % folds: "val"} if folds > 2 else {})
    return {tile: names.get(rank % folds, "train") for rank, tile in enumerate(tiles)}


def _hold_out(names: list[str], held_out: str) -> dict[str, str]:
    if held_out not in names:
        near = difflib.get_close_matches(held_out, names, n=3, cutoff=0.5) or names[:3]
        raise ConfigError(
            f"shard.split.held_out = {held_out}: no accepted pair has this name; there are {', '.join(near)}"
        )
    return {name: "test" if name == held_out else "train" for name in names}


def conflicts(pairs: list[dict], splits: dict[str, str]) -> dict[str, dict]:
    """Pair -> {"drop": why it must be left out, or None; "without": roles it must do without}.

    The pairs know their `acquisitions` (role -> datatake, that is satellite and start of sensing). One that a split
    uses, in whatever role, is used by no other: test comes first, then val, then train. A pair that loses its cloudy
    or its clear date is left out, one that loses its reference only does without.
    """
    found, users = {}, {}  # users: datatake -> (pair, split) of the splits done
    for split in ORDER:
        here = {}
        for pair in (pair for pair in pairs if splits[pair["pair"]] == split):
            lost = {role: users[take] for role, take in pair["acquisitions"].items() if take in users}
            drop = [
                f"its {role} acquisition {pair['acquisitions'][role]} is used by {other}, in split {above}"
                for role, (other, above) in lost.items()
                if role != "reference"
            ]
            found[pair["pair"]] = {"drop": "; ".join(drop) or None, "without": [] if drop else list(lost)}
            if not drop:
                for take in pair["acquisitions"].values():
                    here.setdefault(take, (pair["pair"], split))
        users = here | users  # who had it first keeps it
    return {pair["pair"]: found[pair["pair"]] for pair in pairs}
