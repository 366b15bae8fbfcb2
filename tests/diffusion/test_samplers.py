import math

import pytest
import torch

from cloudjob.diffusion.samplers import SAMPLERS, Levels, ancestral, dpm_solver_2m, euler, heun

MEAN, SPREAD = 0.7, 0.5
ORDERS = {"euler": 1, "heun": 2, "dpm_solver_2m": 2}


def edm(steps: int) -> Levels:
    """Geometric sigmas from 10 to 1e-4, and 0: steps of equal size in lambda."""
    sigma = torch.cat([10 ** torch.linspace(1, -4, steps, dtype=torch.float64), torch.zeros(1)])
    return Levels(torch.ones_like(sigma), sigma)


def variance_preserving(steps: int) -> Levels:
    sigma = edm(steps).b
    return Levels(1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt())


def zero_terminal_snr(steps: int) -> Levels:
    angle = torch.linspace(math.pi / 2, 0, steps + 1, dtype=torch.float64)
    return Levels(angle.cos().where(angle < 1.57, 0), angle.sin())


def unasked(step: int) -> torch.Tensor:
    raise AssertionError("a deterministic sampler asks for noise")


def of_gaussian(levels: Levels):
    """The best estimate of x0 ~ N(MEAN, SPREAD^2): its posterior mean."""

    def denoise(x, i):
        a, b = levels.a[i], levels.b[i]
        return MEAN + a * SPREAD**2 / (a**2 * SPREAD**2 + b**2) * (x - a * MEAN)

    return denoise


def error(name: str, levels: Levels) -> float:
    """Against the probability flow, along which (x - a mean) / sqrt(a^2 spread^2 + b^2) is constant."""
    a, b = levels.a[0], levels.b[0]
    x = torch.linspace(-2, 2, 5, dtype=torch.float64) * b
    exact = MEAN + SPREAD * (x - a * MEAN) / (a**2 * SPREAD**2 + b**2).sqrt()
    return (SAMPLERS[name](of_gaussian(levels), x, levels, unasked) - exact).abs().max().item()


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
    levels, generator = make(200), torch.Generator().manual_seed(0)

    def noise(step):
        return torch.randn(20000, dtype=torch.float64, generator=generator)

    found = ancestral(of_gaussian(levels), levels.b[0] * noise(0), levels, noise)
    assert found.mean() == pytest.approx(MEAN, abs=0.015)
    assert found.std() == pytest.approx(SPREAD, rel=0.03)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_estimate_is_the_result(name, steps):
    """So what an estimate is clamped to, the image is."""
    levels, image = zero_terminal_snr(steps), torch.randn(3, 8, dtype=torch.float64)
    found = SAMPLERS[name](lambda x, i: image, torch.randn_like(image), levels, lambda step: torch.randn_like(image))
    assert torch.equal(found, image)


HAND = Levels(torch.tensor([0.6, 0.8, 1.0], dtype=torch.float64), torch.tensor([0.8, 0.6, 0.0], dtype=torch.float64))


def estimates(*values: float):
    """The estimates of x0 in the order in which they are asked for, each with its level."""
    asked = []

    def denoise(x, i):
        asked.append((x.item(), i))
        return torch.tensor(values[len(asked) - 1], dtype=torch.float64)

    return denoise, asked


def test_a_step_of_euler_by_hand():
    """The noise that x = 2 and x0 = 0.5 imply is (2 - 0.6 * 0.5) / 0.8 = 2.125."""
    denoise, asked = estimates(0.5, 7.0)
    assert euler(denoise, torch.tensor(2.0, dtype=torch.float64), HAND, unasked) == 7
    assert asked == [(2, 0), (pytest.approx(0.8 * 0.5 + 0.6 * 2.125), 1)]


def test_a_step_of_heun_by_hand():
    """In units of a, x is 10/3 and the noise goes from 4/3 to 3/4; slopes at both ends with x0 = 0.5 and 0.9."""
    denoise, asked = estimates(0.5, 0.9, 7.0)
    assert heun(denoise, torch.tensor(2.0, dtype=torch.float64), HAND, unasked) == 7
    first = (2 / 0.6 - 0.5) / (4 / 3)
    there = 2 / 0.6 + first * (3 / 4 - 4 / 3)
    second = (there - 0.9) / (3 / 4)
    end = 0.8 * (2 / 0.6 + (first + second) / 2 * (3 / 4 - 4 / 3))
    assert asked == [(2, 0), (pytest.approx(0.8 * there), 1), (pytest.approx(end), 1)]


