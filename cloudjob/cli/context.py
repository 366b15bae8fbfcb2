"""What a command line names: the configuration, the run folder, and the modules of the stages."""

import argparse
import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from cloudjob import api
from cloudjob.cli.progress import Progress, say
from cloudjob.errors import ConfigError
from cloudjob.files import is_disk_full
from cloudjob.hpc import slurm
from cloudjob.run.folder import RunFolder

if TYPE_CHECKING:  # pydantic is slow to import, and --help does not need it
    from cloudjob.config.models import Config

Folder = TypeVar("Folder", bound=RunFolder)
_PUBLIC = ("shard", "train", "evaluate", "report")  # the stages of a run on a public data set


def open_run(arguments: argparse.Namespace) -> api.Run:
    """Loads the configuration that CONFIG names: a YAML file, or a run folder, which holds its own config.yaml."""
    opened = api.open_run(arguments.config, run_dir=getattr(arguments, "run_dir", None), overrides=overrides(arguments))
    folder = run_folder(opened.folder.root, arguments)
    folder.patience = opened.folder.patience
    return opened._replace(folder=folder)


def overrides(arguments: argparse.Namespace) -> list[str]:
    """What the command line sets of the configuration, as --set takes it."""
    found = list(arguments.set)
    if getattr(arguments, "init_from", None):
        weights = str(arguments.init_from.absolute()).replace("$", "$$")  # its variables are put in already
        found.append(f"train.init_from={json.dumps(weights)}")
    return found


def run_folder(root: Path, arguments: argparse.Namespace) -> RunFolder:
    """The run folder at `root`, with the items that the command asks for; it reports on standard error."""
    if root.exists() and not root.is_dir():
        raise ConfigError(f"{root} is a file, not a run folder: name another with --run-dir")
    try:
        tempfile.gettempdir()
    except OSError:  # nowhere; torch asks for it when it is imported
        tempfile.tempdir = str(root.absolute())
    return report_to(RunFolder(root, only=getattr(arguments, "only", []), force=getattr(arguments, "force", False)))


def report_to(folder: Folder) -> Folder:
    """The folder, which reports on standard error."""
    folder.say, folder.progress, folder.job = say, Progress(), slurm.job_id()
    return folder


def stages_of(config: "Config", stages: Sequence[str]) -> list[str]:
    """Those of these stages that a run has; ConfigError where it has none of them. What comes of a public data set is
    neither searched for nor restored as scenes."""
    kept = [stage for stage in stages if config.public is None or stage in _PUBLIC]
    if not kept:
        raise ConfigError(
            f"{', '.join(stages)}: this run has the triplets of a public data set, and so the stages "
            f"{', '.join(_PUBLIC)} alone"
        )
    return kept


def check_writable(folder: RunFolder, *, option: str = "--run-dir") -> None:
    """ConfigError unless files can be made in the run folder, which the `option` names."""
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.root):
            pass
    except OSError as error:
        if is_disk_full(error):
            raise
        raise ConfigError(
            f"{folder.root} cannot be written to ({error.strerror}): name a folder elsewhere with {option}"
        ) from None


def stage_module(stage: str) -> ModuleType:
    """The module of a stage: `items(config, folder)` and `run(config, folder)`."""
    return importlib.import_module(f"cloudjob.stages.{stage}")
