"""What scores look like: methods and definitions in words, plain numbers, a table."""

import math
from typing import Any

PIXELS = ("cloud", "clear", "all")
METHODS = {
    "ours": "restored by this run; of triplets the mean of the ensemble",
    "ours_member": "one member of the ensemble",
    "ours_without_reference": "the mean of the ensemble, where no other date is shown",
    "ours_member_without_reference": "one member of that",
    "cloudy": "the cloudy input as it is",
    "smooth_fill": "clear pixels kept, the others continued from them smoothly (biharmonic; sees one date)",
    "mean_fill": "clear pixels kept, the others set to the mean of the scene's clear pixels (sees one date)",
    "nearest_clear": "nearest clear date, the whole image as it is",
    "nearest_matched": "nearest clear date, each band radiometrically normalised to the cloudy date",
    "other_matched": "the next clear date, each band radiometrically normalised to the cloudy date",
}
DEFINITIONS = (
    "Surface reflectance, data range 1.0, no clipping. cloud: cloud, shadow and cirrus of the dilated mask; "
    "clear: what that mask calls clear; all: all pixels with data, those of unknown state too. Pooled: errors of all "
    "pixels of all scenes together, SSIM (Gaussian 11 x 11) the mean over pixels. truth: the ground of the day, known "
    "for synthetic clouds; else the pair's clear date, matched, which the model did not see."
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
    """By PSNR on cloud pixels, for the table and for the report."""
    return dict(sorted(pooled.items(), key=lambda pair: -(pair[1].get("cloud", {}).get("psnr") or 0)))


def table(pooled: dict, split: str) -> str:
    """The scores as text."""
    wide = max(map(len, (*pooled, "split: train"))) + 2
    head = f"{'split: ' + split:<{wide}}" + "".join(f"{on + ' pixels':^27}" for on in PIXELS)
    lines = [head, f"{'':<{wide}}" + f"{'PSNR dB':>9}{'SSIM':>9}{'MAE':>9}" * 3]
    for method, scores in pooled.items():
        cells = ""
        for on in PIXELS:
            score = scores.get(on, {"psnr": None, "ssim": None, "mae": None})
            cells += "".join(
                f"{'-' if score[key] is None else format(score[key], form):>9}"
                for key, form in (("psnr", ".2f"), ("ssim", ".4f"), ("mae", ".4f"))
            )
        lines.append(f"{method:<{wide}}{cells}")
    return "\n".join(lines)
