"""The variance-preserving process of Ho et al. (2020, arXiv 2006.11239), x = a x0 + b n with a^2 = alpha_bar = 1 - b^2.

As it stands by default it is the recipe of the notebook of 2025, kept as the baseline. Beside it the same on the error
of a first guess.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cloudjob.diffusion.conditions import Conditions
from cloudjob.diffusion.noise import Numbers, normals, uniforms
from cloudjob.diffusion.processes import Limits, Noise, Residual, Spread, Terms
from cloudjob.diffusion.samplers import SAMPLERS, Levels, ancestral


def _cosine(u: Tensor) -> Tensor:
    return ((u + 0.008) / 1.008 * torch.pi / 2).cos() ** 2


def _sigmoid(u: Tensor) -> Tensor:
    """From -3 to 3 with temperature tau = 1."""
    return torch.sigmoid(3 - 6 * u) - torch.sigmoid(torch.tensor(-3.0, dtype=u.dtype))


_SIGNAL = {"cosine": _cosine, "sigmoid": _sigmoid}  # alpha_bar, but for a factor, over u = t / timesteps


@dataclass(frozen=True)
class Ddpm:
    """Discrete time t = 0 .. timesteps - 1, t = 0 almost without noise.

    schedule: linear betas 1e-4 to 0.02 (Ho et al. 2020, section 4), cosine (Nichol & Dhariwal 2021, arXiv 2102.09672,
    eq. 17) or sigmoid (Jabri et al. 2022, arXiv 2212.11972; Chen 2023, arXiv 2301.10972, algorithm 1); betas of the
    latter two are at most 0.999. prediction: what the network's output is, the noise n, x0, or v = a n - b x0 (Salimans
    & Ho 2022, arXiv 2202.00512). zero_terminal_snr: the last level is pure noise, as the sampler's start is (Lin et al.
    2024, arXiv 2305.08891, algorithm 1). ValueError if that is asked for with noise prediction.
    """

    timesteps: int = 1000
    schedule: Literal["linear", "cosine", "sigmoid"] = "linear"
    prediction: Literal["noise", "x0", "v"] = "noise"
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.zero_terminal_snr and self.prediction == "noise":
            raise ValueError("zero terminal SNR with prediction of noise: pure noise tells nothing of x0; use x0 or v")

    def alpha_bar(self) -> Tensor:
        """(timesteps,) float64 cumulative product of 1 - beta, the share of the signal in the variance."""
        if self.schedule == "linear":
            alpha = 1 - torch.linspace(1e-4, 0.02, self.timesteps, dtype=torch.float64)
        else:
            signal = _SIGNAL[self.schedule](torch.linspace(0, 1, self.timesteps + 1, dtype=torch.float64))
            alpha = (signal[1:] / signal[:-1]).clamp(min=1e-3)
        alpha_bar = alpha.cumprod(0)
        if self.zero_terminal_snr:
            a = alpha_bar.sqrt()
            alpha_bar = ((a - a[-1]) * a[0] / (a[0] - a[-1])) ** 2
        return alpha_bar

    def loss_terms(
        self, network: nn.Module, clean: Tensor, conditions: Conditions, *, seed: int, indices: Numbers
    ) -> list[Terms]:
        """What the network predicts, and what is true, of clean (N, 4, H, W) at random levels.

        Noise (Ho et al. 2020, eq. 14) and v weigh 1. x0 weighs its SNR, at least 1, so that pure noise is learned from
        as well (Salimans & Ho 2022, section 4), and at most 5, so that hardly noisy images do not outweigh the rest
        (Hang et al. 2023, arXiv 2303.09556).
        """
        t = (uniforms(seed, indices, "timestep") * self.timesteps).long()
        alpha_bar = _alpha_bar(self, t.device)[t].float().to(clean.device)[:, None, None, None]
        noise = normals(seed, indices, "noise", like=clean)
        a, b = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        level = (t / self.timesteps).to(clean.device)
        output = network(a * clean + b * noise, level, self._channels(conditions)).float()
        if self.prediction == "x0":
            return [Terms(output, clean, level, scale=1.0, weight=(alpha_bar / (1 - alpha_bar)).clamp(1, 5))]
        if self.prediction == "noise":
            return [Terms(output, noise, level, scale=b / a)]
        return [Terms(output, a * noise - b * clean, level, scale=b)]

    def times(self, steps: int) -> list[int]:
        """Evenly spaced from timesteps - 1 down ("trailing", Lin et al. 2024, table 2), always with the most noise.

        ValueError for steps outside of 1 .. timesteps.
        """
        if not 1 <= steps <= self.timesteps:
            raise ValueError(f"{steps} sampling steps: must be 1 to {self.timesteps}")
        return [round(self.timesteps * (steps - i) / steps) - 1 for i in range(steps)]

    @torch.no_grad()
    def sample(
        self,
        network: nn.Module,
        conditions: Conditions,
        *,
        noise: Noise,
        steps: int,
        limits: Limits | None,
        sampler: str = "ancestral",
    ) -> Tensor:
        """x0 (N, 4, H, W) by one of SAMPLERS; `limits` clamps its estimate at each step, which the notebook did not.

        Ancestral sampling of all timesteps takes beta for its variance, of fewer that of eq. 7.
        """
        channels, times = self._channels(conditions), self.times(steps)
        alpha_bar = torch.cat([self.alpha_bar()[times], torch.ones(1)])
        levels = Levels(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())

        def denoise(x: Tensor, i: int) -> Tensor:
            level = torch.full((len(x),), times[i] / self.timesteps, device=x.device)
            clean = self._clean(network(x, level, channels).to(x.dtype), x, levels.a[i].item(), levels.b[i].item())
            return clean if limits is None else clean.clamp(*limits)

        solve = SAMPLERS[sampler]
        if solve is ancestral:
            solve = partial(ancestral, upper=steps == self.timesteps)
        return solve(denoise, noise(0), levels, noise)

    def _channels(self, conditions: Conditions) -> Tensor:
        return conditions.channels()

    def _clean(self, output: Tensor, x: Tensor, a: float, b: float) -> Tensor:
        """The estimate of x0 that the network's output for x means."""
        if self.prediction == "noise":
            return (x - b * output) / a
        return output if self.prediction == "x0" else a * x - b * output


