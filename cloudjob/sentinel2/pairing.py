"""Pairs: which clear product goes with a cloudy one, and which other clear ones are references; measures and rules."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from cloudjob.names import ProductName, pair_name
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, HIDDEN, NO_DATA, UNKNOWN
from cloudjob.sentinel2 import drift, masks
from cloudjob.sentinel2.product import Product
from cloudjob.sentinel2.scene_masks import Preview, dark, light, suspect

_COARSE = 6  # pixels of 10 m: the width of a pixel of thinned masks
_LARGE = 3000  # rows and columns of 10 m from which on the masks of a scene are thinned
_LOWEST_SUN = 5.0  # degrees, of a role that is not named where others are
_WITNESSES = 4  # other clear dates that are compared with a clear one


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Limits that a pair must keep; the configuration explains each. Fractions are of the masks (not grown), over the
    overlap."""

    min_days: float = 0
    max_days: float = 30
    reference_max_days: float = 60
    references: int = 3
    other_orbit_days: float = 3
    min_overlap: float = 0.5
    clear_max_cloud: float = 0.05
    clear_max_unknown: float = 0.10
    cloudy_range: tuple[float, float] = (0.01, 0.9)
    max_sun_difference: float = 15
    min_sun_elevation: float | dict[str, float] = 5
    min_light: float = 0.5
    max_snow_difference: float = 0.4
    max_drift: float | None = None

    def lowest_sun(self, role: str) -> float:
        """Degrees that the sun must stand high on the date of a role: cloudy, clear or reference."""
        asked = self.min_sun_elevation
        return asked.get(role, _LOWEST_SUN) if isinstance(asked, dict) else asked


def open_preview(product: Product, settings: masks.Settings, *, labels: Path | None = None) -> Preview:
    """The preview of a product as pairing needs it. The masks of a whole scene are thinned to every ninth pixel: 3.3
    million are left, and fractions stay the same to 0.001."""
    preview = Preview.open(product, settings, labels=labels)
    return _thinned(preview, _COARSE) if min(product.shape) >= _LARGE else preview


def _thinned(preview: Preview, factor: int) -> Preview:
    step = factor // preview.factor
    if step == 1:
        return preview
    core, snow = (array[::step, ::step].copy() for array in (preview.core, preview.snow))
    by_hand = None if preview.by_hand is None else preview.by_hand[::step, ::step].copy()
    return replace(preview, core=core, snow=snow, factor=factor, scl=None, by_hand=by_hand)


