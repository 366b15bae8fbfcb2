"""Which clear product goes with a cloudy one, and which one stands beside them as the reference: measures and rules."""

from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, HIDDEN, NO_DATA, UNKNOWN
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.scene_masks import View, suspect
from cloudjob.sentinel2.product import Product

_COARSE = 6  # pixels of 10 m: the grid on which whole scenes are counted
_WHOLE = 3000  # rows or columns of 10 m from which a scene is thinned
_WITNESSES = 4  # other clear dates that are asked about one


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a pair must be like; fractions are of the masks (not grown), over the overlap. See the configuration."""

    max_days: float = 30
    reference_max_days: float = 60
    other_orbit_days: float = 3
    min_overlap: float = 0.5
    clear_max_cloud: float = 0.05
    clear_max_unknown: float = 0.10
    cloudy_range: tuple[float, float] = (0.01, 0.9)
    max_sun_difference: float = 15
    min_sun_elevation: float = 5
    max_snow_difference: float = 0.4


def open_view(product: Product, settings: masks.Settings) -> View:
    """The view of a product as pairing needs it. Of a whole scene every ninth pixel of the masks: at 60 m, where the
    pictures are, there are 3.3 million left, and fractions stay what they were to 0.001."""
    view = View.open(product, settings)
    return _thinned(view, _COARSE) if min(product.shape) >= _WHOLE else view


def _thinned(view: View, factor: int) -> View:
    step = factor // view.factor
    if step == 1:
        return view
    core, snow = (array[::step, ::step].copy() for array in (view.core, view.snow))
    return replace(view, core=core, snow=snow, factor=factor, scl=None)


def measure(cloudy: View, clear: View, settings: masks.Settings, witnesses: Sequence[View] = ()) -> dict:
    """The measures of a candidate pair, of the same tile and grid; the [2] of a list are the cloudy and the clear date.

    The cloudy date cannot tell what is wrong with the clear one below its own clouds, which is where the clear one is
    needed; `witnesses`, other clear dates, can.

    days          signed, from the cloudy to the clear date
    overlap       pixels with data on both dates, over the smaller of the areas with data; all that follows is of them
    *_cloud       cloud and cirrus of the cloudy date; cloud, cirrus and shadow of the clear one
    *_unknown     what the date's own masks leave open, or what is clear but suspiciously brighter than the other date
                  (the clear one: than most of the dates, the cloudy one and witnesses, that are clear there)
    jointly_clear clear on both dates, and suspicious on neither
    snow          of the pixels that both classifications call clear, and their difference (new snow is suspiciously
                  bright, so suspicion does not count here); None where there are none
    """
    factor = max(view.factor for view in (cloudy, clear, *witnesses))
    cloudy, clear, *witnesses = (_thinned(view, factor) for view in (cloudy, clear, *witnesses))
    valid, other_valid = cloudy.core != NO_DATA, clear.core != NO_DATA
    both = valid & other_valid
    smaller = min(np.count_nonzero(valid), np.count_nonzero(other_valid))
    doubt, other_doubt = suspect(cloudy, clear, settings), _outvoted(clear, [cloudy, *witnesses], settings)
    agreed = (cloudy.core == CLEAR) & (clear.core == CLEAR)
    snow = [_share(view.snow, agreed) for view in (cloudy, clear)]
    suns = [view.product.sun_elevation for view in (cloudy, clear)]
    return {
        "days": round((clear.product.sensing_time - cloudy.product.sensing_time).total_seconds() / 86400, 3),
        "same_orbit": cloudy.product.name.relative_orbit == clear.product.name.relative_orbit,
        "overlap": round(float(np.count_nonzero(both) / smaller), 4) if smaller else 0.0,
        "cloudy_cloud": _share(masks.any_of(cloudy.core, CLOUD, CIRRUS), both) or 0.0,
        "cloudy_unknown": _share((cloudy.core == UNKNOWN) | doubt, both) or 0.0,
        "clear_cloud": _share(masks.any_of(clear.core, *HIDDEN), both) or 0.0,
        "clear_unknown": _share((clear.core == UNKNOWN) | other_doubt, both) or 0.0,
        "jointly_clear": _share(agreed & ~doubt & ~other_doubt, both) or 0.0,
        "sun_elevation": [round(sun, 2) for sun in suns],
        "sun_difference": round(abs(suns[0] - suns[1]), 2),
        "snow": snow,
        "snow_difference": None if None in snow else round(abs(snow[0] - snow[1]), 4),
    }


def _outvoted(view: View, others: list[View], settings: masks.Settings) -> np.ndarray:
    """(h, w) bool: suspiciously brighter than on most of the other dates that are clear there. One of them alone may
    itself be in a shadow that its classification missed, or before a snowfall."""
    asked, votes = np.zeros((2, *view.core.shape), np.uint8)
    for other in others:
        asked += other.core == CLEAR
        votes += suspect(view, other, settings)
    return 2 * votes > asked


def _share(flags: np.ndarray, where: np.ndarray) -> float | None:
    """How much of `where` is flagged; None where there is nothing."""
    total = np.count_nonzero(where)
    return round(float(np.count_nonzero(flags & where) / total), 5) if total else None


def judge(measures: dict, rules: Rules) -> list[str]:
    """Why a candidate is not acceptable, in words; empty if it is."""
    low, high = rules.cloudy_range
    suns = measures["sun_elevation"]
    checks = [
        (
            abs(measures["days"]) > rules.max_days,
            f"{measures['days']:+.1f} days apart, at most {rules.max_days:g}",
        ),
        (
            not low <= measures["cloudy_cloud"] <= high,
            f"cloudy date has {measures['cloudy_cloud']:.3f} cloud, not {low:g}..{high:g}",
        ),
        (
            measures["sun_difference"] > rules.max_sun_difference,
            f"sun {suns[0]:.1f} and {suns[1]:.1f} degrees high, at most {rules.max_sun_difference:g} apart",
        ),
    ]
    return [reason for failed, reason in checks if failed] + _faults(measures, rules)


def _faults(measures: dict, rules: Rules) -> list[str]:
    """What is wrong with the clear date, as a target or as a reference."""
    sun, snow = min(measures["sun_elevation"]), measures["snow"]
    checks = [
        (
            measures["overlap"] < rules.min_overlap,
            f"joint valid area {measures['overlap']:.2f}, at least {rules.min_overlap:g}",
        ),
        (
            measures["clear_cloud"] > rules.clear_max_cloud,
            f"clear date has {measures['clear_cloud']:.3f} cloud, at most {rules.clear_max_cloud:g}",
        ),
        (
            measures["clear_unknown"] > rules.clear_max_unknown,
            f"clear date has {measures['clear_unknown']:.3f} doubtful, at most {rules.clear_max_unknown:g}",
        ),
        (sun < rules.min_sun_elevation, f"sun at {sun:.1f} degrees, at least {rules.min_sun_elevation:g}"),
    ]
    reasons = [reason for failed, reason in checks if failed]
    difference = measures["snow_difference"]
    if difference is not None and difference > rules.max_snow_difference:
        amounts = f"{snow[0]:.2f} and {snow[1]:.2f} of the ground"
        reasons.append(f"snow on {amounts}, at most {rules.max_snow_difference:g} apart")
    return reasons


def candidates(cloudy: View, clear: Iterable[View], rules: Rules, settings: masks.Settings) -> list[dict]:
    """One row for each clear product on the same tile and pixel grid and of another acquisition, nearest first.

    Near is in days, a date of another relative orbit being `other_orbit_days` farther. The nearest acceptable row is
    `accepted`, and the one `shown` to a person; where none is acceptable, that with the fewest reasons is shown.
    Beside it stands its `reference`, the third image of the triplet: the nearest product of yet another acquisition
    that is as clear. Every row that was not taken says why.
    """
    clear = [view for view in clear if _pairs(cloudy.product, view.product)]
    rows = [_row(cloudy, view, _witnesses(view, clear, rules), rules, settings) for view in clear]
    rows.sort(key=lambda row: (_distance(row, rules), row["clear"]))
    good = [row for row in rows if not row["reasons"]]
    shown = min(rows, key=lambda row: len(row["reasons"]), default=None)  # the first of those with the fewest
    for row in good[1:]:
        near, far = (f"{_distance(each, rules):.1f}" for each in (good[0], row))
        orbit = "" if good[0]["same_orbit"] and row["same_orbit"] else f", {rules.other_orbit_days:g} for another orbit"
        row["reasons"] = [f"{good[0]['clear']} is nearer: {near} days against {far}{orbit}"]
    for row in rows:
        reference = _reference(row, rows, rules) if row is shown else None
        row["accepted"] = row is shown and bool(good)
        row["shown"] = row is shown
        row["reference"] = reference and reference["clear"]
        row["reference_days"] = reference and reference["days"]
    return rows


def _pairs(cloudy: Product, clear: Product) -> bool:
    """Same tile and pixels, or they would have to be resampled; another acquisition, or it is the same picture."""
    ground = [(p.name.tile, p.crs, p.transform, p.shape) for p in (cloudy, clear)]
    return ground[0] == ground[1] and _datatake(cloudy.name.name) != _datatake(clear.name.name)


def _datatake(product: str) -> tuple[str, str]:
    """Satellite and start of sensing: the same in copies and halves of one acquisition."""
    satellite, _, sensing = product.split("_")[:3]
    return satellite, sensing


def _witnesses(view: View, clear: list[View], rules: Rules) -> list[View]:
    """The clear dates nearest to this one."""

    def days(other: View) -> float:
        return abs((other.product.sensing_time - view.product.sensing_time).total_seconds()) / 86400

    own = _datatake(view.product.name.name)
    others = [other for other in clear if _datatake(other.product.name.name) != own]
    return sorted((other for other in others if days(other) <= rules.reference_max_days), key=days)[:_WITNESSES]


def _row(cloudy: View, clear: View, witnesses: list[View], rules: Rules, settings: masks.Settings) -> dict:
    names = [view.product.name.name for view in (cloudy, clear)]
    measures = measure(cloudy, clear, settings, witnesses)
    pair = "_".join([cloudy.product.name.tile, *(_datatake(name)[1] for name in names)])
    return {"pair": pair, "cloudy": names[0], "clear": names[1], **measures, "reasons": judge(measures, rules)}


def _distance(row: dict, rules: Rules) -> float:
    return abs(row["days"]) + (0 if row["same_orbit"] else rules.other_orbit_days)


def _reference(target: dict, rows: list[dict], rules: Rules) -> dict | None:
    """The first of the rows, nearest first, that may be the reference beside this target."""
    for row in rows:
        near = abs(row["days"]) <= rules.reference_max_days
        if near and _datatake(row["clear"]) != _datatake(target["clear"]) and not _faults(row, rules):
            return row
    return None
