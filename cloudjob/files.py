"""Files whole or absent: atomic writing, JSON lines, links; what the system refuses told from what is damaged.

And JSON-able values: their digests and differences.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cloudjob.errors import CloudjobError, CorruptFileError, DiskFullError, ItemError, SystemTroubleError

HOST = os.uname().nodename
_DIGESTED = json.JSONEncoder(sort_keys=True, default=str)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_LITTLE = 2**18  # bytes
guards: list[Callable[[], None]] = []  # asked before a file gets its final name: one that raises prevents it
_OF_CONTENT = (errno.ENOENT, errno.EINVAL, errno.EOVERFLOW, errno.EFBIG)  # what a broken file's own offsets lead to
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
_OF_SYSTEM = (errno.ESTALE, errno.EIO, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.ENOTCONN)
_CURES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n), then ",
    errno.EROFS: "take a folder that can be written to, then ",
    errno.EACCES: "see who may read and write there (ls -ld), then ",
    errno.EPERM: "see who may read and write there (ls -ld), then ",
    errno.ENOENT: "see whether its folder was moved or removed, then ",
}


@contextlib.contextmanager
def atomic(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """A temporary name in the folder of `path`; what is written there gets the final name whole, or not at all.

    `mode` is the file's from the first, less the umask: not every file system lets it be changed. DiskFullError where
    there is no room for it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{os.getpid()}-{os.urandom(5).hex()}@{HOST}{path.suffix}"
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode))
        yield temporary
        flush(temporary)
        rename(temporary, path)
    except CloudjobError:
        raise
    except Exception as error:
        if is_disk_full(error) or not _takes_more(path.parent):
            raise disk_full(path) from error
        if isinstance(error, OSError) and error.filename == str(temporary):  # people know the other name
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # gone with its folder; it must not hide what happened
            temporary.unlink(missing_ok=True)


def names_in(folder: Path) -> frozenset[str]:
    """The names in a folder; none where there is no folder."""
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def flush(path: Path) -> None:
    """Brings a file or folder to the disk, where the file system can."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def rename(temporary: Path, path: Path) -> None:
    """Gives what is whole its final name, unless a guard objects."""
    ask_guards()
    os.replace(temporary, path)


def ask_guards() -> None:
    """Before something is written that has a final name already, as the lines of a log: raises what a guard raises."""
    for guard in tuple(guards):
        guard()


def expanded(text: str) -> str:
    """A path with `~` and `$VAR` put in; `$$` is a dollar sign. ValueError names what is not set."""

    def value(match: re.Match) -> str:
        name = match["name"] or match["braced"]
        if name and not os.environ.get(name):
            raise ValueError(f"${name} is {'empty' if name in os.environ else 'not set'}")
        return os.environ[name] if name else "$"

    if not text:
        raise ValueError("an empty text names no path")
    found = re.sub(r"\$(\$|(?P<name>\w+)|\{(?P<braced>\w+)\})", value, os.path.expanduser(text))
    if found.startswith("~"):
        raise ValueError(f"{found.split('/')[0]} is nobody's home folder; write ./{found} where it is a name")
    return found


def sweep(folder: Path) -> None:
    """Removes temporary files below `folder` of processes of this machine that are no more; others may be at work.
    Its own folders may be links."""
    links = [path for path in folder.glob("*") if path.is_symlink() and path.is_dir()]
    for path in (path for top in (folder, *links) for path in top.rglob(f".tmp-*@{HOST}*")):
        try:
            os.kill(int(path.name.split("-")[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except PermissionError:  # somebody else's living process
            continue


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or one that led to it, is that of a full disk: torch's zip writer reports one of its own, HDF5
    the system's words."""
    while error is not None:
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in _DISK_FULL):
            return True
        if any(os.strerror(number) in str(error) for number in _DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_takes(path: Path, size: int) -> None:
    """DiskFullError unless the disk takes so many bytes beside `path`: HDF5 crashes the process where it cannot write
    what it notes of itself."""
    if not _takes_more(path.parent, size):
        raise disk_full(path)


def _takes_more(folder: Path, size: int = _LITTLE) -> bool:
    """Whether the disk takes a little more. NumPy and GDAL do not tell why they could not write; what they have written
    still lies there."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return not is_disk_full(error)
    return True


def disk_full(path: Path) -> DiskFullError:
    """The error for a disk that is too full for the file `path`."""
    room = free(next(folder for folder in path.parents if folder.exists()))
    said = "" if room is None else f" ({room / 2**20:.0f} MiB free)"
    return DiskFullError(
        f"{path}: no space left on the disk{said}; nothing under a final name was lost. "
        "Make room and run the same command again"
    )


def free(folder: Path) -> int | None:
    """Bytes free where `folder` lies; None where the system does not tell. Some file systems say 0 with room left."""
    try:
        return shutil.disk_usage(folder).free or None
    except OSError:
        return None


def check_room(folder: Path, needed: float, what: str, cure: str) -> None:
    """DiskFullError where `what` needs more bytes than there are free; a disk that does not tell is tried."""
    room = free(folder)
    if room is not None and room < needed:
        raise DiskFullError(f"{folder}: {room / 2**20:.0f} MiB free, {what} needs {needed / 2**20:.0f}; {cure}")


def trouble(error: OSError, path: Path | None = None) -> ItemError:
    """What the system refused, in a line: the file, the system's words, and what to do."""
    path = path or error.filename
    if is_disk_full(error):
        return disk_full(Path(str(path))) if path else DiskFullError(f"no space left on the disk ({error}); make room")
    words = (error.strerror or str(error) or type(error).__name__).partition("\n")[0]
    cure = _CURES.get(error.errno or 0, "")
    return SystemTroubleError(
        f"{f'{path}: ' if path else ''}{words}: an error of the system; {cure}run the same command again"
    )


@contextlib.contextmanager
def troubles() -> Iterator[None]:
    """Makes one line of an error of the system that nobody expected: see `trouble`."""
    try:
        yield
    except OSError as error:
        raise trouble(error) from error


@contextlib.contextmanager
def reading(path: Path, *errors: type[Exception], reason: str = "cannot be read") -> Iterator[None]:
    """Tells damage from trouble in what a library raises (OSError, and these `errors`) while it reads the file `path`.

    CorruptFileError only where the system reads all of the file, so that its content is wrong; else what `trouble`
    makes of the system's error. Libraries (GDAL, HDF5) hide that often.
    """
    caught: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except caught as error:
        raise judged(path, error, reason) from error


def judged(path: Path, error: Exception, reason: str) -> ItemError:
    """The error to raise for what a library said over a file: see `reading`."""
    if is_disk_full(error):
        return disk_full(Path(path))
    path = Path(path)
    number = error.errno if isinstance(error, OSError) else None
    if number and number not in _OF_CONTENT:
        return trouble(OSError(number, os.strerror(number)), path)
    try:
        holder = next((above for above in path.parents if above.is_file()), path)  # the zip archive that it lies in
        with open(holder, "rb", buffering=0) as file:
            while file.read(1 << 22):
                pass
    except FileNotFoundError:
        return CorruptFileError(path, "missing")
    except OSError as refused:
        return trouble(refused, path)
    words = str(error.__cause__ or error)
    if number := next((number for number in _OF_SYSTEM if os.strerror(number) in words), None):
        return trouble(OSError(number, os.strerror(number)), path)  # it has passed by now
    return CorruptFileError(path, f"{reason} ({words.partition(chr(10))[0]})")


def raise_open_limit() -> None:
    """Lets this process open as many files as the system allows it: the soft limit is often 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def link(source: Path, target: Path) -> None:
    """`target` becomes a hard link to `source`, or a copy where the file systems differ or have no hard links."""
    with atomic(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def symlink(source: Path, target: Path) -> None:
    """`target` becomes a symbolic link to a file or folder, also where a file or a link is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".tmp-{os.getpid()}-{os.urandom(5).hex()}@{HOST}{target.suffix}"
    temporary.symlink_to(source)
    try:
        rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value, indent=1) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    write_text(path, "".join(json_text(row) + "\n" for row in rows))


