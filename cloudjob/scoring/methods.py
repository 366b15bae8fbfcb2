"""The methods that are compared, on triplets: what each makes of them, and the scores of each against the ground."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.similarity import similar
from cloudjob.pixels import CLEAR, HIDDEN
from cloudjob.restoration.restorer import Restorer
from cloudjob.scoring import baselines, ensembles, metrics, strata

_HIDDEN = ("thick", "veil", "shadow", "rim", "cloud")  # the strata in which members differ


def ours(
    restorer: Restorer, batch: Batch, numbers: list[int], *, members: int, more_steps: list[int]
) -> tuple[dict[str, NDArray], NDArray | None]:
    """(method -> restored (N, 4, H, W), members (M, N, 4, H, W) or None where there is one alone) of the triplets.

    The mean of the ensemble and one member, the same without references, and one member by other numbers of steps.
    """
    every = restorer.members(batch, numbers, members)
    found = {"ours": every.mean(0)}
    if members > 1:
        found["ours_member"] = every[0]
    if batch.references.shape[1]:
        without = restorer.members(batch.without_references(), numbers, members)
        found["ours_without_reference"] = without.mean(0)
        if members > 1:
            found["ours_member_without_reference"] = without[0]
    for steps in more_steps:
        found[f"ours_{steps}_step{'s' if steps > 1 else ''}"] = restorer.member(batch, numbers, 0, steps=steps)
    return found, every if members > 1 else None


def regression(
    restorer: Restorer, batch: Batch, numbers: list[int], *, members: int
) -> tuple[dict[str, NDArray], NDArray | None]:
    """As `ours`, of the regression that its members start from, where it has one: its members are drawn from the
    Gaussian that it tells, each pixel by itself. What diffusion adds is told by the scores of both."""
    if not restorer.regresses:
        return {}, None
    mean, deviation = restorer.regression(batch)
    found = {"ours_regression": np.where(np.isin(batch.mask.cpu(), HIDDEN)[:, None], mean, batch.cloudy.cpu())}
    if deviation is None or not members:
        return found, None
    drawn = (
        np.random.default_rng(number).standard_normal((members, *mean.shape[1:]), np.float32) for number in numbers
    )
    return found, mean + deviation * np.stack(list(drawn), 1)


def one_date(cloudy: NDArray, mask: NDArray) -> dict[str, NDArray]:
    """What the cloudy date (N, 4, H, W) alone gives without learning, by method."""
    fills: dict[str, Callable] = {"mean_fill": baselines.mean_fill, "smooth_fill": baselines.smooth_fill}
    found = {"cloudy": cloudy}
    for name, fill in fills.items():
        filled = np.stack([fill(image, classes == CLEAR) for image, classes in zip(cloudy, mask, strict=True)])
        found[name] = np.where(np.isin(mask, HIDDEN)[:, None], filled, cloudy)
    return found


def from_other_dates(cloudy: NDArray, references: NDArray, mask: NDArray, numbers: Sequence[int]) -> dict[str, NDArray]:
    """What one, two, ... of the references (N, R, 4, H, W), normalised to the cloudy date, give without learning."""
    found = from_another_date(cloudy, references[:, 0], mask, numbers)
    found |= from_more_dates(cloudy, references, mask, numbers, found["similar_pixels"])
    return found | by_similarity(cloudy, references, mask)


def from_another_date(cloudy: NDArray, reference: NDArray, mask: NDArray, numbers: Sequence[int]) -> dict[str, NDArray]:
    """What the reference (N, 4, H, W), normalised to the cloudy date, gives without learning, by method.

    The numbers of the triplets are the seeds of what is drawn. A triplet without a reference is NaN where it is hidden.
    """
    found: dict[str, list[NDArray]] = {}
    for image, other, classes, number in zip(cloudy, reference, mask, numbers, strict=True):
        clear = classes == CLEAR
        similar = baselines.similar_pixels(image, other[None], clear, seed=number)
        fills = {
            "first_guess": np.where(np.isfinite(other).all(0), baselines.first_guess(image, other, classes), np.nan),
            "poisson": baselines.poisson_fill(image, other, clear),
            "similar_pixels": similar,
            "similar_and_seen": baselines.see_through(image, similar, clear),
        }
        for name, fill in fills.items():
            found.setdefault(name, []).append(np.where(np.isin(classes, HIDDEN), fill, image).astype(np.float32))
    return {name: np.stack(images) for name, images in found.items()}


def from_more_dates(
    cloudy: NDArray, references: NDArray, mask: NDArray, numbers: Sequence[int], first: NDArray
) -> dict[str, NDArray]:
    """What similar pixels of the first two, three, ... of the references (N, R, 4, H, W) give, as `from_another_date`.

    `first` (N, 4, H, W) is what they give of the first alone. A triplet that lacks a date is left with the others.
    """
    found: dict[str, NDArray] = {}
    present = np.isfinite(references).all(2).any((2, 3))
    for count in range(2, references.shape[1] + 1):
        first = first.copy()
        for i in np.flatnonzero(present[:, count - 1]).tolist():
            dates = references[i, :count][present[i, :count]]
            fill = baselines.similar_pixels(cloudy[i], dates, mask[i] == CLEAR, seed=numbers[i])
            first[i] = np.where(np.isin(mask[i], HIDDEN), fill, cloudy[i])
        found[f"similar_{count}_dates"] = first
    return found


def by_similarity(cloudy: NDArray, references: NDArray, mask: NDArray) -> dict[str, NDArray]:
    """What similarity in space and spectrum to the first one, two, ... of the references (N, R, 4, H, W) gives: the
    process of `similar_pixels` at the cost of a scene. NaN where pixels are hidden of which the first has no data."""
    found = {}
    hidden = np.isin(mask, HIDDEN)[:, None]
    present = np.isfinite(references[:, :1]).all((1, 2))[:, None]
    for count in range(1, references.shape[1] + 1):
        given = (torch.from_numpy(each) for each in (cloudy, references[:, :count], mask == CLEAR))
        guess = np.where(present, similar(*given)[0].numpy(), np.float32(np.nan))
        found["similarity" if count == 1 else f"similarity_{count}_dates"] = np.where(hidden, guess, cloudy)
    return found


def score(
    methods: dict[str, NDArray],
    truth: NDArray,
    mask: NDArray,
    core: NDArray,
    *,
    device: torch.device | str = "cpu",
) -> list[list[dict]]:
    """For each of N triplets the rows {"method", "on", scores...}, for every method and stratum that has pixels.

    All methods are scored on the same pixels: those for which each of them has a prediction. `missing` counts what a
    method lacks. The dearest map of the scores is made on `device`.
    """
    rows = []
    for number, classes in enumerate(mask):
        where = strata.regions(classes, core[number])
        common = np.logical_and.reduce([np.isfinite(images[number]).all(0) for images in methods.values()])
        here = []
        for method, images in methods.items():
            found = metrics.scores(images[number], truth[number], where, common=common, device=device)
            for on, values in found.items():
                if values["pixels"] or values["missing"]:
                    here.append({"method": method, "on": on} | values)
        rows.append(here)
    return rows


def score_members(
    members: NDArray | None, truth: NDArray, mask: NDArray, core: NDArray, factors: list[float]
) -> list[dict[str, dict]] | None:
    """For each of N triplets stratum -> ensembles.score and the number of pixels, where it has any. None of less than
    two members."""
    if members is None or len(members) < 2:
        return None
    found = []
    for i, classes in enumerate(mask):
        known = np.isfinite(truth[i]).all(0)
        where = {name: pixels & known for name, pixels in strata.regions(classes, core[i]).items() if name in _HIDDEN}
        scores = {
            name: {"pixels": int(pixels.sum())} | ensembles.score(members[:, i], truth[i], pixels, temperature=factors)
            for name, pixels in where.items()
            if pixels.any()
        }
        found.append(scores)
    return found
