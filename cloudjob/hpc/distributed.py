"""Data-parallel training over several processes; the only user of torch.distributed.

One process a device, started by torchrun (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) or by srun.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from cloudjob.errors import CloudjobError, ConfigError
from cloudjob.hpc import slurm

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    local_rank: int
    device: torch.device


def join(*, timeout_s: float = 600) -> World:
    """Meet the other processes; a world of one, without torch.distributed, where no launcher started several.

    A rank that hangs or dies makes the others fail after `timeout_s` instead of waiting for ever.
    """
    rank, size, local_rank, address = _launched()
    device = _device(local_rank)
    if size > 1:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=address,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    return World(rank, size, local_rank, device)


def _launched() -> tuple[int, int, int, str]:
    """(rank, size, local rank, rendezvous address) from torchrun's variables, else srun's, else a world of one."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return (*(int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")), "env://")
    task = slurm.task()
    if not task:
        return 0, 1, 0, ""
    host = os.environ.get("MASTER_ADDR", task.first_node)
    port = os.environ.get("MASTER_PORT", 10000 + task.job_id % 20000)
    return task.rank, task.size, task.local_rank, f"tcp://{host}:{port}"


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 pays on this device: on a processor without units for it, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    try:
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    except OSError:
        return False
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if 1 < visible <= local_rank:
        raise ConfigError(f"local rank {local_rank} has no GPU of its own: {visible} are visible; start one task a GPU")
    device = torch.device("cuda", 0 if visible == 1 else local_rank)
    torch.cuda.set_device(device)
    return device


def wrap(network: nn.Module) -> nn.Module:
    """The network with gradients averaged over the ranks; itself in a world of one."""
    if not dist.is_initialized():
        return network
    device = next(network.parameters()).device
    return nn.parallel.DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def agree(flag: bool) -> bool:
    """True on every rank as soon as one rank says so."""
    if not dist.is_initialized():
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    vote = torch.tensor(int(flag), device=device)
    dist.all_reduce(vote, dist.ReduceOp.MAX)
    return bool(vote)


def together(task: Callable[[], T]) -> T:
    """What `task` returns, on each rank its own; where it fails on some rank, that error is raised on every rank."""
    result, failure = None, None
    try:
        result = task()
    except CloudjobError as error:
        failure = type(error), str(error), vars(error)
    failures = [failure]
    if dist.is_initialized():
        failures = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
    for kind, message, facts in filter(None, failures):
        error = kind.__new__(kind, message)  # not kind(message): some take other arguments
        vars(error).update(facts)
        raise error
    return result


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """After the last collective call."""
    if dist.is_initialized():
        dist.destroy_process_group()
