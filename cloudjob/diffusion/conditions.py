"""What the network is told: a batch in normalised units, its channels in one table, and the anchor of the residual."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from cloudjob.diffusion.batch import Batch
from cloudjob.pixels import BANDS, CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN

BAND_COUNT = len(BANDS)

CELLS, _PRIOR = (64, 32, 16, 8, 4), 0.05  # pixels; the share of known pixels that weighs as much as the coarser level
_DAYS, _ELEVATION = 15.0, 30.0  # days and degrees that count as 1


@dataclass(frozen=True)
class Normalisation:
    """Per-band mean and standard deviation (reflectance) of the training split; 0 is the training mean."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def forward(self, reflectance: Tensor) -> Tensor:
        """(..., bands, H, W) reflectance to normalised units."""
        mean, std = (torch.tensor(v, device=reflectance.device)[:, None, None] for v in (self.mean, self.std))
        return (reflectance - mean) / std

    def inverse(self, x: Tensor) -> Tensor:
        """Back to reflectance."""
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return x * std + mean

    def limits(self, low: float = -0.1, high: float = 2.0) -> tuple[Tensor, Tensor]:
        """The physical range of reflectance in normalised units, each (bands, 1, 1). Snow under a low sun exceeds 1."""
        pair = torch.tensor([low, high]).view(2, 1, 1, 1).expand(2, len(self.mean), 1, 1)
        lowest, highest = self.forward(pair)
        return lowest, highest


# The notebook of 2025 divided 16-bit numbers by 255 and mapped [0, 1] to [-1, 1]: x = DN / 127.5 - 1 with
# DN = 10000 r + 1000. So its data lie far outside of the unit variance that the diffusion assumes.
NOTEBOOK_2025 = Normalisation(mean=(-0.08725,) * 4, std=(0.01275,) * 4)


@dataclass(frozen=True)
class Guess:
    """A first guess of the ground that was made of more surroundings than a batch holds."""

    ground: Tensor  # (N, 4, H, W) reflectance, NaN where no date has data
    deviation: Tensor | None  # (N, 4, H, W) reflectance, of the ground from the guess, 0 where it is seen


@dataclass(frozen=True)
class Conditions:
    """One batch of conditions; images are normalised and hold 0 where there are no data."""

    cloudy: Tensor  # (N, 4, H, W) float32
    mask: Tensor  # (N, 1, H, W) uint8 mask classes
    reference: Tensor  # (N, 4, H, W) float32, another date, clear
    present: Tensor  # (N, 1, H, W) bool, where the reference has data
    sun_elevation: Tensor  # (N,) degrees, on the cloudy date
    reference_days: Tensor  # (N,) signed days from the target's date to the reference's
    target_days: Tensor  # (N,) signed days from the cloudy date to the target's: 0 but in training on real pairs

    @classmethod
    def of(cls, batch: Batch, *, norm: Normalisation) -> Self:
        """What the batch tells, in normalised units; of several references the nearest one is told.

        Unknown pixels are told as seen (neither cloud nor shadow), but the anchor trusts them no more than cloud.
        """
        cloudy, several = batch.cloudy, batch.references.shape[1] > 0
        reference = batch.references[:, 0] if several else torch.full_like(cloudy, torch.nan)
        for other in batch.references[:, 1:].unbind(1):
            reference = torch.where(reference.isnan(), other, reference)
        days = batch.reference_days[:, 0] if several else torch.full_like(batch.target_days, torch.nan)
        hole = cloudy.isnan().any(1, keepdim=True)
        present = ~reference.isnan().any(1, keepdim=True)
        return cls(
            cloudy=norm.forward(cloudy).masked_fill(hole, 0),
            mask=batch.classes,
            reference=norm.forward(reference).masked_fill(~present, 0),
            present=present,
            sun_elevation=batch.sun_elevation,
            reference_days=days,
            target_days=batch.target_days,
        )

    def channels(self, unit: Tensor | float = 1.0) -> Tensor:
        """(N, CONDITION_CHANNELS, H, W) float32 in the order of CHANNELS, the last, the difference, over `unit`
        (N, 1, H, W): what a process takes for 1."""
        told = torch.cat([make(self).float() for _, make in CHANNELS.values()], 1)
        told[:, -BAND_COUNT:] /= unit
        return told

    def _per_pixel(self, value: Tensor) -> Tensor:
        """A number per sample (N,) at each of its pixels, 0 where it is not known."""
        return value.nan_to_num(0)[:, None, None, None].expand_as(self.mask)

    @cached_property
    def anchor(self) -> Tensor:
        """First guess of the ground (N, 4, H, W): the cloudy image where it is clear; elsewhere the reference, shifted
        to agree with it in the clear surroundings; without one, the surroundings continued (far from any: 0)."""
        clear = self.mask == CLEAR
        return self.first_guess(_fill(self.cloudy - self.reference, clear & self.present), _fill(self.cloudy, clear))

    def first_guess(self, shift: Tensor, around: Tensor) -> Tensor:
        """The first guess where `shift`, from the reference to the cloudy date, and what lies `around` clouds are known
        already, each continued under the clouds (N, 4, H, W)."""
        hidden = torch.where(self.present, self.reference + shift, around)
        return torch.where(self.mask == CLEAR, self.cloudy, hidden)

    def anchored(self, anchor: Tensor) -> Self:
        """With another first guess."""
        other = replace(self)
        other.__dict__["anchor"] = anchor  # where cached_property keeps its value
        return other

    def samples(self, numbers: list[int]) -> Self:
        """These samples alone, in this order; one may be asked for several times."""
        fields = {name: value[numbers] for name, value in vars(self).items() if name != "anchor"}
        return replace(self, **fields).anchored(self.anchor[numbers])

    def choose(self, clear: float, reference: float, nothing: float) -> Tensor:
        """(N, 1, H, W): one of three numbers, by what the anchor is at a pixel."""
        hidden = torch.where(self.present, reference, nothing)
        return torch.where(self.mask == CLEAR, clear, hidden)

    def without_reference(self) -> Self:
        """The same conditions with no other date."""
        return replace(
            self,
            reference=torch.zeros_like(self.reference),
            present=torch.zeros_like(self.present),
            reference_days=torch.full_like(self.reference_days, torch.nan),
        )


