"""A trained model that restores: triplets for the scores, tiles of a scene for its output."""

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloudjob.diffusion import noise
from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.conditions import Conditions, Guess
from cloudjob.diffusion.processes import Corrective, Regression
from cloudjob.diffusion.recipe import Recipe
from cloudjob.pixels import BANDS, HIDDEN
from cloudjob.restoration.tiles import Tile

_AT_ONCE = 16  # triplets
_ON_GPU = 16  # samples of a scene


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
        self.regresses = isinstance(recipe.process, Corrective)  # before it draws

    @property
    def sampling(self) -> dict:
        """{"sampler", "steps"} that are taken."""
        return self.recipe.sampling(self.sampler, self.steps)

    def member(self, batch: Batch, numbers: list[int], member: int, *, steps: int | None = None) -> NDArray:
        """(N, 4, H, W) float32 reflectance of a batch of triplets: one member, clear pixels as they were observed.

        Noise is keyed by a triplet's number, so a triplet is restored the same in any batch.
        """
        return self._restored(batch, numbers, [member], steps or self.steps)[0]

    def members(self, batch: Batch, numbers: list[int], count: int) -> NDArray:
        """(M, N, 4, H, W) float32 reflectance: the first `count` members of the ensemble."""
        return self._restored(batch, numbers, list(range(count)), self.steps)

    def regression(self, batch: Batch) -> tuple[NDArray, NDArray | None]:
        """(mean, deviation) of the ground of triplets as the regression has them that the members start from, each
        (N, 4, H, W) float32 reflectance; no deviation where it tells none. Only where a restorer `regresses`."""
        means, deviations = [], []
        for first in range(0, len(batch), _AT_ONCE):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
                told = self.recipe.told(self.network, batch[first : first + _AT_ONCE])
            means.append(self.recipe.norm.inverse(told.anchor).cpu())
            if told.unit is not None:
                deviations.append(self.recipe.norm.unscaled(told.unit).cpu())
        return torch.cat(means).numpy(), torch.cat(deviations).numpy() if deviations else None

    def _restored(self, batch: Batch, numbers: list[int], members: list[int], steps: int) -> NDArray:
        """What members have in common is computed once for all of them."""
        parts = []
        for first in range(0, len(numbers), _AT_ONCE):
            here = slice(first, first + _AT_ONCE)
            part = batch[here]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
                told = self.recipe.told(self.network, part)
                parts.append(torch.stack([self._member(told, numbers[here], member, steps) for member in members]))
        hidden = torch.isin(batch.mask, torch.tensor(HIDDEN, device=batch.mask.device, dtype=torch.uint8))
        return torch.where(hidden[:, None], torch.cat(parts, 1), batch.cloudy).cpu().numpy()

    def _member(self, told: Conditions, numbers: list[int], member: int, steps: int) -> Tensor:
        def drawn(step: int) -> Tensor:
            return noise.draws(self.seed, numbers, member=member, step=step, like=told.cloudy)

        return self.recipe.draw(self.network, told, noise=drawn, steps=steps, sampler=self.sampler)

    def quicken(self) -> None:
        """What makes a GPU faster at tiles: channels last, bfloat16 where it has units for it, compiled layers where it
        has a compiler."""
        self.low_precision = torch.cuda.is_bf16_supported()
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch._dynamo.config.suppress_errors = True  # without a compiler: as it is
        self.network.compile(dynamic=False)  # else its kernels depend on what came before

    @property
    def at_once(self) -> int:
        """Samples of up to 256 x 256 pixels that a network takes at a time. A processor does as much with one."""
        return _ON_GPU if self.device.type == "cuda" else 1

    def tiles(self, batch: Batch, places: list[Tile], members: int, *, guess: Guess, group: int) -> Tensor:
        """(N, members, 4, h, w) float32 reflectance of tiles of a scene, given what each is told, and the first
        guess of its ground.

        Noise is keyed by the pixel's row and column in the scene, so overlapping tiles draw the same. The network is
        always given `group` samples, the last one repeated where fewer are left, so that a tile's bits depend on no
        other tile.
        """
        samples = [(number, member) for number in range(len(places)) for member in range(members)]
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
            told = self.recipe.told(self.network, batch, guess=guess)
            parts = [self._drawn(told, places, samples[n : n + group], group) for n in range(0, len(samples), group)]
        return torch.cat(parts).unflatten(0, (len(places), members))

    def _drawn(self, told: Conditions, places: list[Tile], samples: list[tuple[int, int]], group: int) -> Tensor:
        full = samples + samples[-1:] * (group - len(samples))

        def drawn(step: int) -> Tensor:
            return torch.stack([self._noise(places[number], member, step) for number, member in full])

        ground = self.recipe.draw(
            self.network, told.samples([n for n, _ in full]), noise=drawn, steps=self.steps, sampler=self.sampler
        )
        return ground[: len(samples)]

    def _noise(self, tile: Tile, member: int, step: int) -> Tensor:
        rows, cols = range(tile.row, tile.row + tile.height), range(tile.col, tile.col + tile.width)
        return noise.field(
            self.seed, rows=rows, cols=cols, bands=len(BANDS), member=member, step=step, device=self.device
        )
