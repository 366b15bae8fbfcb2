"""review: a page on which a person accepts or rejects pairs, and the file of these decisions."""

from cloudjob.pixels import CLEAR
import csv
import io
import json
from functools import lru_cache
from importlib import resources
from pathlib import Path

from cloudjob.config.models import Config
from cloudjob.errors import ConfigError
from cloudjob.run import decisions, records
from cloudjob.run.records import Item, Summary
from cloudjob.run.folder import RunFolder
from cloudjob.files import write_bytes, write_text

STAGE = "review"
COLUMNS = ("pair", "decision", "reason", "reviewer", "version")
RULE = "rule"  # stands as the reviewer where nobody has decided
REASONS = (
    "clouds in clear date",
    "hazy",
    "snow changed",
    "ground changed",
    "shifted",
    "wrong mask",
    "data missing",
)  # the page offers them on the keys 1, 2, ...
MEASURES = {  # of a row of pairs.jsonl: how the page calls it, and writes it
    "days": ("days to the clear date", "{:+.1f}"),
    "same_orbit": ("same relative orbit", "{}"),
    "overlap": ("joint valid area", "{:.1%}"),
    "jointly_clear": ("clear on both dates", "{:.1%}"),
    "cloudy_cloud": ("cloudy date: cloud", "{:.1%}"),
    "cloudy_unknown": ("cloudy date: unknown", "{:.1%}"),
    "clear_cloud": ("clear date: cloud", "{:.2%}"),
    "clear_unknown": ("clear date: unknown", "{:.2%}"),
    "sun_elevation": ("sun, cloudy and clear", "{:.1f}°"),
    "sun_difference": ("sun difference", "{:.1f}°"),
    "snow": ("snow, cloudy and clear", "{:.1%}"),
    "snow_difference": ("snow difference", "{:.1%}"),
}
PICTURES = ("cloudy", "cloudy-mask", "clear", "clear-mask", "difference")
SIDE = 915  # pixels of a picture at most: a whole scene at 120 m


def items(config: Config, folder: RunFolder) -> list[Item]:
    settings = config.section("review", "masks")
    return [Item(STAGE, row["pair"], settings, {"pair": row["version"]}) for row in decisions.shown_pairs(folder)]


def apply(config: Config, folder: RunFolder, path: Path) -> list[str]:
    """Takes a person's decisions from the CSV file `path` over into decisions.csv; returns what there is to say.

    Each row stands alone: one that is for another version of its pair, or for none, is refused, and the others count.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; the page {folder.review_page} exports one")
    pairs = {row["pair"]: row for row in decisions.shown_pairs(folder)}
    given = decisions.read(path)
    refused = [message for row in given if (message := _refusal(row, pairs))]
    taken = [row for row in given if not _refusal(row, pairs) and _by_person(row, pairs)]
    write_text(folder.decisions, _csv([*decisions.read(folder.decisions), *taken]))
    return [*refused, f"review: {len(taken)} decisions taken from {path}, {len(refused)} refused"]


def run(config: Config, folder: RunFolder) -> Summary:
    every = items(config, folder)
    summary = records.work(folder, STAGE, every, _pictures(config, folder))
    pairs = {row["pair"]: row for row in decisions.shown_pairs(folder)}
    decided = _decided(folder, pairs)
    decisions = [decided.get(name) or _rule(row) for name, row in pairs.items()]
    write_text(folder.decisions, _csv(decisions + _outdated(folder, pairs, decided)))
    write_text(folder.review_page, _page(folder, every, pairs, decided))
    accepted = sum(row["decision"] == "accept" for row in decisions)
    summary.note = (
        f"{accepted} accepted, {len(decisions) - accepted} rejected, {len(decided)} of them by a person; "
        f"look at {folder.review_page}"
    )
    return summary


# --- pictures --------------------------------------------------------------------------------------------------
def _pictures(config: Config, folder: RunFolder):
    """The function that makes the pictures of a pair."""
    from cloudjob.sentinel2 import masks, radiometry, render, scene_masks
    from cloudjob.sentinel2.product import Product

    pairs = {row["pair"]: row for row in decisions.shown_pairs(folder)}
    settings = masks.Settings(**dict(config.masks))

    @lru_cache(maxsize=2)  # a clear product often serves several pairs, and they follow each other
    def view(product: str) -> scene_masks.View:
        return scene_masks.View.open(Product.open(folder.safe(product)), settings)

    def make(item: Item):
        dates = {role: view(pairs[item.name][role]) for role in ("cloudy", "clear")}
        height, width = dates["cloudy"].product.shape
        pixel = 2 * -(-max(height, width) // (2 * SIDE))  # of a picture, in pixels of 10 m
        shape = (-(-height // pixel), -(-width // pixel))

        def small(array, factor):
            return render.resized(array, shape, covers=(height / factor, width / factor))

        files, light, classes = {}, {}, {}
        for role, other in (("cloudy", "clear"), ("clear", "cloudy")):
            date, found = dates[role], scene_masks.cover(dates[role], dates[other], settings)
            classes[role] = small(found.mask, found.factor)
            light[role] = small(radiometry.reflectance(date.rgb).mean(axis=0), 6)
            picture = small(render.true_colour(date.rgb, gain=config.review.gain), 6)
            files[role] = render.encode_webp(picture, quality=80)
            files[f"{role}-mask"] = render.encode_webp(render.outlines(classes[role]))
        usable = (classes["cloudy"] == CLEAR) & (classes["clear"] == CLEAR)
        gain, picture = render.difference(light["cloudy"], light["clear"], usable)
        files["difference"] = render.encode_webp(picture, quality=80)
        paths = [folder.review_images / f"{item.name}-{kind}.webp" for kind in PICTURES]
        for kind, path in zip(PICTURES, paths, strict=True):
            write_bytes(path, files[kind])
        return paths, {"size": [shape[1], shape[0]], "gain": gain and round(gain, 3)}

    return make


# --- decisions -------------------------------------------------------------------------------------------------
def _rule(pair: dict) -> dict:
    """What counts for a pair while nobody has decided."""
    decision, reason = ("accept", "") if pair["accepted"] else ("reject", "; ".join(pair["reasons"]))
    return {
        "pair": pair["pair"],
        "decision": decision,
        "reason": reason,
        "reviewer": RULE,
        "version": pair["version"],
    }


def _by_person(row: dict, pairs: dict[str, dict]) -> bool:
    """False for a row that only repeats the rule; somebody may have edited the file and left the rule's name."""
    return row.get("reviewer") != RULE or row["decision"] != _rule(pairs[row["pair"]])["decision"]


