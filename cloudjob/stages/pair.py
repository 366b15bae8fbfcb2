"""pair: pairs every cloudy product with the nearest clear one of its tile, and writes pairs.jsonl."""

from functools import lru_cache

from cloudjob.config import Config
from cloudjob.errors import ConfigError, RejectedError
from cloudjob.workspace import Item, Summary, Workspace, digest, write_jsonl

STAGE = "pair"


def items(config: Config, workspace: Workspace) -> list[Item]:
    rows = workspace.rows(workspace.scenes, stage="search")
    found = []
    for cloudy in (row for row in rows if "cloudy" in row["roles"]):
        clear = [row["product"] for row in rows if "clear" in row["roles"] and row["tile"] == cloudy["tile"]]
        inputs = {name: workspace.output_digest("preview", name) for name in [cloudy["product"], *clear]}
        found.append(Item(STAGE, cloudy["product"], config.section("pair")["pair"], inputs))
    return found


def run(config: Config, workspace: Workspace) -> Summary:
    from cloudjob.sentinel2 import pairing
    from cloudjob.sentinel2.product import Product

    every = items(config, workspace)
    workspace.require("preview", sorted({name for item in every for name in item.inputs}), reader=STAGE)

    @lru_cache(maxsize=16)  # the clear products of a tile are asked for by each cloudy one
    def preview(name: str) -> pairing.Preview:
        return pairing.preview(Product.open(workspace.safe(name)))

    def make(item: Item):
        clear = [preview(name) for name in item.inputs if name != item.name]
        rows = pairing.candidates(preview(item.name), clear, dict(config.pair))
        rows = [row | {"version": digest(row)} for row in rows]
        if not any(row["accepted"] for row in rows):
            reasons = "; ".join(f"{row['clear']}: {row['reasons'][0]}" for row in rows[:2])
            raise RejectedError(reasons or "no clear product of this tile", rows)
        return [], rows

    summary = workspace.work(STAGE, every, make)
    if summary.failed or any(workspace.why(item) for item in every):
        return summary
    rows = [row for result in workspace.results(every) for row in result or []]
    accepted = sum(row["accepted"] for row in rows)
    write_jsonl(workspace.pairs, rows)
    if not accepted:
        raise ConfigError(
            f"pair: none of {len(rows)} candidates is acceptable; {workspace.pairs} says why for each. "
            "Loosen the rules in the section pair, or search other dates"
        )
    summary.note = f"{accepted} pairs of {len(rows)} candidates accepted"
    return summary
