"""What is done: a record of each item, why an item would be made again, and the loop that makes what is missing.

An item of a stage is done when its record exists, was made with the configuration and inputs of today, and the
outputs it names lie there in full. Records are `records/<stage>/<item>.json`; no modification time is ever looked at.
Who makes an item holds its lease.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from cloudjob.errors import (
    ConfigError,
    CorruptFileError,
    DiskFullError,
    InputError,
    ItemError,
    LeftOutError,
    RejectedError,
)
from cloudjob.files import changes, digest, file_sha256, merged, names_in, troubles, write_json
from cloudjob.run.folder import RunFolder
from cloudjob.run.turns import turns

_HEAD = 4096  # bytes of a record that are read at once
_RESULT = b',\n "result":'  # where its result begins


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
    """What a stage did: names of the items done now, already done (skipped), and with why those that a rule rejected,
    that failed or lack their input, and that are gone for good (left out)."""

    stage: str
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    note: str = ""
    output: str = ""  # a result, for standard output

    def line(self) -> str:
        """The summary in one line for people."""
        counts = ", ".join(f"{len(getattr(self, name))} {name}" for name in ("done", "skipped", "rejected", "failed"))
        counts += f", {len(self.left_out)} left out" if self.left_out else ""
        return f"{self.stage}: {counts}, {self.seconds:.1f} s" + (f"; {self.note}" if self.note else "")


Made = tuple[Collection[Path], Any]  # outputs of an item (a mapping: to their SHA-256), and its JSON-able result
LEFT_OUT = "left out"
_NOTHING = ("failed", LEFT_OUT)  # states of a record in which the item put out nothing
_KEYS = {"status", "message", "config", "inputs", "outputs"}  # what a whole record has


def path(folder: RunFolder, stage: str, item: str) -> Path:
    """Where the record of an item lies."""
    return folder.records / stage / f"{item}.json"


def record(folder: RunFolder, stage: str, item: str, *, result: bool = True) -> dict | None:
    """What is recorded of an item, or None. An unreadable record counts as none: the item is made again.

    With `result` False, a command that only looks may get it without its result, where that is large.
    """
    found = folder.once(("record", stage, item), lambda: _read(folder, stage, item, result or folder.kept is None))
    if result and found and "result" not in found:  # it was kept without
        found.update(_read(folder, stage, item) or {})
    return found


def _read(folder: RunFolder, stage: str, item: str, result: bool = True) -> dict | None:
    try:
        handle = os.open(f"{folder.records}/{stage}/{item}.json", os.O_RDONLY)  # thousands: Path and file cost time
        try:
            text = os.read(handle, _HEAD)
            if len(text) == _HEAD and not result and _RESULT in text:
                text = text.partition(_RESULT)[0] + b"}"
            elif len(text) == _HEAD:
                with open(handle, "rb", closefd=False) as rest:
                    text += rest.read()
        finally:
            os.close(handle)
        found = from_json(text, cache_strings="keys")  # few values come twice
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= _KEYS else None


def drifting_digest(folder: RunFolder, tile: str) -> dict[str, str]:
    """The digest of the raster that tells where the ground of a tile drifts, as an input; empty where there is none."""
    path = folder.drifting / f"{tile}.tif"
    return {f"drifting/{path.name}": file_sha256(path)} if path.exists() else {}


def forced(folder: RunFolder, item: Item) -> bool:
    """Whether --force asked for this item to be made anew, and it has not been yet."""
    if folder.kept is None:
        return os.path.exists(_mark(folder, item))
    return item.name in folder.once(("forced", item.stage), lambda: names_in(_mark(folder, item).parent))


def _mark(folder: RunFolder, item: Item) -> Path:
    return folder.records / item.stage / ".forced" / item.name


def _force(folder: RunFolder, stage: str, items: Sequence[Item]) -> None:
    """Marks these items as to be made anew. Where some still are, an earlier --force was stopped: it goes on."""
    left = sum(forced(folder, item) for item in items)
    if left:
        folder.say(f"{stage}: an earlier --force goes on: {left} of {len(items)} items are left to be made anew")
        return
    for item in items:
        _mark(folder, item).parent.mkdir(parents=True, exist_ok=True)
        _mark(folder, item).touch()


def why(folder: RunFolder, item: Item) -> str | None:
    """Why this item would be made (again): None if it is done, rejected or left out as things are now."""
    found = record(folder, item.stage, item.name, result=False)
    if found is None:
        kept = path(folder, item.stage, item.name)
        return (
            f"its record {kept} cannot be read; cloudjob {item.stage} {folder.quoted}" if kept.exists() else "missing"
        )
    if forced(folder, item):
        return "--force"
    if found["status"] == "failed":
        return f"failed: {found['message']}"
    changed = changes(merged(item.newer, found["config"]), item.config)
    changed += [f"input {name}" for name in changes(found["inputs"], item.inputs, values=False)]
    if changed:
        return "changed: " + ", ".join(changed)
    return _damage(folder, found)


def _damage(folder: RunFolder, found: dict) -> str | None:
    root = os.fspath(folder.root)
    for name, kept in found["outputs"].items():
        try:
            size = os.stat(f"{root}/{name}").st_size
        except FileNotFoundError:
            return f"output {name} is gone"
        if size != kept["size"]:
            return f"output {name} has {size} bytes instead of {kept['size']}"
    return None


def results(folder: RunFolder, items: Iterable[Item]) -> list:
    """The results recorded for these items, in their order (None for an item without one)."""
    return [(record(folder, item.stage, item.name) or {}).get("result") for item in items]


def output_digest(folder: RunFolder, stage: str, item: str) -> str:
    """One digest of all that an item put out; '' while it is not done."""

    def of() -> str:
        found = record(folder, stage, item)
        return "" if found is None or found["status"] in _NOTHING else digest([found["outputs"], found["result"]])

    return folder.once(("digest", stage, item), of)


def checkpoint_digest(folder: RunFolder, elsewhere: Path | None) -> str:
    """The digest of the network: this run's own, or that of a checkpoint from elsewhere."""
    if elsewhere is None:
        return output_digest(folder, "train", "run")
    check_checkpoint(elsewhere)
    return file_sha256(elsewhere)


