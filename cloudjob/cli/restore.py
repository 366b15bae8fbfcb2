"""cloudjob restore: images of one's own without clouds."""

import argparse
from typing import Any

from cloudjob import __version__
from cloudjob.cli.context import check_writable, report_to
from cloudjob.cli.execute import first_rank, tell
from cloudjob.cli.stopping import listen
from cloudjob.errors import ConfigError, ItemError
from cloudjob.files import sweep
from cloudjob.run.folder import ResultsFolder
from cloudjob.run.history import Entry


def command(arguments: argparse.Namespace) -> int:
    """Restores the images that are not done; 4 where one of them failed."""
    from cloudjob.stages import restore

    if arguments.mask_values is not None and arguments.mask is None:
        raise ConfigError("--mask-values says what the values of a mask mean: give one with --mask")
    request = restore.Request(
        images=arguments.images,
        checkpoint=arguments.checkpoint,
        clear=arguments.clear,
        mask=arguments.mask,
        values=_values(arguments.mask_values),
        grown=arguments.grown,
        bands=arguments.bands,
        scale=arguments.scale,
        offset=arguments.offset,
        members=arguments.members,
    )
    out = arguments.out
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file, not a folder")
    folder = report_to(ResultsFolder(out))
    if not first_rank():
        folder.say, folder.progress = lambda line: None, lambda share, line: None
    scenes = restore.look(request, folder)
    listen(folder, first=first_rank())
    if first_rank():
        check_writable(folder, option="--out")
        sweep(folder.root)
        folder.say(f"cloudjob {__version__}: restore to {folder.root}")
    with Entry(folder, "restore", silent=not first_rank()) as entry:
        summary = restore.run(request, scenes, folder)
        entry.code = ItemError.exit_code if summary.failed else 0
    tell(summary, folder)
    return entry.code


def _values(text: str | None) -> Any:
    """What `--mask-values` says, as `masks.values` has it; ConfigError where that means nothing."""
    if text is None:
        return None
    import yaml
    from pydantic import TypeAdapter, ValidationError

    from cloudjob.config.fields import MaskValues

    try:
        return TypeAdapter(MaskValues).validate_python(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is not YAML"
        raise ConfigError(
            f"--mask-values {text}: {why}; write who made the mask, as omnicloudmask, or which value is what, as "
            "'{cloud: [1], shadow: [3]}'"
        ) from None
