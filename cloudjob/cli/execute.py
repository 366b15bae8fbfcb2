"""Runs stages: cloudjob run, and each stage by its own name."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob import __version__, leases
from cloudjob.cli import status
from cloudjob.cli.archive import data_space, sign_in
from cloudjob.cli.context import check_writable, open_run, stage_module, stages_of
from cloudjob.cli.parser import STAGES
from cloudjob.cli.progress import say
from cloudjob.cli.stopping import listen
from cloudjob.cli.traces import Traces
from cloudjob.errors import ConfigError, CorruptFileError, InputError, ItemError
from cloudjob.files import sweep
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item, Summary

if TYPE_CHECKING:
    from cloudjob.config.models import Config

_RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")  # torchrun, Open MPI, MPICH, PMIx


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
    return _execute([arguments.command], arguments, tidy=False)


def _execute(stages: Sequence[str], arguments: argparse.Namespace, *, tidy: bool) -> int:
    """Runs these stages and returns their exit code; `tidy` removes what killed processes left in the run folder.

    A stage with failed items does not keep the following ones from what they can do without these.
    """
    context = open_run(arguments)
    config, folder, _ = context
    stages = stages_of(config, stages)
    if arguments.dry_run:
        folder.kept = {}
        status.print_plan(status.overview(config, folder, stages))
        return 0
    _check(config, folder, stages, arguments)
    listen(folder, first=first_rank())
    _begin(folder, stages, tidy=tidy)
    sign_in(config, folder, stages)
    failed: list[str] = []
    with Traces(context, arguments, silent=not first_rank()) as traces, data_space(config, folder, stages) as config:
        if getattr(arguments, "apply", None):
            for message in stage_module("review").apply(config, folder, arguments.apply):
                say(message)
        if getattr(arguments, "export_masks", False):
            say(stage_module("review").export_masks(config, folder))
        for name in stages:
            try:
                summary = stage_module(name).run(config, folder)
            except InputError as error:
                if not failed:
                    raise
                folder.say(f"cloudjob: {error}")
                continue
            tell(summary, folder)
            failed += [name] if summary.failed else []
            traces.ended(failed=bool(failed))
    if failed:
        what = f"{', '.join(failed)} {'have' if len(failed) > 1 else 'has'} failed items"
        folder.say(f"cloudjob: {what}; run the same command again to try them once more")
    return ItemError.exit_code if failed else 0


def _check(config: "Config", folder: RunFolder, stages: Sequence[str], arguments: argparse.Namespace) -> None:
    """What can be told before anything is written: are there the items and the checkpoint that are asked for?"""
    if getattr(arguments, "index", None) is not None:
        folder.only = [nth(stage_module(stages[0]).items(config, folder), arguments.index, stages[0])]
    elif folder.only:
        records.wanted(folder, stage_module(stages[0]).items(config, folder))
    if "infer" in stages:
        records.check_checkpoint(config.infer.checkpoint)
        _check_whole(config.infer.checkpoint, "infer.checkpoint")
    weights = getattr(arguments, "init_from", None)
    if weights and not weights.is_file():
        raise ConfigError(f"--init-from {weights}: no such file; name a step-NNNNNNNN.pt")


def _check_whole(path: Path | None, key: str) -> None:
    """ConfigError where a checkpoint from elsewhere is damaged: said once, before the first scene."""
    if path is None:
        return
    from cloudjob.diffusion import checkpoint

    try:
        checkpoint.check_bands(path, checkpoint.load(path))
    except CorruptFileError as error:
        raise ConfigError(f"{key}: {error}, or name another") from None


def _begin(folder: RunFolder, stages: Sequence[str], *, tidy: bool) -> None:
    """The first rank prints what starts; the others print nothing."""
    if not first_rank():
        folder.say, folder.progress = lambda line: None, lambda share, line: None
        return
    check_writable(folder)
    say(f"cloudjob {__version__}: {' '.join(stages)} in {folder.root}")
    if tidy:
        sweep(folder.root)
        leases.tidy(folder.leases)


def tell(summary: Summary, folder: RunFolder) -> None:
    """Prints what a stage did, and its result on standard output."""
    folder.say(summary.line())
    if summary.output and first_rank():
        print(summary.output, flush=True)
    for state, found in (("rejected", summary.rejected), ("left out", summary.left_out), ("failed", summary.failed)):
        alike: dict[str, list[str]] = {}
        for item, why in found.items():
            alike.setdefault(why, []).append(item)
        for why, items in alike.items():
            folder.say(f"  {state} {items[0]}{f' and {len(items) - 1} more' if items[1:] else ''}: {why}")


def first_rank() -> bool:
    """Whether this is the only process, or the first of mpiexec, srun or torchrun, which prints and saves for all.

    The launcher that was started last counts: its processes still see the variables of a step of srun around it.
    """
    from cloudjob.hpc import slurm

    task = slurm.task()
    said = next((os.environ[name] for name in _RANKS if name in os.environ), None)
    return said == "0" if said is not None else task is None or task.rank == 0


def nth(items: Sequence[Item], index: int, stage: str) -> str:
    """The name of the item that --index means; ConfigError where there is none."""
    if not 0 <= index < len(items):
        raise ConfigError(f"--index {index}: {stage} has {len(items)} items, 0 to {len(items) - 1}")
    return items[index].name
