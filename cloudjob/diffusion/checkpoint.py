"""Checkpoints, whole or absent: `step-NNNNNNNN.pt`, loaded without running pickled code.

The last line of the file is the SHA-256 of all before it, so that any byte cut off or changed is noticed; torch.load
and zip readers do not mind it. What was measured on the way (time, energy) differs from run to run and lies beside it
in step-NNNNNNNN.json: the bytes of a checkpoint are those of its training alone.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import pickle
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cloudjob.errors import CorruptFileError, DiskFullError

log = logging.getLogger(__name__)

KEPT = 2
_MARK = b"\nsha256 of the above: "
_TRAILER = len(_MARK) + 64 + 1
_WHOLE = "the older ones are whole, make room and run the command again"
_ROOM = 2**20  # bytes; all of a checkpoint but its tensors


def save(
    folder: Path, step: int, state: dict[str, Any], facts: dict | None = None, *, keep: Callable = lambda step: False
) -> Path:
    """Write `state` as step-NNNNNNNN.pt and `facts` beside it, then remove all but the newest two and those whose step
    is to be kept. DiskFullError, before a byte is written where that can be known, leaves the others alone.

    torch.save gets an open file: given a path, it would put the temporary name into the archive's bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    temporary = folder / f".tmp-{os.getpid()}-{path.name}@{socket.gethostname()}"
    free, needed = shutil.disk_usage(folder).free, _size(state) + _ROOM
    if free < needed:
        raise DiskFullError(f"{folder}: {free / 2**20:.0f} MiB free, a checkpoint needs {needed / 2**20:.0f}; {_WHOLE}")
    try:
        with temporary.open("wb") as file:
            hashing = _Hashing(file)
            torch.save(_canonical(state), hashing)
            file.write(_MARK + hashing.sha256.hexdigest().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if facts is not None:
            path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    except Exception as error:
        if _is_disk_full(error):
            raise DiskFullError(f"{folder}: no space left for a checkpoint; {_WHOLE}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    for old in saved(folder)[KEPT:]:
        if not keep(int(old.stem.removeprefix("step-"))):
            old.unlink(missing_ok=True)
            old.with_suffix(".json").unlink(missing_ok=True)
    return path


class _Hashing:
    """A file for torch.save that sums up what is written to it."""

    def __init__(self, file):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _size(value) -> int:
    """Bytes of the tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0


def _canonical(value):
    """The same containers built anew, equal strings made one: pickle writes identity, so that a resumed training would
    otherwise end in other bytes than one that was never stopped."""
    if isinstance(value, dict):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_canonical(item) for item in value)
    return sys.intern(value) if isinstance(value, str) else value


def _is_disk_full(error: BaseException | None) -> bool:
    """torch's zip writer reports a failed write by an error of its own, with the OSError in its context."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def saved(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def load(path: Path) -> dict[str, Any]:
    """The state on the CPU; weights only, so a checkpoint cannot run code. CorruptFileError unless it is whole."""
    with path.open("rb") as file:
        size = max(path.stat().st_size - _TRAILER, 0)
        found = hashlib.sha256()
        block, left = memoryview(bytearray(2**23)), size
        while left and (got := file.readinto(block[:left])):
            found.update(block[:got])
            left -= got
        if left or file.read() != _MARK + found.hexdigest().encode() + b"\n":
            raise CorruptFileError(path, "is no whole checkpoint: its checksum does not fit")
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError) as error:
            raise CorruptFileError(path, f"cannot be read ({str(error).partition(chr(10))[0]})") from None


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be read, None where there is none; an unreadable one is renamed *.corrupt."""
    for path in saved(folder):
        try:
            return path, load(path)
        except FileNotFoundError:  # another rank has just set it aside
            continue
        except CorruptFileError as error:
            log.warning("%s; set aside as *.corrupt, the one before is used", error)
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(path.name + ".corrupt"))
    return None


def facts(path: Path) -> dict:
    """What was noted beside a checkpoint; nothing where that cannot be read."""
    try:
        return json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return {}


def sweep(folder: Path) -> None:
    """Removes what a killed save has left. Only the process that saves here may do so."""
    for path in folder.glob(".tmp-*"):
        path.unlink(missing_ok=True)


def interval(save_s: float, between_failures_s: float) -> float:
    """Seconds between saves that lose the least: what a save costs against what a failure costs (Young 1974, Daly 2006,
    first order)."""
    return math.sqrt(2 * save_s * between_failures_s)
