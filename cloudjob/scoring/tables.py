"""What scores look like: methods and definitions in words, plain numbers, a table."""

import math
from typing import Any

from cloudjob.scoring.strata import HEADLINE, STRATA

NOISE = "sensor_noise"
METHODS = {
    "ours": "restored by this run; of triplets the mean of the ensemble",
    "ours_member": "one member of the ensemble",
    "ours_regression": "the regression that the members start from",
    "ours_without_reference": "the mean of the ensemble, where no other date is shown",
    "ours_member_without_reference": "one member of that",
    "cloudy": "the cloudy input as it is",
    "smooth_fill": "clear pixels kept, the others continued from them smoothly (biharmonic; sees one date)",
    "mean_fill": "clear pixels kept, the others set to the mean of the scene's clear pixels (sees one date)",
    "nearest_clear": "nearest clear date, the whole image as it is",
    "nearest_matched": "nearest clear date, each band radiometrically normalised to the cloudy date",
    "first_guess": "the matched date, shifted to agree with the clear surroundings",
    "poisson": "the matched date, cloned seamlessly into the surroundings (Poisson blending)",
    "similar_pixels": "the matched date, and what pixels near by and of like spectrum add (Gaussian process)",
    "similar_and_seen": "that, with the detail that thin cloud lets through",
    "similar_2_dates": "similar pixels of two clear dates, of one where there is no other",
    "similar_3_dates": "similar pixels of three clear dates, of fewer where there are not so many",
    "similarity": "as similar pixels, at the cost of a scene: first guess by similarity in space and spectrum",
    "similarity_2_dates": "that of two clear dates, of one where there is no other",
    "similarity_3_dates": "that of three clear dates, of fewer where there are not so many",
    NOISE: "the ground with the sensor's noise alone: what a date without clouds would score",
    "other_matched": "the next clear date, each band radiometrically normalised to the cloudy date",
}
DEFINITIONS = (
    "Surface reflectance, data range 1.0, no clipping. "
    + " ".join(f"{name}: {text}." for name, text in STRATA.items())
    + " All methods are scored on the same pixels, where each of them has a prediction; missing: how many one has none "
    "for. Pooled: errors of all pixels of all scenes together, SSIM (Gaussian 11 x 11) the mean over pixels. truth: "
    "the ground of the day, known for synthetic clouds; else the pair's clear date, matched, which the model did not "
    "see."
)


def finite(value: Any) -> Any:
    """As plain JSON: numbers rounded, None for those that are not finite."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    if isinstance(value, int | str) or value is None:
        return value
    return round(float(value), 6) if math.isfinite(value) else None


def best_first(pooled: dict) -> dict:
    """By PSNR on thick cloud, for the table and for the report; by that on all cloud pixels where nothing is thick."""
    return dict(sorted(pooled.items(), key=lambda pair: -(_psnr(pair[1], headline(pooled)) or 0)))


def headline(pooled: dict) -> str:
    """The stratum to judge by."""
    judged = [pooled["ours"]] if "ours" in pooled else pooled.values()
    return HEADLINE if any(_psnr(scores, HEADLINE) is not None for scores in judged) else "cloud"


def _psnr(scores: dict, on: str) -> float | None:
    return scores.get(on, {}).get("psnr")


def judged(pooled: dict, differences: dict[str, dict]) -> dict[str, Any]:
    """{"headline", "best_fill", "verdict"}: the stratum to judge by; the best method that learns nothing there, and how
    many dB it lies above ours, as `differences` of the same scenes or triplets say; the same in a sentence."""
    on = headline(pooled)
    fills = {name: psnr for name in pooled if name in _FILLS and (psnr := _psnr(pooled[name], on)) is not None}
    gains = {name: found["psnr"] for name, found in differences.get(on, {}).items() if name in fills}
    gains = {name: gain for name, gain in gains.items() if gain is not None}
    where = "under thick cloud" if on == HEADLINE else "on cloud pixels"
    if not fills:
        best, above, said = None, None, "nothing to compare with: no truth is known"
    elif not gains:
        best, above = max(fills, key=lambda name: fills[name]), None
        said = f"{where} {best} is the best that learns nothing, at {fills[best]:.2f} dB; no model is scored"
    else:
        best = min(gains, key=lambda name: gains[name])
        above = round(-gains[best], 6) + 0.0  # no -0
        said = f"{where} ours is {-above:.2f} dB above {best}, the best that learns nothing"
        if above >= 0:
            said = f"{where} {best}, which learns nothing, is {above:.2f} dB above ours"
    return {"headline": on, "best_fill": {"method": best, "above_ours": above}, "verdict": said}


_FILLS = [name for name in METHODS if not name.startswith("ours") and name != NOISE]


def table(pooled: dict, split: str) -> str:
    """The scores as text: PSNR in dB by stratum; SSIM and MAE of the stratum to judge by."""
    on = headline(pooled)
    wide = max(map(len, (*pooled, "split: train"))) + 2
    names = [*STRATA, f"SSIM, {on}", f"MAE, {on}"]
    lines = [
        f"{'split: ' + split:<{wide}}PSNR dB on pixels of",
        " " * wide + "".join(f"{name:>{_width(name)}}" for name in names),
    ]
    for method, scores in pooled.items():
        values = [(_psnr(scores, each), ".2f") for each in STRATA]
        values += [(scores.get(on, {}).get(measure), ".4f") for measure in ("ssim", "mae")]
        cells = ["-" if value is None else format(value, form) for value, form in values]
        lines.append(
            f"{method:<{wide}}" + "".join(f"{cell:>{_width(name)}}" for name, cell in zip(names, cells, strict=True))
        )
    return "\n".join(lines)


def _width(name: str) -> int:
    return max(8, len(name) + 2)