def shard_index(folder: RunFolder, elsewhere: Path | None) -> dict | None:
    """What shards/index.json holds. InputError while there is none; but None, where the network is from elsewhere."""
    return None if elsewhere and not folder.shard_index.exists() else folder.index()


def check_checkpoint(elsewhere: Path | None) -> None:
    """InputError where `infer.checkpoint` names a file that is not there."""
    if elsewhere is not None and not elsewhere.exists():
        raise InputError(f"infer.checkpoint: {elsewhere} does not exist")


def require(folder: RunFolder, stage: str, names: Sequence[str], *, reader: str) -> None:
    """InputError unless these items of an earlier stage are done (or rejected) and their outputs whole."""
    missing = {}
    for name in names:
        if reason := _lacking(folder, stage, name):
            missing[name] = reason
    if missing:
        name, reason = next(iter(missing.items()))
        raise InputError(
            f"{reader} reads what {stage} makes, and {len(missing)} of {len(names)} items are not complete "
            f"({name}: {reason}). Run: cloudjob {stage} {folder.quoted}"
        )


def _lacking(folder: RunFolder, stage: str, name: str) -> str | None:
    """Why nobody can read what this item of an earlier stage puts out; None where it lies there whole."""
    found = record(folder, stage, name)
    if found is None:
        return "missing"
    return found["message"] if found["status"] in _NOTHING else _damage(folder, found)


def need(folder: RunFolder, stage: str, names: Iterable[str], *, own: str = "") -> None:
    """For one item: InputError unless these items of an earlier stage are done and whole, with why they are not.

    LeftOutError where the item's `own` product, one of these names, is gone for good: then so is the item.
    """
    for name in names:
        if reason := _lacking(folder, stage, name):
            gone = left_out(folder, stage, name)
            if name == own and gone:
                raise LeftOutError(f"{stage} of {name}: {reason}")
            again = "pair" if gone else stage  # without the one that is gone
            raise InputError(f"{stage} of {name}: {reason}. Run: cloudjob {again} {folder.quoted}")


def left_out(folder: RunFolder, stage: str, item: str) -> bool:
    """Whether this item is gone for good."""
    return (record(folder, stage, item) or {}).get("status") == LEFT_OUT


def settled(folder: RunFolder, items: Iterable[Item]) -> list[Item]:
    """Those of these items that are done, rejected or left out as things are now."""
    return [item for item in items if why(folder, item) is None]


def spoil(folder: RunFolder, stage: str, item: str, error: CorruptFileError) -> str:
    """Sets a file aside that an item of an earlier stage put out and nobody can read, so that the item counts as failed
    and is made again. Returns what its record now says."""
    message = _set_aside(folder, error)
    if found := record(folder, stage, item):
        nothing: dict = {"outputs": {}, "result": None}
        write_json(path(folder, stage, item), found | nothing | {"status": "failed", "message": message})
    return message


def replace_result(folder: RunFolder, item: Item, result: Any) -> None:
    """Gives an item that is done another result."""
    if found := record(folder, item.stage, item.name):
        write_json(path(folder, item.stage, item.name), found | {"result": result})


