"""Checkpoints, whole or absent: `step-NNNNNNNN.pt`, the newest two kept, loaded without running pickled code."""

import contextlib
import errno
import logging
import os
import pickle
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from cloudjob.errors import DiskFullError

log = logging.getLogger(__name__)

KEPT = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as step-NNNNNNNN.pt, then remove all but the newest two. DiskFullError leaves the others alone.

    torch.save gets an open file: given a path, it would put the temporary name into the archive's bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    temporary = folder / f".tmp-{os.getpid()}-{path.name}@{socket.gethostname()}"
    try:
        with temporary.open("wb") as file:
            torch.save(_canonical(state), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        if _is_disk_full(error):
            raise DiskFullError(
                f"{folder}: no space left for a checkpoint; make room and run the command again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    for old in saved(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


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
    """The state on the CPU; weights only, so a checkpoint cannot run code."""
    return torch.load(path, map_location="cpu", weights_only=True)


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be read, None where there is none; an unreadable one is renamed *.corrupt."""
    for path in saved(folder):
        try:
            return path, load(path)
        except FileNotFoundError:  # another rank has just set it aside
            continue
        except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError) as error:
            log.warning("%s: cannot be read, set aside as *.corrupt (%s)", path, str(error).partition("\n")[0])
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(path.name + ".corrupt"))
    return None
