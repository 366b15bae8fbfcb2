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

    mae, rmse, psnr (dB): over all bands jointly. ssim: see `ssim_map`; pixels within 5 of the image's edge do not count
    (all of them: NaN). sam: spectral angle, mean of the pixels, in degrees. high_pass_ratio: 1 where the texture is
    right, > 1 noise, < 1 blur.
    """
    return scores(pred, truth, {"": pixels})[""]


def scores(pred: NDArray, truth: NDArray, regions: dict[str, NDArray]) -> dict[str, dict[str, float]]:
    """`score` on several kinds of pixels, by name; the maps of the whole image are made once."""
    valid = np.isfinite(pred).all(0) & np.isfinite(truth).all(0)
    inner = np.zeros_like(valid)
    inner[_SSIM_BORDER:-_SSIM_BORDER, _SSIM_BORDER:-_SSIM_BORDER] = True
    similarity, textures = ssim_map(pred, truth), (high_pass(pred), high_pass(truth))
    found = {}
    for name, region in regions.items():
        pixels = region & valid
        error = pred[:, pixels].astype(np.float64) - truth[:, pixels]
        mse = np.square(error).mean() if error.size else np.nan
        ssim = similarity[:, pixels & inner]
        found[name] = {
            "pixels": int(pixels.sum()),
            "mae": float(np.abs(error).mean()) if error.size else np.nan,
            "rmse": float(np.sqrt(mse)),
            "psnr": np.inf if mse == 0 else float(-10 * np.log10(mse)),
            "ssim": float(ssim.mean(dtype=np.float64)) if ssim.size else np.nan,
            "sam": spectral_angle(pred, truth, pixels),
            "high_pass_ratio": _ratio(*(texture[:, pixels] for texture in textures)),
        }
    return found


def ssim_map(pred: NDArray, truth: NDArray) -> NDArray:
    """(bands, H, W) structural similarity (Wang et al. 2004): Gaussian 11 x 11 window of sigma 1.5, K 0.01 and 0.03,
    range 1, population covariance."""
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    pairs = zip(np.nan_to_num(pred), np.nan_to_num(truth), strict=True)
    return np.stack([structural_similarity(a, b, **options)[1] for a, b in pairs])


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
