"""Batches of triplets: their order is a function of (seed, samples seen) alone, whatever the number of ranks."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from cloudjob.patches.shards import ShardSet


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(number)


def position(seed: int, sample: int, number: int) -> int:
    """Which of `number` triplets the `sample`-th sample of a training is: each once an epoch, reshuffled each epoch."""
    epoch, place = divmod(sample, number)
    return int(_permutation(seed, epoch, number)[place])


def stack(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Triplets to one batch: each array gets a first axis."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def batches(
    shards: ShardSet, *, seed: int, start: int, stop: int, batch: int, rank: int = 0, size: int = 1
) -> Iterator[tuple]:
    """(sample numbers, arrays) of this rank for the global batches from sample `start` to `stop`.

    Rank r of n takes samples start + r, start + r + n, ... of each global batch; the last batch may be short. One
    batch is read ahead by a thread. Arrays: cloudy, clear, reference (B, 4, n, n) uint16, mask (B, n, n) uint8.
    """

    def read(first: int):
        samples = range(first + rank, min(first + batch, stop), size)
        parts = [shards[position(seed, sample, len(shards))] for sample in samples]
        return list(samples), stack(parts)

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(read, start) if start < stop else None
        for first in range(start, stop, batch):
            current = ahead.result()
            if first + batch < stop:
                ahead = pool.submit(read, first + batch)
            yield current
