import math

import pytest
import torch

from cloudjob.diffusion.samplers import SAMPLERS, Path, ancestral, euler, heun

MEAN, SPREAD = 0.7, 0.5
ORDERS = {"euler": 1, "heun": 2, "dpm_solver_2m": 2}


def edm(steps: int) -> Path:
    """Geometric sigmas from 10 to 1e-4, and 0: steps of equal size in lambda."""
    sigma = torch.cat([10 ** torch.linspace(1, -4, steps, dtype=torch.float64), torch.zeros(1)])
    return Path(torch.ones_like(sigma), sigma)


def variance_preserving(steps: int) -> Path:
    sigma = edm(steps).b
    return Path(1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt())


def zero_terminal_snr(steps: int) -> Path:
    angle = torch.linspace(math.pi / 2, 0, steps + 1, dtype=torch.float64)
    return Path(angle.cos().where(angle < 1.57, 0), angle.sin())


def unasked(step: int) -> torch.Tensor:
    raise AssertionError("a deterministic sampler asks for noise")


def of_gaussian(path: Path):
    """The best estimate of x0 ~ N(MEAN, SPREAD^2): its posterior mean."""

    def denoise(x, i):
        a, b = path.a[i], path.b[i]
        return MEAN + a * SPREAD**2 / (a**2 * SPREAD**2 + b**2) * (x - a * MEAN)

    return denoise


def error(name: str, path: Path) -> float:
    """Against the probability flow, along which (x - a mean) / sqrt(a^2 spread^2 + b^2) is constant."""
    a, b = path.a[0], path.b[0]
    x = torch.linspace(-2, 2, 5, dtype=torch.float64) * b
    exact = MEAN + SPREAD * (x - a * MEAN) / (a**2 * SPREAD**2 + b**2).sqrt()
    return (SAMPLERS[name](of_gaussian(path), x, path, unasked) - exact).abs().max().item()


@pytest.mark.parametrize("make", [edm, variance_preserving])
@pytest.mark.parametrize("name", ORDERS)
def test_a_gaussian_is_solved_with_the_order_of_the_method(name, make):
    coarse, fine = (error(name, make(steps)) for steps in (300, 599))
    assert math.log2(coarse / fine) == pytest.approx(ORDERS[name], abs=0.1)
    assert fine < 0.02 / 10 ** (2 * ORDERS[name] - 2)


@pytest.mark.parametrize("name", ORDERS)
def test_a_start_without_signal(name):
    coarse, fine = (error(name, zero_terminal_snr(steps)) for steps in (50, 200))
    assert fine < coarse / 3.5
    assert fine < (0.02 if name == "euler" else 0.001)


@pytest.mark.parametrize("make", [edm, variance_preserving, zero_terminal_snr])
def test_ancestral_draws_have_the_mean_and_spread_of_the_data(make):
    path, generator = make(200), torch.Generator().manual_seed(0)

    def noise(step):
        return torch.randn(20000, dtype=torch.float64, generator=generator)

    found = ancestral(of_gaussian(path), path.b[0] * noise(0), path, noise)
    assert found.mean() == pytest.approx(MEAN, abs=0.015)
    assert found.std() == pytest.approx(SPREAD, rel=0.03)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_estimate_is_the_result(name, steps):
    """So what an estimate is clamped to, the image is."""
    path, image = zero_terminal_snr(steps), torch.randn(3, 8, dtype=torch.float64)
    found = SAMPLERS[name](lambda x, i: image, torch.randn_like(image), path, lambda step: torch.randn_like(image))
    assert torch.equal(found, image)


def test_every_draw_of_noise_is_asked_for_once_by_its_number():
    asked, path = [], edm(5)
    ancestral(lambda x, i: 0 * x, torch.ones(1), path, lambda step: asked.append(step) or torch.zeros(1))
    assert asked == [1, 2, 3, 4]


def curved(x, sigma):
    return torch.tanh(x / (1 + sigma)) + 0.1 * sigma


@pytest.mark.parametrize(("sampler", "scheduler"), [(euler, "EulerDiscreteScheduler"), (heun, "HeunDiscreteScheduler")])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_edm_steps_are_those_of_diffusers(sampler, scheduler, clip):
    diffusers = pytest.importorskip("diffusers")
    peer = getattr(diffusers, scheduler)(prediction_type="sample", use_karras_sigmas=True)
    peer.set_timesteps(8)
    peer.sigmas = peer.sigmas.double()
    sigma = peer.sigmas.unique().flip(0)
    start = peer.init_noise_sigma * torch.randn(2, 4, 8, dtype=torch.float64)

    def estimate(x, s):
        return curved(x, s) if clip is None else curved(x, s).clamp(-clip, clip)

    x = start
    for k, t in enumerate(peer.timesteps):
        peer.scale_model_input(x, t)
        x = peer.step(estimate(x, peer.sigmas[k]), t, x).prev_sample
    path = Path(torch.ones_like(sigma), sigma)
    found = sampler(lambda x, i: estimate(x, sigma[i]), start, path, unasked)
    assert torch.allclose(found, x, atol=1e-5, rtol=0)
