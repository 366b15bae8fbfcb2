"""One step of a training: the loss of a global batch, its gradient over all ranks, the optimizer."""

import contextlib
import math

import torch
from torch import Tensor, nn

from cloudjob.diffusion import noise
from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.noise import Numbers
from cloudjob.diffusion.recipe import Recipe
from cloudjob.errors import CloudjobError, ConfigError
from cloudjob.hpc import distributed
from cloudjob.training.compilation import Compilation
from cloudjob.training.settings import Settings


def micro_batch(settings: Settings, ranks: int) -> int:
    """Samples that a rank computes at once: what `micro_batch` allows of the largest share of the global batch.
    ConfigError where a rank would have no sample at all."""
    batch = settings.batch_size
    if ranks > batch:
        raise ConfigError(
            f"train.batch_size = {batch}: {ranks} ranks cannot share it out; start {batch} ranks or fewer"
        )
    share = -(-batch // ranks)
    return min(settings.micro_batch or share, share)


def learning_rate(settings: Settings, *, seen: int, total: int) -> float:
    """The rate of the step after `seen` of `total` samples: a linear warm-up, then half a cosine to zero."""
    rise = min(1.0, (seen + settings.batch_size) / max(settings.warmup, 1))
    fall = 0.5 + 0.5 * math.cos(math.pi * seen / total) if settings.decay else 1.0
    return settings.lr * rise * fall


class Objective(nn.Module):
    """The loss as a module: DistributedDataParallel sees one call of it, however often the recipe calls the network."""

    def __init__(self, recipe: Recipe, network: nn.Module, settings: Settings):
        super().__init__()
        self.recipe, self.network, self.seed = recipe, network, settings.seed
        names = ("clear_weight", "drop_reference", "drop_mask", "synthetic_clouds", "other_ground")
        self.options = {name: getattr(settings, name) for name in names}

    def forward(self, batch: Batch, samples: Numbers, **other: float) -> Tensor:
        """Scalar loss of these samples; `other` options than those of the training, if any."""
        return self.recipe.loss(self.network, batch, seed=self.seed, samples=samples, **(self.options | other))


class Step:
    """Network, optimizer and precision on one rank. `gradient`, then `update` or not, as all ranks agree."""

    def __init__(self, recipe: Recipe, network: nn.Module, settings: Settings, *, ranks: int = 1):
        self.network, self.settings = network, settings
        self.device = next(network.parameters()).device
        self.micro = micro_batch(settings, ranks)
        # What a rank's samples count for in the mean over the ranks, where these cannot share the batch out evenly.
        self.share = settings.batch_size / ranks if settings.batch_size % ranks else None
        self.optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        choice = settings.precision
        self.bfloat16 = choice == "bfloat16" or (choice == "auto" and distributed.fast_bfloat16(self.device))
        noise.prepare(self.device)
        self.alone = Objective(recipe, network, settings)
        # All of it: what prepares a batch is hundreds of small kernels otherwise.
        self.compilation = Compilation(self.alone, settings.compile, self.device)
        self.objective: nn.Module = self.alone

    @property
    def rehearsed(self) -> int:
        """Samples that `connect` is to be given: as many as are computed at once where that is compiled for them."""
        return self.micro if self.compilation.asked else 2

    def connect(self, batch: Batch) -> None:
        """Gives all ranks the weights of rank 0, when these are as they should be, and rehearses a step with a batch.

        DistributedDataParallel lays its buckets out anew after its first step: without this one, the first step after
        a resume would sum up in another order than a training that was never stopped.
        """
        self.objective = distributed.wrap(self.alone)
        if self.objective is self.alone and not self.compilation.asked:
            return
        try:
            self._loss(batch, torch.arange(len(batch), device=self.device)).backward()
        except torch.OutOfMemoryError as error:
            raise self._too_large(len(batch), error) from error
        except Exception as error:
            if not self.compilation.required or isinstance(error, CloudjobError):
                raise
            raise self.compilation.failed(error) from error
        self.optimizer.zero_grad(set_to_none=True)

    def gradient(self, samples: Numbers, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss of this rank's samples, norm of the gradient over all ranks before it was clipped). The device may be
        reading the arrays of the batch until one of the two is known. The mean of the losses over the ranks is that of
        the batch, also where one rank has a sample more than another."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            return self._gradient(samples, batch)
        except torch.OutOfMemoryError as error:
            raise self._too_large(len(samples), error) from error

    def _too_large(self, samples: int, error: torch.OutOfMemoryError) -> ConfigError:
        """What to say where the device has no room for a micro-batch, and what would fit by what the samples took."""
        micro = min(self.micro, samples)
        advice = "even one sample does not fit: take a smaller train.preset, or a GPU with more memory"
        if micro > 1:
            advice = f"set train.micro_batch={max(micro // 2, 1)} (the result stays the same), or a smaller one"
        first = str(error).partition(". GPU")[0].partition("\n")[0]
        return ConfigError(
            f"train.micro_batch: {micro} samples at once do not fit into {self.device}: {first}; {advice}"
        )

    def _gradient(self, samples: Numbers, batch: Batch) -> tuple[Tensor, Tensor]:
        total, share = torch.zeros((), device=self.device), self.share or len(samples)
        for first in range(0, len(samples), self.micro):
            here = slice(first, first + self.micro)
            last = here.stop >= len(samples)
            with contextlib.nullcontext() if last else distributed.unsynced(self.objective):
                loss = self._loss(batch[here], samples[here]) * (len(samples[here]) / share)
                loss.backward()
            total = total + loss.detach()
        return total, torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)

    def _loss(self, batch: Batch, samples: Numbers) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.objective(batch, samples)

    def update(self, lr: float, skip: Tensor | None = None) -> None:
        """The optimizer's step with the gradient of now; where `skip`, () float32 on the device, is 1, nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # what fused kernels read, as GradScaler sets it
        self.optimizer.step()
