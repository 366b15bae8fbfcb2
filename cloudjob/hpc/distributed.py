"""Data-parallel training over several processes; the only user of torch.distributed.

One process per device, started by torchrun (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) or by srun.
"""

import contextlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cloudjob.errors import CloudjobError, ConfigError, LostRankError
from cloudjob.files import troubles
from cloudjob.hpc import door, launch, machine, slurm
from cloudjob.hpc.watch import Member, Watch

T = TypeVar("T")
MEET_S = 300  # time-out for all ranks to connect: importing torch from a cold file system is slow
COLLECTIVE_S = 1800  # time-out of a collective call, and of work that is shared: longer than one rank's ever takes
_MORE_S = 120  # that NCCL waits longer: it ends a process without a word, and is to find none
_POLL_S = 0.0005


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a training run, as seen by one of them."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    watch: Watch | None = None  # only with several ranks, as this:
    store: dist.Store | None = None  # where one rank leaves a word that the others find when they look

    def note(self, seen: int) -> None:
        """Records the samples seen by this rank: after a time-out they show which rank was behind."""
        if self.watch:
            self.watch.seen = seen

    @contextlib.contextmanager
    def reporting_failures(self) -> Iterator[None]:
        """A context in which a failure on this rank ends all ranks; rank 0 prints one message that names this rank.

        An error of `raised_on_all_ranks` is printed by rank 0 alone; the others exit silently.
        """
        if self.watch is None:
            yield
            return
        try:
            with troubles():
                yield
        except CloudjobError as error:
            if not error.said:
                self._report(error, self.watch)
            raise
        except Exception as error:
            if _of_a_collective(error):
                _explain(error, self.watch)
            self.watch.fail(f"{type(error).__name__}: {error}", CloudjobError.exit_code)
            raise

    def _report(self, error: CloudjobError, watch: Watch) -> None:
        """Reports the error to the other ranks, and marks it as `said` if rank 0 prints it."""
        if error.on_all_ranks:
            watch.close()
            error.said = self.rank > 0
        else:
            passed_on = watch.fail(str(error), error.exit_code)
            error.said = passed_on and self.rank > 0


class CollectiveTimeoutError(RuntimeError):
    """A collective call on a GPU, or a rank at the end of shared work, that has waited too long."""


def _explain(error: Exception, watch: Watch) -> NoReturn:
    """Raises LostRankError for a collective call that failed because of another rank: which one, and why."""
    if verdict := watch.settle():
        lost = LostRankError(verdict.text)
        lost.exit_code = verdict.code  # that of the rank that failed, if it reported why
        lost.said = not watch.tells
        raise lost from error
    waited_for = ", ".join(map(str, watch.behind())) or "none in particular"
    message = f"the ranks lost each other ({str(error).splitlines()[0]}); waited for rank {waited_for}"
    watch.fail(message, LostRankError.exit_code)
    raise LostRankError(message) from error


def raised_on_all_ranks(error: CloudjobError) -> CloudjobError:
    """Marks an error that every rank raises at the same place."""
    error.on_all_ranks = True
    return error


def _of_a_collective(error: Exception) -> bool:
    """Whether a collective call raised this error; gloo raises plain RuntimeErrors."""
    known = isinstance(error, dist.DistError | CollectiveTimeoutError)
    return known or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