def _refusal(row: dict, pairs: dict[str, dict]) -> str | None:
    """Why a decision cannot count, if so."""
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
    """What persons decided on these very versions of the pairs: the last word on each."""
    rows = [row for row in decisions.read(folder.decisions) if not _refusal(row, pairs)]
    return {row["pair"]: row for row in rows if _by_person(row, pairs)}


def _outdated(folder: RunFolder, pairs: dict[str, dict], decided: dict[str, dict]) -> list[dict]:
    """A person's rows that do not count today; they are kept, for settings may be set back. Says so where the pair
    waits for another decision."""
    rows = [row for row in decisions.read(folder.decisions) if row.get("reviewer") != RULE and _refusal(row, pairs)]
    for row in rows:
        if row["pair"] not in decided:
            folder.say(_refusal(row, pairs))
    return rows


def _csv(rows: list[dict]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


# --- the page --------------------------------------------------------------------------------------------------
def _page(folder: RunFolder, every: list[Item], pairs: dict[str, dict], decided: dict[str, dict]) -> str:
    from cloudjob.sentinel2 import render

    others: dict[str, list] = {}
    for row in folder.rows(folder.pairs, stage="pair"):
        if not row["shown"]:
            others.setdefault(row["cloudy"], []).append(_candidate(row))
    results = dict(zip(pairs, records.results(folder, every), strict=True))
    data = {
        "run": folder.root.resolve().name,
        "rule": RULE,
        "columns": COLUMNS,
        "reasons": REASONS,
        "outlines": list(render.OUTLINES.values()),
        "difference": {"ends": [render.DARKER, render.SAME, render.BRIGHTER], "range": render.DIFFERENCE},
        "pairs": [
            _shown(row, results[name]) | {"decided": decided.get(name), "others": others.get(row["cloudy"], [])}
            for name, row in pairs.items()
        ],
    }
    template = resources.files("cloudjob.stages").joinpath("review.html").read_text(encoding="utf-8")
    # A "<" could end the script that holds the data.
    return template.replace("__DATA__", json.dumps(data).replace("<", "\\u003c"))


def _candidate(row: dict) -> dict:
    """What the page says of a candidate, in words."""
    measures = [[label, _words(row[key], form)] for key, (label, form) in MEASURES.items()]
    return {"clear": row["clear"], "reasons": row["reasons"], "measures": measures}


def _shown(row: dict, made: dict | None) -> dict:
    """The same of a shown pair, with its pictures; `made` is what its item recorded, None while there are none."""
    shown = _candidate(row)
    reference = "none"
    if row["reference"]:
        reference = f"{_date(row['reference'])}, {row['reference_days']:+.1f} days"
    shown["measures"].append(["reference", reference])
    if made:
        light = "not measurable" if made["gain"] is None else f"× {made['gain']:.2f}"
        shown["measures"].append(["light of the clear date", light])
        shown["size"] = made["size"]
        shown["images"] = {kind: f"images/{row['pair']}-{kind}.webp" for kind in PICTURES}
    dates = {role: _date(row[role]) for role in ("cloudy", "clear")}
    return shown | {key: row[key] for key in ("pair", "version", "accepted", "cloudy")} | {"dates": dates}


def _date(product: str) -> str:
    sensing = product.split("_")[2]
    return f"{sensing[:4]}-{sensing[4:6]}-{sensing[6:8]}"


def _words(value, form: str) -> str:
    if value is None:
        return "not measurable"
    if isinstance(value, list):
        return " and ".join(_words(part, form) for part in value)
    return form.format({True: "yes", False: "no"}[value] if isinstance(value, bool) else value)