def measure(cloudy: Preview, clear: Preview, settings: masks.Settings, witnesses: Sequence[Preview] = ()) -> dict:
    """The measures of a candidate pair of one tile and grid. Lists hold the value of the cloudy and of the clear date.

    Below its own clouds, where the clear date is needed, the cloudy date cannot tell what is wrong with it; the
    `witnesses`, other clear dates, can.

    days          signed, from the cloudy to the clear date
    overlap       pixels with data on both dates, over the smaller of the areas with data; all below is of these pixels
    *_cloud       cloud and cirrus of the cloudy date; cloud, cirrus and shadow of the clear one
    *_unknown     pixels that the date's own masks leave open, or that are clear but suspiciously brighter than on the
                  other date (clear date: than on most of the dates, cloudy date and witnesses, that are clear there),
                  or darker than on most of the others
    light         of each date against the others (see scene_masks.light); None where it cannot be measured
    jointly_clear clear on both dates, and suspicious on neither
    sun_*         degrees; None where the elevation is not known
    snow          share of the pixels that both classifications call clear, and the difference of the dates; None
                  where there are no such pixels. New snow is suspiciously bright, so suspicion does not count here.
    drift*        how far the ground moves between the dates, see `drift.measure`
    """
    factor = max(preview.factor for preview in (cloudy, clear, *witnesses))
    cloudy, clear, *witnesses = (_thinned(preview, factor) for preview in (cloudy, clear, *witnesses))
    valid, other_valid = cloudy.core != NO_DATA, clear.core != NO_DATA
    both = valid & other_valid
    smaller = min(np.count_nonzero(valid), np.count_nonzero(other_valid))
    against, other_against = [clear, *witnesses], [cloudy, *witnesses]
    doubt, other_doubt = suspect(cloudy, clear, settings), _outvoted(clear, other_against, settings)
    if not witnesses:  # the cloudy date may be hazy: alone, it does not tell that the clear one is dark
        other_against = []
    doubt |= dark(cloudy, against, settings) & (cloudy.core == CLEAR)
    other_doubt |= dark(clear, other_against, settings) & (clear.core == CLEAR)
    agreed = (cloudy.core == CLEAR) & (clear.core == CLEAR)
    snow, other_snow = (_share(preview.snow, agreed) for preview in (cloudy, clear))
    suns = [preview.product.sun_elevation for preview in (cloudy, clear)]
    known = [sun for sun in suns if sun is not None]
    return {
        "days": round((clear.product.sensing_time - cloudy.product.sensing_time).total_seconds() / 86400, 3),
        "same_orbit": cloudy.product.name.relative_orbit == clear.product.name.relative_orbit,
        "overlap": round(float(np.count_nonzero(both) / smaller), 4) if smaller else 0.0,
        "cloudy_cloud": _share(masks.any_of(cloudy.core, CLOUD, CIRRUS), both) or 0.0,
        "cloudy_unknown": _share((cloudy.core == UNKNOWN) | doubt, both) or 0.0,
        "clear_cloud": _share(masks.any_of(clear.core, *HIDDEN), both) or 0.0,
        "clear_unknown": _share((clear.core == UNKNOWN) | other_doubt, both) or 0.0,
        "jointly_clear": _share(agreed & ~doubt & ~other_doubt, both) or 0.0,
        "light": [light(cloudy, against), light(clear, other_against)],
        "sun_elevation": [None if sun is None else round(sun, 2) for sun in suns],
        "sun_difference": round(max(known) - min(known), 2) if len(known) == 2 else None,
        "snow": [snow, other_snow],
        "snow_difference": None if snow is None or other_snow is None else round(abs(snow - other_snow), 4),
        **drift.measure(cloudy, clear),
    }


def _outvoted(preview: Preview, others: list[Preview], settings: masks.Settings) -> np.ndarray:
    """(h, w) bool: pixels suspiciously brighter than on most of the other dates that are clear there. A single date may
    lie in a shadow that its classification missed, or before a snowfall."""
    voters, votes = np.zeros((2, *preview.core.shape), np.uint8)
    for other in others:
        voters += other.core == CLEAR
        votes += suspect(preview, other, settings)
    return 2 * votes > voters


def _share(flags: np.ndarray, where: np.ndarray) -> float | None:
    """The share of the pixels `where` that is flagged; None where there are no such pixels."""
    total = np.count_nonzero(where)
    return round(float(np.count_nonzero(flags & where) / total), 5) if total else None


def judge(measures: dict, rules: Rules) -> list[str]:
    """Why a candidate is not acceptable, in words; an empty list if it is. What is not known keeps no limit: each rule
    says what must hold, since every comparison with NaN is false."""
    low, high = rules.cloudy_range
    suns = measures["sun_elevation"]
    checks = [
        (
            abs(measures["days"]) >= rules.min_days,
            f"{measures['days']:+.1f} days apart, at least {rules.min_days:g}",
        ),
        (
            abs(measures["days"]) <= rules.max_days,
            f"{measures['days']:+.1f} days apart, at most {rules.max_days:g}",
        ),
        (
            low <= measures["cloudy_cloud"] <= high,
            f"cloudy date has {measures['cloudy_cloud']:.3f} cloud, not {low:g}..{high:g}",
        ),
    ]
    reasons = _broken(checks)
    difference = measures["sun_difference"]
    if difference is not None and not difference <= rules.max_sun_difference:
        reasons.append(f"sun {suns[0]:.1f} and {suns[1]:.1f} degrees high, at most {rules.max_sun_difference:g} apart")
    return reasons + _faults(measures, rules, "clear")


def _broken(checks: list[tuple[bool, str]]) -> list[str]:
    return [reason for kept, reason in checks if not kept]


