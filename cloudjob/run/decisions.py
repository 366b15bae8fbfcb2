"""Which pairs the later stages take: what the rule decided, and what a person decided instead."""

import csv
from pathlib import Path

from cloudjob.errors import ConfigError, InputError
from cloudjob.run.folder import RunFolder

_NEEDED = {"pair", "decision", "version"}  # columns


def shown_pairs(folder: RunFolder) -> list[dict]:
    """The rows of pairs.jsonl that a person sees, one per cloudy product; `number` is their position.

    The number names the shard, and does not change with what a person decides.
    """
    rows = [row for row in folder.rows(folder.pairs, stage="pair") if row["shown"]]
    return [{**row, "number": number} for number, row in enumerate(rows)]


def accepted_pairs(folder: RunFolder) -> list[dict]:
    """The shown pairs that a person accepted, or that the rule accepted and nobody rejected, in their order.

    InputError while nobody has run the stage review.
    """
    rows = shown_pairs(folder)
    if not folder.decisions.exists():
        raise InputError(f"{folder.decisions} is not there yet. Run: cloudjob review {folder.quoted}")
    decided = {(row["pair"], row["version"]): row["decision"] == "accept" for row in read(folder.decisions)}
    return [row for row in rows if decided.get((row["pair"], row["version"]), row["accepted"])]


def read(path: Path) -> list[dict]:
    """The rows of decisions.csv, or of another such file; none while there is no such file.

    A person edits it, so each row is checked: ConfigError with file and line.
    """
    if not path.exists():
        return []
    rows = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not set(reader.fieldnames or ()) >= _NEEDED:
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
