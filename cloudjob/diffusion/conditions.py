"""What the network is told: a batch in normalised units, its channels in one table, and the anchor of the residual."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.device import answers, constant
from cloudjob.diffusion.similarity import similar
from cloudjob.pixels import BANDS, CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN

BAND_COUNT = len(BANDS)

CELLS, _PRIOR = (64, 32, 16, 8, 4), 0.05  # pixels; the share of known pixels that weighs as much as the coarser level
_DAYS, _ELEVATION = 15.0, 30.0  # days and degrees that count as 1
LEAST = 0.02  # in normalised units: about the noise of the sensor
_FARTHEST = 0.4  # in normalised units: about 0.1 of reflectance
_FAR_OFF = 10.0  # deviations: a difference of more does not tell the ground
_WIDTHS = (1, 2, 4, 8, 16)  # pixels

Channels = dict[str, tuple[int, Callable[[Any], Tensor]]]


@dataclass(frozen=True)
class Normalisation:
    """Per-band mean and standard deviation (reflectance) of the training split; 0 is the training mean."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def forward(self, reflectance: Tensor) -> Tensor:
        """(..., bands, H, W) reflectance to normalised units."""
        mean, std = (constant(v, reflectance.device) for v in (self.mean, self.std))
        return (reflectance - mean) / std

    def inverse(self, x: Tensor) -> Tensor:
        """Back to reflectance."""
        mean, std = (constant(v, x.device) for v in (self.mean, self.std))
        return x * std + mean

    def scaled(self, difference: Tensor) -> Tensor:
        """A difference of reflectances (..., bands, H, W) in normalised units."""
        return difference / constant(self.std, difference.device)

    def unscaled(self, difference: Tensor) -> Tensor:
        """Back to reflectance."""
        return difference * constant(self.std, difference.device)

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
    """A first guess of the ground (N, 4, H, W) in reflectance, NaN where no date tells anything."""

    ground: Tensor
    deviation: Tensor | None  # that of the ground from it, 0 where the cloudy date shows it; None where nobody knows


@dataclass(frozen=True)
class Conditions:
    """One batch of conditions; images are normalised and hold 0 where there are no data."""

    cloudy: Tensor  # (N, 4, H, W) float32
    mask: Tensor  # (N, 1, H, W) uint8 mask classes
    reference: Tensor  # (N, 4, H, W) float32, another date, clear
    present: Tensor  # (N, 1, H, W) bool, where the reference has data
    dates: Tensor  # (N, 1, H, W) float32, how many other dates have data
    anchor: Tensor  # (N, 4, H, W) float32 first guess of the ground: the cloudy image where it is clear
    deviation: Tensor | None  # (N, 4, H, W) float32, that of the ground from the anchor; None where nobody knows
    sun_elevation: Tensor  # (N,) degrees, on the cloudy date
    reference_days: Tensor  # (N,) signed days from the target's date to the reference's
    target_days: Tensor  # (N,) signed days from the cloudy date to the target's: 0 but in training on real pairs
    unit: Tensor | None = None  # (N, 4, H, W), the spread where a regression tells it

    @classmethod
    def of(cls, batch: Batch, *, norm: Normalisation, first_guess: str, guess: Guess | None = None) -> Self:
        """What the batch tells, in normalised units; `first_guess` is one of FIRST_GUESSES, and `guess` what it gives
        of more surroundings than the batch holds, if that is known. The reference that is told is, at each pixel, the
        first one that has data.

        Unknown pixels are told as seen (neither cloud nor shadow), but the anchor trusts them no more than cloud.
        """
        cloudy, hole = batch.cloudy, batch.cloudy.isnan().any(1, keepdim=True)
        there = batch.references.isfinite().all(2, keepdim=True)
        reference, days = _first(batch, there)
        present = there.any(1)
        told = {
            "cloudy": norm.forward(cloudy).masked_fill(hole, 0),
            "reference": norm.forward(reference).masked_fill(~present, 0),
        }
        clear = batch.classes == CLEAR
        if guess is None:
            guess = FIRST_GUESSES[first_guess](batch, norm, clear)
        anchor = norm.forward(guess.ground).nan_to_num(0)
        deviation = guess.deviation
        if deviation is not None:
            deviation = norm.scaled(deviation).nan_to_num(1)
        return cls(
            **told,
            mask=batch.classes,
            present=present,
            dates=there.sum(1, dtype=torch.float32),
            anchor=torch.where(clear, told["cloudy"], anchor),
            deviation=deviation,
            sun_elevation=batch.sun_elevation,
            reference_days=days,
            target_days=batch.target_days,
        )

    def channels(self, unit: Tensor | float = 1.0) -> Tensor:
        """(N, C, H, W) float32 in the order of CHANNELS for this kind of first guess, the last, the difference, over
        `unit` (N, 1 or 4, H, W): what a process takes for 1."""
        table = CHANNELS["surroundings" if self.deviation is None else "similar"]
        told = torch.cat([make(self).float() for _, make in table.values()], 1)
        told[:, -BAND_COUNT:] /= unit
        if self.deviation is not None:
            told[:, -BAND_COUNT:].clamp_(-_FAR_OFF, _FAR_OFF)
        return told

    def _per_pixel(self, value: Tensor) -> Tensor:
        """A number per sample (N,) at each of its pixels, 0 where it is not known."""
        return value.nan_to_num(0)[:, None, None, None].expand_as(self.mask)

    def anchored(self, anchor: Tensor, unit: Tensor | None = None) -> Self:
        """With another first guess, which is as sure, or has a spread of its own, `unit`."""
        return replace(self, anchor=anchor, unit=unit)

    def samples(self, numbers: list[int]) -> Self:
        """These samples alone, in this order; one may be asked for several times."""
        return replace(self, **{name: value[numbers] for name, value in vars(self).items() if value is not None})

    def choose(self, clear: float, reference: float, nothing: float) -> Tensor:
        """(N, 1, H, W): one of three numbers, by what the anchor is at a pixel."""
        hidden = torch.where(self.present, reference, nothing)
        return torch.where(self.mask == CLEAR, clear, hidden)

    def spread(self, clear: float, reference: float, nothing: float) -> Tensor:
        """(N, 1 or 4, H, W): how far the ground is from the anchor, in normalised units. Where the anchor tells its own
        deviation, the numbers for hidden pixels are factors on it; where a regression tells its own, that is it."""
        if self.unit is not None:
            return self.unit
        if self.deviation is None:
            return self.choose(clear, reference, nothing)
        # Another date bounds how far off the ground may be, which the guess does not know where nothing near is clear.
        known = self.deviation / (1 + (self.deviation / _FARTHEST).square()).sqrt()
        hidden = torch.where(self.present, reference * known, nothing * self.deviation)
        return torch.where(self.mask == CLEAR, clear, hidden.clamp(min=LEAST))


