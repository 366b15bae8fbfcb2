"""What was done in a run folder, and by whom: a line of jobs/history.jsonl for each command that makes something, and
what it said, in jobs/log.txt."""

import getpass
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from cloudjob import __version__
from cloudjob.errors import CloudjobError, ConfigError, InputError, InterruptedJob
from cloudjob.files import HOST
from cloudjob.run.folder import RunFolder
from cloudjob.run.log import Log

REFUSED = (ConfigError.exit_code, InputError.exit_code)


class Entry:
    """`with Entry(...) as entry:` - the line is written when the command ends, however it ends, with `entry.code`.

    A command that is refused before it has begun to make an item leaves no line, nor one without a run folder. What
    the folder says and shows meanwhile goes to its log too. `silent` ranks leave nothing.
    """

    def __init__(self, folder: RunFolder, command: str, overrides: Sequence[str] = (), *, silent: bool = False):
        self.folder, self.command, self.overrides = folder, command, list(overrides)
        self.begun = False
        self.code = 0
        self._silent = silent
        self._log = Log(folder.log, folder.job)
        self._moment, self._clock = datetime.now(UTC), time.monotonic()

    def begin(self) -> None:
        """The checks are passed, the first item is about to be made; may be called again."""
        self.begun = True
        if not self._silent:
            self._log.begin()

    def __enter__(self) -> Self:
        if self._silent:
            return self
        self.folder.begin = self.begin
        say, progress = self.folder.say, self.folder.progress

        def said(line: str) -> None:
            self._log.line(line)
            say(line)

        def shown(share: float, line: str) -> None:
            self._log.progress(f"{share:.0%}  {line}")
            progress(share, line)

        self.folder.say, self.folder.progress = said, shown
        settings = "".join(f" --set {each}" for each in self.overrides)
        self._log.line(f"cloudjob {__version__}: {self.command}{settings}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._silent:
            return
        if error is not None:
            self.code = _exit_code(error)
            self._log.line(_told(error))
        if (self.code in REFUSED and not self.begun) or not self.folder.root.is_dir():
            return
        self._log.line(f"{self.command} ended with exit code {self.code}")
        self._log.begin()
        row = {
            "time": self._moment.isoformat(timespec="seconds"),
            "user": _user(),
            "host": HOST,
            "version": __version__,
            "command": self.command,
            "overrides": self.overrides,
            "exit_code": self.code,
            "seconds": round(time.monotonic() - self._clock, 1),
        }
        with suppress(OSError):  # a full disk under the history changes nothing of what was made
            self.folder.history.parent.mkdir(parents=True, exist_ok=True)
            _append(self.folder, json.dumps(row) + "\n")


def _append(folder: RunFolder, line: str) -> None:
    """One write at the end of the file: the tasks of an array do not mix their lines."""
    descriptor = os.open(folder.history, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def _told(error: BaseException) -> str:
    """An error in its own words; of a bug where it came from, too."""
    if isinstance(error, CloudjobError | KeyboardInterrupt | OSError):
        return f"cloudjob: {error or type(error).__name__}"
    import traceback  # slow, and needed of bugs alone

    return "".join(traceback.format_exception(error)).rstrip()


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return InterruptedJob.exit_code
    return getattr(error, "exit_code", 1)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container need not know the user by name
        return str(os.getuid())
