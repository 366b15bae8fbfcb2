"""The command line: finds the configuration and the run folder, runs stages, prints what is done."""

import argparse
import contextlib
import errno
import importlib
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from cloudjob import __version__
from cloudjob.errors import CloudjobError, ConfigError, DiskFullError, InputError, InterruptedJob

STAGES = {
    "search": "ask the catalogue for products of the area, the dates and the cloud range",
    "preview": "fetch metadata, masks and the small picture of every product",
    "pair": "pair cloudy products with clear ones of the same tile",
    "review": "make the page on which a person accepts or rejects pairs",
    "download": "fetch the 10 m bands of the accepted pairs, verified",
    "shard": "cut triplets (cloudy, clear, mask) into HDF5 shards",
    "train": "train the diffusion model",
    "infer": "restore the ground under the clouds of every cloudy product",
    "evaluate": "score the outputs against the truth or the clear date, beside baselines",
    "report": "one self-contained page about the run",
}
BENCHES = ("shard", "read", "train")
EXAMPLES = """examples:
  cloudjob run configs/demo.yaml                       all stages, on the embedded archive
  cloudjob train runs/demo --set train.epochs=20       one stage of a run folder
To resume, run the same command again: only what is missing is made."""


def main(argv: list[str] | None = None) -> int:
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: large tensors on huge pages, where the kernel lets it
    code = _call(_parser().parse_args(argv))
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        _leave(code)  # after an error: gloo's threads, taken down while they wait for other ranks, abort the process
    return code


