"""Files whole or absent: atomic writing, JSON lines, links. And JSON-able values: their digests and differences."""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cloudjob.errors import DiskFullError

HOST = socket.gethostname()
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def atomic(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """A temporary name in the folder of `path`; what is written there gets the final name whole, or not at all.

    DiskFullError where there is no room for it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(f"@{HOST}{path.suffix}", f".tmp-{os.getpid()}-", path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        os.replace(temporary, path)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes temporary files below `folder` of processes of this machine that are no more; others may be at work."""
    for path in folder.rglob(f".tmp-*@{HOST}*"):
        try:
            os.kill(int(path.name.split("-")[1]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except PermissionError:  # somebody else's living process
            continue


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or one that led to it, is that of a full disk: torch's zip writer reports one of its own."""
    while error is not None:
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in _DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full(path: Path) -> DiskFullError:
    """The error for a disk that is too full for the file `path`."""
    free = shutil.disk_usage(path.parent).free
    return DiskFullError(
        f"{path}: no space left on the disk ({free / 2**20:.0f} MiB free); nothing under a final name was lost. "
        "Make room and run the same command again"
    )


def link(source: Path, target: Path) -> None:
    """`target` becomes a hard link to `source`, or a copy where the file systems differ or have no hard links."""
    with atomic(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


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


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


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
    found = []
    for key in sorted({*old, *new}, key=str):
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += changes(a, b, values=values, prefix=f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}" + (f" {a} -> {b}" if values else ""))
    return found
