"""review: a page on which a person accepts or rejects pairs, and the file of these decisions."""

import csv
import io
import shlex
import shutil
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from cloudjob.config.models import Config, newer
from cloudjob.errors import ConfigError, InputError, InterruptedJob, ItemError
from cloudjob.files import write_bytes, write_text
from cloudjob.leases import Lease
from cloudjob.pages import review
from cloudjob.patches.splits import FURTHER
from cloudjob.run import decisions, labels, records
from cloudjob.run.folder import RunFolder
from cloudjob.run.products import open_product
from cloudjob.run.records import Item, Made, Summary

STAGE = "review"


def items(config: Config, folder: RunFolder) -> list[Item]:
    """One item per shown pair: its pictures."""
    settings = config.section("review", "masks")
    found = []
    for row in decisions.shown_pairs(folder):
        inputs = {"pair": row["version"]} | labels.digests(folder, (row["cloudy"], row["clear"]))
        found.append(Item(STAGE, row["pair"], settings, inputs, newer=newer("masks")))
    return found


def apply(config: Config, folder: RunFolder, path: Path) -> list[str]:
    """Adds a person's decisions from the CSV file `path` to decisions.csv; returns messages for the user.

    Rows are independent: one for another version of its pair, or for an unknown pair, is refused; the others count.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; the page {folder.review_page} exports one")
    pairs = {row["pair"]: row for row in decisions.shown_pairs(folder)}
    given = decisions.read(path)
    refused = [message for row in given if (message := _refusal(row, pairs))]
    taken = [row for row in given if not _refusal(row, pairs) and _by_person(row, pairs)]
    with _decisions_lease(folder):
        write_text(folder.decisions, _csv([*decisions.read(folder.decisions), *taken]))
    return [*refused, f"review: {len(taken)} decisions taken from {path}, {len(refused)} refused"]


def export_masks(config: Config, folder: RunFolder) -> str:
    """Writes the masks of all dates of the shown pairs, not grown, for a person to correct; returns what to say. One
    that somebody has changed stays as it is."""
    from cloudjob.sentinel2 import masks
    from cloudjob.sentinel2.labels import export
    from cloudjob.sentinel2.scene import open_masks

    settings = masks.Settings(**dict(config.masks))
    written: dict[str, bool] = {}
    with next(folder.wait([folder.lease(STAGE, "masks")])):
        for row in decisions.shown_pairs(folder):
            dates = _dates(row)
            if set(dates.values()) <= written.keys() or (folder.only and row["pair"] not in folder.only):
                continue
            if folder.stop_requested():
                raise InterruptedJob(f"{STAGE}: stopped; run the same command again")
            try:
                records.need(folder, "preview", dates.values())
                products = {role: open_product(folder, name, bands=False) for role, name in dates.items()}
                found = open_masks(products, settings, labels=folder.labels)
            except (InputError, ItemError) as error:
                folder.say(f"review: no masks of {row['pair']}: {error}")
                continue
            for role, name in dates.items():
                if name not in written:
                    written[name] = export(products[role], found[role].core, found[role].factor, folder.labels)
    by_hand = len(written) - sum(written.values())
    return f"review: {sum(written.values())} masks in {folder.labels}, {by_hand} more stay as a person changed them"


def _dates(row: dict) -> dict[str, str]:
    """The products of a pair by role; further references are numbered."""
    further = [each["product"] for key in FURTHER.values() for each in row.get(key, [])]
    further = [name for name in dict.fromkeys(further) if name not in (row["clear"], row["reference"])]
    found = {role: row[role] for role in ("cloudy", "clear", "reference") if row[role]}
    return found | {f"reference{number}": name for number, name in enumerate(further, 2)}


def run(config: Config, folder: RunFolder) -> Summary:
    """Makes the pictures that are missing, then decisions.csv and the page anew."""
    every = items(config, folder)
    summary = records.work(folder, STAGE, every, _pictures(config, folder))
    pairs = {row["pair"]: row for row in decisions.shown_pairs(folder)}
    with _decisions_lease(folder):
        decided = _decided(folder, pairs)
        rows = [decided.get(name) or _rule(pair) for name, pair in pairs.items()]
        write_text(folder.decisions, _csv(rows + _outdated(folder, pairs, decided)))
    made = {name: (records.record(folder, STAGE, name) or {}).get("result") for name in pairs}
    candidates = folder.rows(folder.pairs, stage="pair")
    write_text(
        folder.review_page, review.page(folder.root.resolve().name, candidates, made, decided, command=_apply(folder))
    )
    accepted = sum(row["decision"] == "accept" for row in rows)
    summary.note = (
        f"{accepted} accepted, {len(rows) - accepted} rejected, {len(decided)} of them by a person; "
        f"look at {folder.review_page}"
    )
    return summary


def _apply(folder: RunFolder) -> str:
    """The command that feeds the page's decisions back, from whatever folder it is run in."""
    own = Path(sys.executable).with_name("cloudjob")  # of a .venv that need not be active
    program = str(own) if own.exists() else shutil.which("cloudjob")
    run = shlex.quote(str(folder.root.resolve()))
    call = shlex.quote(program) if program else f"{shlex.quote(sys.executable)} -m cloudjob"
    return f"{call} review {run} --apply ~/Downloads/decisions.csv"


