"""What is done: a record of each item, why an item would be made again, and the loop that makes what is missing.

An item of a stage is done when its record exists, was made with the configuration and inputs of today, and the
outputs it names lie there in full. Records are `records/<stage>/<item>.json`; there are no lock files, and no
modification time is ever looked at.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudjob.errors import (
    ConfigError,
    CorruptFileError,
    DiskFullError,
    InputError,
    InterruptedJob,
    ItemError,
    RejectedError,
)
from cloudjob.files import changes, digest, file_sha256, merged, write_json
from cloudjob.run.folder import RunFolder


@dataclass(frozen=True)
class Item:
    """One unit of a stage's work: its name, and the configuration and inputs (name -> digest) that it is made of.

    `newer` holds configuration keys that are younger than some records, with the value that was used before they
    existed: a record without them counts as made with these values.
    """

    stage: str
    name: str
    config: dict
    inputs: dict[str, str]
    newer: dict = field(default_factory=dict)


@dataclass
class Summary:
    """What a stage did: names of the items done now, already done (skipped), rejected by a rule, failed (with why)."""

    stage: str
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    note: str = ""
    output: str = ""  # a result, for standard output

    def line(self) -> str:
        """The summary in one line for people."""
        counts = ", ".join(f"{len(getattr(self, name))} {name}" for name in ("done", "skipped", "rejected", "failed"))
        return f"{self.stage}: {counts}, {self.seconds:.1f} s" + (f"; {self.note}" if self.note else "")


Made = tuple[Sequence[Path], Any]  # outputs of an item, and its JSON-able result


def path(folder: RunFolder, stage: str, item: str) -> Path:
    """Where the record of an item lies."""
    return folder.records / stage / f"{item}.json"


def record(folder: RunFolder, stage: str, item: str) -> dict | None:
    """What is recorded of an item, or None. An unreadable record counts as none: the item is made again."""
    try:
        return json.loads(path(folder, stage, item).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def drifting_digest(folder: RunFolder, tile: str) -> dict[str, str]:
    """The digest of the raster that tells where the ground of a tile drifts, as an input; empty where there is none."""
    path = folder.drifting / f"{tile}.tif"
    return {f"drifting/{path.name}": file_sha256(path)} if path.exists() else {}


def why(folder: RunFolder, item: Item) -> str | None:
    """Why this item would be made (again): None if it is done or rejected as things are now."""
    found = record(folder, item.stage, item.name)
    if found is None:
        return "missing"
    if found["status"] == "failed":
        return f"failed: {found['message']}"
    changed = changes(merged(item.newer, found["config"]), item.config)
    changed += [f"input {name}" for name in changes(found["inputs"], item.inputs, values=False)]
    if changed:
        return "changed: " + ", ".join(changed)
    return _damage(folder, found)


def _damage(folder: RunFolder, found: dict) -> str | None:
    for name, kept in found["outputs"].items():
        output = folder.root / name
        if not output.exists():
            return f"output {name} is gone"
        if output.stat().st_size != kept["size"]:
            return f"output {name} has {output.stat().st_size} bytes instead of {kept['size']}"
    return None


def results(folder: RunFolder, items: Iterable[Item]) -> list:
    """The results recorded for these items, in their order (None for an item without one)."""
    return [(record(folder, item.stage, item.name) or {}).get("result") for item in items]


def output_digest(folder: RunFolder, stage: str, item: str) -> str:
    """One digest of all that an item put out; '' while it is not done."""
    found = record(folder, stage, item)
    return "" if found is None else digest([found["outputs"], found["result"]])


def checkpoint_digest(folder: RunFolder, elsewhere: Path | None) -> str:
    """The digest of the network: this run's own, or that of a checkpoint from elsewhere."""
    if elsewhere is None:
        return output_digest(folder, "train", "run")
    check_checkpoint(elsewhere)
    return file_sha256(elsewhere)


