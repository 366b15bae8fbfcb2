import errno
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from forked import Forked
from torch import nn

from cloudjob.errors import ConfigError, SystemTroubleError
from cloudjob.hpc import distributed

PROGRAM = """
import torch
from torch import nn
from cloudjob.errors import CorruptFileError
from cloudjob.hpc import distributed

def find():
    if group.rank == group.size - 1:
        raise CorruptFileError("shard.h5", "is damaged")

with distributed.process_group() as group:
    torch.manual_seed(0)
    network = distributed.wrap(nn.Linear(2, 1))
    x = torch.tensor([[1.0, 2.0], [3.0, -4.0]])[group.rank :: group.size]
    network(x).square().mean().backward()
    gradient = next(network.parameters()).grad
    most = distributed.max_over_ranks(torch.tensor([0, int(group.rank == group.size - 1)])).tolist()
    own = distributed.run_on_all_ranks(lambda: group.rank)
    try:
        distributed.run_on_all_ranks(find)
    except CorruptFileError as error:
        found = error.path
    distributed.barrier()
    facts = [group.rank, group.size, *most, own, found, distributed.gather(group.rank)[-1]]
print(*facts, *(f"{value:.5f}" for value in gradient.flatten()))
"""


def test_an_error_of_the_system_is_one_of_all_ranks():
    def read():
        raise OSError(errno.ESTALE, "Stale file handle", "a.h5")

    with pytest.raises(SystemTroubleError, match=r"a\.h5: Stale file handle") as caught:
        distributed.run_on_all_ranks(read)
    assert caught.value.on_all_ranks


def start(environment: dict) -> Forked:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    return Forked([sys.executable, "-c", PROGRAM], env=kept | environment, stdout=subprocess.PIPE, text=True)


def test_a_gpu_is_asked_for_bfloat16_in_hardware(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: asked.append(options) or False)
    assert not distributed.fast_bfloat16(torch.device("cuda"))
    assert asked == [{"including_emulation": False}]


def test_two_ranks_on_one_gpu_are_named():
    """By a real store, which several threads share as ranks do."""
    store = torch.distributed.TCPStore("localhost", 0, 1, is_master=True, wait_for_workers=False)

    def meet(gpus: list[str], attempt: int) -> list[str]:
        def one(rank: int) -> str:
            here = torch.distributed.TCPStore("localhost", store.port, is_master=False)
            try:
                distributed.check_own_gpu(
                    torch.distributed.PrefixStore(str(attempt), here), rank, len(gpus), gpus[rank]
                )
            except ConfigError as error:
                return f"{error} {error.on_all_ranks}"
            return ""

        with ThreadPoolExecutor(len(gpus)) as pool:
            return list(pool.map(one, range(len(gpus))))

    assert meet(["a", "b", "c"], 1) == [""] * 3
    said = meet(["a", "b", "a"], 2)
    assert len(set(said)) == 1
    assert "one GPU (a: ranks 0, 2): start one task per GPU" in said[0]
    assert said[0].endswith("True")


class Never:
    def query(self) -> bool:
        return False


def test_a_collective_call_that_does_not_end_is_noticed(monkeypatch):
    """As on a GPU, where it says nothing: by an event that never comes."""
    monkeypatch.setattr(distributed, "COLLECTIVE_S", 0.05)
    with pytest.raises(RuntimeError, match=r"has waited for 0\.05 s") as late:
        distributed.wait(Never())
    assert distributed._of_a_collective(late.value)
    distributed.wait(None)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_two_processes_train_as_one(launcher):
    """torchrun's at a free port; srun's although another program listens at the port that they were given."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if launcher == "srun":
            other.listen()
        _two_processes_train_as_one(launcher, other)


def _two_processes_train_as_one(launcher: str, other: socket.socket) -> None:
    port = str(other.getsockname()[1])
    if launcher == "torchrun":
        other.close()

    def variables(rank: int) -> dict:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if launcher == "torchrun":
            return meeting | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        return meeting | {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": str(rank)}

    outputs = [process.communicate(timeout=60)[0].split() for process in [start(variables(rank)) for rank in (0, 1)]]
    single = start({}).communicate(timeout=60)[0].split()
    assert single[:7] == ["0", "1", "0", "1", "0", "shard.h5", "0"]
    for rank, output in enumerate(outputs):
        assert output[:7] == [str(rank), "2", "0", "1", str(rank), "shard.h5", "1"]
        assert output[7:] == single[7:]


def test_alone_nothing_is_set_up(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    with distributed.process_group() as group, group.reporting_failures():
        assert (group.rank, group.size, group.local_rank, group.watch) == (0, 1, 0, None)
        assert not torch.distributed.is_initialized()
        network = nn.Linear(1, 1)
        assert distributed.wrap(network) is network
        assert distributed.max_over_ranks(torch.tensor([3])).tolist() == [3]
        distributed.barrier()
