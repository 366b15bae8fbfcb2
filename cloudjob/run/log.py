"""What commands said in a run folder: jobs/log.txt, a line for each of their lines, with the time and who said it."""

import os
import time
from contextlib import suppress
from pathlib import Path

from cloudjob.files import HOST

_PACE = 30.0  # seconds between two lines about progress


class Log:
    """The lines of one command. They are kept until it has begun to make something: who is refused leaves nothing.

    A log that cannot be written changes nothing of the work.
    """

    def __init__(self, path: Path, job: str | None):
        self._path = path
        self._who = f"{HOST} {f'job {job}' if job else f'process {os.getpid()}'}"
        self._kept: list[str] | None = []
        self._told = time.monotonic()

    def line(self, text: str) -> None:
        """Notes what was said just now."""
        clock = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        rows = "".join(f"{clock}  {self._who}  {row}\n" for row in text.split("\n"))
        if self._kept is None:
            self._write(rows)
        else:
            self._kept.append(rows)

    def progress(self, text: str) -> None:
        """Notes how far the work is, not more often than every half minute."""
        if time.monotonic() - self._told >= _PACE:
            self._told = time.monotonic()
            self.line(text)

    def begin(self) -> None:
        """From here on the lines are written."""
        if self._kept is not None:
            rows, self._kept = "".join(self._kept), None
            self._write(rows)

    def _write(self, rows: str) -> None:
        with suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)  # and no run folder
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(descriptor, rows.encode(errors="backslashreplace"))  # at once: tasks do not mix their lines
            finally:
                os.close(descriptor)
