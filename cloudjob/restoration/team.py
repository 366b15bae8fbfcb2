"""Ranks that make a scene together: a list of units, each made once by one of them, straight into its place.

All ranks call the same functions in the same order. What a rank has made is marked in the working folder, so that a
scene that was stopped goes on from there, by however many ranks. Between ranks go errors and marks, never pixels.
"""

import contextlib
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudjob.errors import CloudjobError, CorruptFileError, InterruptedJob
from cloudjob.files import HOST, trouble, write_bytes

if TYPE_CHECKING:
    from cloudjob.hpc.mpi import Communicator

_FEW = 6
_NAME = "name"  # of the folder: another one at the same place has another
_OVER = "over"  # this file in the working folder says that a rank has ended before its time


class _OtherRankError(InterruptedJob):
    """This rank stops because another one did."""


@dataclass(frozen=True)
class Unit:
    """A piece of work of a phase. It is done when its `files` are there; without any, when it was marked."""

    name: str
    make: Callable[[], object]
    files: tuple[Path, ...] = ()
    weight: float = 1.0  # of what it costs, beside the other units of its phase


@dataclass
class Team:
    """One rank of those that make the scene of a working folder; alone where there are no `ranks`.

    `threads` may work side by side. `progress` is told, on rank 0, the phase and the share of it
    that is done. `seconds` has what each phase took of this rank: {"cpu_s", "wall_s"}.
    """

    folder: Path
    ranks: "Communicator | None" = None
    threads: int = 1
    stopped: Callable[[], bool] = lambda: False
    progress: Callable[[str, float], object] = lambda phase, share: None
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def few(self) -> int:
        """Threads for units that take 100 MB each."""
        return min(self.threads, _FEW)

    @property
    def rank(self) -> int:
        return self.ranks.rank if self.ranks else 0

    @property
    def size(self) -> int:
        return self.ranks.size if self.ranks else 1

    def begin(self) -> None:
        """Rank 0, before it calls the others to the scene: the folder is there, and last time's end is forgotten."""
        if not (self.folder / _NAME).exists():
            write_bytes(self.folder / _NAME, os.urandom(8).hex().encode())
        (self.folder / _OVER).unlink(missing_ok=True)

    def look(self) -> None:
        """InterruptedJob where somebody wants to stop: asked before each unit, and within long ones."""
        if self.stopped():
            raise InterruptedJob("stopped; finished tiles are kept, run the same command again")

    def do(self, phase: str, plan: Callable[[], Sequence[Unit]], *, threads: int = 1) -> None:
        """Makes what is left of a phase, and returns once every rank has made its share of it, in so many threads.

        `plan` lists the units, the same on every rank. What goes wrong on one rank, every rank raises: on rank 0 the
        error itself, with the rank's number.
        """
        problem: CloudjobError | None = None
        with self.timed(phase):
            try:
                self._make(phase, plan(), threads)
            except CloudjobError as error:
                problem = error
            except OSError as error:
                problem = trouble(error)
            if problem:
                self._end_early()
            self._agree(problem)

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Counts what the block takes among the `seconds` of a phase."""
        begun, cpu = time.monotonic(), time.process_time()
        yield
        spent = self.seconds.setdefault(phase, {"cpu_s": 0.0, "wall_s": 0.0})
        spent["cpu_s"] += time.process_time() - cpu
        spent["wall_s"] += time.monotonic() - begun

    def _make(self, phase: str, units: Sequence[Unit], threads: int) -> None:
        mine = [unit for unit in shared_out(units, self.size)[self.rank] if not self._is_done(phase, unit)]
        if not mine:
            return

        def make(unit: Unit) -> None:
            self.look()
            if (self.folder / _OVER).exists():
                raise _OtherRankError("another rank ended before its time; run the same command again")
            folder = self._folder_now()
            unit.make()
            if not unit.files:
                if self._folder_now() != folder:
                    raise InterruptedJob("another job has made this scene meanwhile; run the same command again")
                write_bytes(self._mark(phase, unit), b"")

        for done, _ in enumerate(_in_turn(make, mine, threads), 1):
            if self.rank == 0:
                self.progress(phase, done / len(mine))

    def _folder_now(self) -> bytes:
        """What tells the folder from another one at the same place: a rank whose job lost its lease may come late, and
        must not mark there what it has written into the folder that was."""
        try:
            return (self.folder / _NAME).read_bytes()
        except FileNotFoundError:
            return b""

    def discard(self) -> None:
        """Removes the folder; at once, so that nothing ever goes on from half of it."""
        aside = self.folder.parent / f".tmp-{os.getpid()}-{os.urandom(5).hex()}@{HOST}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.folder, aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _is_done(self, phase: str, unit: Unit) -> bool:
        return all(path.exists() for path in unit.files or (self._mark(phase, unit),))

    def _mark(self, phase: str, unit: Unit) -> Path:
        return self.folder / "done" / f"{phase}-{unit.name}"

    def _end_early(self) -> None:
        try:
            write_bytes(self.folder / _OVER, b"")
        except (OSError, CloudjobError):  # the others then make their share to its end
            return

    def _agree(self, problem: CloudjobError | None) -> None:
        """Waits for all ranks. Raises the first one's problem, if it has one of its own, on all of them."""
        if not self.ranks or self.size == 1:
            if problem:
                raise problem
            return
        answers = self.ranks.gather(problem)
        found = [(rank, error) for rank, error in enumerate(answers or []) if error is not None]
        found.sort(key=lambda each: isinstance(each[1], _OtherRankError))
        verdict = self.ranks.bcast(found[0] if found else None)
        if verdict:
            raise _named(*verdict)

    def figures(self) -> dict[str, Any]:
        """Of this rank: {"seconds": by phase, "peak_bytes": the most memory it has taken so far}."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rounded = {phase: {k: round(v, 2) for k, v in spent.items()} for phase, spent in self.seconds.items()}
        return {"seconds": rounded, "peak_bytes": peak}

    def all_figures(self) -> list[dict[str, Any]] | None:
        """Those of every rank, on rank 0: asked on all of them, before anything that may go wrong on one alone."""
        return self.ranks.gather(self.figures()) if self.ranks else [self.figures()]


def shared_out(units: Iterable[Unit], ranks: int) -> list[list[Unit]]:
    """The units of each rank: the dearest first, each to the rank that has the least, so that all end together. The
    same on every rank, and at every call."""
    shares: list[list[Unit]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for unit in sorted(units, key=lambda each: -each.weight):  # stable: equal ones keep their order
        rank = min(range(ranks), key=loads.__getitem__)
        shares[rank].append(unit)
        loads[rank] += unit.weight
    return shares


def _in_turn(make: Callable[[Unit], None], units: list[Unit], threads: int) -> Iterator[None]:
    """Yields as each unit has been made, in this thread or by several. The first error ends it, once the units that
    were begun are at their end."""
    if threads == 1 or len(units) == 1:
        for unit in units:
            make(unit)
            yield
        return
    with ThreadPoolExecutor(min(threads, len(units))) as pool:
        try:
            for made in as_completed([pool.submit(make, unit) for unit in units]):
                made.result()
                yield
        finally:
            pool.shutdown(cancel_futures=True)


def _named(rank: int, error: CloudjobError) -> CloudjobError:
    """The error, with the rank that it happened on; a broken file, which is the same for all, as it is."""
    if rank == 0 or isinstance(error, CorruptFileError):
        return error
    named = type(error).__new__(type(error), f"rank {rank}: {error}")  # not type(error)(...): some take more
    named.__dict__.update(error.__dict__)
    return named