def _decisions_lease(folder: RunFolder) -> Lease:
    """decisions.csv is read and written anew: what another process adds meanwhile would be lost."""
    return next(folder.wait([folder.lease(STAGE, "decisions.csv")]))


def _pictures(config: Config, folder: RunFolder) -> Callable[[Item], Made]:
    """The function that makes the pictures of a pair."""
    from cloudjob.pages import pictures
    from cloudjob.sentinel2 import masks
    from cloudjob.sentinel2.scene_masks import Preview

    pairs = {row["pair"]: row for row in decisions.shown_pairs(folder)}
    settings = masks.Settings(**dict(config.masks))

    @lru_cache(maxsize=2)  # a clear product often serves several pairs, and they follow each other
    def preview(product: str) -> Preview:
        return Preview.open(open_product(folder, product, bands=False), settings, labels=folder.labels)

    def make(item: Item) -> Made:
        products = [pairs[item.name][role] for role in ("cloudy", "clear")]
        records.need(folder, "preview", products)
        cloudy, clear = map(preview, products)
        files, facts = pictures.of_pair(cloudy, clear, settings, gain=config.review.gain)
        paths = [folder.review_images / f"{item.name}-{kind}.webp" for kind in review.PICTURES]
        for kind, path in zip(review.PICTURES, paths, strict=True):
            write_bytes(path, files[kind])
        return paths, facts

    return make


def _rule(pair: dict) -> dict:
    """The automatic decision on a pair, which counts until a person decides."""
    decision, reason = ("accept", "") if pair["accepted"] else ("reject", "; ".join(pair["reasons"]))
    return {
        "pair": pair["pair"],
        "decision": decision,
        "reason": reason,
        "reviewer": review.RULE,
        "version": pair["version"],
    }


def _by_person(row: dict, pairs: dict[str, dict]) -> bool:
    """False for a row that only repeats the rule; somebody may have edited the file and left the rule's name."""
    return row.get("reviewer") != review.RULE or row["decision"] != _rule(pairs[row["pair"]])["decision"]


def _refusal(row: dict, pairs: dict[str, dict]) -> str | None:
    """Why a decision does not count; None if it does."""
    name = row["pair"]
    if name not in pairs:
        return f"review: the decision on {name} is refused: this run shows no such pair"
    if row["version"] != pairs[name]["version"]:
        return (
            f"review: the decision on {name} is refused: it is for another version of the pair "
            f"({row['version'][:12]}, now {pairs[name]['version'][:12]}); look at it again"
        )
    return None


def _decided(folder: RunFolder, pairs: dict[str, dict]) -> dict[str, dict]:
    """Each pair's last decision by a person on its current version."""
    rows = [row for row in decisions.read(folder.decisions) if not _refusal(row, pairs)]
    return {row["pair"]: row for row in rows if _by_person(row, pairs)}


def _outdated(folder: RunFolder, pairs: dict[str, dict], decided: dict[str, dict]) -> list[dict]:
    """A person's rows that do not count today. They are kept, as settings may be changed back; the run reports those
    whose pair has no other decision by a person."""
    rows = [
        row for row in decisions.read(folder.decisions) if row.get("reviewer") != review.RULE and _refusal(row, pairs)
    ]
    for row in rows:
        message = _refusal(row, pairs)
        if message and row["pair"] not in decided:
            folder.say(message)
    return rows


def _csv(rows: list[dict]) -> str:
    """The rows as decisions.csv holds them."""
    out = io.StringIO()
    writer = csv.DictWriter(out, review.COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
