"""What a run was made of, for the report: its candidates and why most were not taken, and the ground they lie on."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from statistics import fmean

from cloudjob.footprints import unwrapped
from cloudjob.names import ProductName
from cloudjob.pages.figures import Figure, Ring, footprints

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_PRODUCT = re.compile(r"S2[A-D]_MSIL\w+")
NOT_TAKEN = "the pair was not taken"
RESTORED, CLEAR, OTHER = "restored", "clear date of a pair", "not used"


def why_not(candidates: Iterable[dict]) -> list[tuple[str, int]]:
    """Reasons against candidates (rows of pairs.jsonl), without their numbers, and against how many each speaks; the
    most frequent first."""
    reasons = Counter(reason for row in candidates for reason in {_plain(text) for text in row["reasons"]})
    return reasons.most_common()


def _plain(reason: str) -> str:
    """A reason with its limit, and without what it says of this one candidate."""
    measured, comma, limit = _PRODUCT.sub("another clear date", reason).partition(", at ")
    return _NUMBER.sub("…", measured) + comma + limit


def by_person(rows: Iterable[dict], rule: str) -> list[tuple[str, int]]:
    """What persons decided (rows of decisions.csv), with their reasons, and how often."""
    return Counter(
        f"{row['decision']}ed" + (f": {row['reason']}" if row.get("reason") else "")
        for row in rows
        if row.get("reviewer") != rule
    ).most_common()


def places(products: Sequence[dict], restored: Collection[str], clear: Collection[str]) -> tuple[Figure, str] | None:
    """A map of the products (rows of scenes.jsonl) with its description; None without a footprint."""
    areas: dict[str, dict[tuple, Ring]] = {RESTORED: {}, CLEAR: {}, OTHER: {}}
    names: dict[str, list[tuple[float, float]]] = {}
    counts: Counter[str] = Counter()
    for row in products:
        name = row["product"]
        kind = RESTORED if name in restored else CLEAR if name in clear else OTHER
        for ring in _rings(row.get("footprint")):
            areas[kind][tuple((round(lon, 2), round(lat, 2)) for lon, lat in ring)] = ring
            names.setdefault(ProductName.parse(name).tile, []).append(_middle(ring))
        counts[kind] += 1
    if not names:
        return None
    middles = {tile: (fmean(x for x, _ in found), fmean(y for _, y in found)) for tile, found in names.items()}
    shown = {kind: list(rings.values()) for kind, rings in areas.items() if rings}
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return footprints(shown, middles if len(middles) <= 40 else {}), f"{said}; tiles {', '.join(sorted(names))}"


def _rings(footprint: dict | None) -> list[Ring]:
    """The outer rings, whose longitudes go on beyond 180 degrees instead of jumping."""
    if not footprint:
        return []
    polygons = footprint["coordinates"] if footprint["type"] == "MultiPolygon" else [footprint["coordinates"]]
    return [unwrapped(rings[0]) for rings in polygons]


def _middle(ring: Ring) -> tuple[float, float]:
    lon, lat = zip(*ring, strict=True)
    return (min(lon) + max(lon)) / 2, (min(lat) + max(lat)) / 2
