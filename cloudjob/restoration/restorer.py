"""A trained model that restores: triplets for the scores, tiles of a scene for its output."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloudjob.diffusion import noise
from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.processes import Regression
from cloudjob.diffusion.recipe import Recipe
from cloudjob.pixels import BANDS, HIDDEN
from cloudjob.restoration.tiles import Tile

_AT_ONCE = 16  # triplets


class Restorer:
    """Recipe and network with the sampler and steps to restore with. What is random depends on `seed` alone."""

    def __init__(
        self, recipe: Recipe, network: nn.Module, *, seed: int, sampler: str, steps: int, low_precision: bool = False
    ):
        """`low_precision` computes the convolutions in bfloat16."""
        self.recipe, self.network, self.seed, self.sampler, self.steps = recipe, network, seed, sampler, steps
        self.low_precision = low_precision
        self.device = next(network.parameters()).device
        self.single = isinstance(recipe.process, Regression)  # no noise, and so no ensemble

    @property
    def sampling(self) -> dict:
        """{"sampler", "steps"} that are taken."""
        return self.recipe.sampling(self.sampler, self.steps)

    def member(self, batch: Batch, numbers: list[int], member: int, *, steps: int | None = None) -> NDArray:
        """(N, 4, H, W) float32 reflectance of a batch of triplets: one member, clear pixels as they were observed.

        Noise is keyed by a triplet's number, so a triplet is restored the same in any batch.
        """
        parts = []
        for first in range(0, len(numbers), _AT_ONCE):
            here = slice(first, first + _AT_ONCE)
            part = batch[here]

            def drawn(step: int, part: Batch = part, here: slice = here) -> Tensor:
                return noise.draws(self.seed, numbers[here], member=member, step=step, like=part.cloudy)

            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
                parts.append(
                    self.recipe.restore(
                        self.network, part, noise=drawn, steps=steps or self.steps, sampler=self.sampler
                    )
                )
        hidden = torch.isin(batch.mask, torch.tensor(HIDDEN, device=batch.mask.device, dtype=torch.uint8))
        return torch.where(hidden[:, None], torch.cat(parts), batch.cloudy).cpu().numpy()

    def members(self, batch: Batch, numbers: list[int], count: int) -> NDArray:
        """(M, N, 4, H, W) float32 reflectance: the first `count` members of the ensemble."""
        return np.stack([self.member(batch, numbers, number) for number in range(count)])

    def tile(self, batch: Batch, tile: Tile, member: int, *, margin: int) -> NDArray:
        """(1, 4, h, w) float32 reflectance: one member of a tile of a scene, whose surroundings of `margin` pixels the
        batch holds too.

        Noise is keyed by the pixel's row and column in the scene, so overlapping tiles draw the same.
        """
        rows, cols = range(tile.row, tile.row + tile.height), range(tile.col, tile.col + tile.width)

        def drawn(step: int) -> Tensor:
            return noise.field(
                self.seed, rows=rows, cols=cols, bands=len(BANDS), member=member, step=step, device=self.device
            )[None]

        ground = self.recipe.restore(
            self.network, batch, noise=drawn, steps=self.steps, sampler=self.sampler, margin=margin
        )
        return ground.cpu().numpy()