def check_checkpoint(elsewhere: Path | None) -> None:
    """InputError where `infer.checkpoint` names a file that is not there."""
    if elsewhere is not None and not elsewhere.exists():
        raise InputError(f"infer.checkpoint: {elsewhere} does not exist")


def require(folder: RunFolder, stage: str, names: Sequence[str], *, reader: str) -> None:
    """InputError unless these items of an earlier stage are done (or rejected) and their outputs whole."""
    missing = {}
    for name in names:
        found = record(folder, stage, name)
        if found is None or found["status"] == "failed":
            missing[name] = "missing" if found is None else found["message"]
        elif damage := _damage(folder, found):
            missing[name] = damage
    if missing:
        name, reason = next(iter(missing.items()))
        raise InputError(
            f"{reader} reads what {stage} makes, and {len(missing)} of {len(names)} items are not complete "
            f"({name}: {reason}). Run: cloudjob {stage} {folder.quoted}"
        )


def wanted(folder: RunFolder, items: Sequence[Item]) -> list[Item]:
    """Those of these items that the command line asked for."""
    unknown = set(folder.only) - {item.name for item in items}
    if unknown:
        raise ConfigError(
            f"--only {', '.join(sorted(unknown))}: no such item; see cloudjob items STAGE {folder.quoted}"
        )
    return [item for item in items if not folder.only or item.name in folder.only]


def work(folder: RunFolder, stage: str, items: Sequence[Item], make: Callable[[Item], Made]) -> Summary:
    """Makes each item that is not done. `make` returns (output paths, JSON-able result) or raises.

    RejectedError is recorded as rejected and ItemError as failed (others go on); a full disk, and a request to
    stop, end the stage at once.
    """
    summary, start = Summary(stage), time.monotonic()
    items = wanted(folder, items)
    for number, item in enumerate(items):
        if folder.stop_requested():
            raise InterruptedJob(f"{stage}: stopped before {item.name}; run the same command again")
        if not folder.force and why(folder, item) is None:
            done = record(folder, stage, item.name) or {}
            if done.get("status") == "rejected":
                summary.rejected[item.name] = done["message"]
            else:
                summary.skipped.append(item.name)
            continue
        folder.begin()
        _make(folder, item, make, summary)
        folder.progress((number + 1) / len(items), f"{stage}: {number + 1} of {len(items)} ({item.name})")
    summary.seconds = time.monotonic() - start
    return summary


def _make(folder: RunFolder, item: Item, make: Callable[[Item], Made], summary: Summary) -> None:
    begun = time.monotonic()
    try:
        outputs, result = make(item)
    except RejectedError as error:
        summary.rejected[item.name] = str(error)
        _note(folder, item, "rejected", begun, message=str(error), result=error.result)
    except DiskFullError:
        raise
    except ItemError as error:
        message = str(error)
        if isinstance(error, CorruptFileError) and folder.set_aside(error.path):
            message += "; set aside as *.corrupt, the stage that makes it will do so again"
        summary.failed[item.name] = message
        _note(folder, item, "failed", begun, message=message)
    else:
        summary.done.append(item.name)
        _note(folder, item, "done", begun, outputs=outputs, result=result)


def _note(
    folder: RunFolder,
    item: Item,
    status: str,
    begun: float,
    *,
    outputs: Sequence[Path] = (),
    result: Any = None,
    message: str = "",
) -> None:
    write_json(
        path(folder, item.stage, item.name),
        {
            "stage": item.stage,
            "item": item.name,
            "status": status,
            "message": message,
            "config": item.config,
            "config_sha256": digest(item.config),
            "inputs": item.inputs,
            "outputs": {
                str(output.relative_to(folder.root)): {"size": output.stat().st_size, "sha256": file_sha256(output)}
                for output in outputs
            },
            "result": result,
            "seconds": round(time.monotonic() - begun, 3),
        },
    )