def _faults(measures: dict, rules: Rules, role: str) -> list[str]:
    """What is wrong with the clear date in a role: "clear", the target, or "reference"."""
    checks = [
        (
            measures["overlap"] >= rules.min_overlap,
            f"joint valid area {measures['overlap']:.2f}, at least {rules.min_overlap:g}",
        ),
        (
            measures["clear_cloud"] <= rules.clear_max_cloud,
            f"clear date has {measures['clear_cloud']:.3f} cloud, at most {rules.clear_max_cloud:g}",
        ),
        (
            measures["clear_unknown"] <= rules.clear_max_unknown,
            f"clear date has {measures['clear_unknown']:.3f} doubtful, at most {rules.clear_max_unknown:g}",
        ),
    ]
    reasons = _broken(checks) + _low_sun(measures["sun_elevation"], rules, role)
    _, light = measures["light"]
    if light is not None and not light >= rules.min_light:
        reasons.append(f"clear date has {light:.2f} of the light of others, at least {rules.min_light:g}")
    difference, snow = measures["snow_difference"], measures["snow"]
    if difference is not None and not difference <= rules.max_snow_difference:
        amounts = f"{snow[0]:.2f} and {snow[1]:.2f} of the ground"
        reasons.append(f"snow on {amounts}, at most {rules.max_snow_difference:g} apart")
    return reasons + ([] if rules.max_drift is None else _drifting(measures, rules.max_drift))


def _drifting(measures: dict, limit: float) -> list[str]:
    if measures["drift"] is None:
        alike, looked_at = measures["drift_chips"]
        return [f"nobody can tell how far the ground drifts: {alike} of {looked_at} places are alike"]
    most, _ = measures["drift"]
    return [] if most <= limit else [f"the ground drifts by {most:.0f} m, at most {limit:g}"]


def _low_sun(suns: list[float | None], rules: Rules, role: str) -> list[str]:
    if unknown := [name for name, sun in zip(("cloudy", "clear"), suns, strict=True) if sun is None]:
        return [f"nobody knows how high the sun stood on the {' and the '.join(unknown)} date"]
    limits = [rules.lowest_sun(name) for name in ("cloudy", role)]
    low = [(sun, limit) for sun, limit in zip(suns, limits, strict=True) if sun is not None and not sun >= limit]
    return [f"sun at {sun:.1f} degrees, at least {limit:g}" for sun, limit in sorted(low)[:1]]


def candidates(
    cloudy: Preview, clear: Iterable[Preview], rules: Rules, settings: masks.Settings, halves: Container[str] = ()
) -> list[dict]:
    """One row per clear product of another acquisition on the same tile and pixel grid, nearest first; `halves` are the
    granules of several products (`names.pair_name`).

    Distance is in days; a date of another relative orbit counts as `other_orbit_days` farther. The nearest acceptable
    row is `accepted` and `shown` to a person; where none is acceptable, the one with the fewest reasons is shown. The
    shown row names its `reference`, the third image of the triplet: the nearest product of yet another acquisition
    that is as clear. Where the rules ask for more `references`, it lists them too, as products and days: `further`, for
    a truth on the clear date, and `further_of_ground`, for the ground of the cloudy day, where the clear date is the
    first reference. Every row that is not accepted says why.
    """
    clear = [preview for preview in clear if _may_pair(cloudy.product, preview.product)]
    rows = [
        {"pair": pair_name(cloudy.product.name, preview.product.name, halves)}
        | _row(cloudy, preview, _witnesses(preview, clear, rules), rules, settings)
        for preview in clear
    ]
    rows.sort(key=lambda row: (_distance(row, rules), row["clear"]))
    good = [row for row in rows if not row["reasons"]]
    shown = min(rows, key=lambda row: len(row["reasons"]), default=None)  # the first of those with the fewest
    for row in good[1:]:
        near, far = (f"{_distance(each, rules):.1f}" for each in (good[0], row))
        orbit = "" if good[0]["same_orbit"] and row["same_orbit"] else f", {rules.other_orbit_days:g} for another orbit"
        row["reasons"] = [f"{good[0]['clear']} is nearer: {near} days against {far}{orbit}"]
    for row in rows:
        reference = next(iter(_references(rows, {_datatake(row)}, rules)), None) if row is shown else None
        row["accepted"] = row is shown and bool(good)
        row["shown"] = row is shown
        row["reference"] = reference and reference["clear"]
        row["reference_days"] = reference and reference["days"]
        if row is shown and rules.references > 1:
            row["further"] = _further(reference, row["days"], {_datatake(row)}, rows, rules) if reference else []
            row["further_of_ground"] = _further(row, 0, set(), rows, rules)
    return rows