def _first(batch: Batch, there: Tensor) -> tuple[Tensor, Tensor]:
    """Of the references the first that has data at each pixel (N, 4, H, W), NaN without any; and the days (N,) to the
    first that a sample has at all."""
    reference = torch.full_like(batch.cloudy, torch.nan)
    days = torch.full_like(batch.target_days, torch.nan)
    for number in reversed(range(batch.references.shape[1])):
        reference = torch.where(there[:, number], batch.references[:, number], reference)
        some = there[:, number].flatten(1).any(1)
        days = torch.where(some, batch.reference_days[:, number], days)
    return reference, days


def _depth(mask: Tensor) -> Tensor:
    """(N, 1, H, W) float32: how far the nearest pixel that is not hidden is, over 1 + 2 + 4 + 8 + 16 pixels; 1 if
    farther. By squares, whose half width doubles."""
    near, total = (mask == CLEAR).float(), torch.zeros_like(mask, dtype=torch.float32)
    for width in _WIDTHS:
        total += width * (1 - near)
        near = F.max_pool2d(near, 2 * width + 1, 1, width)
    return total / sum(_WIDTHS)


# What the network is told, by first guess: name -> width and values. A condition more is a line more. The notebook of
# 2025 looks at the first four channels only.
_FIRST: Channels = {
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
}
_OF_SIMILAR: Channels = {
    "dates": (1, lambda c: c.dates / 3),
    "deviation": (
        1,
        lambda c: (c.deviation if c.unit is None else c.unit).mean(1, keepdim=True).clamp(min=LEAST).log(),
    ),
    "depth": (1, lambda c: _depth(c.mask)),
}
_LAST: Channels = {"difference": (BAND_COUNT, lambda c: c.cloudy - c.anchor)}  # the networks put out a share of it
CHANNELS: dict[str, Channels] = {"similar": _FIRST | _OF_SIMILAR | _LAST, "surroundings": _FIRST | _LAST}


def channel_count(first_guess: str) -> int:
    """How many channels a network is told, with this first guess."""
    return sum(width for width, _ in CHANNELS[first_guess].values())


def _from_similar(batch: Batch, norm: Normalisation, clear: Tensor) -> Guess:
    """What clear pixels tell that are near, and alike on other dates; see `similarity`."""
    return Guess(*similar(batch.cloudy, batch.references, clear[:, 0]))


def _from_surroundings(batch: Batch, norm: Normalisation, clear: Tensor) -> Guess:
    """The reference, shifted to agree with the cloudy image in the clear surroundings; without one, the surroundings
    continued (far from any: the mean of the normalisation)."""
    there = batch.references.isfinite().all(2, keepdim=True)
    cloudy, reference = (norm.forward(image).nan_to_num(0) for image in (batch.cloudy, _first(batch, there)[0]))
    present = there.any(1)
    asked = ((cloudy - reference, clear & present), (cloudy, clear))
    if answers(clear):
        shift, around = (_fill(*each) for each in asked)
    else:
        shift, around = _fill(*map(torch.cat, zip(*asked, strict=True))).chunk(2)  # in half of the launches
    return Guess(norm.inverse(torch.where(present, reference + shift, around)), None)


FIRST_GUESSES: dict[str, Callable[[Batch, Normalisation, Tensor], Guess]] = {
    "similar": _from_similar,
    "surroundings": _from_surroundings,
}


def _fill(values: Tensor, known: Tensor) -> Tensor:
    """Smooth continuation of the known values (N, C, H, W) into the rest, 0 far from any."""
    both, parts = torch.cat([values * known, known.float()], 1), (values.shape[1], 1)
    levels = (F.avg_pool2d(both, cell, ceil_mode=True).split(parts, 1) for cell in CELLS)
    return F.interpolate(continued(levels), size=values.shape[-2:], mode="bilinear")


def continued(levels: Iterable[Sequence[Tensor]]) -> Tensor:
    """(N, C, h, w) of the last of `levels`: means of ever smaller cells, each drawn to those of the coarser level where
    few of its pixels are known (pull-push, Gortler et al. 1996). A level has the mean over a cell's pixels of the
    values, 0 where unknown, (N, C, h, w), and the share that is known (N, 1, h, w)."""
    guess: Tensor | None = None
    for mean, share in levels:
        coarser = mean.new_zeros(1, 1, 1, 1) if guess is None else guess.to(mean)
        prior = F.interpolate(coarser.expand(*mean.shape[:2], -1, -1), size=mean.shape[-2:], mode="bilinear")
        guess = (mean + _PRIOR * prior) / (share + _PRIOR)
    assert guess is not None, "there is no level"
    return guess