@contextlib.contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Connects to the other processes; a world of one, without torch.distributed, where no launcher started several."""
    rank, size, local_rank, host, port = _launched()
    launch.check_ranks(size)
    if size == 1:
        yield ProcessGroup(0, 1, 0, _device(0))
        return
    with _store(rank, size, host, port) as store:
        watch = _meet(store, rank, size, local_rank, host)
    here = ProcessGroup(rank, size, local_rank, torch.device("cpu"), watch)
    with here.reporting_failures():
        device = _device(local_rank)  # only once all are connected: it may fail on one node alone
        if device.type == "cuda":
            check_own_gpu(store, rank, size, str(torch.cuda.get_device_properties(device).uuid))
        dist.init_process_group(
            # Small values of the CPU go by gloo, whose errors are told: NCCL's end the process.
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=COLLECTIVE_S + (_MORE_S if device.type == "cuda" else 0)),
            device_id=device if device.type == "cuda" else None,
        )
        dist.barrier()  # no rank may exit with an error of its own while others are still connecting
    yield ProcessGroup(rank, size, local_rank, device, watch, dist.PrefixStore("words", store))
    if watch.stands:  # after an error it would wait for ranks that have exited
        dist.destroy_process_group()
        watch.close()


def _launched() -> tuple[int, int, int, str, int]:
    """(rank, size, local rank, rendezvous host, its port) from torchrun's or srun's variables, else a world of one."""
    get = os.environ.get
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        rank, size, local_rank = (int(get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return rank, size, local_rank, get("MASTER_ADDR", "localhost"), int(get("MASTER_PORT", 29500))
    task = slurm.task()
    if not task:
        return 0, 1, 0, "", 0
    port = int(get("MASTER_PORT", 10000 + task.job_id % 20000))
    return task.rank, task.size, task.local_rank, get("MASTER_ADDR", task.first_node), port


@contextlib.contextmanager
def _store(rank: int, size: int, host: str, port: int) -> Iterator[dist.Store]:
    """The key-value store through which the ranks exchange addresses, hosted by torchrun's process or by rank 0's: then
    at any port, which the others learn at its door while they meet."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun's store outlives a restart: the prefix hides the keys of the earlier ranks.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        yield dist.PrefixStore(f"attempt-{attempt}", _connected(rank, size, host, port))
        return
    whose = f"{slurm.step()} {size} {port}"
    if rank:
        found = door.find(whose, host, port, MEET_S)
        if found is None:
            raise _nobody(rank, size, host, port)
        yield _connected(rank, size, host, found)
        return
    opened = door.Door(whose, port)
    try:
        store = _connected(rank, size, host, 0)
        opened.open(store.port)
        yield store
    finally:
        opened.close()


def _connected(rank: int, size: int, host: str, port: int) -> dist.TCPStore:
    """The store at this port; at port 0 this process hosts it."""
    try:
        return dist.TCPStore(
            host, port, size, is_master=not port, timeout=timedelta(seconds=MEET_S), wait_for_workers=False
        )
    except dist.DistError as error:
        if port:
            raise _nobody(rank, size, host, port) from None
        raise ConfigError(f"MASTER_ADDR = {host} is no address of this node ({_first_line(error)})") from None


def _nobody(rank: int, size: int, host: str, port: int) -> LostRankError:
    return LostRankError(
        f"rank {rank} of {size} on {socket.gethostname()}: rank 0 was not met at {host}:{port} within {MEET_S} s"
    )


def _meet(store: dist.Store, rank: int, size: int, local_rank: int, host: str) -> Watch:
    """The watch of this rank, connected to rank 0's; rank 0 waits for all ranks."""
    code = LostRankError.exit_code
    if rank == 0:
        watch = Watch(0, size, code=code)
        store.set("watch", watch.address(host))
        _await(watch, store)
        return watch
    store.set(_coming(rank), json.dumps(asdict(Member.here(rank))))
    try:
        address = store.get("watch").decode()
    except dist.DistError:
        raise LostRankError(f"rank {rank} of {size}: rank 0 did not come within {MEET_S} s") from None
    try:
        return Watch(rank, size, code=code, address=address, speaks=rank == 1 or local_rank == 0)
    except OSError as error:
        raise LostRankError(
            f"rank {rank} of {size} on {socket.gethostname()}: rank 0 on {host} ended, or its ports are closed: {error}"
        ) from None


def _await(watch: Watch, store: dist.Store) -> None:
    """Rank 0: waits until all ranks have connected. A rank that has reached the store must do so soon after."""
    end = time.monotonic() + MEET_S
    while missing := watch.all_here(1):
        for rank in missing:
            if store.check([_coming(rank)]):
                watch.expect(Member(**json.loads(store.get(_coming(rank)))))
        if time.monotonic() > end:
            message = f"rank {', '.join(map(str, missing))} of {watch.size} did not come within {MEET_S} s"
            watch.fail(message, LostRankError.exit_code)
            raise LostRankError(message)


