"""The run folder: the one owner of file names, of atomic writing, and of the records that say what is done.

An item of a stage is done when its record exists, was made with the configuration and inputs of today, and the
outputs it names lie there in full. Records are `records/<stage>/<item>.json`; there are no lock files, and no
modification time is ever looked at.
"""

import contextlib
import csv
import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cloudjob.errors import (
    ConfigError,
    CorruptFileError,
    DiskFullError,
    InputError,
    InterruptedJob,
    ItemError,
    RejectedError,
)

HOST = socket.gethostname()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`; what is written there gets the final name whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(f"@{HOST}{path.suffix}", f".tmp-{os.getpid()}-", path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def disk_full(path: Path) -> DiskFullError:
    free = shutil.disk_usage(path.parent).free
    return DiskFullError(
        f"{path}: no space left on the disk ({free / 2**20:.0f} MiB free); nothing under a final name was lost. "
        "Make room and run the same command again"
    )


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_bytes(path: Path, data: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def digest(value) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Item:
    """One unit of a stage's work: its name, and the configuration and inputs (name -> digest) that it is made of."""

    stage: str
    name: str
    config: dict
    inputs: dict[str, str]


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
        counts = ", ".join(f"{len(getattr(self, name))} {name}" for name in ("done", "skipped", "rejected", "failed"))
        return f"{self.stage}: {counts}, {self.seconds:.1f} s" + (f"; {self.note}" if self.note else "")


class Workspace:
    """The run folder. What people see goes through `say` (a line) and `progress` (share done, a line), which the
    command line sets; `stop_requested` tells that this process should end in good order."""

    def __init__(self, root: Path, *, only: list[str] = (), force: bool = False):
        self.root = Path(root)
        self.only = only  # names of the items to work on; all when empty
        self.force = force
        self.say: Callable[[str], None] = lambda line: None
        self.progress: Callable[[float, str], None] = lambda share, line: None
        self.stop_requested: Callable[[], bool] = lambda: False

    # --- names -------------------------------------------------------------------------------------------------
    def __getattr__(self, name: str) -> Path:
        try:
            return self.root / _NAMES[name]
        except KeyError:
            raise AttributeError(name) from None

    def safe(self, product: str) -> Path:
        return self.root / "scenes" / f"{product}.SAFE"

    def truth(self, product: str) -> Path:
        return self.root / "truth" / f"{product}.tif"

    def shard(self, split: str, number: int) -> Path:
        return self.root / "shards" / f"{split}-{number:05d}.h5"

    def output(self, product: str, suffix: str) -> Path:
        return self.root / "outputs" / product / f"{product}{suffix}"

    def record_path(self, stage: str, item: str) -> Path:
        return self.root / "records" / stage / f"{item}.json"

    # --- records -----------------------------------------------------------------------------------------------
    def record(self, stage: str, item: str) -> dict | None:
        """What is recorded of an item, or None. An unreadable record counts as none: the item is made again."""
        try:
            return json.loads(self.record_path(stage, item).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def why(self, item: Item) -> str | None:
        """Why this item would be made (again): None if it is done or rejected as things are now."""
        record = self.record(item.stage, item.name)
        if record is None:
            return "missing"
        if record["status"] == "failed":
            return f"failed: {record['message']}"
        changed = changes(record["config"], item.config)
        changed += [f"input {name}" for name in changes(record["inputs"], item.inputs, values=False)]
        if changed:
            return "changed: " + ", ".join(changed)
        return self._damage(record)

    def _damage(self, record: dict) -> str | None:
        for name, kept in record["outputs"].items():
            path = self.root / name
            if not path.exists():
                return f"output {name} is gone"
            if path.stat().st_size != kept["size"]:
                return f"output {name} has {path.stat().st_size} bytes instead of {kept['size']}"
        return None

    def results(self, items: list[Item]) -> list:
        """The results recorded for these items, in their order (None for an item without one)."""
        return [(self.record(item.stage, item.name) or {}).get("result") for item in items]

    def shown_pairs(self) -> list[dict]:
        """The rows of pairs.jsonl that a person sees, one a cloudy product; `number` is their position.

        The number names the shard, and does not change with what a person decides.
        """
        rows = [row for row in self.rows(self.pairs, stage="pair") if row["shown"]]
        return [{**row, "number": number} for number, row in enumerate(rows)]

    def accepted_pairs(self) -> list[dict]:
        """The shown pairs that a person accepted, or the rule did and nobody rejected, in the order of pairs.jsonl."""
        rows = self.shown_pairs()
        if not self.decisions.exists():
            raise InputError(f"{self.decisions} is not there yet. Run: cloudjob review {self.root}")
        decided = {(row["pair"], row["version"]): row["decision"] == "accept" for row in self.read_decisions()}
        return [row for row in rows if decided.get((row["pair"], row["version"]), row["accepted"])]

    def read_decisions(self, path: Path | None = None) -> list[dict]:
        """The rows of decisions.csv (or of another such file); none while there is no such file.

        A person edits it, so each row is checked: ConfigError with file and line.
        """
        path = path or self.decisions
        if not path.exists():
            return []
        rows = []
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                if not {"pair", "decision", "version"} <= set(reader.fieldnames or ()):
                    raise ConfigError(f"{path}:1  write the columns pair,decision,reason,reviewer,version")
                for row in reader:
                    if row.get("decision") not in ("accept", "reject") or not row.get("pair") or not row.get("version"):
                        raise ConfigError(
                            f"{path}:{reader.line_num}  decision = {row.get('decision')}: write accept or reject"
                        )
                    rows.append(row)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{path}: cannot be read as CSV ({error})") from None
        return rows

    def output_digest(self, stage: str, item: str) -> str:
        """One digest of all that an item put out; '' while it is not done."""
        record = self.record(stage, item)
        return "" if record is None else digest([record["outputs"], record["result"]])

    def checkpoint_digest(self, elsewhere: Path | None) -> str:
        """Of the trained network of this run, or of a checkpoint from elsewhere."""
        if elsewhere is None:
            return self.output_digest("train", "run")
        if not elsewhere.exists():
            raise InputError(f"infer.checkpoint: {elsewhere} does not exist")
        return file_sha256(elsewhere)

    def require(self, stage: str, names: list[str], *, reader: str) -> None:
        """InputError unless these items of an earlier stage are done (or rejected) and their outputs whole."""
        missing = {}
        for name in names:
            record = self.record(stage, name)
            if record is None or record["status"] == "failed":
                missing[name] = "missing" if record is None else record["message"]
            elif damage := self._damage(record):
                missing[name] = damage
        if missing:
            name, why = next(iter(missing.items()))
            raise InputError(
                f"{reader} reads what {stage} makes, and {len(missing)} of {len(names)} items are not complete "
                f"({name}: {why}). Run: cloudjob {stage} {self.root}"
            )

    def rows(self, path: Path, *, stage: str) -> list[dict]:
        """The rows of a .jsonl file that `stage` writes; InputError while there is none."""
        if not path.exists():
            raise InputError(f"{path} is not there yet. Run: cloudjob {stage} {self.root}")
        return read_jsonl(path)

    def wanted(self, items: list[Item]) -> list[Item]:
        """Those of these items that the command line asked for."""
        unknown = set(self.only) - {item.name for item in items}
        if unknown:
            raise ConfigError(
                f"--only {', '.join(sorted(unknown))}: no such item; see cloudjob items STAGE {self.root}"
            )
        return [item for item in items if not self.only or item.name in self.only]

    def work(self, stage: str, items: list[Item], make: Callable[[Item], tuple[list[Path], object]]) -> Summary:
        """Makes each item that is not done. `make` returns (output paths, JSON-able result) or raises.

        RejectedError is recorded as rejected and ItemError as failed (others go on); a full disk, and a request to
        stop, end the stage at once.
        """
        summary, start = Summary(stage), time.monotonic()
        items = self.wanted(items)
        for number, item in enumerate(items):
            if self.stop_requested():
                raise InterruptedJob(f"{stage}: stopped before {item.name}; run the same command again")
            if not self.force and self.why(item) is None:
                record = self.record(stage, item.name)
                if record["status"] == "rejected":
                    summary.rejected[item.name] = record["message"]
                else:
                    summary.skipped.append(item.name)
                continue
            begun = time.monotonic()
            try:
                outputs, result = make(item)
            except RejectedError as error:
                summary.rejected[item.name] = str(error)
                self._note(item, "rejected", begun, message=str(error), result=error.result)
            except DiskFullError:
                raise
            except ItemError as error:
                message = str(error)
                if isinstance(error, CorruptFileError) and self.set_aside(error.path):
                    message += "; set aside as *.corrupt, the stage that makes it will do so again"
                summary.failed[item.name] = message
                self._note(item, "failed", begun, message=message)
            else:
                summary.done.append(item.name)
                self._note(item, "done", begun, outputs=outputs, result=result)
            self.progress((number + 1) / len(items), f"{stage}: {number + 1} of {len(items)} ({item.name})")
        summary.seconds = time.monotonic() - start
        return summary

    def _note(self, item: Item, status: str, begun: float, *, outputs=(), result=None, message: str = "") -> None:
        write_json(
            self.record_path(item.stage, item.name),
            {
                "stage": item.stage,
                "item": item.name,
                "status": status,
                "message": message,
                "config": item.config,
                "config_sha256": digest(item.config),
                "inputs": item.inputs,
                "outputs": {
                    str(path.relative_to(self.root)): {
                        "size": path.stat().st_size,
                        "sha256": file_sha256(path),
                    }
                    for path in outputs
                },
                "result": result,
                "seconds": round(time.monotonic() - begun, 3),
            },
        )

    def newest_checkpoint(self) -> Path:
        found = sorted(self.checkpoints.glob("step-*.pt"))
        if not found:
            raise InputError(f"{self.checkpoints} holds no checkpoint. Run: cloudjob train {self.root}")
        return found[-1]

    def set_aside(self, path: Path) -> bool:
        """Renames a broken file of this run to `<name>.corrupt`: kept for a look, missing for the stage that makes it.
        False for a file that is not there, or not the run's own."""
        path = Path(path)
        if not path.is_file() or self.root.resolve() not in path.resolve().parents:
            return False
        os.replace(path, f"{path}.corrupt")
        return True

    def sweep(self) -> None:
        """Removes temporary files of processes of this machine that are no more; others may be at work elsewhere."""
        for path in self.root.rglob(f".tmp-*@{HOST}*"):
            try:
                os.kill(int(path.name.split("-")[1]), 0)
            except ProcessLookupError:
                path.unlink(missing_ok=True)
            except PermissionError:  # somebody else's living process
                continue


_NAMES = {
    "config": "config.yaml",
    "scenes": "scenes.jsonl",
    "pairs": "pairs.jsonl",
    "review_page": "review/index.html",
    "review_images": "review/images",
    "decisions": "review/decisions.csv",
    "shard_index": "shards/index.json",
    "checkpoints": "train/checkpoints",
    "metrics": "train/metrics.jsonl",
    "checks": "train/checks.jsonl",
    "validation": "train/validation.jsonl",
    "job_cards": "train/jobs.jsonl",
    "samples": "train/samples",
    "tensorboard": "train/tensorboard",
    "scores": "evaluation/scores.jsonl",
    "evaluation": "evaluation/summary.json",
    "report": "report/index.html",
    "archive": "archive",
    "jobs": "jobs/log.tsv",  # written by slurm/*.sh
}


def changes(old: dict, new: dict, *, values: bool = True, prefix: str = "") -> list[str]:
    """Dotted names of what differs between two nested dictionaries, with `old -> new`."""
    found = []
    for key in sorted({*old, *new}, key=str):
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += changes(a, b, values=values, prefix=f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}" + (f" {a} -> {b}" if values else ""))
    return found
