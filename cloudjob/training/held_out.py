"""What triplets that it never saw say of a network in training: its loss, its scores, its faults, its spread."""

import time
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from cloudjob.diffusion.average import GAMMAS
from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.recipe import Recipe
from cloudjob.errors import InterruptedJob
from cloudjob.patches.shards import ShardSet
from cloudjob.restoration.restorer import Restorer
from cloudjob.scoring import diagnosis, ensembles, methods, metrics
from cloudjob.scoring.tables import finite
from cloudjob.sentinel2.radiometry import digital_number
from cloudjob.sentinel2.render import contact_sheet
from cloudjob.training.settings import Settings
from cloudjob.training.step import Objective

_SLOW = 50  # sampling steps above which triplets are not restored in passing
_AT_ONCE = 16  # triplets
_ASK_S = 0.5  # between two looks for a wish to stop: each may ask a file system


class HeldOut:
    """Always the same triplets of the held-out split; of the training split, `instead`, where nothing is held out.

    A look may take minutes. So the networks given, which are copies that nobody else uses, ask before each layer
    whether to stop: InterruptedJob.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: Settings,
        shards: ShardSet,
        instead: ShardSet,
        device: torch.device,
        *,
        bfloat16: bool,
        stopped: Callable[[], bool] = lambda: False,
    ):
        self.recipe, self.settings, self.device, self.bfloat16 = recipe, settings, device, bfloat16
        self.any = len(shards) > 0
        self.shards = shards if self.any else instead
        self.stopped, self.asked = stopped, -_ASK_S

    def loss(self, network: nn.Module, number: int) -> float:
        """Mean loss of so many triplets, none of them changed but that some must do without their reference."""
        return self._loss(self._asking(network), self._batch(number))

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
        return ensembles.calibrate(restorer, self._batch(64), members)

    def faults(self, network: nn.Module, *, share: float) -> dict:
        """What makes trainings fail, measured after this share of the training: a row of checks.jsonl."""
        found = diagnosis.diagnose(self.recipe, self._asking(network), self._batch(16), seed=self.settings.seed)
        return {**found, "warnings": diagnosis.warnings(found, share=share)}

    def validate(self, network: nn.Module) -> tuple[dict, NDArray | None]:
        """A row of validation.jsonl, loss and scores as those of `evaluate`; and a picture, 8-bit (H, W, 3).

        The picture shows cloudy, reference, restored and clear of the first triplets, one below the other. There are
        no scores and no picture where restoring is slow.
        """
        _, arrays = self.shards.evenly(16)
        batch, network = Batch.of(arrays, self.device), self._asking(network)
        row = {"triplets": len(batch), "loss": self._loss(network, batch)}
        if self._slow():
            return row, None
        restored = self._restorer(network).member(batch, list(range(len(batch))), 0)
        scores = methods.score({"ours": restored}, batch.known_target.cpu().numpy(), arrays["mask"], arrays["mask"])
        for on in ("cloud", "clear", "all"):
            chosen = [score for triplet in scores for score in triplet if score["on"] == on]
            if chosen:
                pooled = metrics.pool(chosen)
                row |= {f"{on}_{name}": finite(pooled[name]) for name in ("psnr", "ssim", "mae")}
        images = arrays | {"restored": digital_number(restored)}
        shown = [images[name][:4] for name in ("cloudy", "reference", "restored", "clear") if name in images]
        return row, contact_sheet(zip(*shown, strict=True), gain=self.settings.preview_gain)

    def _asking(self, network: nn.Module) -> nn.Module:
        def ask(*_: Any) -> None:
            if time.monotonic() - self.asked >= _ASK_S:
                self.asked = time.monotonic()
                if self.stopped():
                    raise InterruptedJob("train: stopped while it looked at held-out triplets")

        for module in network.modules():
            module.register_forward_pre_hook(ask)
        return network

    def _batch(self, number: int) -> Batch:
        return Batch.of(self.shards.evenly(number)[1], self.device)

    def _loss(self, network: nn.Module, batch: Batch) -> float:
        objective, total = Objective(self.recipe, network, self.settings), 0.0
        numbers = list(range(len(batch)))
        with torch.no_grad():
            for first in numbers[::_AT_ONCE]:
                here = slice(first, first + _AT_ONCE)
                loss = objective(batch[here], numbers[here], drop_mask=0, synthetic_clouds=0)
                total += len(numbers[here]) * float(loss)
        return total / len(numbers)

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
