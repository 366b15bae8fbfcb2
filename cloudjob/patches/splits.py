"""Splits: which pair trains, validates or tests, and what is left out so that splits share no acquisition."""

import hashlib

from cloudjob.errors import ConfigError
from cloudjob.pixels import REFERENCES

ORDER = ("test", "val", "train")  # where two splits want the same acquisition, the earlier one gets it
GROUND, CLEAR_DATE = "ground", "clear date"  # targets of a pair; the ground is that of the cloudy day itself
FURTHER = {CLEAR_DATE: "further", GROUND: "further_of_ground"}  # the references after the first, in a pair's row


def dates_of(pair: dict, target: str) -> dict[str, tuple[str, float]]:
    """Role -> product and signed days from the cloudy date, of all dates of a pair with this target."""
    further = [(each["product"], each["days"]) for each in pair.get(FURTHER[target], [])]
    references = [(pair["reference"], pair["reference_days"]), *further] if pair["reference"] else []
    found = {"cloudy": (pair["cloudy"], 0.0), "clear": (pair["clear"], pair["days"])}
    return found | dict(zip(REFERENCES, references, strict=False))


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
    """Pair -> train, val or test. Each pair knows its name (`pair`) and its `tile`.

    By "tile", these shares of the tiles validate and test. By "fold", one of `folds` groups of tiles is tested on and
    the next one validates. A tile goes whole into one split. `test_tiles` are always tested on; shares and folds are of
    the other tiles. By "pair", `held_out` is tested on and the others train.
    """
    if not pairs:
        return {}
    if by == "pair" and held_out is not None:
        return _hold_out([pair["pair"] for pair in pairs], held_out)
    # a hash, so that another tile in the list moves few of the others
    key = {pair["tile"]: hashlib.sha256(f"{seed} {pair['tile']}".encode()).hexdigest() for pair in pairs}
    tiles = sorted(key.keys() - set(test_tiles), key=lambda tile: key[tile])
    split = _fold(tiles, folds, fold) if by == "fold" else _shares(tiles, val_share, test_share)
    split |= dict.fromkeys(test_tiles, "test")
    return {pair["pair"]: split[pair["tile"]] for pair in pairs}


def _shares(tiles: list[str], val_share: float, test_share: float) -> dict[str, str]:
    """These shares of the tiles. Of two tiles one is tested on; a single tile trains."""
    number = len(tiles)
    test = min(max(round(test_share * number), test_share > 0), number - 1)
    val = min(max(round(val_share * number), val_share > 0), number - 1 - test)
    names = ["test"] * test + ["val"] * val
    return {tile: names[rank] if rank < len(names) else "train" for rank, tile in enumerate(tiles)}


def _fold(tiles: list[str], folds: int, fold: int) -> dict[str, str]:
    """Every `folds`-th tile is tested on, and the next one validates; with two folds nothing validates."""
    if folds > len(tiles):
        raise ConfigError(
            f"shard.split.folds = {folds}: more than the {len(tiles)} tiles of the accepted pairs that may "
            "train; take fewer, or split by tile or pair"
        )
    names = {fold: "test"} | ({(fold + 1) % folds: "val"} if folds > 2 else {})
    return {tile: names.get(rank % folds, "train") for rank, tile in enumerate(tiles)}


def _hold_out(names: list[str], held_out: str) -> dict[str, str]:
    if held_out not in names:
        import difflib

        near = difflib.get_close_matches(held_out, names, n=3, cutoff=0.5) or names[:3]
        raise ConfigError(
            f"shard.split.held_out = {held_out}: no accepted pair has this name; there are {', '.join(near)}"
        )
    return {name: "test" if name == held_out else "train" for name in names}


def conflicts(pairs: list[dict], splits: dict[str, str]) -> dict[str, dict]:
    """Pair -> {"drop": why it is left out, or None; "without": the roles that it does without}.

    Each pair knows its `acquisitions` (role -> datatake). No two splits use the same acquisition, in whatever role: the
    test split comes first, then val, then train. A pair that loses its cloudy or its clear date is left out; a pair
    that loses a reference does without it.
    """
    found: dict[str, dict] = {}
    users: dict[str, tuple[str, str]] = {}  # datatake -> (pair, split), of the splits done
    for split in ORDER:
        here: dict[str, tuple[str, str]] = {}
        for pair in (pair for pair in pairs if splits[pair["pair"]] == split):
            lost = {role: users[datatake] for role, datatake in pair["acquisitions"].items() if datatake in users}
            drop = [
                f"its {role} acquisition {pair['acquisitions'][role]} is used by {other}, in split {above}"
                for role, (other, above) in lost.items()
                if role not in REFERENCES
            ]
            found[pair["pair"]] = {"drop": "; ".join(drop) or None, "without": [] if drop else list(lost)}
            if not drop:
                for datatake in pair["acquisitions"].values():
                    here.setdefault(datatake, (pair["pair"], split))
        users = here | users  # who had it first keeps it
    return {pair["pair"]: found[pair["pair"]] for pair in pairs}
