"""Scores on reflectance, on the pixels of a mask. Data range fixed at 1.0 reflectance; no clipping, no stretching.

Images are (bands, H, W) float32 reflectance, NaN where there are no data; `pixels` is (H, W) bool.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

from cloudjob.scoring.ssim import BORDER, ssim_map

_OCTAVES = 4  # wavelengths of 2-4, 4-8, 8-16 and 16-32 pixels
_HALVING = 0.75  # Gaussian sigma in pixels that lets half the amplitude of a wavelength of 4 pixels through


def score(pred: NDArray, truth: NDArray, pixels: NDArray) -> dict:
    """All scores on the given pixels that have data in both images; NaN where none has. A perfect PSNR is inf.

    mae, rmse, psnr (dB): over all bands jointly. ssim: see `ssim_map`; pixels within 5 of the image's edge do not count
    (all of them: NaN). sam: spectral angle, mean of the pixels, in degrees. high_pass_ratio: 1 where the texture is
    right, > 1 noise, < 1 blur. bands: the same (but for sam) as lists, one number a band. octaves: see
    `octave_amplitudes`, of the prediction and the truth; spectrum: their ratio in dB, 0 where it is right, above noise,
    below blur.
    """
    return scores(pred, truth, {"": pixels})[""]


def scores(
    pred: NDArray,
    truth: NDArray,
    regions: dict[str, NDArray],
    *,
    common: NDArray | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, dict]:
    """`score` on several kinds of pixels, by name; the maps of the whole image are made once, that of SSIM on `device`.

    `common` (H, W) bool: where every method that this one is compared with has data, so that all are scored on the same
    pixels. missing: the pixels of a region where there is a truth and this prediction has no data.
    """
    predicted, known = np.isfinite(pred).all(0), np.isfinite(truth).all(0)
    valid = predicted & known if common is None else predicted & known & common
    inner = np.zeros_like(valid)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    similarity, textures = ssim_map(pred, truth, device), (high_pass(pred), high_pass(truth))
    found = {}
    for name, region in regions.items():
        pixels = region & valid
        error = pred[:, pixels].astype(np.float64) - truth[:, pixels]
        parts = error, similarity[:, pixels & inner], *(texture[:, pixels] for texture in textures)
        octaves = {"pred": octave_amplitudes(pred, pixels), "truth": octave_amplitudes(truth, pixels)}
        found[name] = {
            "pixels": int(pixels.sum()),
            "missing": int((region & known & ~predicted).sum()),
            **_statistics(*parts),
            "sam": spectral_angle(pred, truth, pixels),
            "bands": _by_key([_statistics(*band) for band in zip(*parts, strict=True)]),
            "octaves": octaves,
            "spectrum": _decibels(**octaves),
        }
    return found


def _statistics(error: NDArray, similarity: NDArray, pred_texture: NDArray, true_texture: NDArray) -> dict[str, float]:
    mse = _mean(np.square(error))
    return {
        "mae": _mean(np.abs(error)),
        "rmse": float(np.sqrt(mse)),
        "psnr": float(_psnr(mse)),
        "ssim": _mean(similarity),
        "high_pass_ratio": _ratio(pred_texture, true_texture),
    }


def _mean(values: NDArray) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else np.nan


def _psnr(mse: NDArray | float) -> NDArray:
    with np.errstate(divide="ignore"):  # no error at all: inf
        return -10 * np.log10(mse)


def _by_key(dicts: list[dict]) -> dict[str, list]:
    return {key: [each[key] for each in dicts] for key in dicts[0]}


def high_pass(image: NDArray) -> NDArray:
    """x - (5 x 5 mean of x), band by band."""
    return np.stack([band - uniform_filter(band, 5) for band in np.nan_to_num(image)])


def spectral_angle(pred: NDArray, truth: NDArray, pixels: NDArray) -> float:
    """Mean angle in degrees between the spectra of the pixels (Kruse et al. 1993); black pixels have none."""
    a, b = pred[:, pixels].astype(np.float64), truth[:, pixels].astype(np.float64)
    lengths = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    cosine = (a * b).sum(0)[lengths > 0] / lengths[lengths > 0]
    return float(np.degrees(np.arccos(cosine.clip(-1, 1))).mean()) if cosine.size else np.nan


def _ratio(pred: NDArray, truth: NDArray) -> float:
    spread = truth.std(dtype=np.float64) if truth.size else 0
    return float(pred.std(dtype=np.float64) / spread) if spread else np.nan


def octave_amplitudes(image: NDArray, pixels: NDArray) -> list[float]:
    """RMS over bands and pixels, in reflectance to 1e-6, of what has wavelengths of 2-4, 4-8, 8-16 and 16-32 pixels.

    A Laplacian pyramid (Burt & Adelson 1983): each octave is the image less its Gaussian mean, which at half the
    resolution is the image of the next. Means are weighted by the given pixels (normalised convolution, Knutsson &
    Westin 1993), so that what lies outside, and an offset against it, is no texture. The filters overlap: an octave
    keeps about half the amplitude of its own waves and the rest goes to its neighbours. No pixels: NaN.
    """
    if not pixels.any():
        return [np.nan] * _OCTAVES
    weight = pixels.astype(np.float32)
    total = np.where(pixels, image, 0).astype(np.float32)
    found = []
    for _ in range(_OCTAVES):
        wide, low = (gaussian_filter(x, _HALVING, axes=(-2, -1)) for x in (weight, total))
        known = weight > 1e-6
        power = np.square(total[:, known] / weight[known] - low[:, known] / wide[known]).mean(0, dtype=np.float64)
        found.append(round(float(np.sqrt(np.average(power, weights=weight[known]))), 6) if power.size else np.nan)
        weight, total = wide[::2, ::2], low[:, ::2, ::2]
    return found


def _decibels(pred: list[float], truth: list[float]) -> list[float]:
    """Power of one to the other; NaN where the truth has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = 20 * np.log10(np.divide(pred, truth))
    return np.where(np.equal(truth, 0), np.nan, ratio).tolist()


