"""One file from a source to the disk: continued where it broke off, verified as it comes, whole or not at all."""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cloudjob.copernicus.checks import HEAD, Check, Wanted
from cloudjob.copernicus.patience import LOOK, Patience, steps
from cloudjob.errors import CorruptFileError, DiskFullError, InterruptedJob, ItemError, LeftOutError
from cloudjob.files import ask_guards, flush, is_disk_full, rename

_BLOCK = 1 << 20  # bytes
_LOOKS = 3  # how often a file is not there before that is believed
_ADVANCE = 1 << 16  # bytes; a try that brought as many was no failure


class Broken(Exception):
    """The answer broke off, or is not the file. Another try may help."""


class Body(Protocol):
    """The bytes of a file from the byte `start` on. `read` gives those that are there, b"" at the end, or raises
    Broken; `stop` ends a read of another thread that waits."""

    start: int

    def read(self) -> bytes: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Limits:
    """When a transfer is given up: after the tries of `patience` that failed, below a speed, after a time."""

    patience: Patience = field(default_factory=Patience)
    slowest: float = 10_000  # bytes per second, in the mean of `window` seconds
    longest: float = 3600.0  # seconds for one answer

    @property
    def window(self) -> float:
        """Seconds over which the speed is looked at."""
        return self.patience.longest

    def rest(self, tries: int, stopped: Callable[[], bool]) -> None:
        """Waits before the next try, with jitter; InterruptedJob on a wish to stop."""
        for _ in steps(self.patience.wait(tries), stopped, "stopped while waiting for another try"):
            pass


