"""The review page: pairs of a run with their pictures and measures, on which a person accepts or rejects them."""

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


def page(
    run: str, candidates: list[dict], made: dict[str, dict | None], decided: dict[str, dict], *, command: str
) -> str:
    """The page of the run with this name, as HTML. `command` feeds its decisions back, as a shell takes it.

    `candidates` are all rows of pairs.jsonl; the shown ones become sections, the others are listed below the pair of
    the same cloudy product. `made` is what the pictures of a pair recorded ({"size", "gain"}; None while there are
    none), `decided` a person's row of decisions.csv; both by the pair's name.
    """
    from cloudjob.pages import look  # jinja2, which those who want RULE alone do not need
    from cloudjob.sentinel2 import render

    others: dict[str, list[dict]] = {}
    for row in candidates:
        if not row["shown"]:
            others.setdefault(row["cloudy"], []).append(_candidate(row))
    data = {
        "run": run,
        "command": command,
        "rule": RULE,
        "columns": COLUMNS,
        "reasons": REASONS,
        "measures": [label for label, _ in MEASURES.values()],
        "outlines": list(render.OUTLINES.values()),
        "difference": {"ends": [render.DARKER, render.SAME, render.BRIGHTER], "range": render.DIFFERENCE},
        "pairs": [
            _shown(row, made.get(row["pair"]))
            | {"decided": decided.get(row["pair"]), "others": others.get(row["cloudy"], [])}
            for row in candidates
            if row["shown"]
        ],
    }
    return look.render("review.html", data=data)


def _candidate(row: dict) -> dict:
    """What the page says of a candidate: `values` are its MEASURES in words."""
    values = [_words(row.get(key), form) for key, (_, form) in MEASURES.items()]
    return {"clear": row["clear"], "reasons": row["reasons"], "values": values}


def _shown(row: dict, made: dict | None) -> dict:
    """What the page says of a pair that is shown, with its pictures."""
    shown = _candidate(row)
    reference = "none"
    if row["reference"]:
        reference = f"{_date(row['reference'])}, {row['reference_days']:+.1f} days"
    more = [["reference", reference]]
    if made:
        light = "not measurable" if made["gain"] is None else f"× {made['gain']:.2f}"
        more.append(["light of the clear date", light])
        if by_hand := made.get("by_hand"):
            shares = ", ".join(f"{role} date {share:.1%}" for role, share in by_hand.items())
            more.append(["mask corrected by hand", shares])
        shown["size"] = made["size"]
        shown["images"] = {kind: f"images/{row['pair']}-{kind}.webp" for kind in PICTURES}
    shown["more"] = more
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