def _coming(rank: int) -> str:
    return f"rank-{rank}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is the faster type on this device: without hardware for it, a processor is slower with it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text(encoding="utf-8")))
    except OSError:
        return False
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})


def _device(local_rank: int) -> torch.device:
    launch.check_gpu(torch.cuda.is_available())
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if 1 < visible <= local_rank:
        raise ConfigError(f"local rank {local_rank} has no GPU of its own: {visible} visible; start one task per GPU")
    device = torch.device("cuda", 0 if visible == 1 else local_rank)
    torch.cuda.set_device(device)
    return device


def check_own_gpu(store: dist.Store, rank: int, size: int, uuid: str) -> None:
    """ConfigError, on all ranks, unless each has a GPU (by its UUID) of its own: two on one wait for each other."""
    store.set(f"gpu-{rank}", uuid)
    owners: dict[str, list[int]] = {}
    for other, found in enumerate(store.multi_get([f"gpu-{each}" for each in range(size)])):
        owners.setdefault(found.decode(), []).append(other)
    shared = {found: ranks for found, ranks in owners.items() if len(ranks) > 1}
    if shared:
        which = "; ".join(f"{found}: ranks {', '.join(map(str, ranks))}" for found, ranks in shared.items())
        raise raised_on_all_ranks(
            ConfigError(f"several ranks were given one GPU ({which}): start one task per GPU (--gpus-per-task=1)")
        )


def cores() -> int:
    """Processor cores for this rank: what OMP_NUM_THREADS says, else those of its CPU affinity divided by the ranks of
    this node that share them; no more than a task of SLURM asked for. Ranks of torchrun share those of its task."""
    mine, asked = sorted(os.sched_getaffinity(0)), slurm.cpus_per_task() or sys.maxsize
    sharing = gather((socket.gethostname(), mine)).count((socket.gethostname(), mine))
    whole, own = (asked, sys.maxsize) if "RANK" in os.environ else (sys.maxsize, asked)
    return machine.threads_asked_for() or max(min(min(len(mine), whole) // sharing, own), 1)


def wrap(module: nn.Module) -> nn.Module:
    """The module with gradients averaged over the ranks; itself in a world of one."""
    if not dist.is_initialized():
        return module
    device = next(module.parameters()).device
    ids = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)


def unsynced(module: nn.Module) -> contextlib.AbstractContextManager:
    """A context in which a wrapped module accumulates gradients locally, without averaging them over the ranks."""
    return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else contextlib.nullcontext()


def max_over_ranks(values: Tensor) -> Tensor:
    """(N,) the maximum of each value over the ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def asked_for(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """(values on the CPU, what tells that they have arrived there); None where they have."""
    if values.device.type != "cuda":
        return values.cpu(), None
    there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    there.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return there, event


def wait(event: torch.cuda.Event | None) -> None:
    """Waits for what `asked_for` gave; LostRankError, on all ranks, where a rank keeps it waiting for COLLECTIVE_S: so
    late a collective call on a GPU says nothing by itself, and the library would end the process."""
    end = time.monotonic() + COLLECTIVE_S
    while event is not None and not event.query():
        if time.monotonic() > end:
            raise CollectiveTimeoutError(f"a collective call has waited for {COLLECTIVE_S} s")
        time.sleep(_POLL_S)


def gather(value: T) -> list[T]:
    """Every rank's (small, picklable) value in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def run_on_all_ranks(task: Callable[[], T]) -> T:
    """Runs `task` on every rank and returns this rank's result; if one rank fails, every rank raises its error."""
    results: list[T] = []
    failure = None
    try:
        with troubles():
            results.append(task())
    except CloudjobError as error:
        failure = type(error), str(error), dict(vars(error))
    failures = gather(failure)
    for rank, failed in enumerate(failures):
        if failed:
            kind, message, facts = failed
            if len(failures) > 1:
                message = f"rank {rank} of {len(failures)}: {message}"
            again = kind.__new__(kind, message)  # not kind(message): some constructors take other arguments
            again.__dict__.update(facts)
            raise raised_on_all_ranks(again)
    return results[0]


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
