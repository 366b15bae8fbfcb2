"""Samplers: from noise to an image, for every process whose noisy images are x = a x0 + b n, n standard normal.

A variance-preserving process has a^2 + b^2 = 1, EDM a = 1 and b = sigma. A sampler sees neither network nor
conditions: `denoise(x, i)` is the estimate of x0 from x at level i, within the physical range if the process keeps it
there; the step follows from that estimate, so that one that is clamped also tells a clamped noise.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

Noise = Callable[[int], Tensor]  # step -> (N, 4, H, W) standard normal; step 0 starts the sampler
Denoise = Callable[[Tensor, int], Tensor]
Level = tuple[float, float]  # a and b

_PURE_NOISE = 1e-3  # a / b, below which a level holds no signal to speak of


class Levels(NamedTuple):
    """The levels that a sampler visits, a and b (steps + 1,): b falls to 0, a rises to 1. The first a may be 0."""

    a: Tensor
    b: Tensor

    def steps(self) -> Iterator[tuple[Level, Level]]:
        return pairwise(zip(self.a.tolist(), self.b.tolist(), strict=True))


def _step(x: Tensor, clean: Tensor, now: Level, following: Level) -> Tensor:
    """a' x0 + b' n, with the n that x and the estimate of x0 imply; all of x0 where b' is 0."""
    (a, b), (a_next, b_next) = now, following
    return b_next / b * x + (a_next - a * b_next / b) * clean


def euler(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """First order: DDIM with eta = 0 (Song et al. 2021, eq. 12), for EDM its Euler steps (Karras et al. 2022, alg. 1).

    x (N, ...) is at the first of `levels`; the result estimates x0. Deterministic: `noise` is not asked.
    """
    for i, (now, following) in enumerate(levels.steps()):
        x = _step(x, denoise(x, i), now, following)
    return x


def heun(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """Second order, trapezoids of x/a over b/a (Karras et al. 2022, algorithm 1); asks for 2 steps - 1 estimates.

    Slope (x/a - x0) / (b/a) averaged over both ends is the Euler step with x0 + s/(2 s') (x0' - x0), s = b/a. The last
    step is Euler's, as theirs, and so is one from pure noise, where s is infinite.
    """
    for i, (now, following) in enumerate(levels.steps()):
        (a, b), (a_next, b_next) = now, following
        clean = denoise(x, i)
        if b_next and a > _PURE_NOISE * b:
            there = denoise(_step(x, clean, now, following), i + 1)
            clean = clean + a_next * b / (2 * a * b_next) * (there - clean)
        x = _step(x, clean, now, following)
    return x


def dpm_solver_2m(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """Second order from two successive estimates: DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    x0 is extrapolated by half a step in lambda = log(a/b). The first and the last step are of first order.
    """
    log_snr = (levels.a / levels.b).log().tolist()
    last, before = len(log_snr) - 2, x
    for i, (now, following) in enumerate(levels.steps()):
        clean = estimate = denoise(x, i)
        if 0 < i < last:
            ratio = (log_snr[i + 1] - log_snr[i]) / (log_snr[i] - log_snr[i - 1])  # 0 after a level without signal
            estimate = clean + ratio / 2 * (clean - before)
        x, before = _step(x, estimate, now, following), clean
    return x


def ancestral(denoise: Denoise, x: Tensor, levels: Levels, noise: Noise, *, upper: bool = False) -> Tensor:
    """Draws of q(x' | x, x0) (Ho et al. 2020, eq. 7, for any two levels), step i with noise(i + 1).

    The variance is that of eq. 7; with `upper` it is beta, the other choice of their section 3.2, which suits small
    steps alone: a large one ends with more noise than its level has.
    """
    for i, ((a, b), (a_next, b_next)) in enumerate(levels.steps()):
        kept, left = a / a_next, (b_next / b) ** 2
        beta = b**2 - (kept * b_next) ** 2  # q(x | x') = N(kept x', beta)
        x = a_next * beta / b**2 * denoise(x, i) + kept * left * x
        if b_next:
            x = x + (beta if upper else left * beta) ** 0.5 * noise(i + 1)
    return x


SAMPLERS = {"euler": euler, "heun": heun, "dpm_solver_2m": dpm_solver_2m, "ancestral": ancestral}
