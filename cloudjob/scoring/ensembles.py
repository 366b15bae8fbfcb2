"""How far an ensemble is to be believed: scores of its members against the truth, and the correction of its spread.

The scores hold for members that are drawn independently. Those of `noise` come in antithetic pairs: every second is.

Members are (M, bands, H, W) float32 reflectance, M >= 2, the truth (bands, H, W); NaN where there are no data.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from cloudjob.diffusion.batch import Batch
from cloudjob.pixels import HIDDEN
from cloudjob.restoration.restorer import Restorer

_LAGS = (1, 2, 4)  # pixels between the two of a pair
_BINS = np.geomspace(1e-3, 1e3, 2**14 + 1)  # of |error| / deviation: 0.1 % wide
_NONE = np.zeros((4, len(_BINS) - 1), np.int64)


def score(
    members: NDArray, truth: NDArray, pixels: NDArray, *, temperature: Sequence[float] = (1, 1, 1, 1)
) -> dict[str, Any]:
    """Scores on the given pixels (H, W) that have data in all images, over all bands; without any, no scores.

    crps: fair continuous ranked probability score, in reflectance (Ferro 2014, doi:10.1002/qj.2270). spread: root of
    the mean variance of the members; skill: RMSE of their mean; spread_skill: sqrt((M + 1) / M) spread / skill, 1 for
    members as good as the truth (Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1). coverage_50, coverage_90: share of
    the truth within the mean -+ z temperature[band] deviation, z of the central 50 and 90 % of the normal distribution.
    ranks: (M + 1) shares of the pixels by how many members lie below the truth, ties halved between the ends; all alike
    for members as good as the truth (Hamill 2001). variogram: score of order 0.5 for texture (Scheuerer & Hamill 2015,
    doi:10.1175/MWR-D-14-00269.1), over pairs of these pixels in a row or a column.
    """
    mean_error, deviation, values, target = _moments(members, truth, pixels)
    if not target.size:
        return {}
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
        "ranks": _ranks(values, target),
        "variogram": _variogram(members, truth, pixels),
    }


def _ranks(values: NDArray, target: NDArray) -> list[float]:
    below, up_to = ((compare(values, target)).sum(0).ravel() for compare in (np.less, np.less_equal))
    counts = np.sum([np.bincount(rank, minlength=len(values) + 1) for rank in (below, up_to)], 0)
    return (counts / (2 * target.size)).tolist()


def _variogram(members: NDArray, truth: NDArray, pixels: NDArray) -> float:
    """Mean over pairs and bands of (|difference of the truth|^0.5 - mean of the members' |difference|^0.5)^2; NaN where
    there is no pair."""
    known = pixels & np.isfinite(members).all((0, 1)) & np.isfinite(truth).all(0)
    total, count = 0.0, 0
    for lag in _LAGS:
        for axis in (-2, -1):
            first, second = (_part(known, part, axis) for part in (slice(lag, None), slice(None, -lag)))
            both = first & second

            def steps(image: NDArray, lag: int = lag, axis: int = axis, both: NDArray = both) -> NDArray:
                after, before = (_part(image, part, axis) for part in (slice(lag, None), slice(None, -lag)))
                return np.sqrt(np.abs(after[..., both] - before[..., both], dtype=np.float64))

            total += float(np.square(steps(truth) - steps(members).mean(0)).sum())
            count += len(truth) * int(np.count_nonzero(both))
    return total / count if count else np.nan


def _part(image: NDArray, part: slice, axis: int) -> NDArray:
    return image[..., part, :] if axis == -2 else image[..., part]


def temperature(samples: Iterable[tuple[NDArray, NDArray, NDArray]]) -> list[float]:
    """One factor a band (4) on the members' deviation that makes the 90 % interval cover 90 % of the given pixels.

    samples: (members, truth, pixels) of held-out images, one after the other in memory. The 90 % quantile of
    |error| / deviation over 1.645, to 0.1 %. Pixels on whose value all members agree have no part in it, as no factor
    helps them; a band without any others keeps 1.
    """
    return factors(sum((_tally(*sample) for sample in samples), start=_NONE))


def _tally(members: NDArray, truth: NDArray, pixels: NDArray) -> NDArray:
    """(4, bins) how often |error| / deviation fell in which bin."""
    error, deviation, _, _ = _moments(members, truth, pixels)
    counts = []
    for size, unit in zip(np.abs(error), deviation, strict=True):
        ratio = size[unit > 0] / unit[unit > 0]
        counts.append(np.histogram(ratio.clip(_BINS[0], _BINS[-1]), _BINS)[0])
    return np.stack(counts)


def factors(counts: NDArray) -> list[float]:
    """What `temperature` finds, of the `tally` of held-out triplets; of several, their sum."""
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


def calibrate(restorer: Restorer, batch: Batch, count: int, *, independent: bool = False) -> dict:
    """{"factors", "sampler", "steps"}: the `temperature` of `count` members on a batch of held-out triplets, which have
    a target; and the sampler and steps that it holds for. Of independent members, that of every second."""
    counts = tally(restorer, batch, list(range(len(batch))), count, independent=independent)
    return restorer.sampling | {"factors": factors(counts)}


def tally(restorer: Restorer, batch: Batch, numbers: list[int], count: int, *, independent: bool = False) -> NDArray:
    """(4, bins) int64 of these triplets of all that `calibrate` takes, by their numbers there: what `factors` are of,
    whatever parts the sum was made of."""
    truth, mask = batch.known_target.cpu().numpy(), batch.mask.cpu().numpy()
    drawn = restorer.members(batch, numbers, count)[:: 2 if independent else 1]
    hidden = np.isin(mask, HIDDEN)
    return np.sum([_tally(drawn[:, i], truth[i], hidden[i]) for i in range(len(numbers))], 0)
