"""What each restored scene, or pair of triplets, was scored: of ours, of the best that learns nothing, worst first."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A scored scene, or the scored triplets of a pair; PSNR in dB on the pixels to judge by, None where unknown."""

    item: str  # of the stage evaluate
    product: str
    split: str
    truth: str
    number: int  # of triplets, 1 of a scene
    ours: float | None
    fill: float | None  # of the method that is the best that learns nothing over all

    @property
    def gain(self) -> float | None:
        """How many dB ours is above."""
        return None if self.ours is None or self.fill is None else self.ours - self.fill


def cases(rows: Iterable[dict], summary: dict) -> list[Case]:
    """Of scores.jsonl, the worst first, by what ours adds where both are known; those without a score at the end."""
    key = "product" if summary.get("of", "scenes") == "scenes" else "pair"
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    on, fill = summary["headline"], summary["best_fill"]["method"]
    every = [_case(item, own, on, fill) for item, own in found.items()]
    return sorted(every, key=lambda case: (_last(case.gain), _last(case.ours), case.item))


def _last(value: float | None) -> float:
    return math.inf if value is None else value


def _case(item: str, rows: list[dict], on: str, fill: str | None) -> Case:
    own = [row for row in rows if row["on"] == on]
    return Case(
        item,
        rows[0]["product"],
        rows[0]["split"],
        rows[0]["truth"],
        len({row.get("triplet", 0) for row in rows}),
        _pooled([row for row in own if row["method"] == "ours"]),
        _pooled([row for row in own if row["method"] == fill]),
    )


def _pooled(rows: Sequence[dict]) -> float | None:
    """PSNR of the errors of all pixels together; None of none."""
    known = [row for row in rows if row["psnr"] is not None]
    pixels = sum(row["pixels"] for row in known)
    errors = sum(row["pixels"] * 10 ** (-row["psnr"] / 10) for row in known)
    return -10 * math.log10(errors / pixels) if pixels and errors else None


def extremes(every: Sequence[Case]) -> dict[str, Case]:
    """The worst, the median and the best of those that are scored, each once."""
    known = [case for case in every if case.ours is not None]
    places = {"worst": 0, "median": (len(known) - 1) // 2, "best": len(known) - 1}
    found = {name: known[place] for name, place in places.items()} if known else {}
    return {name: case for name, case in found.items() if list(found.values()).index(case) == list(found).index(name)}
