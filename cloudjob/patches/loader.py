"""Batches of triplets: their order is a function of (seed, samples seen) alone, whatever the number of ranks."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from cloudjob.errors import CorruptFileError, ItemError
from cloudjob.files import atomic, check_room, trouble
from cloudjob.patches.shards import Filler, ShardSet, check, opened

_AHEAD = 2  # batches that are read while the consumer has others
_BLOCK = 8 * 2**20  # bytes


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, number: int, donors: bool = False) -> np.ndarray:
    return np.random.default_rng([seed, epoch, *([1] if donors else [])]).permutation(number)


def position(seed: int, sample: int, number: int) -> int:
    """Which of `number` triplets is the `sample`-th sample of a training: each once per epoch, in a new order."""
    epoch, place = divmod(sample, number)
    return int(_permutation(seed, epoch, number)[place])


def donor(seed: int, sample: int, number: int) -> int:
    """Which other triplet lends this sample its mask: drawn like the order of samples, but independently of it."""
    epoch, place = divmod(sample, number)
    found = int(_permutation(seed, epoch, number, donors=True)[place])
    return found if found != position(seed, sample, number) else (found + 1) % number


def batches(
    shards: ShardSet,
    *,
    seed: int,
    start: int,
    stop: int,
    batch: int,
    rank: int = 0,
    size: int = 1,
    threads: int = 1,
    allocate: Callable = np.empty,
    donors: bool = False,
    in_use: int = 1,
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """(sample numbers, arrays) of this rank for the global batches from sample `start` to `stop`.

    Rank r of n takes samples start + r, start + r + n, ... of each global batch; the last batch may be short. Arrays:
    those of `ShardSet.buffers`, and with `donors` donor (B, n, n) uint8, the mask of another triplet. They lie in
    buffers made by `allocate(shape, dtype)` and are valid until the next batch but `in_use` - 1 is asked for: `threads`
    threads then fill them with a later one.
    """
    firsts = range(start, stop, batch)
    if not firsts:
        return
    ring = [_Slots(shards, len(range(rank, batch, size)), allocate, donors) for _ in range(_AHEAD + in_use)]
    pool = ThreadPoolExecutor(threads, "loader")

    def ask(number: int) -> tuple[range, dict, list[Future]]:
        samples = range(firsts[number] + rank, min(firsts[number] + batch, stop), size)
        slots = ring[number % len(ring)]
        plans = slots.plan(seed, samples)
        parts = [pool.submit(slots.fill, plans, part, threads) for part in range(threads)]
        return samples, {name: buffer[: len(samples)] for name, buffer in slots.buffers.items()}, parts

    try:
        asked = deque(ask(number) for number in range(min(_AHEAD, len(firsts))))
        for number in range(_AHEAD, len(firsts) + _AHEAD):
            if number < len(firsts):
                asked.append(ask(number))
            samples, arrays, parts = asked.popleft()
            for part in parts:
                part.result()
            yield list(samples), arrays
    finally:
        pool.shutdown(cancel_futures=True)


class _Slots:
    """The buffers of one batch, and what fills them: one filler of the triplets, one of the masks lent to them."""

    def __init__(self, shards: ShardSet, batch: int, allocate: Callable, donors: bool):
        self.buffers, self.number = shards.buffers(batch, allocate), len(shards)
        self.fillers = [(position, Filler(shards, dict(self.buffers)))]
        if donors:
            self.buffers["donor"] = allocate(self.buffers["mask"].shape, self.buffers["mask"].dtype)
            self.fillers.append((donor, Filler(shards, {"mask": self.buffers["donor"]})))

    def plan(self, seed: int, samples: range) -> list[list[tuple]]:
        return [filler.plan([which(seed, n, self.number) for n in samples]) for which, filler in self.fillers]

    def fill(self, plans: list[list[tuple]], part: int, parts: int) -> None:
        for (_, filler), plan in zip(self.fillers, plans, strict=True):
            filler.fill(plan[part::parts])


def verify(folder: Path, index: dict, split: str, rank: int = 0, size: int = 1) -> None:
    """CorruptFileError unless this rank's share of the files of a split is whole; they are in memory afterwards."""
    for entry in [entry for entry in index["files"] if entry["split"] == split][rank::size]:
        check(folder / entry["file"], entry["sha256"])


def local_copy(
    source: Path, index: dict, target: Path, say: Callable | None = None, splits: tuple[str, ...] = ("train", "val")
) -> Path:
    """Copies the shards of these splits to a node's own disk and returns their new folder; whole copies are kept.

    Each file is checked while it is copied and gets its name at the end. To be called once per node.
    """
    target.mkdir(parents=True, exist_ok=True)
    entries = [entry for entry in index["files"] if entry["split"] in splits]
    missing = [entry for entry in entries if not _is_whole(target / entry["file"], entry)]
    needed = sum(entry["size"] for entry in missing)
    check_room(target, needed, "the copy of the shards", "name a larger one in train.local_dir, or none")
    begun = time.monotonic()
    for entry in missing:
        _copy(source / entry["file"], target / entry["file"], entry["sha256"])
    if say and missing:
        seconds = time.monotonic() - begun
        say(f"{len(missing)} shards, {needed / 1e9:.2f} GB, copied to {target} in {seconds:.1f} s")
    return target


def _is_whole(path: Path, entry: dict) -> bool:
    if not path.is_file() or path.stat().st_size != entry["size"]:
        return False
    try:
        check(path, entry["sha256"])
    except CorruptFileError:
        return False
    return True


def _copy(source: Path, target: Path, sha256: str) -> None:
    found, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    try:
        with atomic(target) as temporary:
            with opened(source) as file, open(temporary, "wb") as copy:
                while got := file.readinto(block):
                    found.update(block[:got])
                    copy.write(block[:got])
            if found.hexdigest() != sha256:
                raise CorruptFileError(source, "sha256 is not that of the index")
    except OSError as error:
        raise ItemError(f"{source} cannot be copied to {target}: {trouble(error)}") from None
