"""Leases: who makes a thing says so in a file, and everybody else leaves it alone, until that process ends or is lost.

No file locks: they do not exist on every file system. A lease is a folder with one file, whose name is a number and
whose text names the owner. The owner raises the number as long as it lives: it makes the next file exclusively, then
removes the one before. Who waits and sees the same number for `patience` seconds of its own clock makes the next file
itself, and owns the lease: of several that try, one succeeds. An owner that was suspended finds its next number taken.
Whoever has made a number looks once more whether the one before is still what it saw: a listing may be old.
"""

import contextlib
import errno
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from cloudjob import files
from cloudjob.errors import ConfigError, InterruptedJob

PATIENCE = 60.0  # seconds
_WITHDRAWS = 2.0  # seconds in which one that took a number on a false impression gives it back
_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine sleeps
os.register_at_fork(after_in_child=files.guards.clear)  # a child holds nothing


def _machine() -> str | None:
    """Where process numbers mean the same as here: this boot of this machine, and this container's processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip() + os.readlink(
            "/proc/self/ns/pid"
        )
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; "" for a dead one, None where that is hidden."""
    try:
        state, *facts = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return None
    return "" if state in "ZX" else facts[18]


def _gone(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that is no more."""
    if owner["machine"] is None or owner["machine"] != _machine():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's
        pass
    return _started(owner["pid"]) not in (None, owner["started"])


class Lease:
    """The right of one process to make one thing, `item` of `stage`.

    `with lease:` gives it back at the end. While it is held, no file gets its final name before `check` has agreed.
    """

    def __init__(self, folder: Path, stage: str, item: str, *, patience: float = PATIENCE, job: str | None = None):
        """`folder` holds all leases; `job` is the number of this process's job, for others to read."""
        self.place, self.what, self.patience = folder / stage / item, f"{stage} {item}", patience
        self.holder: dict[str, Any] | None = None  # who held it at the last look
        pid, key = os.getpid(), uuid.uuid4().hex
        who = {"host": files.HOST, "machine": _machine(), "pid": pid, "started": _started(pid), "job": job, "key": key}
        self._facts = who | {"stage": stage, "item": item, "patience": patience}
        self._text = ""  # of its files
        self._number: int | None = None  # while it is held
        self._lost = False
        self._raised = 0.0
        self._seen: tuple[int, str] | None = None
        self._looked = self._still = 0.0
        self._lock, self._released = threading.Lock(), threading.Event()

    # --- taking it ---------------------------------------------------------------------------------------------------
    def take(self) -> bool:
        """One look: whether the lease is ours from here on. Look often: at most a quarter of the patience counts
        between two looks, since who looks may have been suspended itself.

        ConfigError where the file system refuses the lease.
        """
        try:
            taken = self._take()
        except OSError as error:
            if error.errno == errno.ESTALE:  # removed on another machine, just now
                return False
            if files.is_disk_full(error):
                raise files.disk_full(self.place) from None
            raise ConfigError(
                f"{self.place}: the lease on {self.what} cannot be written ({error.strerror}); whoever works in this "
                "run folder must be able to write to it"
            ) from None
        if taken:
            files.guards.append(self.check)
            threading.Thread(target=self._live, name=f"lease on {self.what}", daemon=True).start()
        return taken

    def _take(self) -> bool:
        numbers, before = self._numbers(), None
        if numbers:
            before = self._read(numbers[-1])
            self.holder = _owner(before)
            if before is None or not self._stands_still(numbers[-1], before):
                return False
        elif not self._make_place():
            return False
        self._text = json.dumps(self._facts | {"since": round(time.time())})
        number, begun = numbers[-1] + 1 if numbers else 0, time.clock_gettime(_clock)
        if not self._make(number):
            return False
        if (numbers and self._read(numbers[-1]) != before) or self._numbers()[-1:] != [number]:
            self._remove(number)
            return False
        for old in numbers:
            self._remove(old)
        self._number, self._raised, self.holder = number, begun, None
        return True

    def _make_place(self) -> bool:
        """Makes the folder, which exists as long as the lease does; False where another was faster."""
        self.place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            self.place.rmdir()  # an empty one was left by a process that was killed
        try:
            self.place.mkdir()
        except FileExistsError:
            return False
        return True

    def _stands_still(self, number: int, text: str) -> bool:
        now = time.monotonic()
        if (number, text) != self._seen:
            self._seen, self._still = (number, text), 0.0
        else:
            self._still += min(now - self._looked, self.patience / 4)
        self._looked = now
        if self.holder is None:  # the file was cut short
            return self._still >= self.patience
        return self._still >= max(self.patience, self.holder["patience"]) or _gone(self.holder)

    def occupied(self) -> str:
        """Who holds it, in words."""
        return f"{self.what} is being made by {said(self.holder) if self.holder else 'another process'}"

    # --- holding it --------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """InterruptedJob where another process has taken the lease over. As long as the number was raised of late,
        nobody can have done so."""
        if time.clock_gettime(_clock) - self._raised > self.patience / 3:
            self._raise()
        if self._lost:
            raise InterruptedJob(
                f"{self.what}: another process took it over, since this one stood still for more than leases.patience "
                f"({self.patience:g} s); what it was making is dropped. Run the same command again"
            )

    def _raise(self) -> None:
        """Raises the number, or finds that the lease is lost."""
        with self._lock:
            if self._number is None or self._lost:
                return
            begun, end = time.clock_gettime(_clock), time.monotonic() + _WITHDRAWS
            above = self._number + 1
            # Its own number may lie there from an attempt that an error cut short.
            while not (made := self._make(above) or self._read(above) == self._text):
                if self._read(self._number) != self._text or time.monotonic() > end:
                    break
                time.sleep(0.02)
            if made and self._read(self._number) == self._text and self._numbers()[-1:] == [above]:
                self._remove(self._number)
                self._number, self._raised = above, begun
                return
            if made:
                self._remove(above)
            self._lost = True

    def _live(self) -> None:
        while not self._released.wait(self.patience / 6):
            with contextlib.suppress(OSError):  # the disk is full, the server away: until the next time
                self._raise()

    def release(self) -> None:
        """Gives the lease back; does nothing where it is not ours."""
        self._released.set()
        if self.check in files.guards:
            files.guards.remove(self.check)
        with contextlib.suppress(OSError, InterruptedJob):
            self.check()  # what another has taken over is not ours to remove
            with self._lock:
                number, self._number = self._number, None
                if number is not None:
                    for old in self._numbers():
                        if old <= number:
                            self._remove(old)
                    self.place.rmdir()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """What went wrong after the lease was lost is no error of the work: another process is at it."""
        try:
            if isinstance(error, Exception) and not isinstance(error, InterruptedJob):
                with contextlib.suppress(OSError):
                    self._raise()
                if self._lost:
                    self.check()
        finally:
            self.release()

    # --- its files ---------------------------------------------------------------------------------------------------
    def _numbers(self) -> list[int]:
        return _numbers(self.place)

    def _read(self, number: int) -> str | None:
        return _read(self.place / str(number))

    def _make(self, number: int) -> bool:
        try:
            descriptor = os.open(self.place / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except (FileExistsError, FileNotFoundError):
            return False
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(self._text)
        except OSError:  # a full disk still has room for the name
            self._remove(number)
            raise
        return True

    def _remove(self, number: int) -> None:
        (self.place / str(number)).unlink(missing_ok=True)


def wait(
    leases: Iterable[Lease],
    *,
    stopped: Callable[[], bool],
    say: Callable[[str], None],
    progress: Callable[[str], None],
    meanwhile: Callable[[], object] = lambda: None,
) -> Iterator[Lease]:
    """Gives each of these leases as soon as it is ours. InterruptedJob on a wish to stop.

    Who works on what is said once; `progress` gets it too, and `meanwhile` is called, every few seconds.
    """
    left, told = list(leases), False
    while left:
        if free := next((lease for lease in left if lease.take()), None):
            left.remove(free)
            yield free
            continue
        line = left[0].occupied() + (f"; {len(left) - 1} more by others" if len(left) > 1 else "")
        (progress if told else say)(f"waits: {line}")
        told = True
        meanwhile()
        end = time.monotonic() + min(left[0].patience / 20, 3)
        while (rest := end - time.monotonic()) > 0:
            if stopped():
                raise InterruptedJob(f"stopped while waiting: {line}. Run the same command again")
            time.sleep(min(rest, 0.2))


def held(folder: Path) -> list[dict[str, Any]]:
    """The leases below a folder, but for those of this machine's processes that are no more.

    Each has "stage", "item", "host", "pid", "job" (None outside one), "since" (seconds since 1970), and "number", which
    grows as long as the owner lives.
    """
    found = []
    for place in sorted(folder.glob("*/*")):
        if (owner := _top(place)) and not _gone(owner):
            found.append(owner)
    return found


def alive(folder: Path, patience: float) -> dict[str, Any] | None:
    """A lease below a folder whose owner is at work, None where there is none. What other machines' processes hold is
    watched, for `patience` seconds or for theirs at most, until a number grows."""
    first = {lease["key"]: lease for lease in held(folder)}
    end = time.monotonic() + max([patience, *(lease["patience"] for lease in first.values())])
    while now := held(folder):
        for lease in now:
            seen = first.setdefault(lease["key"], lease)
            if lease["machine"] == _machine() or lease["number"] > seen["number"]:
                return lease
        if time.monotonic() > end:
            return None
        time.sleep(min(patience / 20, 1))
    return None


def tidy(folder: Path) -> None:
    """Removes the leases of this machine's processes that are no more."""
    for place in folder.glob("*/*"):
        lease = Lease(folder, place.parent.name, place.name)
        if (owner := _top(place)) and _gone(owner) and lease.take():
            lease.release()


def said(owner: dict[str, Any]) -> str:
    """An owner in words: where, which process, since when."""
    job = f" of job {owner['job']}" if owner["job"] else ""
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner["since"]))
    return f"process {owner['pid']}{job} on {owner['host']} since {since}"


def _top(place: Path) -> dict[str, Any] | None:
    """The owner of a lease with its number; None where there is none, or where nothing is known of it."""
    try:
        numbers = _numbers(place)
        owner = _owner(_read(place / str(numbers[-1]))) if numbers else None
    except OSError:  # not ours to read
        return None
    return owner and owner | {"number": numbers[-1]}


def _numbers(place: Path) -> list[int]:
    """The numbers in a lease's folder, ascending."""
    try:
        return sorted(int(name) for name in os.listdir(place) if name.isdecimal())
    except FileNotFoundError:
        return []


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _owner(text: str | None) -> dict[str, Any] | None:
    """What a lease says of its owner; None for one that was cut short."""
    try:
        return json.loads(text or "")
    except ValueError:
        return None