def json_text(value: Any, **options: Any) -> str:
    """`json.dumps`, strict: null for a number that is not known (NaN, infinite), which no strict reader takes."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_known(value), allow_nan=False, **options)


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_known(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_jsonl(path: Path, row: dict) -> None:
    """Adds a row. What a killed writer left of a last line is cut off first: it would spoil this one too."""
    ask_guards()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        file.seek(max(file.tell() - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            *whole, torn = file.read().split(b"\n")
            file.truncate(sum(len(line) + 1 for line in whole))
            if _row(torn) is not None:  # all but its end
                file.write(torn + b"\n")
        file.write((json_text(row) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value; CorruptFileError where the file holds none."""
    with reading(path, ValueError, reason="is not JSON"):
        return json.loads(path.read_bytes())


def read_jsonl(path: Path) -> list[dict]:
    """The rows; CorruptFileError names the first line that holds none."""
    rows, bad = split_jsonl(path)
    if bad:
        raise CorruptFileError(path, f"line {bad[0]} is not JSON")
    return rows


def split_jsonl(path: Path) -> tuple[list[dict], list[int]]:
    """The rows that can be read, and the numbers of the lines that cannot: a kill cuts a last line short."""
    rows: list[dict] = []
    bad: list[int] = []
    *lines, torn = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, torn] if torn else lines, 1):
        if (row := _row(line)) is None:
            bad.append(number)
        else:
            rows.append(row)
    return rows, bad


def _row(line: bytes) -> dict | None:
    from pydantic_core import from_json  # three times as fast as json, and slow to import

    for read in (from_json, json.loads):  # half of a surrogate pair is a mistake to the first alone
        with contextlib.suppress(ValueError):
            row = read(line)
            return row if isinstance(row, dict) else None
    return None


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(_DIGESTED.encode(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def merged(below: dict, above: dict) -> dict:
    """Two nested dictionaries in one; where both have a key, the value of `above` counts."""
    out = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            out[key] = merged(below[key], above[key])
    return out


def changes(old: dict, new: dict, *, values: bool = True, prefix: str = "") -> list[str]:
    """Dotted names of what differs between two nested dictionaries, with `old -> new`."""
    found: list[str] = []
    if old == new:
        return found
    for key in sorted({*old, *new}, key=str):
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += changes(a, b, values=values, prefix=f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}" + (f" {a} -> {b}" if values else ""))
    return found
