"""The triplets of a training: their shards checked, or copied to the node, and some of them to measure with."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from cloudjob.diffusion.batch import Batch
from cloudjob.errors import ConfigError
from cloudjob.files import digest, expanded
from cloudjob.hpc import distributed
from cloudjob.hpc.distributed import ProcessGroup
from cloudjob.patches import loader
from cloudjob.patches.shards import ShardSet
from cloudjob.training.settings import Settings

_SPLITS = ("train", "val")


def open_splits(
    folder: Path, index: dict, settings: Settings, group: ProcessGroup, say: Callable[[str], None]
) -> list[ShardSet]:
    """The training and the held-out split, every file checked: where it lies, or while it is copied to the node."""

    def check() -> Path:
        for split in _SPLITS:
            loader.verify(folder, index, split, group.rank, group.size)
        return folder

    def copy() -> Path:
        target = node_folder(settings.local_dir or "") / digest(index)[:16]
        if group.local_rank == 0:
            loader.local_copy(folder, index, target, say, _SPLITS)
        return target

    place = distributed.run_on_all_ranks(check if settings.local_dir is None else copy)
    return [ShardSet(place, index, split) for split in _SPLITS]


def some(shards: ShardSet, number: int, device: torch.device, *, donors: bool = False) -> Batch:
    """The same triplets from all over a split each time; with `donors` each lends itself its mask."""
    _, arrays = shards.evenly(number)
    return Batch.of(arrays | ({"donor": arrays["mask"]} if donors else {}), device)


def node_folder(text: str) -> Path:
    """The folder of this node that `train.local_dir` names, with its environment variables put in."""
    try:
        folder = Path(expanded(text))
    except ValueError as error:
        raise ConfigError(f"train.local_dir = {text}: {error} on this node; set it, or name a folder") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.local_dir = {text}: {folder} cannot be made ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"train.local_dir = {text}: {folder} cannot be written to")
    return folder
