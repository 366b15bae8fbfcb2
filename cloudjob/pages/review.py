"""The review page: pairs of a run with their pictures and measures, on which a person accepts or rejects them."""

import json
from importlib import resources
from typing import Any

from cloudjob.names import ProductName

COLUMNS = ("pair", "decision", "reason", "reviewer", "version")  # of decisions.csv, which the page exports
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
    "light": ("light, cloudy and clear", "{:.2f}"),
    "sun_elevation": ("sun, cloudy and clear", "{:.1f}°"),
    "sun_difference": ("sun difference", "{:.1f}°"),
    "snow": ("snow, cloudy and clear", "{:.1%}"),
    "snow_difference": ("snow difference", "{:.1%}"),
    "drift": ("drift of the ground, most and spread", "{:.0f} m"),
    "drift_chips": ("places alike, of those looked at", "{}"),
}
PICTURES = ("cloudy", "cloudy-mask", "clear", "clear-mask", "difference")  # of a pair, made by `pages.pictures`


def page(run: str, candidates: list[dict], made: dict[str, dict | None], decided: dict[str, dict]) -> str:
    """The page of the run with this name, as HTML.

    `candidates` are all rows of pairs.jsonl; the shown ones become sections, the others are listed below the pair of
    the same cloudy product. `made` is what the pictures of a pair recorded ({"size", "gain"}; None while there are
    none), `decided` a person's row of decisions.csv; both by the pair's name.
    """
    from cloudjob.sentinel2 import render

    others: dict[str, list[dict]] = {}
    for row in candidates:
        if not row["shown"]:
            others.setdefault(row["cloudy"], []).append(_candidate(row))
    data = {
        "run": run,
        "rule": RULE,
        "columns": COLUMNS,
        "reasons": REASONS,
        "outlines": list(render.OUTLINES.values()),
        "difference": {"ends": [render.DARKER, render.SAME, render.BRIGHTER], "range": render.DIFFERENCE},
        "pairs": [
            _shown(row, made.get(row["pair"]))
            | {"decided": decided.get(row["pair"]), "others": others.get(row["cloudy"], [])}
            for row in candidates
            if row["shown"]
        ],
    }
    template = resources.files("cloudjob.pages").joinpath("review.html").read_text(encoding="utf-8")
    # A "<" could end the script that holds the data.
    return template.replace("__DATA__", json.dumps(data).replace("<", "\\u003c"))


def _candidate(row: dict) -> dict:
    """What the page says of a candidate, in words."""
    measures = [[label, _words(row.get(key), form)] for key, (label, form) in MEASURES.items()]
    return {"clear": row["clear"], "reasons": row["reasons"], "measures": measures}


def _shown(row: dict, made: dict | None) -> dict:
    """What the page says of a pair that is shown, with its pictures."""
    shown = _candidate(row)
    reference = "none"
    if row["reference"]:
        reference = f"{_date(row['reference'])}, {row['reference_days']:+.1f} days"
    shown["measures"].append(["reference", reference])
    if made:
        light = "not measurable" if made["gain"] is None else f"× {made['gain']:.2f}"
        shown["measures"].append(["light of the clear date", light])
        if by_hand := made.get("by_hand"):
            shares = ", ".join(f"{role} date {share:.1%}" for role, share in by_hand.items())
            shown["measures"].append(["mask corrected by hand", shares])
        shown["size"] = made["size"]
        shown["images"] = {kind: f"images/{row['pair']}-{kind}.webp" for kind in PICTURES}
    dates = {role: _date(row[role]) for role in ("cloudy", "clear")}
    return shown | {key: row[key] for key in ("pair", "version", "accepted", "cloudy")} | {"dates": dates}


def _date(product: str) -> str:
    return f"{ProductName.parse(product).sensing:%Y-%m-%d}"


def _words(value: Any, form: str) -> str:
    if value is None:
        return "not measurable"
    if isinstance(value, list):
        return " and ".join(_words(part, form) for part in value)
    return form.format({True: "yes", False: "no"}[value] if isinstance(value, bool) else value)
