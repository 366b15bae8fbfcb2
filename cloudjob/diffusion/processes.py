"""The two diffusion processes, with one interface: `loss_terms` for training, `sample` for inference.

`Residual` is what this project uses: EDM (Karras et al. 2022, arXiv 2206.00364) on the difference between the ground
and a first guess of it. `Ddpm` (Ho et al. 2020, arXiv 2006.11239) is the recipe of the notebook of 2025, kept as the
baseline. Both work in normalised units; images are (N, 4, H, W) float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cloudjob.diffusion.conditions import CLEAR, NO_DATA, Conditions
from cloudjob.diffusion.noise import normals, uniforms

Noise = Callable[[int], Tensor]  # step -> (N, 4, H, W) standard normal; step 0 starts the sampler
Limits = tuple[Tensor, Tensor]  # physical range, each broadcastable to (N, 4, H, W)


class Terms(NamedTuple):
    """What a loss compares, scaled so that a plain squared error is the weighting its paper recommends."""

    prediction: Tensor
    target: Tensor


@dataclass(frozen=True)
class Residual:
    """EDM on the error of a first guess, in units of its spread: r = (x0 - anchor) / spread, x_sigma = r + sigma n.

    The anchor (Conditions.anchor) is good on clear pixels, fair where there is a reference, poor elsewhere; `spread`
    says how good: the standard deviation of x0 - anchor on (clear, referenced, other) pixels, normalised units. So r
    has unit variance at every pixel (sigma_data = 1), and noise that is left over is small where the guess is good.
    """

    spread: tuple[float, float, float] = (0.1, 0.4, 1.0)
    sigma_min: float = 0.02
    sigma_max: float = 40.0
    rho: float = 7.0
    log_mean: float = -0.5  # of the training sigmas; theirs is -1.2 for sigma_data = 0.5
    log_std: float = 1.2
    share_at_max: float = 0.4  # of training samples at sigma_max, where the network is a regression: good first step

    @classmethod
    def measured(cls, clean: Tensor, conditions: Conditions, valid: Tensor, **options: float) -> "Residual":
        """With the spread of these samples; `valid` (N, 1, H, W) is where the clear date has data."""
        bare = conditions.drop_reference(1, seed=0, indices=list(range(len(clean))))
        valid = valid & (conditions.mask != NO_DATA)
        guess, other = conditions.choose(0, 1, 2), valid & (conditions.mask != CLEAR)
        error, bare_error = clean - conditions.anchor, clean - bare.anchor
        kinds = ((error, valid & (guess == 0)), (error, valid & (guess == 1)), (bare_error, other))
        rms = (x.square().mean(1, True)[kind].mean().sqrt().item() if kind.any() else 1.0 for x, kind in kinds)
        return cls(spread=tuple(max(value, 0.05) for value in rms), **options)

    def _denoise(self, network: nn.Module, x: Tensor, sigma: Tensor, channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The raw output F, and c_skip x and c_out: D(x; sigma) = c_skip x + c_out F (eq. 7, table 1)."""
        low, high = torch.tensor([self.sigma_min, self.sigma_max]).log().tolist()
        level = (sigma.log() - low) / (high - low)  # c_noise, scaled to 0..1
        sigma = sigma[:, None, None, None]
        total = (sigma**2 + 1).sqrt()
        return network(x / total, level.clamp(0, 1), channels).float(), x / total**2, sigma / total

    def loss_terms(
        self, network: nn.Module, clean: Tensor, conditions: Conditions, *, seed: int, indices: list[int]
    ) -> Terms:
        """F and its target (eq. 8), where the weight lambda(sigma) c_out(sigma)^2 is 1."""
        pick, level = uniforms(seed, indices, "share"), uniforms(seed, indices, "sigma")
        log_sigma = self.log_mean + self.log_std * torch.special.ndtri(level.clamp(1e-9, 1))
        sigma = log_sigma.exp().clamp(self.sigma_min, self.sigma_max).where(pick >= self.share_at_max, self.sigma_max)
        sigma = sigma.float().to(clean.device)

        residual = (clean - conditions.anchor) / conditions.choose(*self.spread)
        x = residual + sigma[:, None, None, None] * normals(seed, indices, "noise", like=clean)
        output, skip, c_out = self._denoise(network, x, sigma, conditions.channels())
        return Terms(output, (residual - skip) / c_out)

    def sigmas(self, steps: int) -> Tensor:
        """(steps + 1,) decreasing to 0 (eq. 5)."""
        ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return torch.cat([(high + ramp * (low - high)) ** self.rho, torch.zeros(1)]).float()

    @torch.no_grad()
    def sample(self, network: nn.Module, conditions: Conditions, *, noise: Noise, steps: int, limits: Limits) -> Tensor:
        """x0 by deterministic Euler steps (algorithm 1 without its second order); one step is the plain regression.

        The estimate of x0 is clamped to `limits` at each step, so that no error is carried on and amplified.
        """
        anchor, spread, channels = conditions.anchor, conditions.choose(*self.spread), conditions.channels()
        sigmas = self.sigmas(steps).to(anchor.device)
        x = sigmas[0] * noise(0)
        for sigma, following in pairwise(sigmas):
            output, skip, c_out = self._denoise(network, x, sigma.expand(len(x)), channels)
            clean = (anchor + spread * (skip + c_out * output)).clamp(*limits)
            residual = (clean - anchor) / spread
            x = residual + following / sigma * (x - residual)
        return clean