def fetch(
    open_at: Callable[[int], Body],
    target: Path,
    file: Wanted,
    *,
    limits: Limits,
    stopped: Callable[[], bool] = lambda: False,
    tell: Callable[[int], None] = lambda count: None,
) -> None:
    """Fetches one file, whose lease is ours; `target` exists afterwards whole, or not at all.

    `open_at` opens the file at a byte, or at 0 where it cannot continue there. `tell` gets the number of bytes as they
    arrive. What arrived before an error stays in `<target>.<key>.part`, and the next call goes on from it.

    LeftOutError if the file is not there, ItemError if the source refuses it or fails too often, CorruptFileError if
    the bytes are wrong again and again, DiskFullError, InterruptedJob on a wish to stop.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _Part(target, file) as part:
            part.inherit(stopped)
            _Transfer(open_at, part, limits, stopped, tell).complete()
            part.finish()
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFullError(
            f"{target.parent}: no space left, {file.name} needs {file.size or 'some'} bytes; what was fetched is kept. "
            "Make room and run the same command again"
        ) from None


@dataclass(frozen=True)
class _Transfer:
    """A file on its way."""

    open_at: Callable[[int], Body]
    part: "_Part"
    limits: Limits
    stopped: Callable[[], bool]
    tell: Callable[[int], None]

    def complete(self) -> None:
        """Tries until the part is whole and right. A first wrong digest is no failure: the part may be older."""
        part = self.part
        tries = failures = gone = furthest = 0
        forgiven = False
        while True:
            tries, broken = tries + 1, ""
            try:
                if not part.complete:
                    self._receive()
            except LeftOutError:
                gone += 1
                if gone == _LOOKS:
                    raise
                self.limits.rest(gone, self.stopped)
                continue
            except Broken as error:
                broken = str(error)
            reason = broken or part.check.wrong()
            if reason is None:
                return
            useless = bool(part.check.alien()) or not (broken or part.check.short)
            if part.check.length >= furthest + _ADVANCE and not useless:
                failures, furthest = 0, part.check.length
            elif useless and not forgiven:
                forgiven = True
            else:
                failures += 1
            if useless:
                part.restart()
            if failures > self.limits.patience.retries:
                if broken:
                    raise ItemError(f"{part.target.name}: {broken}; {tries} tries")
                raise CorruptFileError(part.target, f"{reason}; {tries} tries")
            if failures:
                self.limits.rest(failures, self.stopped)

    def _receive(self) -> None:
        """Asks for the missing bytes and takes them, all or until they break off."""
        part = self.part
        body = self.open_at(part.check.length)
        with contextlib.closing(body), self._watched(body) as ended:
            if body.start != part.check.length:
                part.restart()
            try:
                while block := body.read():
                    if self.stopped():
                        break
                    ask_guards()  # whoever has lost its lease writes no more
                    part.add(block)
                    self.tell(len(block))
                    if part.check.length < HEAD + len(block) and (other := part.check.alien()):
                        raise Broken(other)
                    if part.check.excess:
                        return
            except Broken:
                if not ended:
                    raise
            if self.stopped():
                raise InterruptedJob(
                    f"{part.target.name}: stopped; what was fetched is kept. Run the same command again"
                )
            if ended:
                raise Broken(ended[0])

    @contextlib.contextmanager
    def _watched(self, body: Body) -> Iterator[list[str]]:
        """Ends the body on a wish to stop, when it is too slow, or takes too long. Yields a list that holds why."""
        part, limits = self.part, self.limits
        ended: list[str] = []
        over = threading.Event()

        def watch() -> None:
            begin = since = time.monotonic()
            seen = part.received
            while not over.wait(min(LOOK, limits.window / 10)):
                now = time.monotonic()
                if self.stopped():
                    ended.append("stopped")
                elif now - begin > limits.longest:
                    ended.append(f"not whole after {limits.longest:g} s")
                elif now - since >= limits.window:
                    if part.received - seen < limits.slowest * limits.window:
                        ended.append(f"{part.received - seen} bytes in {limits.window:g} s, which is too slow")
                    since, seen = now, part.received
                if ended:
                    body.stop()
                    return

        threading.Thread(target=watch, name=f"watch over {part.target.name}", daemon=True).start()
        try:
            yield ended
        finally:
            over.set()


class _Part:
    """The bytes of a file that have arrived, in a file of this process alone, and what is known of them.

    What another process has left is copied, not continued: that process may only be suspended, and would write on.
    """

    def __init__(self, target: Path, file: Wanted):
        self.target, self.file = target, file
        self.path = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        self.check, self.received = Check(file), 0
        self._stream = self.path.open("xb", buffering=0)

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()

    @property
    def complete(self) -> bool:
        return self.file.size is not None and self.check.length >= self.file.size

    def inherit(self, stopped: Callable[[], bool]) -> None:
        """Takes over the longest part that is there."""
        others = parts(self.target)
        others.remove(self.path)
        try:
            for part in others[-1:]:
                with part.open("rb", buffering=0) as stream:
                    while (block := stream.read(_BLOCK)) and not self.check.excess:
                        if stopped():
                            raise InterruptedJob(f"{part}: stopped while reading it; run the same command again")
                        self._write(block)
        except BaseException:
            self.restart()  # two copies are none the better
            raise
        ask_guards()
        for part in others:
            part.unlink(missing_ok=True)
        if self.check.alien() or self.check.excess:
            self.restart()

    def add(self, block: bytes) -> None:
        self._write(block)
        self.received += len(block)

    def _write(self, block: bytes) -> None:
        rest = memoryview(block)
        while rest:
            rest = rest[self._stream.write(rest) :]
        self.check.add(block)

    def restart(self) -> None:
        """Forgets all bytes."""
        self._stream.seek(0)
        self._stream.truncate()
        self.check = Check(self.file)

    def finish(self) -> None:
        """Gives the file its name, if its lease is still ours."""
        self._stream.close()
        flush(self.path)
        rename(self.path, self.target)


def parts(target: Path) -> list[Path]:
    """What processes have left of a file, the longest last; `<name>.part` is of earlier versions."""
    name = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in target.name)
    found = [(path.stat().st_size, path) for path in target.parent.glob(f"{name}.*part") if path.exists()]
    return [path for _, path in sorted(found)]
