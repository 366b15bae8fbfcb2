"""One queue of files over all products of a stage: no connection waits until a product is whole."""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from cloudjob.copernicus import checks, transfer
from cloudjob.copernicus.checks import Wanted
from cloudjob.copernicus.patience import LOOK
from cloudjob.copernicus.sources import Remote, Source
from cloudjob.copernicus.tally import Tally
from cloudjob.copernicus.transfer import Limits
from cloudjob.errors import CorruptFileError, DiskFullError, InterruptedJob, ItemError, LeftOutError
from cloudjob.files import symlink
from cloudjob.leases import Lease

_ENDS = 1.5  # seconds in which the threads end after a wish to stop; nobody waits longer for them
_TURN = 10.0  # seconds for which a thread keeps a connection of the account
_FATAL = (InterruptedJob, DiskFullError)  # what ends all


@dataclass
class Order:
    """A product, the SAFE folder that it comes into, and its files in steps: the files of a step may tell which those
    of the next are, so `steps` goes on when they lie there."""

    product: Remote
    folder: Path
    steps: Iterator[list[Wanted]]
    number: int = 0
    left: int = 0  # files of this step that do not lie there yet
    paths: list[Path] = field(default_factory=list)
    error: BaseException | None = None
    over: bool = False


@dataclass
class _Job:
    """A file of an order; None stands for its next step. `wrong`: one that is not whole lies there."""

    order: Order
    file: Wanted | None
    lease: Lease | None = None
    wrong: bool = False


