"""The wish to stop a command: by a signal, or by a STOP file in its run folder."""

import os
import time
from pathlib import Path

from cloudjob import leases
from cloudjob.errors import InterruptedJob
from cloudjob.run.folder import RunFolder


def listen(folder: RunFolder, *, first: bool = True) -> None:
    """From here on, a signal or a STOP file stops the work cleanly; `first` is the rank that removes one left over.

    InterruptedJob where somebody is at work in the folder, and asked to stop.
    """
    from cloudjob.hpc import stop

    own = os.environ.get("CLOUDJOB_STOP_FILE")  # each SLURM job has its own, which its script removes
    path = Path(own) if own else folder.root / "STOP"
    if not own and path.exists():
        _judge(path, folder, first)
    stop.install(path)
    folder.stop_requested = stop.requested


def _judge(path: Path, folder: RunFolder, first: bool) -> None:
    """Removes a STOP file that nobody is left to obey."""
    if first and leases.held(folder.leases):
        folder.say(f"{path} is there: looking whether anybody is at work, for {folder.patience:g} s at most")
    if owner := leases.alive(folder.leases, folder.patience):
        raise InterruptedJob(
            f"{path} asks all who work here to stop, and {leases.said(owner)} still makes {owner['stage']} "
            f"{owner['item']}. Wait until it has stopped, or remove that file; then run the same command again"
        )
    if first:
        try:
            minutes = (time.time() - path.stat().st_mtime) / 60
            path.unlink()
        except FileNotFoundError:
            return
        age = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
        folder.say(f"{path} was left over ({age} old): nobody is at work here. It is removed")
