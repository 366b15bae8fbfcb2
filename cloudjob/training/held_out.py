"""What triplets that it never saw say of a network in training: its loss, its scores, its faults, its spread.

The ranks share them. What is found of some triplets does not depend on the ranks, and is put together in one order.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cloudjob.diffusion.average import GAMMAS
from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.recipe import Recipe
from cloudjob.hpc.distributed import ProcessGroup
from cloudjob.hpc.sharing import Sharing
from cloudjob.patches.shards import ShardSet
from cloudjob.restoration.restorer import Restorer
from cloudjob.scoring import diagnosis, ensembles, methods, metrics
from cloudjob.scoring.tables import finite
from cloudjob.sentinel2.radiometry import digital_number
from cloudjob.sentinel2.render import contact_sheet
from cloudjob.training.settings import Settings
from cloudjob.training.step import Objective

T = TypeVar("T")
_SLOW = 50  # sampling steps above which triplets are not restored in passing
_PART = 4  # triplets that a rank takes at a time; always, as last digits may depend on it. Those of the picture, too


class HeldOut:
    """Always the same triplets of the held-out split; of the training split, `instead`, where nothing is held out.

    A look may take minutes. So the networks given, which are copies that nobody else uses, ask before each layer
    whether to stop (`Stopped`, on all ranks). All of the looks are collective calls, and find the same on each.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: Settings,
        shards: ShardSet,
        instead: ShardSet,
        group: ProcessGroup,
        *,
        bfloat16: bool,
        stopped: Callable[[], bool] = lambda: False,
    ):
        self.recipe, self.settings, self.device, self.bfloat16 = recipe, settings, group.device, bfloat16
        self.any = len(shards) > 0
        self.shards = shards if self.any else instead
        self.sharing = Sharing(group, stopped)

    def loss(self, network: nn.Module, number: int) -> float:
        """Mean loss of so many triplets, none of them changed but that some must do without their reference."""
        return self._mean(number, partial(self._loss, self._asking(network), number))

    def best_average(self, averaged: Callable[[str], nn.Module], chosen: str, say: Callable[[str], None]) -> str:
        """The width of the moving average with the lowest held-out loss; `chosen` where there is nothing to choose.

        `averaged` gives the network of a width.
        """
        if self.settings.average != "auto" or not self.any:
            return chosen
        losses = {width: self.loss(averaged(width), 128) for width in GAMMAS}
        best = min(losses, key=lambda width: losses[width])
        found = ", ".join(f"{loss:.4f} at {width}" for width, loss in losses.items())
        say(f"train: held-out loss by width of the moving average: {found}; taken: {best}")
        return best

    def calibrate(self, network: nn.Module) -> dict:
        """What makes the interval of an ensemble right (see `ensembles.calibrate`); {} where there is no ensemble."""
        members = self.settings.members
        if members < 2 or not self.any or self.settings.process == "regression" or self._slow():
            return {}
        restorer = self._restorer(self._asking(network), low_precision=self.bfloat16)

        def tally(numbers: list[int]) -> NDArray:
            return ensembles.tally(restorer, self._batch(64, numbers), numbers, members)

        return restorer.sampling | {"factors": ensembles.factors(np.sum(self._parts(64, tally), 0))}

    def faults(self, network: nn.Module, *, share: float) -> dict:
        """What makes trainings fail, measured after this share of the training: a row of checks.jsonl."""
        batch, network = Batch.of(self.shards.evenly(16)[1], self.device), self._asking(network)
        found = diagnosis.diagnose(self.recipe, network, batch, seed=self.settings.seed, each=self.sharing.each)
        return {**found, "warnings": diagnosis.warnings(found, share=share)}

    def validate(self, network: nn.Module) -> tuple[dict, Callable[[], NDArray] | None]:
        """A row of validation.jsonl, loss and scores as those of `evaluate`; and what draws a picture, 8-bit (H, W, 3).

        The picture shows cloudy, reference, restored and clear of the first triplets, one below the other: on the rank
        that restored them, the first. There are no scores and no picture where restoring is slow.
        """
        network = self._asking(network)
        row = {"triplets": min(16, len(self.shards)), "loss": self._mean(16, partial(self._loss, network, 16))}
        if self._slow():
            return row, None
        restorer = self._restorer(network)
        first: dict[str, NDArray] = {}

        def scored(numbers: list[int]) -> list[list[dict]]:
            arrays = self._arrays(16, numbers)
            batch = Batch.of(arrays, self.device)
            restored = restorer.member(batch, numbers, 0)
            if numbers[0] == 0:
                first.update(arrays, restored=digital_number(restored))
            truth = batch.known_target.cpu().numpy()
            return methods.score({"ours": restored}, truth, arrays["mask"], arrays["mask"], device=self.device)

        scores = [score for part in self._parts(16, scored) for triplet in part for score in triplet]
        for on in ("cloud", "clear", "all"):
            chosen = [score for score in scores if score["on"] == on]
            if chosen:
                pooled = metrics.pool(chosen)
                row |= {f"{on}_{name}": finite(pooled[name]) for name in ("psnr", "ssim", "mae")}
        return row, partial(self._picture, first) if first else None

    def _picture(self, images: dict[str, NDArray]) -> NDArray:
        shown = [images[name] for name in ("cloudy", "reference", "restored", "clear") if name in images]
        return contact_sheet(zip(*shown, strict=True), gain=self.settings.preview_gain)

    def _asking(self, network: nn.Module) -> nn.Module:
        for module in network.modules():
            module.register_forward_pre_hook(lambda *_: self.sharing.ask())
        return network

    def _parts(self, number: int, work: Callable[[list[int]], T]) -> list[T]:
        """What `work` gives for the numbers of each part of up to so many triplets, in their order."""
        numbers = list(range(min(number, len(self.shards))))
        parts = [numbers[first : first + _PART] for first in numbers[::_PART]]
        return self.sharing.each(lambda part: work(parts[part]), len(parts))

    def _mean(self, number: int, work: Callable[[list[int]], float]) -> float:
        """The mean over up to so many triplets of what `work` sums up over those of a part."""
        return sum(self._parts(number, work)) / min(number, len(self.shards))

    def _arrays(self, number: int, numbers: list[int]) -> dict[str, NDArray]:
        return self.shards.evenly(number, slice(numbers[0], numbers[-1] + 1))[1]

    def _batch(self, number: int, numbers: list[int]) -> Batch:
        return Batch.of(self._arrays(number, numbers), self.device)

    @torch.no_grad()
    def _loss(self, network: nn.Module, number: int, numbers: list[int]) -> float:
        objective = Objective(self.recipe, network, self.settings)
        loss = objective(self._batch(number, numbers), numbers, drop_mask=0, synthetic_clouds=0)
        return len(numbers) * float(loss)

    def _restorer(self, network: nn.Module, *, low_precision: bool = False) -> Restorer:
        settings = self.settings
        return Restorer(
            self.recipe,
            network,
            seed=settings.seed,
            sampler=settings.sampler,
            steps=settings.steps,
            low_precision=low_precision,
        )

    def _slow(self) -> bool:
        return self.recipe.sampling(self.settings.sampler, self.settings.steps)["steps"] > _SLOW
