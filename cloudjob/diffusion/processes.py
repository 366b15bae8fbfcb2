"""The processes on the error of a first guess, with the interface of all: `loss_terms` for training, `sample` for
inference. All work in normalised units; images are (N, 4, H, W) float32.

The first guess is Conditions.anchor: good on clear pixels, fair where there is a reference, poor elsewhere. `spread`
says how good: the standard deviation of x0 - anchor on (clear, referenced, other) pixels, or, of a guess that knows its
own deviation, how many of these it is on hidden pixels. So r = (x0 - anchor) / spread has unit variance at every pixel,
and noise that is left over is small where the guess is good.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cloudjob.diffusion.conditions import BAND_COUNT, LEAST, Conditions
from cloudjob.diffusion.noise import Numbers, normals, uniforms
from cloudjob.diffusion.samplers import SAMPLERS, Levels, Noise
from cloudjob.pixels import CLEAR, NO_DATA

Limits = tuple[Tensor, Tensor]  # physical range, each broadcastable to (N, 4, H, W)
Spread = tuple[float, float, float]
_LEAST_SPREAD = 0.05  # in normalised units: noise is never as small as the last digit
_MOST_LOG = 4.0  # of a deviation that a network tells, in units of the spread


@torch.compiler.assume_constant_result
def _logarithms(*numbers: float) -> tuple[float, ...]:
    """In float32, as the levels of the networks that have learned so far."""
    return _kept_logarithms(numbers)


@lru_cache
def _kept_logarithms(numbers: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(torch.tensor(numbers, dtype=torch.float32).log().tolist())


class Terms(NamedTuple):
    """What a loss compares, and the weight of the squared error: together the weighting that its paper recommends."""

    prediction: Tensor
    target: Tensor
    level: Tensor  # (N,) what the network was told of the noise: 0 least, 1 most
    scale: Tensor | float  # of an error of 1 in the prediction, in x0; broadcastable to the target, as is the weight
    weight: Tensor | float = 1.0
    log_deviation: Tensor | None = None  # that of the target from the prediction, where the network tells it

    light: Tensor | None = None  # logit of the share of the ground's light that is seen, where the network tells it

    @property
    def trusted(self) -> Tensor | float:
        """The weight of the squared error: less where the network tells that it is large."""
        return self.weight if self.log_deviation is None else self.weight * (-2 * self.log_deviation).exp()


def measure_spread(clean: Tensor, conditions: Conditions, bare: Conditions, valid: Tensor) -> Spread:
    """`spread` of these samples; `bare` are the conditions without any other date, and `valid` (N, 1, H, W) is where
    the clear date has data."""
    valid = valid & (conditions.mask != NO_DATA)
    guess, other = conditions.choose(0, 1, 2), valid & (conditions.mask != CLEAR)
    error, bare_error = ((clean - told.anchor) / told.spread(1, 1, 1) for told in (conditions, bare))
    kinds = ((error, valid & (guess == 0)), (error, valid & (guess == 1)), (bare_error, other))
    rms = [x.square().mean(1, True)[kind].mean().sqrt().item() if kind.any() else 1.0 for x, kind in kinds]
    clear, referenced, bare_rms = (max(value, _LEAST_SPREAD) for value in rms)
    return clear, referenced, bare_rms


@dataclass(frozen=True)
class Regression:
    """r at once, from the conditions alone: the mean of what the ground may be, and so smooth where little is known.

    With `deviation` the network also tells how far r may be from that, and learns both by the likelihood of a Gaussian
    (Nix & Weigend 1994): pixels of which nobody can know more do not drown what can be learned of others. It also tells
    how much of the ground's light it sees, and learns that from clouds that were laid over the ground.
    """

    spread: Spread
    deviation: bool = False

    def loss_terms(
        self, network: nn.Module, clean: Tensor, conditions: Conditions, *, seed: int, indices: Numbers
    ) -> list[Terms]:
        r, log_deviation, light = self._predict(network, conditions)
        spread = conditions.spread(*self.spread)
        target = (clean - conditions.anchor) / spread
        level = target.new_ones(len(target))
        return [Terms(r, target, level, scale=spread, log_deviation=log_deviation, light=light)]

    @torch.no_grad()
    def sample(self, network: nn.Module, conditions: Conditions, *, limits: Limits, **_: Any) -> Tensor:
        """The same whatever the noise and the steps."""
        return self.guessed(network, conditions, limits=limits).anchor

    def guessed(self, network: nn.Module, conditions: Conditions, *, limits: Limits) -> Conditions:
        """The conditions with this for first guess."""
        r, log_deviation, _ = self._predict(network, conditions)
        found = self.place(r, log_deviation, conditions)
        return replace(found, anchor=found.anchor.clamp(*limits))

    def _predict(self, network: nn.Module, conditions: Conditions) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """r (N, 4, H, W); the logarithm of its deviation, as large, and the logit of the light (N, 1, H, W), both None
        where the network does not tell them."""
        spread = conditions.spread(*self.spread)
        output = network(None, None, conditions.channels(spread)).float()
        if not self.deviation:
            return output, None, None
        r, log_deviation, light = output.split([BAND_COUNT, BAND_COUNT, 1], 1)
        log_deviation = _MOST_LOG * (log_deviation / _MOST_LOG).tanh()
        # Beside the sensor's noise: clouds that training lays over a date leave some of its pixels as they were.
        return r, torch.logaddexp(2 * log_deviation, 2 * (LEAST / spread).log()) / 2, light

    def place(self, r: Tensor, log_deviation: Tensor | None, conditions: Conditions) -> Conditions:
        """The conditions with what r means for first guess, and its deviation, where that is told, for spread."""
        spread = conditions.spread(*self.spread)
        unit = None if log_deviation is None else spread * log_deviation.exp()
        return conditions.anchored(conditions.anchor + spread * r, unit)


@dataclass(frozen=True)
class Residual:
    """EDM (Karras et al. 2022, arXiv 2206.00364) on r, drawn towards the cloudy image (mean reversion):
    x_sigma = r + sigma (n + alpha mu), where mu is the cloudy image as r has it, (cloudy - anchor) / spread.

    In images that is x0 + alpha sigma (cloudy - anchor) + sigma spread n, as in EMRDM (Liu et al. 2025, CVPR), whose
    anchor is 0. alpha = 0 is plain EDM. `drift` is (mean square of mu, mean of mu r), so that the preconditioning keeps
    input and target at unit variance whatever alpha.
    """

    spread: Spread = (0.1, 0.4, 1.0)
    alpha: float = 0.0
    drift: tuple[float, float] = (0.0, 0.0)
    sigma_min: float = 0.02
    sigma_max: float = 40.0
    rho: float = 7.0
    log_mean: float = -0.5  # of the training sigmas; theirs is -1.2 for sigma_data = 0.5
    log_std: float = 1.2
    share_at_max: float = 0.4  # of training samples at sigma_max, where the network is a regression: good first step

    def _mu(self, conditions: Conditions) -> Tensor | float:
        if not self.alpha:
            return 0.0
        return self.alpha * (conditions.cloudy - conditions.anchor) / conditions.spread(*self.spread)

    def _level(self, sigma: Tensor) -> Tensor:
        """c_noise, scaled to 0..1."""
        low, high = _logarithms(self.sigma_min, self.sigma_max)
        return ((sigma.log() - low) / (high - low)).clamp(0, 1)

    def _denoise(self, network: nn.Module, x: Tensor, sigma: Tensor, channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The raw output F, and c_skip x and c_out: D(x; sigma) = c_skip x + c_out F (eq. 7).

        c_skip is the best linear estimate of r from x, c_out the error that it leaves; without drift their table 1.
        """
        level = self._level(sigma)
        sigma = sigma[:, None, None, None]
        square, along = self.alpha**2 * self.drift[0], self.alpha * self.drift[1]
        variance, covariance = 1 + 2 * sigma * along + sigma**2 * (1 + square), 1 + sigma * along
        output = network(x / variance.sqrt(), level, channels).float()
        return output, covariance / variance * x, (1 - covariance**2 / variance).sqrt()

    def loss_terms(
        self, network: nn.Module, clean: Tensor, conditions: Conditions, *, seed: int, indices: Numbers
    ) -> list[Terms]:
        """F and its target (eq. 8), where the weight lambda(sigma) c_out(sigma)^2 is 1."""
        pick, level = uniforms(seed, indices, "share"), uniforms(seed, indices, "sigma")
        log_sigma = self.log_mean + self.log_std * torch.special.ndtri(level.clamp(min=1e-9))
        sigma = log_sigma.exp().clamp(self.sigma_min, self.sigma_max).where(pick >= self.share_at_max, self.sigma_max)
        sigma = sigma.float().to(clean.device)

        spread = conditions.spread(*self.spread)
        residual = (clean - conditions.anchor) / spread
        noise = normals(seed, indices, "noise", like=clean) + self._mu(conditions)
        x = residual + sigma[:, None, None, None] * noise
        output, skip, c_out = self._denoise(network, x, sigma, conditions.channels(spread))
        return [Terms(output, (residual - skip) / c_out, self._level(sigma), scale=c_out * spread)]

    def sigmas(self, steps: int) -> Tensor:
        """(steps + 1,) decreasing to 0 (eq. 5)."""
        ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return torch.cat([(high + ramp * (low - high)) ** self.rho, torch.zeros(1)]).float()

    @torch.no_grad()
    def sample(
        self,
        network: nn.Module,
        conditions: Conditions,
        *,
        noise: Noise,
        steps: int,
        limits: Limits,
        sampler: str = "euler",
    ) -> Tensor:
        """x0 by one of SAMPLERS (ancestral with alpha = 0 alone: a drift is no noise); one step is the plain
        regression. The estimate of x0 is clamped to `limits` at each step, so that no error is carried on and
        amplified."""
        anchor, spread = conditions.anchor, conditions.spread(*self.spread)
        channels = conditions.channels(spread)
        sigmas = self.sigmas(steps).to(anchor.device)

        def denoise(x: Tensor, i: int) -> Tensor:
            output, skip, c_out = self._denoise(network, x, sigmas[i].expand(len(x)), channels)
            return ((anchor + spread * (skip + c_out * output)).clamp(*limits) - anchor) / spread

        start = sigmas[0] * (noise(0) + self._mu(conditions))
        levels = Levels(torch.ones_like(sigmas), sigmas)
        return (anchor + spread * SAMPLERS[sampler](denoise, start, levels, noise)).clamp(*limits)