def _set_aside(folder: RunFolder, error: CorruptFileError) -> str:
    """Sets the broken file aside if it is the run's own; what there is to say."""
    aside = folder.set_aside(error.path)
    return f"{error}; set aside as *.corrupt, the stage that makes it will do so again" if aside else str(error)


def wanted(folder: RunFolder, items: Sequence[Item]) -> list[Item]:
    """Those of these items that the command line asked for."""
    unknown = set(folder.only) - {item.name for item in items}
    if unknown:
        raise ConfigError(
            f"--only {', '.join(sorted(unknown))}: no such item; see cloudjob items STAGE {folder.quoted}"
        )
    return [item for item in items if not folder.only or item.name in folder.only]


def work(
    folder: RunFolder,
    stage: str,
    items: Sequence[Item],
    make: Callable[[Item], Made],
    *,
    meanwhile: Callable[[], object] = lambda: None,
) -> Summary:
    """Makes each item that is not done. `make` returns (output paths, JSON-able result) or raises.

    RejectedError is recorded as rejected, LeftOutError as left out and ItemError as failed; others go on. An item that
    raises InputError lacks its input: it counts as failed, and stays missing. InputError, once the others are made,
    where single items were asked for or all lack theirs. A full disk, and a request to stop, end the stage at once.
    `meanwhile` is called every few seconds while others hold all that is left. `--force` counts once: what it asks for
    is marked, and the marks outlive a stop.

    What a stage writes from all records at its end needs no lease: who writes it replaces it whole, by the same bytes.
    """
    summary, start = Summary(stage), time.monotonic()
    items = wanted(folder, items)
    waiting: dict[str, InputError] = {}

    if folder.force:
        _force(folder, stage, items)

    def is_done(item: Item) -> bool:
        return why(folder, item) is None

    for number, (item, lease) in enumerate(turns(folder, stage, items, is_done, meanwhile=meanwhile)):
        if lease is None:
            done = record(folder, stage, item.name) or {}
            if done.get("status") == "rejected":
                summary.rejected[item.name] = done["message"]
            elif done.get("status") == LEFT_OUT:
                summary.left_out[item.name] = done["message"]
            else:
                summary.skipped.append(item.name)
            continue
        try:
            with lease:
                folder.begin()
                _make(folder, item, make, summary)
        except InputError as error:
            waiting[item.name] = error
        past = number + 1 - len(summary.failed) - len(waiting)  # what failed is no progress
        folder.progress(past / len(items), f"{stage}: {past} of {len(items)} ({item.name})")
    if waiting and (folder.only or len(waiting) == len(items)):
        name, reason = next(iter(waiting.items()))
        if len(waiting) == 1:
            raise reason
        raise InputError(f"{stage}: {len(waiting)} items lack their input, {name}: {reason}")
    summary.failed |= {name: str(reason) for name, reason in waiting.items()}
    summary.seconds = time.monotonic() - start
    return summary


def _make(folder: RunFolder, item: Item, make: Callable[[Item], Made], summary: Summary) -> None:
    begun = time.monotonic()
    try:
        with troubles():
            outputs, result = make(item)
            kept = _facts(folder, outputs)
    except RejectedError as error:
        summary.rejected[item.name] = str(error)
        _note(folder, item, "rejected", begun, message=str(error), result=error.result)
    except LeftOutError as error:
        summary.left_out[item.name] = str(error)
        _note(folder, item, LEFT_OUT, begun, message=str(error))
    except DiskFullError:
        raise
    except ItemError as error:
        message = _set_aside(folder, error) if isinstance(error, CorruptFileError) else str(error)
        summary.failed[item.name] = message
        _note(folder, item, "failed", begun, message=message)
    else:
        summary.done.append(item.name)
        _note(folder, item, "done", begun, outputs=kept, result=result)


def _facts(folder: RunFolder, outputs: Collection[Path]) -> dict[str, dict]:
    """Size and digest of each output, by its path below the run folder."""
    known = outputs if isinstance(outputs, Mapping) else {}
    return {
        str(output.relative_to(folder.root)): {
            "size": output.stat().st_size,
            "sha256": known.get(output) or file_sha256(output),
        }
        for output in outputs
    }


def _note(
    folder: RunFolder,
    item: Item,
    status: str,
    begun: float,
    *,
    outputs: dict[str, dict] | None = None,
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
            "outputs": outputs or {},
            "result": result,
            "seconds": round(time.monotonic() - begun, 3),
        },
    )
    _mark(folder, item).unlink(missing_ok=True)