@pytest.mark.parametrize(("a", "b", "asks"), [(0.0, 1, 2), (0.001, 1, 2), (0.00105, 1, 3), (0.00105, 1.2, 2)])
def test_heun_takes_the_first_step_of_euler_where_there_is_no_signal_to_speak_of(a, b, asks):
    denoise, asked = estimates(*[0.5] * asks)
    levels = Levels(*torch.tensor([[a, 0.8, 1.0], [b, 0.6, 0.0]], dtype=torch.float64))
    heun(denoise, torch.tensor(2.0, dtype=torch.float64), levels, unasked)
    assert len(asked) == asks


def test_steps_of_dpm_solver_by_hand():
    """Of four steps the second and the third extrapolate x0 by half a step of lambda = log(a / b)."""
    a = torch.tensor([0.28, 0.6, 0.8, 0.96, 1.0], dtype=torch.float64)
    levels = Levels(a, (1 - a**2).sqrt())
    denoise, asked = estimates(0.5, 0.9, 0.7, 6.0)
    assert dpm_solver_2m(denoise, torch.tensor(2.0, dtype=torch.float64), levels, unasked) == 6
    logs = [math.log(a_ / math.sqrt(1 - a_**2)) for a_ in a[:4].tolist()]
    x, told = 2.0, [0.5]
    for i, (now, before) in ((1, (0.9, 0.5)), (2, (0.7, 0.9))):
        told.append(now + (now - before) * (logs[i + 1] - logs[i]) / (logs[i] - logs[i - 1]) / 2)
    for i, clean in enumerate(told):
        assert asked[i] == (pytest.approx(x), i)
        (now, then), (b, b_then) = a[i : i + 2].tolist(), levels.b[i : i + 2].tolist()
        x = then * clean + b_then * (x - now * clean) / b
    assert asked[3] == (pytest.approx(x), 3)


@pytest.mark.parametrize("upper", [False, True])
def test_an_ancestral_draw_by_hand(upper):
    """Equation 7 of Ho et al. with alpha_bar from 0.36 to 0.64, so alpha = 0.5625 and beta = 0.4375."""
    denoise, asked = estimates(0.5, 7.0)
    found = ancestral(denoise, torch.tensor(2.0, dtype=torch.float64), HAND, lambda step: 10.0**step, upper=upper)
    assert found == 7
    mean = (0.8 * 0.4375 * 0.5 + 0.75 * 0.36 * 2) / 0.64
    deviation = (0.4375 if upper else 0.4375 * 0.36 / 0.64) ** 0.5
    assert asked == [(2, 0), (pytest.approx(mean + 10 * deviation), 1)]


def test_the_smaller_variance_is_the_plain_one():
    denoise, _ = estimates(0.5, 7.0)
    other, _ = estimates(0.5, 7.0)
    seen = []
    for one, options in ((denoise, {}), (other, {"upper": False})):
        ancestral(
            lambda x, i, one=one: seen.append(x.item()) or one(x, i), torch.tensor(2.0), HAND, lambda _: 1.0, **options
        )
    assert seen[:2] == seen[2:]


def test_every_draw_of_noise_is_asked_for_once_by_its_number():
    asked, levels = [], edm(5)
    ancestral(lambda x, i: 0 * x, torch.ones(1), levels, lambda step: asked.append(step) or torch.zeros(1))
    assert asked == [1, 2, 3, 4]


def curved(x, sigma):
    return torch.tanh(x / (1 + sigma)) + 0.1 * sigma


@pytest.mark.slow
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
    levels = Levels(torch.ones_like(sigma), sigma)
    found = sampler(lambda x, i: estimate(x, sigma[i]), start, levels, unasked)
    assert torch.allclose(found, x, atol=1e-5, rtol=0)
