"""Commands beside the stages: cloudjob config, bench, compare and model."""

import argparse
import importlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob.cli.context import check_writable, open_run, run_folder
from cloudjob.cli.progress import say
from cloudjob.cli.stopping import listen
from cloudjob.errors import ConfigError, ItemError
from cloudjob.files import sweep, troubles
from cloudjob.run.history import Entry

if TYPE_CHECKING:
    from cloudjob.config.source import Source


def config(arguments: argparse.Namespace) -> int:
    """cloudjob config: the resolved configuration with the origin of each value, its check, or its JSON schema."""
    from cloudjob.config import source
    from cloudjob.config.models import Config

    if arguments.action == "schema":
        print(json.dumps(Config.model_json_schema(), indent=1))
        return 0
    if arguments.config is None:
        raise ConfigError(f"cloudjob config {arguments.action}: which CONFIG?")
    if arguments.action == "check" and arguments.config.is_file() and _is_comparison(arguments.config):
        return _check_comparison(arguments.config)
    loaded, _, origin = open_run(arguments)
    if arguments.action == "check":
        print(f"{origin.path}: good")
        if loaded.search and loaded.search.polygon:
            print(f"search.polygon: {_lies(loaded.search.polygon)}")
    else:
        print(_with_origins(source.dump(loaded), origin), end="")
    return 0


def _is_comparison(path: Path) -> bool:
    from cloudjob.config import source

    return {"base", "variants"} <= source.read(path)[0].keys()


def _check_comparison(path: Path) -> int:
    from cloudjob.comparison import variants

    found = variants.load(path)
    print(f"{path}: a good comparison, of {found.base}: {', '.join(found.variants)}")
    return 0


def _lies(ring: list[tuple[float, float]]) -> str:
    """Where an area lies; where its numbers may be read the other way round, where it lies then."""
    from cloudjob.copernicus import area

    text = area.describe([ring])
    if all(abs(lon) <= 90 for lon, _ in ring):
        text += f"; were latitude and longitude swapped: {area.describe([[(lat, lon) for lon, lat in ring]])}"
    return text


def _with_origins(text: str, source: "Source") -> str:
    """The resolved YAML with a comment on each line of a section: where the value came from."""
    out: list[str] = []
    section = ""
    key: tuple[str, ...]
    for line in text.splitlines():
        if line and not line.startswith((" ", "-")):
            section = line.split(":")[0]
            key = (section,)
        elif line.startswith("  ") and line[2] not in " -":
            key = (section, line.strip().split(":")[0])
        else:
            out.append(line)
            continue
        known = key in source.lines or any(key == override[: len(key)] for override in source.overrides)
        out.append(f"{line:<50} # {source.where(key) if known else 'default'}")
    return "\n".join(out) + "\n"


def bench(arguments: argparse.Namespace) -> int:
    """cloudjob bench: benchmarks of this machine."""
    with troubles():
        place = arguments.dir or Path(tempfile.gettempdir())
    if not place.is_dir():
        raise ConfigError(f"--dir {place}: no such folder")
    sized = {} if arguments.size is None else {"size": arguments.size}
    if sized and arguments.what not in ("shard", "infer"):
        raise ConfigError(f"--size: bench {arguments.what} has no scene")
    if sized and (arguments.size < 720 or arguments.size % 18):
        raise ConfigError(
            f"--size {arguments.size}: a multiple of 18, from 720 on, as pixels of 60 m and tiles want it"
        )
    module = importlib.import_module(f"cloudjob.benches.{arguments.what}")
    found = module.run(place, say=say, **sized)
    if arguments.json:
        print(json.dumps(found, indent=1))
    elif hasattr(module, "table"):
        print(module.table(found))
    else:
        for part, values in found.items():
            print(f"{part}:")
            for name, value in values.items():
                print(f"  {name:20} {value if not isinstance(value, float) else round(value, 4)}")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """cloudjob compare: variants of one configuration, trained and scored, in one table."""
    from cloudjob.comparison import results, runs, variants

    comparison = variants.load(arguments.config)
    folder = run_folder(arguments.run_dir or Path("runs") / arguments.config.stem, arguments)
    folder.only = comparison.choose(arguments.only, arguments.index)
    if arguments.dry_run:
        for name, reason in runs.plan(comparison, folder).items():
            print(f"{name:20} {f'would run: {reason}' if reason else 'done'}")
        return 0
    check_writable(folder)
    listen(folder)
    sweep(folder.root)
    with Entry(folder, "compare") as entry:
        summary = runs.run(comparison, folder)
        entry.code = ItemError.exit_code if summary.failed else 0
    say(summary.line())
    for name, why in summary.failed.items():
        say(f"  failed {name}: {why}")
    if variants.BASE not in summary.failed:
        document = results.write(comparison, folder)
        print(json.dumps(document, indent=1) if arguments.json else results.table(document))
    return entry.code


def model(arguments: argparse.Namespace) -> int:
    """cloudjob model: the cost of a network."""
    from cloudjob.diffusion import networks
    from cloudjob.diffusion.conditions import channel_count

    if arguments.preset not in networks.PRESETS:
        raise ConfigError(f"{arguments.preset}: no such preset; there are {', '.join(networks.PRESETS)}")
    facts = networks.describe(arguments.preset, arguments.size, condition_channels=channel_count("similar"))
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return 0
    for name, value in facts.items():
        print(f"{name:20} {value:,}" if isinstance(value, int) else f"{name:20} {value}")
    return 0
