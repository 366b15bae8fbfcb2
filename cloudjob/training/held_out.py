"""What triplets that it never saw say of a network in training: its loss, its scores, its faults, its spread."""

import numpy as np
import torch
from torch import nn

from cloudjob.config.models import Config
from cloudjob.scoring import diagnosis, methods, metrics
from cloudjob.diffusion.recipe import Recipe
from cloudjob.patches.shards import ShardSet
from cloudjob.diffusion.batch import to_tensors
from cloudjob.scoring.tables import finite
from cloudjob.sentinel2.radiometry import digital_number
from cloudjob.sentinel2.render import contact_sheet
from cloudjob.training.step import Objective


class HeldOut:
    """Always the same triplets of the held-out split; of the training split, `instead`, where nothing is held out."""

    def __init__(self, config: Config, recipe: Recipe, shards: ShardSet, instead: ShardSet, device, *, bfloat16: bool):
        self.config, self.recipe, self.device, self.bfloat16 = config, recipe, device, bfloat16
        self.any = len(shards) > 0
        self.shards = shards if self.any else instead

    def _look(self, number: int) -> tuple[dict, dict]:
        """These triplets as arrays and as tensors."""
        _, arrays = self.shards.look(number)
        return arrays, to_tensors(arrays, self.device)

    def _restorer(self, network: nn.Module, **options) -> methods.Restorer:
        settings = self.config.infer
        options |= {"seed": self.config.seed, "sampler": settings.sampler, "steps": settings.steps}
        return methods.Restorer(self.recipe, network, **options)

    def _slow(self) -> bool:
        """Whether a sample takes too many steps for a look in passing."""
        settings = self.config.infer
        return self.recipe.steps(settings.steps, self.recipe.sampler(settings.sampler)) > 50

    def loss(self, network: nn.Module, number: int) -> float:
        """Mean loss, no triplet changed but for a reference date that some must do without."""
        return self._loss(network, self._look(number)[1])

    def _loss(self, network: nn.Module, batch: dict) -> float:
        objective, total = Objective(self.recipe, network, self.config.train, self.config.seed), 0.0
        numbers = list(range(len(batch["mask"])))
        with torch.no_grad():
            for here in (slice(first, first + 16) for first in numbers[::16]):
                part = {name: values[here] for name, values in batch.items()}
                total += len(numbers[here]) * float(objective(part, numbers[here], drop_mask=0, synthetic_clouds=0))
        return total / len(numbers)

    def calibrate(self, network: nn.Module) -> dict:
        """What makes the interval of an ensemble right (see `Restorer.calibrate`); {} where there is none."""
        members = self.config.evaluate.members
        if members < 2 or not self.any or self.config.train.process == "regression" or self._slow():
            return {}
        return self._restorer(network, low_precision=self.bfloat16).calibrate(self._look(64)[1], members)

    def faults(self, network: nn.Module, *, share: float) -> dict:
        """What makes trainings fail, measured after this share of the training: a row of checks.jsonl."""
        found = diagnosis.diagnose(self.recipe, network, self._look(16)[1], seed=self.config.seed)
        return {**found, "warnings": diagnosis.warnings(found, share=share)}

    def validate(self, network: nn.Module) -> tuple[dict, np.ndarray | None]:
        """Loss and scores, those of `evaluate`: a row of validation.jsonl; and cloudy, reference, restored and clear of
        the first triplets, one below the other, 8-bit (H, W, 3). No scores, nor picture, where restoring is slow."""
        arrays, batch = self._look(16)
        row = {"triplets": len(arrays["mask"]), "loss": self._loss(network, batch)}
        if self._slow():
            return row, None
        restored = self._restorer(network).member(batch, list(range(row["triplets"])), 0)
        scores = methods.score({"ours": restored}, batch["clear"].cpu().numpy(), arrays["mask"])
        for on in ("cloud", "clear", "all"):
            chosen = [score for triplet in scores for score in triplet if score["on"] == on]
            if chosen:
                pooled = metrics.pool(chosen)
                row |= {f"{on}_{name}": finite(pooled[name]) for name in ("psnr", "ssim", "mae")}
        arrays |= {"restored": digital_number(restored)}
        shown = [arrays[name][:4] for name in ("cloudy", "reference", "restored", "clear") if name in arrays]
        return row, contact_sheet(zip(*shown, strict=True), gain=self.config.infer.preview_gain)
