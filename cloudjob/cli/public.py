"""cloudjob import: a run folder whose shards are a public data set's."""

import argparse
import tempfile
from pathlib import Path

import yaml

from cloudjob.cli import execute
from cloudjob.errors import ConfigError
from cloudjob.files import write_text

_PROTOCOLS = {"sen12mscr": "sen12mscr"}  # of the tables that are published on a data set


def command(arguments: argparse.Namespace) -> int:
    """Writes DIR/config.yaml, if there is none, and makes the shards that it describes."""
    _configure(arguments)
    asked = {"command": "shard", "config": arguments.out, "set": arguments.set, "dry_run": False, "stats": False}
    return execute.stage(argparse.Namespace(**asked))


def _configure(arguments: argparse.Namespace) -> None:
    """ConfigError where the folder holds no such data set, and where DIR is the run of something else."""
    from cloudjob.config import source
    from cloudjob.patches.public import imports

    folder, path = arguments.folder.resolve(), arguments.out / "config.yaml"
    if path.exists():
        public = source.load(path)[0].public
        if public is None or (public.kind, public.folder) != (arguments.kind, folder):
            what = f"{public.kind} in {public.folder}" if public else "something else"
            raise ConfigError(f"{arguments.out} is the run of {what}: name another folder with --out")
        return
    imports.parts(arguments.kind, folder)
    config = {
        "public": {"kind": arguments.kind, "folder": str(folder).replace("$", "$$")},
        "pair": {"references": 3},
        "shard": {"cloud": [0.05, 0.95]},
        "evaluate": {"of": "triplets", "protocol": _PROTOCOLS.get(arguments.kind, "own")},
    }
    with tempfile.TemporaryDirectory() as place:
        asked = Path(place) / "import.yaml"
        asked.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        write_text(path, source.dump(source.load(asked, arguments.set)[0]))