@dataclass(frozen=True)
class Ddpm:
    """Noise prediction with linear betas and ancestral sampling (Ho et al. 2020, algorithms 1 and 2)."""

    timesteps: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02

    def alpha_bar(self) -> Tensor:
        """(timesteps,) float64 cumulative product of 1 - beta."""
        return (1 - torch.linspace(self.beta_first, self.beta_last, self.timesteps, dtype=torch.float64)).cumprod(0)

    def loss_terms(
        self, network: nn.Module, clean: Tensor, conditions: Conditions, *, seed: int, indices: list[int]
    ) -> Terms:
        """Predicted and true noise (eq. 14)."""
        t = (uniforms(seed, indices, "timestep") * self.timesteps).long()
        alpha_bar = self.alpha_bar()[t].float().to(clean.device)[:, None, None, None]
        noise = normals(seed, indices, "noise", like=clean)
        x = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
        level = (t / self.timesteps).to(clean.device)
        return Terms(network(x, level, conditions.channels()).float(), noise)

    @torch.no_grad()
    def sample(
        self,
        network: nn.Module,
        conditions: Conditions,
        *,
        noise: Noise,
        steps: int = 1000,
        limits: Limits | None = None,
    ) -> Tensor:
        """x0 by ancestral sampling. Fewer `steps` than timesteps are evenly spaced (Nichol & Dhariwal 2021, section 4).

        `limits` clamps the estimate of x0 at each step, which the notebook did not.
        """
        channels = conditions.channels()
        times = torch.linspace(self.timesteps - 1, 0, steps).round().long().tolist()
        alpha_bar = self.alpha_bar().tolist()
        x = noise(0)
        for step, t in enumerate(times):
            before = alpha_bar[times[step + 1]] if t else 1.0
            now, beta = alpha_bar[t], 1 - alpha_bar[t] / before
            predicted = network(x, torch.full((len(x),), t / self.timesteps, device=x.device), channels).float()
            clean = (x - (1 - now) ** 0.5 * predicted) / now**0.5
            if limits is not None:
                clean = clean.clamp(*limits)
            # The mean of q(x_before | x, clean), eq. 7; with sigma^2 = beta as in the paper's section 3.2.
            x = before**0.5 * beta / (1 - now) * clean + (1 - beta) ** 0.5 * (1 - before) / (1 - now) * x
            if t:
                x = x + beta**0.5 * noise(step + 1)
        return x
