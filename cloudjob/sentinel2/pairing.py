"""Which clear product goes with a cloudy one: the measures of a candidate pair, and the rule that judges them."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.product import Product, read_scl


@dataclass(frozen=True)
class Preview:
    """What the preview of a product tells, before any band is paid for."""

    product: str
    tile: str
    grid: tuple  # CRS, transform and shape at 10 m: the same for all products of a tile, or pixels do not meet
    sensing_time: datetime
    relative_orbit: int
    sun_elevation: float  # degrees
    mask: np.ndarray  # (rows, columns) uint8 mask classes at 20 m, not dilated


def preview(product: Product) -> Preview:
    """Reads the scene classification of a product whose bands need not be there."""
    scl = read_scl(product)
    name = product.name
    return Preview(
        name.name,
        name.tile,
        (product.crs, product.transform, product.shape),
        product.sensing_time,
        name.relative_orbit,
        product.sun_elevation,
        masks.classes(scl),
    )


def measure(cloudy: Preview, clear: Preview) -> dict:
    """The measures of a candidate; days are signed, from the cloudy to the clear date."""
    valid_cloudy, valid_clear = cloudy.mask != 255, clear.mask != 255
    smaller = min(valid_cloudy.sum(), valid_clear.sum())
    both = valid_cloudy & valid_clear
    return {
        "days": round((clear.sensing_time - cloudy.sensing_time).total_seconds() / 86400, 3),
        "same_orbit": cloudy.relative_orbit == clear.relative_orbit,
        "overlap": round(float(both.sum() / smaller), 4) if smaller else 0.0,
        "cloudy_cloud": _share(np.isin(cloudy.mask, (1, 3)), both),
        "clear_cloud": _share(np.isin(clear.mask, (1, 2, 3)), both),
        "sun_elevation": [round(cloudy.sun_elevation, 2), round(clear.sun_elevation, 2)],
    }


def _share(flags: np.ndarray, where: np.ndarray) -> float:
    total = where.sum()
    return round(float((flags & where).sum() / total), 5) if total else 0.0


def judge(
    measures: dict,
    *,
    max_days: float,
    min_overlap: float,
    clear_max_cloud: float,
    cloudy_range: tuple[float, float],
    max_sun_difference: float,
    min_sun_elevation: float,
) -> list[str]:
    """Why a candidate is not acceptable, in words; empty if it is."""
    suns = measures["sun_elevation"]
    low, high = cloudy_range
    checks = [
        (abs(measures["days"]) > max_days, f"{measures['days']:+.1f} days apart, at most {max_days}"),
        (
            measures["overlap"] < min_overlap,
            f"joint valid area {measures['overlap']:.2f}, at least {min_overlap}",
        ),
        (
            measures["clear_cloud"] > clear_max_cloud,
            f"clear date has {measures['clear_cloud']:.3f} cloud, at most {clear_max_cloud}",
        ),
        (
            not low <= measures["cloudy_cloud"] <= high,
            f"cloudy date has {measures['cloudy_cloud']:.3f} cloud, not {low}..{high}",
        ),
        (
            abs(suns[0] - suns[1]) > max_sun_difference,
            f"sun {suns[0]:.1f} and {suns[1]:.1f} degrees, {max_sun_difference} apart at most",
        ),
        (min(suns) < min_sun_elevation, f"sun at {min(suns):.1f} degrees, at least {min_sun_elevation}"),
    ]
    return [reason for failed, reason in checks if failed]


def candidates(cloudy: Preview, clear: list[Preview], rules: dict) -> list[dict]:
    """One row for each clear product of the same tile and pixel grid, nearest date first.

    The nearest acceptable one is `accepted`; the next acceptable one of another acquisition is its `reference`
    (the third image of the triplet, never the target's own acquisition). Every row says why it was not taken.
    """
    rows = []
    for other in clear:
        if (other.tile, other.grid) != (cloudy.tile, cloudy.grid) or other.product == cloudy.product:
            continue
        measures = measure(cloudy, other)
        rows.append({"clear": other.product, **measures, "reasons": judge(measures, **rules)})
    rows.sort(key=lambda row: (abs(row["days"]), not row["same_orbit"], row["clear"]))
    good = [row for row in rows if not row["reasons"]]
    others = [row for row in good[1:] if row["days"] != good[0]["days"]]
    for row in rows:
        chosen = bool(good) and row is good[0]
        row["accepted"] = chosen
        row["reference"] = others[0]["clear"] if chosen and others else None
        row["reference_days"] = others[0]["days"] if chosen and others else None
        if row in good[1:]:
            row["reasons"] = [f"{good[0]['clear']} is nearer"]
        row["pair"] = "_".join([cloudy.tile, *(name.split("_")[2] for name in (cloudy.product, row["clear"]))])
        row["cloudy"] = cloudy.product
    return rows
