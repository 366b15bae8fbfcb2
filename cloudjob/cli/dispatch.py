"""The entry point: reads the command line, calls the command, and turns errors into exit codes."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from cloudjob.cli import archive, execute, status, streams, tools
from cloudjob.cli.parser import STAGES, parse
from cloudjob.cli.progress import say
from cloudjob.errors import CloudjobError, DiskFullError, InterruptedJob
from cloudjob.files import raise_open_limit, trouble, troubles
from cloudjob.hpc import launch

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": execute.run,
    **dict.fromkeys(STAGES, execute.stage),
    "plan": status.plan,
    "status": status.status,
    "items": status.items,
    "config": tools.config,
    "bench": tools.bench,
    "compare": tools.compare,
    "model": tools.model,
    "archive": archive.command,
}
_MAKERS = ("run", *STAGES, "compare", "archive")  # their results are files; what they print is beside them


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, by default that of this process, and returns its exit code (see `cloudjob.errors`)."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: large tensors on huge pages, where the kernel lets it
    os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"  # stronger than `locking=False`, and read by GDAL's HDF5 too
    launch.settle_threads()
    streams.settle()
    raise_open_limit()
    arguments = parse(argv)
    code = _call(arguments)
    if (lost := streams.unsaid()) and arguments.command not in _MAKERS and not code:
        say(f"cloudjob: standard output: {trouble(lost)}")
        code = DiskFullError.exit_code
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        _leave(code)  # after an error: gloo's threads, taken down while they wait for other ranks, abort the process
    return code


def _call(arguments: argparse.Namespace) -> int:
    """Runs a command and returns its exit code; prints an error as one message."""
    try:
        with troubles():
            return COMMANDS[arguments.command](arguments)
    except DiskFullError as error:
        say(f"cloudjob: {error}")
        _leave(error.exit_code)
    except CloudjobError as error:
        if not error.said:
            say(f"cloudjob: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("cloudjob: interrupted; run the same command again")
        return InterruptedJob.exit_code


def _leave(code: int) -> NoReturn:
    """Ends the process without cleaning up: on a full disk, HDF5 crashes when it flushes its open files at exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
