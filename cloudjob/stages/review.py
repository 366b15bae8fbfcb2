"""review: a page with cloudy, clear and mask of every accepted pair, and the file of a person's decisions."""

import csv
import html
import io

from cloudjob.config import Config
from cloudjob.workspace import Item, Summary, Workspace, write_bytes, write_text

STAGE = "review"
COLUMNS = ("pair", "decision", "reason", "reviewer", "version")


def items(config: Config, workspace: Workspace) -> list[Item]:
    rows = workspace.rows(workspace.pairs, stage="pair")
    settings = config.section("review")["review"]
    return [Item(STAGE, row["pair"], settings, {"pair": row["version"]}) for row in rows if row["accepted"]]


def run(config: Config, workspace: Workspace) -> Summary:
    from cloudjob.sentinel2 import masks, render
    from cloudjob.sentinel2.product import Product, read_overview, read_scl

    every = items(config, workspace)
    rows = workspace.rows(workspace.pairs, stage="pair")
    pairs = {row["pair"]: row for row in rows if row["accepted"]}

    def make(item: Item):
        pair = pairs[item.name]
        cloudy, clear = (Product.open(workspace.safe(pair[role])) for role in ("cloudy", "clear"))
        pictures = [render.true_colour(read_overview(p), gain=config.review.gain) for p in (cloudy, clear)]
        # From 60 m to the 20 m of the mask, then thinned: about 900 pixels a side whatever the scene.
        rows, cols = (-(-side // 2) for side in cloudy.shape)
        thin = -(-max(rows, cols) // 915)
        fine = [p.repeat(3, axis=0).repeat(3, axis=1)[:rows:thin, :cols:thin] for p in pictures]
        mask = masks.classes(read_scl(cloudy))[::thin, ::thin]
        marked = render.outline(fine[0], (mask > 0) & (mask < 255))
        target = workspace.review_images / f"{item.name}.png"
        write_bytes(target, render.encode_png(render.side_by_side([fine[0], marked, fine[1]])))
        return [target], None

    summary = workspace.work(STAGE, every, make)
    decisions = _decisions(workspace, pairs)
    write_text(workspace.decisions, _csv(decisions))
    write_text(workspace.review_page, _page(rows, decisions))
    rejected = sum(row["decision"] == "reject" for row in decisions)
    summary.note = f"{len(decisions) - rejected} accepted, {rejected} rejected; look at {workspace.review_page}"
    return summary


def _decisions(workspace: Workspace, pairs: dict[str, dict]) -> list[dict]:
    """One row a pair: what a person wrote for this very version of it, else the rule's yes."""
    known = {(row["pair"], row["version"]): row for row in workspace.read_decisions()}
    for name, version in known:
        if name in pairs and pairs[name]["version"] != version:
            workspace.say(f"review: the decision on {name} was made for another version of the pair and is not used")
    rule = {"decision": "accept", "reason": "", "reviewer": "rule"}
    return [
        known.get((name, pair["version"]), {"pair": name, **rule, "version": pair["version"]})
        for name, pair in pairs.items()
    ]


def _csv(rows: list[dict]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _page(rows: list[dict], decisions: list[dict]) -> str:
    decided = {row["pair"]: row for row in decisions}
    parts = []
    for row in (row for row in rows if row["accepted"]):
        decision = decided[row["pair"]]
        facts = (
            f"{row['days']:+.1f} days, cloud {row['cloudy_cloud']:.1%}, clear date {row['clear_cloud']:.2%}, "
            f"overlap {row['overlap']:.0%}, sun {row['sun_elevation'][0]:.1f}° and {row['sun_elevation'][1]:.1f}°, "
            f"{'same' if row['same_orbit'] else 'other'} orbit; reference {row['reference'] or 'none'}"
        )
        parts.append(
            f"<section class={decision['decision']}><h2>{row['pair']}: {decision['decision']} "
            f"({html.escape(decision['reviewer'])}) {html.escape(decision['reason'])}</h2>"
            f"<p>{row['cloudy']}<br>{row['clear']}<br>{facts}</p>"
            f"<img loading=lazy src='images/{row['pair']}.png' alt='cloudy, mask outline, clear'></section>"
        )
    reasons = "".join(
        f"<tr><td>{row['cloudy']}<td>{row['clear']}<td>{html.escape('; '.join(row['reasons']))}"
        for row in rows
        if not row["accepted"]
    )
    return (
        "<!doctype html><meta charset=utf-8><title>Review of pairs</title><style>body{font:15px system-ui;margin:2em;"
        "max-width:1200px}img{max-width:100%;image-rendering:pixelated}h2{font-size:1em;color:#060}"
        ".reject h2{color:#a00}td{padding:.2em .8em .2em 0;font-size:.85em}</style>"
        "<h1>Review of pairs</h1><p>Each picture: cloudy date, "
        "the same with the outline of the mask, clear date. To reject a pair, write <code>reject</code> and a reason "
        "into its row of <code>decisions.csv</code>, then run the same command again.</p>"
        f"{''.join(parts)}<h1>Candidates not taken</h1><table>{reasons}</table>"
    )
