"""Runs stages: cloudjob run, and each stage by its own name."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from cloudjob import __version__
from cloudjob.cli import status
from cloudjob.cli.archive import data_space
from cloudjob.cli.context import Context, check_writable, open_run, stage_module
from cloudjob.cli.parser import STAGES
from cloudjob.cli.progress import say
from cloudjob.errors import ConfigError, ItemError
from cloudjob.files import sweep, write_text
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Summary

_RANKS = ("RANK", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")  # torchrun, MPICH, PMIx, Open MPI


def run(arguments: argparse.Namespace) -> int:
    """cloudjob run: the stages from --from until --until."""
    names = list(STAGES)
    first, last = names.index(arguments.first), names.index(arguments.last)
    if first > last:
        raise ConfigError(f"--from {arguments.first} comes after --until {arguments.last}")
    return _execute(names[first : last + 1], arguments, tidy=True)


def stage(arguments: argparse.Namespace) -> int:
    """cloudjob STAGE: one stage, all of its items or those that --only or --index name."""
    if getattr(arguments, "stats", False):
        config, folder, _ = open_run(arguments)
        print(stage_module("shard").stats(config, folder))
        return 0
    if getattr(arguments, "apply", None) and not arguments.dry_run:
        config, folder, _ = open_run(arguments)
        check_writable(folder)
        for message in stage_module("review").apply(config, folder, arguments.apply):
            say(message)
    return _execute([arguments.command], arguments, tidy=False)


def _execute(stages: Sequence[str], arguments: argparse.Namespace, *, tidy: bool) -> int:
    """Runs these stages and returns their exit code; `tidy` removes what killed processes left in the run folder."""
    context = open_run(arguments)
    config, folder, _ = context
    if arguments.dry_run:
        status.print_plan(config, folder, stages)
        return 0
    if getattr(arguments, "index", None) is not None:
        folder.only = [nth(stage_module(stages[0]).items(config, folder), arguments.index, stages[0])]
    _listen(folder)
    _begin(context, stages, tidy=tidy)
    with data_space(config, folder, stages) as config:
        for name in stages:
            summary = stage_module(name).run(config, folder)
            _tell(summary, folder)
            if summary.failed:
                folder.say(f"cloudjob: {name} has failed items; run the same command again to try them once more")
                return ItemError.exit_code
    return 0


def _listen(folder: RunFolder) -> None:
    """From here on, a signal or a STOP file stops the work cleanly."""
    from cloudjob.hpc import stop

    stop.install(Path(os.environ.get("CLOUDJOB_STOP_FILE", folder.root / "STOP")))  # each SLURM job has its own
    folder.stop_requested = stop.requested


def _begin(context: Context, stages: Sequence[str], *, tidy: bool) -> None:
    """The first rank prints what starts and saves the configuration in the run folder; the others print nothing."""
    from cloudjob.config import source

    folder = context.folder
    if not _first_rank():
        folder.say, folder.progress = lambda line: None, lambda share, line: None
        return
    check_writable(folder)
    say(f"cloudjob {__version__}: {' '.join(stages)} in {folder.root}")
    if tidy:
        sweep(folder.root)
    write_text(folder.config, source.dump(context.config))


def _tell(summary: Summary, folder: RunFolder) -> None:
    folder.say(summary.line())
    if summary.output and _first_rank():
        print(summary.output, flush=True)
    for item, why in summary.rejected.items():
        folder.say(f"  rejected {item}: {why}")
    for item, why in summary.failed.items():
        folder.say(f"  failed {item}: {why}")


def _first_rank() -> bool:
    """Whether this is the only process, or the first of mpiexec, srun or torchrun, which prints and saves for all."""
    from cloudjob.hpc import slurm

    task = slurm.task()
    return (task is None or task.rank == 0) and all(os.environ.get(name, "0") == "0" for name in _RANKS)


def nth(items: Sequence[Item], index: int, stage: str) -> str:
    """The name of the item that --index means; ConfigError where there is none."""
    if not 0 <= index < len(items):
        raise ConfigError(f"--index {index}: {stage} has {len(items)} items, 0 to {len(items) - 1}")
    return items[index].name
