"""Which pairs the later stages take: what the rule decided, and what a person decided instead."""

import codecs
import csv
import io
from pathlib import Path

from cloudjob.errors import ConfigError, InputError
from cloudjob.files import troubles
from cloudjob.pages.review import RULE
from cloudjob.run.folder import RunFolder

_NEEDED = {"pair", "decision", "version"}  # columns


def shown_pairs(folder: RunFolder) -> list[dict]:
    """The rows of pairs.jsonl that a person sees, one per cloudy product; `number` is their position, unless they say
    otherwise because one before them is not made yet.

    The number names the shard, and does not change with what a person decides.
    """

    def of() -> list[dict]:
        rows = [row for row in folder.rows(folder.pairs, stage="pair") if row["shown"]]
        return [{"number": number} | row for number, row in enumerate(rows)]

    return folder.once("shown pairs", of)


def accepted_pairs(folder: RunFolder) -> list[dict]:
    """The shown pairs that a person accepted, or that the rule accepted and nobody rejected, in their order.

    InputError while nobody has run the stage review.
    """

    def of() -> list[dict]:
        rows = shown_pairs(folder)
        decided = {(row["pair"], row["version"]): row["decision"] == "accept" for row in _decisions(folder)}
        return [row for row in rows if decided.get((row["pair"], row["version"]), row["accepted"])]

    return folder.once("accepted pairs", of)


def unpaired(folder: RunFolder, *, cloudy_range: tuple[float, float], lowest_sun: float) -> list[dict]:
    """The cloudy products that no clear date suits, as pairs without clear date and reference: those without any
    candidate, and those of shown pairs of which the rule rejected the clear date alone, and no person has said
    anything. See `stand_alone`.

    InputError while nobody has run the stage review.
    """

    def of() -> list[dict]:
        by_rule = ("reject", RULE)  # the stage review notes what the rule said, for a person to change
        told = {
            (row["pair"], row["version"])
            for row in _decisions(folder)
            if (row["decision"], row.get("reviewer")) != by_rule
        }
        rows = [row for row in folder.rows(folder.pairs, stage="pair") if (row["pair"], row["version"]) not in told]
        return stand_alone(rows, cloudy_range=cloudy_range, lowest_sun=lowest_sun)

    return folder.once("unpaired products", of)


def stand_alone(rows: list[dict], *, cloudy_range: tuple[float, float], lowest_sun: float) -> list[dict]:
    """Of the rows of pairs.jsonl those of cloudy products that no clear date suits, without it. The cloudy date keeps
    the rules of its own: its share of cloud, and degrees of the sun."""
    low, high = cloudy_range
    return [
        row | dict.fromkeys(("clear", "reference", "days", "reference_days"))
        for row in rows
        if (row["shown"] or row["clear"] is None)
        and not row["accepted"]
        and low <= row["cloudy_cloud"] <= high
        and _high(row["sun_elevation"][0], lowest_sun)
    ]


def _high(sun: float | None, lowest: float) -> bool:
    return sun is not None and sun >= lowest


def _decisions(folder: RunFolder) -> list[dict]:
    """The rows of decisions.csv; InputError while there is none."""

    def of() -> list[dict]:
        if not folder.decisions.exists():
            raise InputError(f"{folder.decisions} is not there yet. Run: cloudjob review {folder.quoted}")
        return read(folder.decisions)

    return folder.once("decisions", of)


def read(path: Path) -> list[dict]:
    """The rows of decisions.csv, or of another such file; none while there is no such file.

    A person edits it, maybe with a spreadsheet (other separators and encodings, blank rows), so each row is checked:
    ConfigError with file and line.
    """
    if not path.exists():
        return []
    rows = []
    with troubles():
        text = _text(path.read_bytes())
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        if not set(reader.fieldnames) >= _NEEDED:
            raise ConfigError(f"{path}:1  write the columns pair,decision,reason,reviewer,version")
        for row in reader:
            row = {name: value for name, value in row.items() if name}
            if not any((value or "").strip() for value in row.values()):
                continue
            row |= {name: (row[name] or "").strip() for name in _NEEDED}
            if row["decision"] not in ("accept", "reject") or not row["pair"] or not row["version"]:
                raise ConfigError(f"{path}:{reader.line_num}  decision = {row['decision']}: write accept or reject")
            rows.append(row)
    except csv.Error as error:
        raise ConfigError(f"{path}: cannot be read as CSV ({error})") from None
    return rows


def _text(content: bytes) -> str:
    """As spreadsheets save it: UTF-8 or UTF-16 with or without a mark, else the code page of western Windows."""
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