@lru_cache
def _alpha_bar(process: Ddpm, device: torch.device) -> Tensor:
    return process.alpha_bar().to(device)


@dataclass(frozen=True)
class ResidualDdpm(Ddpm):
    """Ddpm on r = (x0 - anchor) / spread in place of x0, as a Residual is (see `processes`): so the two differ in the
    process alone. What Ddpm says of x0 is meant of r."""

    spread: Spread = Residual.spread

    def loss_terms(
        self, network: nn.Module, clean: Tensor, conditions: Conditions, *, seed: int, indices: Numbers
    ) -> list[Terms]:
        spread = conditions.spread(*self.spread)
        residual = (clean - conditions.anchor) / spread
        (terms,) = super().loss_terms(network, residual, conditions, seed=seed, indices=indices)
        return [terms._replace(scale=terms.scale * spread)]

    @torch.no_grad()
    def sample(self, network: nn.Module, conditions: Conditions, *, limits: Limits | None, **options: Any) -> Tensor:
        anchor, spread = conditions.anchor, conditions.spread(*self.spread)
        if limits is None:
            return anchor + spread * super().sample(network, conditions, limits=None, **options)
        low, high = ((limit - anchor) / spread for limit in limits)
        return (anchor + spread * super().sample(network, conditions, limits=(low, high), **options)).clamp(*limits)

    def _channels(self, conditions: Conditions) -> Tensor:
        return conditions.channels(conditions.spread(*self.spread))