@dataclass(frozen=True)
class Corrective(Residual):
    """A Regression, and a Residual on what it leaves, each with its own network of a MeanAndDetail: the members spread
    about the regression. The idea is CorrDiff's (Mardani et al. 2025, doi:10.1038/s43247-025-02042-5); here both learn
    side by side, from the same samples."""

    sigma_max: float = 10.0  # nothing large is left
    share_at_max: float = 0.05
    deviation: bool = False  # of the regression, which then is the spread of what it leaves

    @property
    def regression(self) -> Regression:
        return Regression(self.spread, self.deviation)

    def loss_terms(
        self, network: nn.Module, clean: Tensor, conditions: Conditions, *, seed: int, indices: Numbers
    ) -> list[Terms]:
        (mean,) = self.regression.loss_terms(network, clean, conditions, seed=seed, indices=indices)
        told = None if mean.log_deviation is None else mean.log_deviation.detach()
        guessed = self.regression.place(mean.prediction.detach(), told, conditions)
        return [mean, *super().loss_terms(network, clean, guessed, seed=seed, indices=indices)]

    @torch.no_grad()
    def guessed(self, network: nn.Module, conditions: Conditions, *, limits: Limits) -> Conditions:
        """The conditions with the regression for first guess, from which `sample` goes on."""
        return self.regression.guessed(network, conditions, limits=limits)


def measure_drift(clean: Tensor, conditions: Conditions, valid: Tensor, spread: Spread) -> tuple[float, float]:
    """`drift` of these samples (see Residual)."""
    scale = conditions.spread(*spread)
    mu, residual = (conditions.cloudy - conditions.anchor) / scale, (clean - conditions.anchor) / scale
    inside = (valid & (conditions.mask != NO_DATA)).expand_as(mu)
    return mu[inside].square().mean().item(), (mu * residual)[inside].mean().item()
