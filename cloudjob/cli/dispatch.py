"""The entry point: reads the command line, calls the command, and turns errors into exit codes."""

import argparse
import atexit
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from cloudjob.cli import streams
from cloudjob.cli.parser import STAGES, parse
from cloudjob.cli.progress import say, speak
from cloudjob.errors import CloudjobError, DiskFullError, InterruptedJob
from cloudjob.files import raise_open_limit, trouble, troubles
from cloudjob.hpc import launch

Command = Callable[[argparse.Namespace], int]


def _command(module: str, function: str) -> Command:
    """A function of a module of this package, which is imported when it is called: others are not waited for."""

    def call(arguments: argparse.Namespace) -> int:
        return getattr(importlib.import_module(f"cloudjob.cli.{module}"), function)(arguments)

    return call


COMMANDS: dict[str, Command] = {
    "run": _command("execute", "run"),
    **dict.fromkeys(STAGES, _command("execute", "stage")),
    "plan": _command("status", "plan"),
    "status": _command("status", "status"),
    "items": _command("status", "items"),
    "config": _command("tools", "config"),
    "doctor": _command("doctor", "command"),
    "bench": _command("tools", "bench"),
    "compare": _command("tools", "compare"),
    "model": _command("tools", "model"),
    "archive": _command("archive", "command"),
    "import": _command("public", "command"),
    "restore": _command("restore", "command"),
    "completion": _command("completion", "command"),
}
_LOOKERS = ("plan", "status", "items", "config")  # they make nothing
# Their results are files; what they print is beside them.
_MAKERS = ("run", *STAGES, "compare", "archive", "import", "restore")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, by default that of this process, and returns its exit code (see `cloudjob.errors`)."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: large tensors on huge pages, where the kernel lets it
    os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"  # stronger than `locking=False`, and read by GDAL's HDF5 too
    launch.settle_threads()
    streams.settle()
    raise_open_limit()
    arguments = parse(argv)
    speak(quiet="quiet" in arguments, verbose="verbose" in arguments)
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
    if arguments.command in _LOOKERS:
        _never_collect()
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


def _never_collect() -> None:
    """Saves the time in which Python looks for garbage, also when it ends: thousands of records make none."""
    gc.disable()
    atexit.register(gc.freeze)


def _leave(code: int) -> NoReturn:
    """Ends the process without cleaning up: on a full disk, HDF5 crashes when it flushes its open files at exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
