"""Scores on reflectance, on the pixels of a mask. Data range fixed at 1.0 reflectance; no clipping, no stretching.

Images are (bands, H, W) float32 reflectance, NaN where there are no data; `pixels` is (H, W) bool.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from skimage.metrics import structural_similarity

_SSIM_BORDER = 5  # half of the 11 x 11 window: pixels nearer to the edge have no whole window


def score(pred: NDArray, truth: NDArray, pixels: NDArray) -> dict[str, float]:
    """All scores on the given pixels that have data in both images; NaN where none has. A perfect PSNR is inf.

    mae, rmse, psnr (dB): over all bands jointly. ssim: Wang et al. 2004, see `ssim_map`. sam: spectral angle, mean of
    the pixels, in degrees. high_pass_ratio: 1 where the texture is right, > 1 noise, < 1 blur.
    """
    pixels = pixels & np.isfinite(pred).all(0) & np.isfinite(truth).all(0)
    error = pred[:, pixels].astype(np.float64) - truth[:, pixels]
    if not error.size:
        names = ("mae", "rmse", "psnr", "ssim", "sam", "high_pass_ratio")
        return {"pixels": 0} | dict.fromkeys(names, np.nan)
    mse = np.square(error).mean()
    return {
        "pixels": int(pixels.sum()),
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt(mse)),
        "psnr": float(-10 * np.log10(mse)) if mse else np.inf,
        "ssim": ssim(pred, truth, pixels),
        "sam": spectral_angle(pred, truth, pixels),
        "high_pass_ratio": high_pass_ratio(pred, truth, pixels),
    }


def ssim(pred: NDArray, truth: NDArray, pixels: NDArray) -> float:
    """Mean over pixels and bands of the structural similarity map: Gaussian 11 x 11 window of sigma 1.5, K 0.01 and
    0.03, range 1, population covariance. Pixels within 5 of the image's edge do not count (all of them: NaN)."""
    inner = np.zeros_like(pixels)
    inner[_SSIM_BORDER:-_SSIM_BORDER, _SSIM_BORDER:-_SSIM_BORDER] = True
    inner &= pixels
    if not inner.any():
        return np.nan
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    maps = (structural_similarity(*map(np.nan_to_num, bands), **options)[1] for bands in zip(pred, truth, strict=True))
    return float(np.mean([values[inner].mean(dtype=np.float64) for values in maps]))


def spectral_angle(pred: NDArray, truth: NDArray, pixels: NDArray) -> float:
    """Mean angle in degrees between the spectra of the pixels (Kruse et al. 1993); black pixels have none."""
    a, b = pred[:, pixels].astype(np.float64), truth[:, pixels].astype(np.float64)
    lengths = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    cosine = (a * b).sum(0)[lengths > 0] / lengths[lengths > 0]
    return float(np.degrees(np.arccos(cosine.clip(-1, 1))).mean()) if cosine.size else np.nan


def high_pass_ratio(pred: NDArray, truth: NDArray, pixels: NDArray) -> float:
    """Standard deviation of x - (5 x 5 mean of x) in `pred` over that in `truth`, all bands together."""
    spread = [
        np.std([(x - uniform_filter(x, 5))[pixels] for x in np.nan_to_num(image)], dtype=np.float64)
        for image in (pred, truth)
    ]
    return float(spread[0] / spread[1]) if spread[1] else np.nan
