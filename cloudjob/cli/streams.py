"""Standard output and error that never end the work: readers leave, disks fill up, a locale may lack UTF-8."""

import errno
import io
import os
import sys


class Lasting(io.FileIO):
    """A descriptor; what it does not take is lost, and `lost` keeps the system's first error."""

    lost: OSError | None = None

    def write(self, data) -> int:  # type: ignore[no-untyped-def, override]  # any buffer, a type only since Python 3.12
        """The number of bytes taken, or given up."""
        try:
            return super().write(data) or len(data)
        except OSError as error:
            self.lost = self.lost or error
            return len(data)


def settle() -> None:
    """Makes both streams of this process lasting; characters that the locale lacks are written as \\x.., \\u....

    A stream that was closed gets /dev/null, so that no file is opened in its place. Streams that somebody has replaced,
    as tests do, stay.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # the lowest free number, which is this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is not getattr(sys, f"__{name}__"):
            continue
        lines = number == 2 or os.isatty(number)
        new = io.TextIOWrapper(
            io.BufferedWriter(Lasting(number, "w", closefd=False)),
            encoding=old.encoding if old else "utf-8",
            errors="backslashreplace",
            line_buffering=lines,
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def unsaid() -> OSError | None:
    """Why results on standard output were lost, if they were: a reader who has left wanted no more."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    lost = raw.lost if isinstance(raw, Lasting) else None
    return None if lost is None or lost.errno == errno.EPIPE else lost