class Queue:
    """Fetches the files of orders, in their order, with several threads of this process.

    Each file is made under its lease, so that other processes may work on the same folder. A file that lies there
    whole is kept; an optional one that is gone is left out. `with Queue(...) as queue:` ends the threads.
    """

    def __init__(
        self,
        source: Source,
        *,
        connections: int,
        lease: Callable[[str], Lease],
        limits: Limits,
        tally: Tally,
        stopped: Callable[[], bool],
        progress: Callable[[float, str], None],
    ):
        """`lease` makes the lease of a file by its name; `progress` gets the share that is done, and a line."""
        self.source, self._connections, self._lease, self._limits = source, connections, lease, limits
        self.tally, self._progress = tally, progress
        self._changed = threading.Condition()
        self._ready: list[tuple[int, int, _Job]] = []  # a heap: order, number
        self._held: list[tuple[float, int, _Job]] = []  # by others; when to look again
        self._orders: dict[Path, Order] = {}
        self._coming: Iterator[Order] = iter(())
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._fatal: BaseException | None = None  # what ended all
        self._stopped = stopped

    def plan(self, orders: Iterable[Order]) -> None:
        """What will be asked for, in this order; it is looked at when the threads have nothing else to do."""
        self._coming = iter(orders)

    def get(self, order: Order) -> list[Path]:
        """The paths of the order's files when they all lie there; the first error of one of them.

        The order may be among those that are planned.
        """
        self._start()
        with self._changed:
            order = self._add(order)
            while not order.over:
                if self._fatal:
                    raise self._fatal
                if self._stopped():
                    raise InterruptedJob("stopped; what was fetched is kept. Run the same command again")
                self._changed.wait(LOOK)
                self._progress(self.tally.share, self.tally.line())
        if order.error:
            raise order.error
        return order.paths

    def __enter__(self) -> "Queue":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end = time.monotonic() + _ENDS
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))

    def _start(self) -> None:
        if not self._threads:
            for number in range(self._connections):
                self._threads.append(threading.Thread(target=self._work, name=f"fetches {number}", daemon=True))
                self._threads[-1].start()

    # --- orders -------------------------------------------------------------------------------------------------------
    def _add(self, order: Order) -> Order:
        """Takes up an order, unless it was already."""
        if order.folder not in self._orders:
            self._orders[order.folder] = order
            order.number = next(self._numbers)
            self._push(_Job(order, None))
        return self._orders[order.folder]

    def _push(self, job: _Job) -> None:
        heapq.heappush(self._ready, (job.order.number, next(self._numbers), job))
        self._changed.notify_all()

    def _next(self, turn: "_Turn") -> _Job | None:
        """What a thread shall do: the first that is ready, a planned order, what others held. None at the end."""
        with self._changed:
            while not self._closed:
                while self._held and self._held[0][0] <= time.monotonic():
                    self._push(heapq.heappop(self._held)[2])
                if self._ready:
                    return heapq.heappop(self._ready)[2]
                if (order := next(self._coming, None)) is not None:
                    self._add(order)
                    continue
                turn.end()
                self._changed.wait(self._held[0][0] - time.monotonic() if self._held else None)
            return None

    def _work(self) -> None:
        turn = _Turn(self.source.slot)
        try:
            while (job := self._next(turn)) is not None:
                self._do(job, turn)
        except BaseException as error:  # what is planned cannot be told
            self._end(error)
        finally:
            turn.end()

    def _do(self, job: _Job, turn: "_Turn") -> None:
        try:
            if job.order.over:
                return
            if job.file is None:
                self._step(job.order)
            else:
                self._place(job, job.file, turn)
        except FileNotFoundError as error:
            gone = f"{error.filename}: vanished while it was looked at; another process works here too"
            self._fail(job, ItemError(f"{gone}. Run the same command again"))
        except BaseException as error:  # of whatever kind: it is raised where the order is waited for
            self._fail(job, error)

    def _step(self, order: Order) -> None:
        """Asks an order for its next files."""
        if not order.paths:
            self.tally.begin()
        files = next(order.steps, None)
        with self._changed:
            if files is None:
                order.over = True
                self.tally.products_done += order.error is None
            else:
                self.tally.plan(files)
                order.left = len(files)
                order.paths += [order.folder / file.path for file in files]
                for file in files:
                    self._push(_Job(order, file))
                if not files:
                    self._push(_Job(order, None))
            self._changed.notify_all()

    def _one_less(self, order: Order) -> None:
        """A file of the order lies there, or has failed: the others of this step go on."""
        with self._changed:
            order.left -= 1
            if order.left == 0 and order.error:
                order.over = True
            elif order.left == 0:
                self._push(_Job(order, None))
            self._changed.notify_all()

    def _fail(self, job: _Job, error: BaseException) -> None:
        order, gone = job.order, isinstance(error, LeftOutError)
        with self._changed:
            if job.file and job.file.optional and gone:
                order.paths.remove(order.folder / job.file.path)
                self.tally.lack(job.file)
                self._one_less(order)
                return
            self.tally.failures += order.error is None and not gone
            order.error = order.error or error
            if isinstance(error, _FATAL):
                self._end(error)
            if job.file is None or gone:
                order.over = True
                self._changed.notify_all()
            else:
                self._one_less(order)

    def _end(self, error: BaseException) -> None:
        """Nothing can go on."""
        with self._changed:
            self._fatal, self._closed = self._fatal or error, True
            self._changed.notify_all()

    # --- files --------------------------------------------------------------------------------------------------------
    def _place(self, job: _Job, file: Wanted, turn: "_Turn") -> None:
        """Brings a file to its place, or puts it off while another process holds its lease."""
        order = job.order
        target = order.folder / file.path
        if job.lease is None:
            if self._is_whole(file, target):
                self._one_less(order)
                return
            job.wrong = target.exists()
            job.lease = self._lease(f"{order.product.name}.{file.name}")
        turn.begin()  # before the lease: who waits for a connection keeps no file from others
        if not job.lease.take():
            self._put_off(job, job.lease)
            return
        with job.lease:
            there = self._is_whole if job.wrong else self._has_come
            if not there(file, target):
                self._make(order.product, file, target)
        self.tally.waits.pop(job.lease.what, None)
        self._one_less(order)

    def _make(self, product: Remote, file: Wanted, target: Path) -> None:
        if (local := self.source.local(product, file.path)) is not None:
            if reason := checks.wrong(local, file):
                raise CorruptFileError(local, reason)
            symlink(local, target)
            self.tally.settle(file, local.stat().st_size, linked=True)
            return
        transfer.fetch(
            lambda start: self.source.open(product, file.path, start),
            target,
            file,
            limits=self._limits,
            stopped=lambda: self._closed or self._stopped(),
            tell=self.tally.took,
        )
        self.tally.settle(file, target.stat().st_size)

    def _is_whole(self, file: Wanted, target: Path) -> bool:
        """Whether the file lies there and agrees with what is known of it, if that is enough: a manifest whose digest
        nobody knows may be that of an earlier state of the product."""
        unsure = file.digest is None and (file.size is None or file.path == "manifest.safe")
        if unsure or not target.exists() or checks.wrong(target, file):
            return False
        self.tally.settle(file, target.stat().st_size, kept=True)
        return True

    def _has_come(self, file: Wanted, target: Path) -> bool:
        """Whether another process has made the file since we looked: it verified all but what a disk does to it."""
        if file.size is None:
            return self._is_whole(file, target)
        if not target.exists() or target.stat().st_size != file.size:
            return False
        self.tally.settle(file, file.size, kept=True)
        return True

    def _put_off(self, job: _Job, lease: Lease) -> None:
        self.tally.waits[lease.what] = lease.occupied()
        with self._changed:
            later = time.monotonic() + min(lease.patience / 20, 3)
            heapq.heappush(self._held, (later, next(self._numbers), job))


class _Turn:
    """A connection of the account that a thread has for some files, one after the other: to hand it over at each file
    would cost more than the others gain. After a while they get their turn."""

    def __init__(self, slot: Callable[[], AbstractContextManager]):
        self._slot, self._begun = slot, 0.0
        self._held = ExitStack()
        self._has = False

    def begin(self) -> None:
        """Takes a connection, unless this thread has one that it may keep."""
        if self._has and time.monotonic() - self._begun > _TURN:
            self.end()
        if not self._has:
            self._held.enter_context(self._slot())
            self._has, self._begun = True, time.monotonic()

    def end(self) -> None:
        """Gives the connection back."""
        self._has = False
        self._held.close()