# What the network is told: name -> width and values. A condition more is a line more. The notebook of 2025 looks at the
# first four channels only.
CHANNELS = {
    "cloudy": (BAND_COUNT, lambda c: c.cloudy),
    "cloud": (1, lambda c: (c.mask == CLOUD) | (c.mask == CIRRUS)),
    "shadow": (1, lambda c: c.mask == SHADOW),
    "valid": (1, lambda c: c.mask != NO_DATA),
    "unknown": (1, lambda c: c.mask == UNKNOWN),
    "reference": (BAND_COUNT, lambda c: c.reference),
    "present": (1, lambda c: c.present),
    "anchor": (BAND_COUNT, lambda c: c.anchor),
    "sun elevation": (1, lambda c: c._per_pixel(c.sun_elevation / _ELEVATION)),
    "reference days": (1, lambda c: c._per_pixel((c.reference_days / _DAYS).clamp(-4, 4))),
    "target days": (1, lambda c: c._per_pixel((c.target_days / _DAYS).clamp(-4, 4))),
    "difference": (BAND_COUNT, lambda c: c.cloudy - c.anchor),  # the last: the networks put out a share of it
}
CONDITION_CHANNELS = sum(width for width, _ in CHANNELS.values())


def _fill(values: Tensor, known: Tensor) -> Tensor:
    """Smooth continuation of the known values (N, C, H, W) into the rest, 0 far from any."""
    values, weight = values * known, known.float()
    levels = ([F.avg_pool2d(x, cell, ceil_mode=True) for x in (values, weight)] for cell in CELLS)
    return F.interpolate(continued(levels), size=values.shape[-2:], mode="bilinear")


def continued(levels: Iterable[Sequence[Tensor]]) -> Tensor:
    """(N, C, h, w) of the last of `levels`: means of ever smaller cells, each drawn to those of the coarser level where
    few of its pixels are known (pull-push, Gortler et al. 1996). A level has the mean over a cell's pixels of the
    values, 0 where unknown, (N, C, h, w), and the share that is known (N, 1, h, w)."""
    guess = torch.zeros(1, 1, 1, 1)
    for mean, share in levels:
        prior = F.interpolate(guess.to(mean).expand(*mean.shape[:2], -1, -1), size=mean.shape[-2:], mode="bilinear")
        guess = (mean + _PRIOR * prior) / (share + _PRIOR)
    return guess
