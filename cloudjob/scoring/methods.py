"""Restores triplets in all the ways that are compared, and scores each against what is known of the ground."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloudjob.scoring import baselines, ensembles, metrics
from cloudjob.diffusion import noise
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW
from cloudjob.diffusion.processes import Regression
from cloudjob.diffusion.recipe import Recipe

_BATCH = 16
HIDDEN = (CLOUD, SHADOW, CIRRUS)


def regions(mask: NDArray) -> dict[str, NDArray]:
    """Name -> pixels (H, W) of a mask (H, W) of classes: what scores are given on."""
    named = {"cloud": np.isin(mask, HIDDEN), "clear": mask == CLEAR, "all": mask != NO_DATA}
    return named | {"thick cloud": mask == CLOUD, "shadow": mask == SHADOW, "cirrus": mask == CIRRUS}


class Restorer:
    """A trained model on triplets: batches of cloudy, mask and what else Conditions.of takes, (N, ...) each.

    Noise is keyed by (seed, number of the triplet), so a triplet is restored the same in any batch.
    """

    def __init__(
        self, recipe: Recipe, network: nn.Module, *, seed: int, sampler: str, steps: int, low_precision: bool = False
    ):
        self.recipe, self.network, self.seed, self.sampler, self.steps = recipe, network, seed, sampler, steps
        self.low_precision = low_precision  # the convolutions in bfloat16
        self.device = next(network.parameters()).device
        self.single = isinstance(recipe.process, Regression)  # no noise, and so no ensemble

    def member(self, batch: dict[str, Tensor], indices: list[int], number: int, *, steps: int | None = None) -> NDArray:
        """(N, 4, H, W) reflectance: one member of the ensemble, clear pixels as they were observed."""
        parts = []
        for first in range(0, len(indices), _BATCH):
            part = {name: value[first : first + _BATCH] for name, value in batch.items()}
            numbers = indices[first : first + _BATCH]

            def drawn(step: int, part=part, numbers=numbers) -> Tensor:
                return noise.draws(self.seed, numbers, member=number, step=step, like=part["cloudy"])

            taken = {"steps": steps or self.steps, "sampler": self.sampler}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
                parts.append(self.recipe.restore(self.network, part, noise=drawn, **taken))
        hidden = torch.isin(batch["mask"], torch.tensor(HIDDEN, device=batch["mask"].device, dtype=torch.uint8))
        return torch.where(hidden[:, None], torch.cat(parts), batch["cloudy"]).cpu().numpy()

    def members(self, batch: dict[str, Tensor], indices: list[int], count: int) -> NDArray:
        """(M, N, 4, H, W)"""
        return np.stack([self.member(batch, indices, number) for number in range(count)])

    def calibrate(self, batch: dict[str, Tensor], count: int) -> dict:
        """{"factors": one a band on the members' deviation that makes their 90 % interval right on these triplets,
        which have `clear` too (see ensembles.temperature); "sampler", "steps": what they hold for}."""
        truth, mask = batch["clear"].cpu().numpy(), batch["mask"].cpu().numpy()
        indices = list(range(len(mask)))
        drawn = self.members(batch, indices, count)
        factors = ensembles.temperature((drawn[:, i], truth[i], np.isin(mask[i], HIDDEN)) for i in indices)
        return self.recipe.taken(self.sampler, self.steps) | {"factors": factors}


def ways(
    restorer: Restorer, batch: dict[str, Tensor], indices: list[int], *, members: int, more_steps: list[int]
) -> tuple[dict[str, NDArray], NDArray | None]:
    """(method -> restored (N, 4, H, W), members (M, N, 4, H, W) or None where there is one alone)."""
    every = restorer.members(batch, indices, members)
    found = {"ours": every.mean(0)}
    if members > 1:
        found["ours_member"] = every[0]
    if "reference" in batch:
        batch_without = {name: value for name, value in batch.items() if not name.startswith("reference")}
        without = restorer.members(batch_without, indices, members)
        found["ours_without_reference"] = without.mean(0)
        if members > 1:
            found["ours_member_without_reference"] = without[0]
    for steps in more_steps:
        found[f"ours_{steps}_step{'s' if steps > 1 else ''}"] = restorer.member(batch, indices, 0, steps=steps)
    return found, every if members > 1 else None


def one_date(cloudy: NDArray, mask: NDArray) -> dict[str, NDArray]:
    """What the cloudy date (N, 4, H, W) alone gives without learning."""
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
