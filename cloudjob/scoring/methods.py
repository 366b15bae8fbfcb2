"""The methods that are compared, on triplets: what each makes of them, and the scores of each against the ground."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cloudjob.diffusion.batch import Batch
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, HIDDEN, NO_DATA, SHADOW
from cloudjob.restoration.restorer import Restorer
from cloudjob.scoring import baselines, ensembles, metrics


def regions(mask: NDArray) -> dict[str, NDArray]:
    """Name -> pixels (H, W) of a mask (H, W) of classes: what scores are given on."""
    named = {"cloud": np.isin(mask, HIDDEN), "clear": mask == CLEAR, "all": mask != NO_DATA}
    return named | {"thick cloud": mask == CLOUD, "shadow": mask == SHADOW, "cirrus": mask == CIRRUS}


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


def one_date(cloudy: NDArray, mask: NDArray) -> dict[str, NDArray]:
    """What the cloudy date (N, 4, H, W) alone gives without learning, by method."""
    fills: dict[str, Callable] = {"mean_fill": baselines.mean_fill, "smooth_fill": baselines.smooth_fill}
    found = {"cloudy": cloudy}
    for name, fill in fills.items():
        filled = np.stack([fill(image, classes == CLEAR) for image, classes in zip(cloudy, mask, strict=True)])
        found[name] = np.where(np.isin(mask, HIDDEN)[:, None], filled, cloudy)
    return found


def score(methods: dict[str, NDArray], truth: NDArray, mask: NDArray) -> list[list[dict]]:
    """For each of N triplets the rows {"method", "on", scores...}, for every method and region that has pixels."""
    rows = []
    for number, classes in enumerate(mask):
        where = regions(classes)
        here = []
        for method, images in methods.items():
            for on, values in metrics.scores(images[number], truth[number], where).items():
                if values["pixels"]:
                    here.append({"method": method, "on": on} | values)
        rows.append(here)
    return rows


def score_members(members: NDArray, truth: NDArray, where: NDArray, factors: list[float]) -> list[dict]:
    """ensembles.score and the number of pixels of each of N triplets that has any `where` (N, H, W)."""
    found = []
    for i, pixels in enumerate(where):
        if pixels.any():
            score = ensembles.score(members[:, i], truth[i], pixels, temperature=factors)
            found.append({"pixels": int(pixels.sum())} | score)
    return found
