"""Scores as published tables on public data sets are made, to compare with these; our own are in `metrics`."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

SEN12MSCR = (
    "sen12mscr: as UnCRtainTS (Ebel et al. 2023) and DSen2-CR (Meraner et al. 2020) score on SEN12MS-CR. Reflectance "
    "clipped to 0..1 in prediction and truth, no data 0; all pixels of an image, clear ones too; RMSE, MAE, "
    "PSNR = 20 log10(1 / RMSE), spectral angle in degrees, and SSIM (Gaussian 11 x 11, sigma 1.5, zeros beyond the "
    "edge) of each image, then the mean over images. Of four bands, B04, B03, B02 and B08, where the tables have "
    "thirteen: beside a table, score its model on the same four."
)
_C1, _C2 = 0.01**2, 0.03**2
_WINDOW = {"sigma": 1.5, "truncate": 3.5, "mode": "constant"}  # 11 x 11


def sen12mscr(pred: NDArray, truth: NDArray) -> dict[str, float]:
    """The scores of one image, (bands, H, W) reflectance, NaN where there are no data. An image like its truth has a
    PSNR of inf; a black pixel has no spectral angle."""
    a, b = (np.nan_to_num(image.astype(np.float64)).clip(0, 1) for image in (pred, truth))
    rmse = float(np.sqrt(np.square(a - b).mean()))
    with np.errstate(divide="ignore", invalid="ignore"):
        psnr = float(-20 * np.log10(rmse))
        cosine = (a * b).sum(0) / np.sqrt((a * a).sum(0)) / np.sqrt((b * b).sum(0))
    angles = np.degrees(np.arccos(cosine[np.isfinite(cosine)].clip(-1, 1)))
    found = {"rmse": rmse, "mae": float(np.abs(a - b).mean()), "psnr": psnr}
    return found | {"sam": float(angles.mean()) if angles.size else np.nan, "ssim": _ssim(a, b)}


def scores(methods: dict[str, NDArray], truth: NDArray) -> list[dict[str, dict[str, float]]]:
    """For each of N images (N, bands, H, W) method -> `sen12mscr`."""
    return [
        {name: sen12mscr(images[number], true) for name, images in methods.items()} for number, true in enumerate(truth)
    ]


def _ssim(a: NDArray, b: NDArray) -> float:
    """The mean of all bands and pixels, of population moments; what lies beyond the edge is 0."""
    mean_a, mean_b, aa, bb, ab = (gaussian_filter(x, axes=(-2, -1), **_WINDOW) for x in (a, b, a * a, b * b, a * b))
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * (ab - mean_a * mean_b) + _C2) / (aa - mean_a**2 + bb - mean_b**2 + _C2)
    return float((luminance * structure).mean())


def mean(images: Iterable[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Method -> scores of each of these images -> the same of all, means over images; what is not known (NaN, None)
    counts for nothing; the best first."""
    columns: dict[str, dict[str, list]] = {}
    for scores in images:
        for method, values in scores.items():
            for name, value in values.items():
                columns.setdefault(method, {}).setdefault(name, []).append(np.nan if value is None else value)
    found = {method: {name: _mean(values) for name, values in of.items()} for method, of in columns.items()}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]["psnr"]))


def _mean(values: list[float]) -> float:
    known = np.array([value for value in values if np.isfinite(value)])
    return float(known.mean()) if known.size else np.nan


def table(scores: dict[str, dict[str, float]]) -> str:
    """As text."""
    wide = max(map(len, scores)) + 2
    names = {"psnr": ".2f", "ssim": ".4f", "sam": ".2f", "mae": ".4f", "rmse": ".4f"}
    lines = [f"{'protocol sen12mscr':<{wide}}" + "".join(f"{name.upper():>9}" for name in names)]
    for method, values in scores.items():
        cells = ["-" if values[name] is None else format(values[name], form) for name, form in names.items()]
        lines.append(f"{method:<{wide}}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)
