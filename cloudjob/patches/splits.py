"""Which tile trains, validates or tests."""

import hashlib


def split_tiles(tiles: list[str], *, seed: int, val_share: float, test_share: float) -> dict[str, str]:
    """Tile id -> train, val or test; a tile goes whole into one split.

    The order of tiles is a hash of (seed, tile), so that another tile in the list moves few of the others. With two
    tiles one is tested on, with one there is nothing to hold out: all of it trains.
    """
    order = sorted(set(tiles), key=lambda tile: hashlib.sha256(f"{seed} {tile}".encode()).hexdigest())
    number = len(order)
    test = min(max(round(test_share * number), test_share > 0), number - 1)
    val = min(max(round(val_share * number), val_share > 0), number - 1 - test)
    names = ["test"] * test + ["val"] * val
    return {tile: names[i] if i < len(names) else "train" for i, tile in enumerate(order)}
