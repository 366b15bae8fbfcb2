"""The triplets of a split as a `torch` dataset, for programs of one's own; training reads batches by `loader`."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cloudjob.patches.shards import ShardSet
from cloudjob.pixels import REFERENCES
from cloudjob.sentinel2.radiometry import reflectance

_IMAGES = ("cloudy", "clear", *REFERENCES)


class Triplets(Dataset[dict[str, Tensor]]):
    """The triplets of a split, each a dict of tensors; n is the width of a window in pixels of 10 m.

    `cloudy`, `clear` and, where the shards have them, `reference`, `reference2`, `reference3`: (4, n, n) float32
    surface reflectance (1 is white; NaN without data) of red, green, blue and near infrared. `clear` is what is to be
    learned, the references are other clear dates. `mask`: (n, n) uint8, 0 clear, 1 cloud, 2 cloud shadow, 3 thin
    cirrus, 4 unknown, 255 no data. `sun_elevation` of the cloudy date in degrees, `clear_days` and the references'
    days in signed days from it: () float32, NaN where they are not known.

    It may be given to a DataLoader with any number of workers. IndexError beyond the end; CorruptFileError for a
    damaged shard.
    """

    def __init__(self, folder: Path, index: dict, split: str):
        self._shards = ShardSet(folder, index, split)

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        found = self._shards[position]
        return {name: torch.as_tensor(reflectance(each) if name in _IMAGES else each) for name, each in found.items()}