def pool(rows: list[dict]) -> dict:
    """What `score` says of each of one or more images -> the same of all their pixels together, missing and psnr_mean.

    Squared errors and the powers of the octaves are pooled before they become dB; mae, ssim, sam and high_pass_ratio
    are means over images weighted by pixels. NaN (None, as JSON has it) counts for nothing. psnr_mean: the mean of the
    images' own dB.
    """
    weights = np.array([row["pixels"] for row in rows], np.float64)
    octaves = {
        image: _pooled([row["octaves"][image] for row in rows], weights, power=2).tolist()
        for image in ("pred", "truth")
    }
    own = _psnr(np.square(np.array([row["rmse"] for row in rows], np.float64)))
    return {
        "pixels": int(weights.sum()),
        "missing": sum(row["missing"] for row in rows),
        **_pooled_statistics(rows, weights),
        "sam": float(_pooled([row["sam"] for row in rows], weights)),
        "bands": _pooled_statistics([row["bands"] for row in rows], weights),
        "octaves": octaves,
        "spectrum": _decibels(**octaves),
        "psnr_mean": _mean(own[~np.isnan(own)]),
    }


def _pooled_statistics(rows: list[dict], weights: NDArray) -> dict:
    columns = _by_key(rows)
    rmse = _pooled(columns["rmse"], weights, power=2)
    means = {key: _pooled(columns[key], weights).tolist() for key in ("mae", "ssim", "high_pass_ratio")}
    return means | {"rmse": rmse.tolist(), "psnr": _psnr(np.square(rmse)).tolist()}


def _pooled(values: list, weights: NDArray, power: int = 1) -> NDArray:
    """Power mean over the images (the first axis) that have a value; NaN where none has."""
    array = np.array(values, np.float64)  # None becomes NaN
    weights = np.where(np.isnan(array), 0, np.expand_dims(weights, tuple(range(1, array.ndim))))
    with np.errstate(invalid="ignore"):
        return ((weights * np.nan_to_num(array) ** power).sum(0) / weights.sum(0)) ** (1 / power)


def pooled_psnr(sums: NDArray) -> NDArray:
    """PSNR in dB (...) of sums (..., 2) over pixels: their number, and their squared errors (mean of the bands)."""
    return _psnr(sums[..., 1] / sums[..., 0])


def bootstrap(
    groups: NDArray, statistic: Callable[[NDArray], NDArray], *, seed: int = 0, draws: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of a statistic of sums when whole groups are drawn again (Efron & Tibshirani 1993, ch. 13).

    groups: (G, K), for each group K sums over its pixels; patches of one pair of scenes are alike, so a pair is a
    group. statistic: (draws, K) totals of the groups drawn -> (draws,), such as `pooled_psnr`. Two methods on the same
    draws, the sums of both side by side: lambda s: pooled_psnr(s[:, :2]) - pooled_psnr(s[:, 2:]). One group says
    nothing of how groups vary: (nan, nan).
    """
    groups = np.asarray(groups, np.float64)
    if len(groups) < 2:
        return np.nan, np.nan
    times = np.random.default_rng(seed).multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=draws)
    low, high = np.quantile(statistic(times @ groups), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def seam_index(image: NDArray, pixels: NDArray, rows: Iterable[int], cols: Iterable[int]) -> float:
    """Mean absolute difference of neighbours across the edges of tiles over that elsewhere; 1 where no seam is.

    rows, cols: where a tile begins (the edge is before it; 0 and what lies outside of the image are none). Neighbours
    count when both are of `pixels` and have data. NaN where no edge or nothing else can be measured, or all is flat.
    """
    pixels = pixels & np.isfinite(image).all(0)
    across, elsewhere = [], []
    for view, known, edges in ((image, pixels, rows), (image.swapaxes(1, 2), pixels.T, cols)):
        edge = np.isin(np.arange(1, len(known)), list(edges))[:, None]
        both = known[1:] & known[:-1]
        step = np.abs(np.diff(view, axis=1)).mean(0)
        across.append(step[both & edge])
        elsewhere.append(step[both & ~edge])
    usual = _mean(np.concatenate(elsewhere))
    return _mean(np.concatenate(across)) / usual if usual else np.nan