def _call(arguments: argparse.Namespace) -> int:
    """The exit code of a command, its error said."""
    try:
        return arguments.call(arguments) or 0
    except DiskFullError as error:
        _say(f"cloudjob: {error}")
        _leave(error.exit_code)
    except CloudjobError as error:
        if not error.said:
            _say(f"cloudjob: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("cloudjob: interrupted; run the same command again")
        return InterruptedJob.exit_code
    except BrokenPipeError:  # the reader of our output has gone (cloudjob plan ... | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _say(f"cloudjob: no space left on the disk ({error.filename or 'file unknown'}); make room, then run again")
        _leave(DiskFullError.exit_code)


def _leave(code: int) -> None:
    """Ends the process without cleaning up: on a full disk, HDF5 crashes when it flushes its open files at exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloudjob",
        description="Removes clouds from Sentinel-2 Level-2A scenes with a diffusion model, in restartable stages.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cloudjob {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, text: str, call, *, parents=()) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, parents=parents)
        sub.set_defaults(call=call, command=name)
        return sub

    config = argparse.ArgumentParser(add_help=False)
    config.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file, or a run folder")
    config.add_argument("--run-dir", type=Path, help="the run folder (default: runs/<name of the YAML file>)")
    config.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. train.lr=2e-4")

    run = command("run", "run all stages, or those from --from until --until", _run, parents=[config])
    run.add_argument("--from", dest="first", choices=STAGES, default="search")
    run.add_argument("--until", dest="last", choices=STAGES, default="report")
    run.add_argument("--dry-run", action="store_true", help="show what would be done, and touch nothing")
    for name, text in STAGES.items():
        stage = command(name, text, _stage, parents=[config])
        stage.add_argument("--only", action="append", default=[], metavar="ITEM", help="work on this item alone")
        stage.add_argument("--index", type=int, metavar="I", help="work on the I-th item (SLURM_ARRAY_TASK_ID)")
        stage.add_argument("--force", action="store_true", help="make items again that are done")
        stage.add_argument("--dry-run", action="store_true", help="show what would be done, and touch nothing")
        if name == "review":
            stage.add_argument("--apply", type=Path, metavar="CSV", help="take over the decisions.csv of the page")
        if name == "train":
            stage.add_argument(
                "--init-from", type=Path, metavar="CHECKPOINT", help="start a new training from these weights"
            )
        if name == "shard":
            stage.add_argument("--stats", action="store_true", help="print what the shards hold, and make nothing")
    for name, text, call in (
        ("plan", "show what is done, missing or failed, and why it would run; touches nothing", _plan),
        ("status", "the same, with progress, speed and the last sign of life", _status),
    ):
        command(name, text, call, parents=[config]).add_argument("--json", action="store_true")
    items = command("items", "list the items of a stage, for sbatch --array", _items)
    items.add_argument("stage", choices=STAGES)
    items.add_argument("config", metavar="CONFIG", type=Path)
    items.add_argument("--run-dir", type=Path)
    items.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    which = items.add_mutually_exclusive_group()
    which.add_argument("--missing", action="store_true", help="only those not done")
    which.add_argument("--failed", action="store_true", help="only those that failed")
    items.add_argument("--as-array", action="store_true", help="as indices: 0-3,7")

    settings = command("config", "show, check or describe a configuration", _config)
    settings.add_argument("action", choices=("show", "check", "schema"))
    settings.add_argument("config", metavar="CONFIG", type=Path, nargs="?")
    settings.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")

    bench = command("bench", "measure this node: ratios against the plain way", _bench)
    bench.add_argument("what", choices=BENCHES)
    bench.add_argument(
        "--dir", type=Path, default=Path(tempfile.gettempdir()), help="disk to measure (default: %(default)s)"
    )
    bench.add_argument("--json", action="store_true")

    compare = command("compare", "train and score named variants of one configuration, for one table", _compare)
    compare.add_argument("config", metavar="CONFIG", type=Path, help="the variants, e.g. configs/comparison.yaml")
    compare.add_argument("--run-dir", type=Path, help="holds a run folder a variant (default: runs/<name of the file>)")
    which = compare.add_mutually_exclusive_group()
    which.add_argument("--only", action="append", default=[], metavar="NAME", help="this variant alone; base: the data")
    which.add_argument("--index", type=int, metavar="I", help="the I-th variant alone (SLURM_ARRAY_TASK_ID)")
    compare.add_argument("--dry-run", action="store_true", help="show what would be done, and touch nothing")
    compare.add_argument("--json", action="store_true")

    model = command("model", "parameters, MACs and activation bytes of a network", _model)
    model.add_argument("preset", metavar="PRESET")
    model.add_argument("--size", type=int, default=256, help="rows and columns of the input")
    model.add_argument("--json", action="store_true")

    archive = commands.add_parser("archive", help="make or serve the embedded archive").add_subparsers(required=True)
    make = archive.add_parser("make", parents=[config], help="make the products that a configuration describes")
    make.set_defaults(call=_archive_make)
    serve = archive.add_parser("serve", help="serve a folder of products as the Data Space does")
    serve.add_argument("folder", type=Path)
    serve.add_argument("--port", type=int, default=8765)
    serve.set_defaults(call=_archive_serve)
    return parser


# --- where things are ------------------------------------------------------------------------------------------
def _load(arguments) -> tuple:
    """(configuration, run folder, source of its values); a run folder holds its own config.yaml."""
    from cloudjob.config import source

    path, run_dir = arguments.config, getattr(arguments, "run_dir", None)
    if path.is_dir():
        if run_dir and run_dir.resolve() != path.resolve():
            raise ConfigError(f"{path} is a run folder itself: leave out --run-dir {run_dir}")
        path, run_dir = path / "config.yaml", path
    elif not path.exists():
        raise ConfigError(f"{path}: no such file or run folder")
    overrides = list(arguments.set)
    if getattr(arguments, "init_from", None):
        overrides.append(f"train.init_from={json.dumps(str(arguments.init_from.resolve()))}")
    loaded, source = source.load(path, overrides)
    return loaded, run_dir or Path("runs") / path.stem, source


def _workspace(root: Path, arguments):
    from cloudjob.run import records
from cloudjob.run.folder import RunFolder

    folder = RunFolder(root, only=getattr(arguments, "only", []), force=getattr(arguments, "force", False))
    folder.say, folder.progress = _say, _progress
    return folder


def _module(stage: str):
    return importlib.import_module(f"cloudjob.stages.{stage}")


_TERMINAL = sys.stderr.isatty()
_CLEAR = "\r\x1b[K" if _TERMINAL else ""
_shown = time.monotonic()


def _say(line: str) -> None:
    print(f"{_CLEAR}{line}", file=sys.stderr, flush=True)


def _progress(share: float, line: str) -> None:
    """A live bar on a terminal; elsewhere one line every 30 seconds."""
    global _shown
    if _TERMINAL:
        print(f"{_CLEAR}[{'#' * round(20 * share):20}] {line}"[:120], end="", file=sys.stderr, flush=True)
    elif time.monotonic() - _shown > 30:
        _shown = time.monotonic()
        _say(line)


def _first_rank() -> bool:
    """Under mpiexec, srun or torchrun only the first process speaks and writes the configuration."""
    from cloudjob.hpc import slurm

    task = slurm.task()
    names = ("RANK", "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
    return (task is None or task.rank == 0) and all(os.environ.get(name, "0") == "0" for name in names)


# --- running stages --------------------------------------------------------------------------------------------
def _run(arguments) -> int:
    names = list(STAGES)
    first, last = names.index(arguments.first), names.index(arguments.last)
    if first > last:
        raise ConfigError(f"--from {arguments.first} comes after --until {arguments.last}")
    return _execute(names[first : last + 1], arguments, sweep=True)


def _stage(arguments) -> int:
    if getattr(arguments, "stats", False):
        config, root, _ = _load(arguments)
        print(_module("shard").stats(config, _workspace(root, arguments)))
        return 0
    if getattr(arguments, "apply", None) and not arguments.dry_run:
        config, root, _ = _load(arguments)
        for message in _module("review").apply(config, _workspace(root, arguments), arguments.apply):
            _say(message)
    return _execute([arguments.command], arguments, sweep=False)


def _execute(stages: list[str], arguments, *, sweep: bool) -> int:
    from cloudjob.config import source as configuration
    from cloudjob.hpc import stop
    from cloudjob.files import write_text

    config, root, _ = _load(arguments)
    folder = _workspace(root, arguments)
    if arguments.dry_run:
        return _print_plan(config, folder, stages, as_json=False)
    if getattr(arguments, "index", None) is not None:
        folder.only = [_nth(_module(stages[0]).items(config, folder), arguments.index, stages[0])]
    stop.install(Path(os.environ.get("CLOUDJOB_STOP_FILE", root / "STOP")))  # each job of SLURM has one of its own
    folder.stop_requested = stop.requested
    if _first_rank():
        _say(f"cloudjob {__version__}: {' '.join(stages)} in {root}")
        if sweep:
            folder.sweep()
        write_text(folder.config, configuration.dump(config))
    else:
        folder.say = folder.progress = lambda *line: None
    with _data_space(config, folder, stages) as config:
        for stage in stages:
            summary = _module(stage).run(config, folder)
            folder.say(summary.line())
            if summary.output and _first_rank():
                print(summary.output, flush=True)
            for item, why in summary.rejected.items():
                folder.say(f"  rejected {item}: {why}")
            for item, why in summary.failed.items():
                folder.say(f"  failed {item}: {why}")
            if summary.failed:
                folder.say(f"cloudjob: {stage} has failed items; run the same command again to try them once more")
                return 4
    return 0


@contextlib.contextmanager
def _data_space(config, folder, stages: list[str]):
    """With an embedded archive: makes it where it is missing, and serves it while stages need the network."""
    if config.archive is None or not _network_needed(config, folder, stages):
        yield config
        return
    from cloudjob.archive.server import ArchiveServer

    folder = config.archive.path or folder.archive
    _make_archive(config, folder, folder)
    with ArchiveServer(folder) as server:
        here = config.copernicus.model_copy(
            update={
                "stac": f"{server.url}/v1",
                "catalogue": f"{server.url}/odata/v1",
                "download": f"{server.url}/odata/v1",
                "token": f"{server.url}/auth/realms/CDSE/protocol/openid-connect/token",
            }
        )
        os.environ.setdefault("CDSE_USERNAME", "embedded")
        os.environ.setdefault("CDSE_PASSWORD", "embedded")
        yield config.model_copy(update={"copernicus": here})


def _network_needed(config, folder, stages: list[str]) -> bool:
    try:
        items = [
            item
            for stage in ("search", "preview", "download")
            if stage in stages
            for item in _module(stage).items(config, folder)
        ]
    except InputError:
        return True
    return bool(items) and (folder.force or any(records.why(folder, item) for item in items))


def _make_archive(config, folder: Path, folder) -> list[str]:
    from cloudjob.archive import make

    begun, products = time.monotonic(), []
    if scenes := config.archive.synthetic:
        products += make.make_synthetic(folder, **dict(scenes))
    if config.archive.rasters:
        products += make.make_from_rasters(folder, pairs=[dict(pair) for pair in config.archive.rasters])
    if config.archive.places:
        products += make.make_from_places(folder, places=[dict(place) for place in config.archive.places])
    folder.say(f"archive: {len(products)} products in {folder}, {time.monotonic() - begun:.1f} s")
    return products


def _archive_make(arguments) -> None:
    config, root, _ = _load(arguments)
    if config.archive is None:
        raise ConfigError(f"{arguments.config}: has no section archive, so there is nothing to make")
    folder = _workspace(root, arguments)
    for product in _make_archive(config, config.archive.path or folder.archive, folder):
        print(product)


def _archive_serve(arguments) -> None:
    from cloudjob.archive.server import ArchiveServer

    if not arguments.folder.is_dir():
        raise ConfigError(f"{arguments.folder}: no such folder; make one with cloudjob archive make")
    with ArchiveServer(arguments.folder, port=arguments.port) as server:
        _say(f"serving {arguments.folder} at {server.url}; stop with Ctrl-C")
        while True:
            time.sleep(3600)


# --- what is done ----------------------------------------------------------------------------------------------
def _overview(config, folder, stages) -> list[dict]:
    """One row a stage: its items with state and reason, or what it waits for."""
    rows, waits = [], None
    for stage in stages:
        try:
            items = _module(stage).items(config, folder) if waits is None else []
        except InputError as error:
            waits = str(error)
        if waits is not None:
            rows.append({"stage": stage, "waits": waits, "items": []})
            continue
        states = []
        for item in items:
            why, record = records.why(folder, item), records.record(folder, stage, item.name)
            state = record["status"] if why is None else "failed" if why.startswith("failed") else "missing"
            states.append({"item": item.name, "state": state, "why": why})
        rows.append({"stage": stage, "waits": None, "items": states})
    return rows


def _print_plan(config, folder, stages, *, as_json: bool) -> int:
    rows = _overview(config, folder, stages)
    if as_json:
        print(json.dumps({"run": str(folder.root), "stages": rows}, indent=1))
        return 0
    for row in rows:
        if row["waits"]:
            print(f"{row['stage']:9} waits: {row['waits']}")
            continue
        states = [state["state"] for state in row["items"]]
        counts = ", ".join(f"{states.count(s)} {s}" for s in ("done", "rejected", "failed", "missing") if s in states)
        print(f"{row['stage']:9} {counts or 'no items'}")
        reasons: dict[str, list[str]] = {}
        for state in row["items"]:
            if state["why"]:
                reasons.setdefault(state["why"], []).append(state["item"])
        for why, names in reasons.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            print(f"{'':9}   would run {names[0]}{more}: {why}")
    return 0


def _plan(arguments) -> int:
    config, root, _ = _load(arguments)
    return _print_plan(config, _workspace(root, arguments), STAGES, as_json=arguments.json)


def _status(arguments) -> int:
    from cloudjob.hpc import queue

    config, root, _ = _load(arguments)
    folder = _workspace(root, arguments)
    rows = _overview(config, folder, STAGES)
    training, jobs = _training(folder), queue.unfinished(folder.jobs)
    if arguments.json:
        document = {"run": str(root), "stages": rows, "training": training, "jobs": [asdict(job) for job in jobs]}
        print(json.dumps(document, indent=1))
        return 0
    for row in rows:
        done = sum(state["why"] is None for state in row["items"])
        failed = [state for state in row["items"] if state["state"] == "failed"]
        text = "waits for an earlier stage" if row["waits"] else f"{done} of {len(row['items'])}"
        print(f"{row['stage']:9} {text}" + (f", {len(failed)} failed" if failed else ""))
        for state in failed[:3]:
            print(f"{'':9}   {state['item']} {state['why']}")
        if again := _again(row, root, done=done, failed=bool(failed)):
            print(f"{'':9}   again: {again}")
    if training:
        print("training  " + ", ".join(f"{key} {value}" for key, value in training.items()))
    for job in jobs:
        print(f"job {job.id} {job.name}: {job.state}" + (f", {job.log}" if job.log else ""))
        if job.said:
            print(f"{'':9}   {job.said}")
    return 0


def _again(row: dict, root: Path, *, done: int, failed: bool) -> str:
    """The command for what failed, and for what is missing of a stage whose items are the tasks of an array."""
    script = {"shard": "prepare.sh", "infer": "infer.sh"}.get(row["stage"])
    left = [index for index, state in enumerate(row["items"]) if state["why"]]
    if script and left and (done or failed):
        return f"sbatch --array={_as_array(left)} slurm/{script} {root}"
    return f"cloudjob {row['stage']} {root}" if failed else ""


def _training(folder) -> dict | None:
    """Last line of the metrics: how far the training is, how fast, when it should end, its last sign of life."""
    from cloudjob.files import read_jsonl

    try:
        last = read_jsonl(folder.metrics)[-1]
    except (FileNotFoundError, IndexError, json.JSONDecodeError):
        return None
    left = last["total"] - last["seen"]
    return {
        "step": last["step"],
        "seen": last["seen"],
        "of": last["total"],
        "loss": last["loss"],
        "samples_per_s": last["samples_per_s"],
        "seconds_left": round(left / last["samples_per_s"]) if last["samples_per_s"] else None,
        "last_sign_of_life_s": round(time.time() - last["time"]),
    }


def _items(arguments) -> None:
    config, root, _ = _load(arguments)
    folder = _workspace(root, arguments)
    items = _module(arguments.stage).items(config, folder)
    chosen = []
    for index, item in enumerate(items):
        why = records.why(folder, item) if arguments.missing or arguments.failed else ""
        if why is None or (arguments.failed and not why.startswith("failed")):
            continue
        chosen.append((index, item.name))
    if arguments.as_array:
        print(_as_array([index for index, _ in chosen]))
    else:
        for index, name in chosen:
            print(f"{index}\t{name}")


def _as_array(indices: list[int]) -> str:
    """Ascending indices as sbatch --array takes them: 0-3,7."""
    parts, start = [], None
    for index in indices:
        start = index if start is None else start
        if index + 1 not in indices:
            parts.append(str(index) if index == start else f"{start}-{index}")
            start = None
    return ",".join(parts)


def _nth(items: list, index: int, stage: str) -> str:
    if not 0 <= index < len(items):
        raise ConfigError(f"--index {index}: {stage} has {len(items)} items, 0 to {len(items) - 1}")
    return items[index].name


# --- configuration and networks --------------------------------------------------------------------------------
def _config(arguments) -> None:
    from cloudjob.config import source as configuration

    if arguments.action == "schema":
        print(json.dumps(configuration.Config.model_json_schema(), indent=1))
        return
    if arguments.config is None:
        raise ConfigError(f"cloudjob config {arguments.action}: which CONFIG?")
    config, _, source = _load(arguments)
    if arguments.action == "check":
        print(f"{source.path}: good")
        return
    print(_with_origins(configuration.dump(config), source), end="")


def _with_origins(text: str, source) -> str:
    """The resolved YAML with a comment on each line of a section: where the value came from."""
    out, section = [], None
    for line in text.splitlines():
        if line and not line.startswith((" ", "-")):
            section = line.split(":")[0]
            key = (section,)
        elif line.startswith("  ") and line[2] not in " -":
            key = (section, line.strip().split(":")[0])
        else:
            out.append(line)
            continue
        known = key in source.lines or any(key == o[: len(key)] for o in source.overrides)
        out.append(f"{line:<50} # {source.where(key) if known else 'default'}")
    return "\n".join(out) + "\n"


def _bench(arguments) -> None:
    if not arguments.dir.is_dir():
        raise ConfigError(f"--dir {arguments.dir}: no such folder")
    module = importlib.import_module(f"cloudjob.benches.{arguments.what}")
    found = module.run(arguments.dir, say=_say)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    if hasattr(module, "table"):
        print(module.table(found))
        return
    for part, values in found.items():
        print(f"{part}:")
        for name, value in values.items():
            print(f"  {name:20} {value if not isinstance(value, float) else round(value, 4)}")


def _compare(arguments) -> int:
    from cloudjob.comparison import results, runs, variants
    from cloudjob.hpc import stop

    comparison = variants.load(arguments.config)
    root = arguments.run_dir or Path("runs") / arguments.config.stem
    folder = _workspace(root, arguments)
    folder.only = comparison.choose(arguments.only, arguments.index)
    if arguments.dry_run:
        for name, why in runs.plan(comparison, folder).items():
            print(f"{name:20} {f'would run: {why}' if why else 'done'}")
        return 0
    stop.install(root / "STOP")
    folder.stop_requested = stop.requested
    folder.sweep()
    summary = runs.run(comparison, folder)
    _say(summary.line())
    for name, why in summary.failed.items():
        _say(f"  failed {name}: {why}")
    if variants.BASE not in summary.failed:
        document = results.write(comparison, folder)
        print(json.dumps(document, indent=1) if arguments.json else results.table(document))
    return 4 if summary.failed else 0


def _model(arguments) -> None:
    from cloudjob.diffusion import networks
    from cloudjob.diffusion.conditions import CONDITION_CHANNELS

    if arguments.preset not in networks.PRESETS:
        raise ConfigError(f"{arguments.preset}: no such preset; there are {', '.join(networks.PRESETS)}")
    facts = networks.describe(arguments.preset, arguments.size, condition_channels=CONDITION_CHANNELS)
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        print(f"{name:20} {value:,}" if isinstance(value, int) else f"{name:20} {value}")


if __name__ == "__main__":
    sys.exit(main())