def alone(cloudy: Preview) -> dict:
    """The row of a cloudy product without any candidate: what its own rules ask for, and no clear date."""
    product, valid = cloudy.product, cloudy.core != NO_DATA
    sun = None if product.sun_elevation is None else round(product.sun_elevation, 2)
    return {
        "pair": product.name.name,
        "cloudy": product.name.name,
        "clear": None,
        "days": None,
        "cloudy_cloud": _share(masks.any_of(cloudy.core, CLOUD, CIRRUS), valid) or 0.0,
        "sun_elevation": [sun, None],
        "reasons": ["no clear product of this tile"],
        "accepted": False,
        "shown": False,
        "reference": None,
        "reference_days": None,
    }


def _may_pair(cloudy: Product, clear: Product) -> bool:
    """Whether two products share tile and pixels, so that nothing is resampled, and are of different acquisitions."""
    ground = [(p.name.tile, p.crs, p.transform, p.shape) for p in (cloudy, clear)]
    return ground[0] == ground[1] and cloudy.name.datatake != clear.name.datatake


def _witnesses(preview: Preview, clear: list[Preview], rules: Rules) -> list[Preview]:
    """The clear dates nearest to this one, of other acquisitions."""

    def days(other: Preview) -> float:
        return abs((other.product.sensing_time - preview.product.sensing_time).total_seconds()) / 86400

    own = preview.product.name.datatake
    near = sorted((other for other in clear if days(other) <= rules.reference_max_days), key=days)
    return list(islice((other for other in near if other.product.name.datatake != own), _WITNESSES))


def _row(cloudy: Preview, clear: Preview, witnesses: list[Preview], rules: Rules, settings: masks.Settings) -> dict:
    measures = measure(cloudy, clear, settings, witnesses)
    names = {"cloudy": cloudy.product.name.name, "clear": clear.product.name.name}
    return names | measures | {"reasons": judge(measures, rules)}


def _distance(row: dict, rules: Rules) -> float:
    return abs(row["days"]) + (0 if row["same_orbit"] else rules.other_orbit_days)


def _datatake(row: dict) -> str:
    return ProductName.parse(row["clear"]).datatake


def _references(rows: list[dict], used: set[str], rules: Rules) -> list[dict]:
    """Those of the rows that may be a reference, of acquisitions (datatakes) that are not `used`."""
    near = [row for row in rows if abs(row["days"]) <= rules.reference_max_days and _datatake(row) not in used]
    return [row for row in near if not _faults(row, rules, "reference")]


def _further(first: dict, day: float, used: set[str], rows: list[dict], rules: Rules) -> list[dict]:
    """The references after the `first`, as products and days, for a truth so many days after the cloudy date.

    Of the rows, nearest first, the second reference is the first one on the other side of the truth in time, so that
    the two enclose it; without such a date, and for the third, the nearest is taken. All are of acquisitions
    (datatakes) that are not `used`, and `min_days` from each other, from the truth and from the cloudy date.
    """
    used, days = {*used, _datatake(first)}, [0, day, first["days"]]
    found: list[dict] = []
    for _ in range(rules.references - 1):
        left = _references(rows, used, rules)
        left = [row for row in left if all(abs(row["days"] - other) >= rules.min_days for other in days)]
        across = [row for row in left if (row["days"] - day) * (first["days"] - day) < 0]
        if chosen := next(iter(across if across and not found else left), None):
            found.append({"product": chosen["clear"], "days": chosen["days"]})
            used.add(_datatake(chosen))
            days.append(chosen["days"])
    return found
