"""Ranks in threads of one process, with the calls of a Communicator: for what they say to each other."""

import threading
from collections.abc import Callable
from queue import Queue
from typing import Any


class World:
    """Ranks in threads of this process, with the calls of a Communicator."""

    def __init__(self, size: int):
        self.size = size
        self.up, self.down = [Queue() for _ in range(size)], [Queue() for _ in range(size)]

    def rank(self, number: int) -> "Rank":
        return Rank(self, number)


class Rank:
    def __init__(self, world: World, rank: int):
        self.world, self.rank, self.size = world, rank, world.size

    def bcast(self, value):
        if self.rank:
            return self.world.down[self.rank].get(timeout=20)
        for queue in self.world.down[1:]:
            queue.put(value)
        return value

    def gather(self, value):
        if self.rank:
            return self.world.up[self.rank].put(value)
        return [value, *(queue.get(timeout=20) for queue in self.world.up[1:])]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def together(size: int, task: Callable[["Rank"], Any]) -> list:
    """What `task(rank)` returns on each rank, or raises."""
    world, found = World(size), [None] * size

    def run(number: int) -> None:
        try:
            found[number] = task(world.rank(number))
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found
