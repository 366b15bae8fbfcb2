"""Work that ranks share, by real ranks: its order, its errors, and a wish to stop that one of them alone knows of."""

import ast
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from forked import Forked

from cloudjob.hpc import distributed
from cloudjob.hpc.distributed import ProcessGroup
from cloudjob.hpc.sharing import Sharing, Stopped

PROGRAM = """
import sys, time
from cloudjob.errors import ItemError
from cloudjob.hpc import distributed
from cloudjob.hpc.sharing import Sharing, Stopped

def bad(part):
    if part == 2:
        raise ItemError("part 2 is bad")
    return part

def forever(part):  # of rank 0 alone: the others wait for it
    begun = time.monotonic()
    while time.monotonic() < begun + 60:
        sharing.ask()
        time.sleep(0.01)

def busy(part):  # which asks for nothing, so that its rank is told when it is done
    time.sleep(0.5)
    return part

with distributed.process_group() as group:
    heard, last = [], group.rank == group.size - 1
    sharing = Sharing(group, lambda: last and time.monotonic() > wished)
    wished = float("inf")
    facts = [group.rank, sharing.each(lambda part: (part, group.rank), 5), sharing.each(busy, 1), sharing.each(bad, 0)]
    try:
        sharing.each(bad, 4)
    except ItemError as error:
        facts.append((str(error), error.on_all_ranks))
    wished = time.monotonic() + 1
    try:
        sharing.each(forever, 1)
    except Stopped as error:
        facts.append((error.on_all_ranks, time.monotonic() - wished < 2))
print(facts)
"""


def start(rank: int, size: int, port: int) -> Forked:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = kept | {name: str(value) for name, value in own.items()}
    return Forked([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_work_and_hear_of_each_others_wishes_and_errors(size):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [start(rank, size, port) for rank in range(size)]
    found = [ast.literal_eval(each.communicate(timeout=120)[0]) for each in ranks]
    shared = [(part, part % size) for part in range(5)]
    bad = f"rank {2 % size} of {size}: part 2 is bad"
    assert found == [[rank, shared, [0], [], (bad, True), (True, True)] for rank in range(size)]


def test_one_rank_does_all_and_asks_by_itself():
    asked = []
    sharing = Sharing(ProcessGroup(0, 1, 0, torch.device("cpu")), lambda: bool(asked.append(1)) or len(asked) > 1)
    assert sharing.each(lambda part: part * part, 3) == [0, 1, 4]
    for _ in range(100):
        sharing.ask()
    assert len(asked) == 1  # however often it was told to ask
    sharing.asked -= 0.5  # so much later
    with pytest.raises(Stopped):
        sharing.ask()


def test_a_rank_that_never_comes_is_not_waited_for_longer_than_in_a_collective_call(monkeypatch):
    monkeypatch.setattr(distributed, "COLLECTIVE_S", 0.05)
    alone = ProcessGroup(0, 2, 0, torch.device("cpu"), store=torch.distributed.HashStore())
    with pytest.raises(RuntimeError, match=r"waited for 0\.05 s") as late:
        Sharing(alone).each(str, 2)
    assert distributed._of_a_collective(late.value)


def test_a_rank_that_is_known_to_be_lost_is_not_waited_for(monkeypatch):
    """The collective call that follows tells who it was."""
    watch = SimpleNamespace(stands=False)
    group = ProcessGroup(0, 2, 0, torch.device("cpu"), watch, torch.distributed.HashStore())
    monkeypatch.setattr(distributed, "gather", lambda own: [own, own])
    assert Sharing(group).each(str, 4) == ["0", "0", "2", "2"]
