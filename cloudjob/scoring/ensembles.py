"""How far an ensemble is to be believed: scores of its members against the truth, and the correction of its spread.

Members are (M, bands, H, W) float32 reflectance, M >= 2, the truth (bands, H, W); NaN where there are no data.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from cloudjob.diffusion.batch import Batch
from cloudjob.pixels import HIDDEN
from cloudjob.restoration.restorer import Restorer

_BINS = np.geomspace(1e-3, 1e3, 2**14 + 1)  # of |error| / deviation: 0.1 % wide


def score(
    members: NDArray, truth: NDArray, pixels: NDArray, *, temperature: Sequence[float] = (1, 1, 1, 1)
) -> dict[str, float]:
    """Scores on the given pixels (H, W) that have data in all images, over all bands; NaN where none has.

    crps: fair continuous ranked probability score, in reflectance (Ferro 2014, doi:10.1002/qj.2270). spread: root of
    the mean variance of the members; skill: RMSE of their mean; spread_skill: sqrt((M + 1) / M) spread / skill, 1 for
    members as good as the truth (Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1). coverage_50, coverage_90: share of
    the truth within the mean -+ z temperature[band] deviation, z of the central 50 and 90 % of the normal distribution.
    """
    mean_error, deviation, values, target = _moments(members, truth, pixels)
    if not target.size:
        return dict.fromkeys(("crps", "spread", "skill", "spread_skill", "coverage_50", "coverage_90"), np.nan)
    count = len(values)
    # Sum over pairs of |x_i - x_j| = sum of (2 i - M + 1) x_(i), sorted, i from 0.
    ranks = 2 * np.arange(count) - count + 1
    between = np.tensordot(ranks, np.sort(values, 0), 1) / (count * (count - 1))
    spread, skill = (float(np.sqrt(np.square(x).mean())) for x in (deviation, mean_error))
    scaled = deviation * np.array(temperature)[:, None]
    return {
        "crps": float((np.abs(values - target).mean(0) - between).mean()),
        "spread": spread,
        "skill": skill,
        "spread_skill": float(np.sqrt((count + 1) / count) * spread / skill) if skill else np.nan,
        "coverage_50": float((np.abs(mean_error) <= ndtri(0.75) * scaled).mean()),
        "coverage_90": float((np.abs(mean_error) <= ndtri(0.95) * scaled).mean()),
    }


def temperature(samples: Iterable[tuple[NDArray, NDArray, NDArray]]) -> list[float]:
    """One factor a band (4) on the members' deviation that makes the 90 % interval cover 90 % of the given pixels.

    samples: (members, truth, pixels) of held-out images, one after the other in memory. The 90 % quantile of
    |error| / deviation over 1.645, to 0.1 %. Pixels on whose value all members agree have no part in it, as no factor
    helps them; a band without any others keeps 1.
    """
    counts = np.zeros((4, len(_BINS) - 1), np.int64)
    for members, truth, pixels in samples:
        error, deviation, _, _ = _moments(members, truth, pixels)
        for band, size, unit in zip(counts, np.abs(error), deviation, strict=True):
            ratio = size[unit > 0] / unit[unit > 0]
            band += np.histogram(ratio.clip(_BINS[0], _BINS[-1]), _BINS)[0]
    return [
        float(_BINS[1 + np.searchsorted(band.cumsum(), 0.9 * band.sum())] / ndtri(0.95)) if band.any() else 1.0
        for band in counts
    ]


def _moments(members: NDArray, truth: NDArray, pixels: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Error of the mean and deviation (bands, n), members (M, bands, n) and truth (bands, n) of the known pixels."""
    if len(members) < 2:
        raise ValueError(f"{len(members)} member: the spread of an ensemble needs two")
    known = pixels & np.isfinite(members).all((0, 1)) & np.isfinite(truth).all(0)
    values, target = members[:, :, known].astype(np.float64), truth[:, known].astype(np.float64)
    return values.mean(0) - target, values.std(0, ddof=1), values, target


def factors(calibration: dict, sampling: dict) -> list[float] | None:
    """The factors of a checkpoint's calibration, or None where it does not hold for this sampler and these steps."""
    return calibration["factors"] if calibration.items() >= sampling.items() else None


def calibrate(restorer: Restorer, batch: Batch, count: int) -> dict:
    """{"factors", "sampler", "steps"}: the `temperature` of `count` members on a batch of held-out triplets, which have
    a target; and the sampler and steps that it holds for."""
    truth, mask = batch.known_target.cpu().numpy(), batch.mask.cpu().numpy()
    numbers = list(range(len(batch)))
    drawn = restorer.members(batch, numbers, count)
    found = temperature((drawn[:, i], truth[i], np.isin(mask[i], HIDDEN)) for i in numbers)
    return restorer.sampling | {"factors": found}
