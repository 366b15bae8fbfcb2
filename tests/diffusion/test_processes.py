import dataclasses
import math

import pytest
import torch

from cloudjob.diffusion.conditions import Conditions, Normalisation
from cloudjob.diffusion.losses import pixel_weights, weighted_mse
from cloudjob.diffusion.networks import build
from cloudjob.diffusion.noise import uniforms
from cloudjob.diffusion.processes import Ddpm, Residual

NORM = Normalisation(mean=(0.0,) * 4, std=(1.0,) * 4)
WIDE = (torch.tensor(-1e9), torch.tensor(1e9))


def batch(count: int = 2, size: int = 8) -> tuple[torch.Tensor, Conditions]:
    torch.manual_seed(0)
    clean, cloudy, reference = torch.randn(3, count, 4, size, size)
    mask = torch.randint(0, 4, (count, size, size), dtype=torch.uint8)
    return clean, Conditions.of(cloudy, mask, reference, norm=NORM)


def normal_noise(step: int, *, count: int = 2, size: int = 8) -> torch.Tensor:
    return torch.randn(count, 4, size, size, generator=torch.Generator().manual_seed(step))


def optimal_network(process: Residual, clean: torch.Tensor, conditions: Conditions):
    """The F that denoises perfectly, by inverting D = c_skip x + c_out F with the coefficients of EDM's table 1."""
    residual = (clean - conditions.anchor) / conditions.choose(*process.spread)

    def network(x, level, channels):
        low, high = math.log(process.sigma_min), math.log(process.sigma_max)
        sigma = (low + level * (high - low)).exp()[:, None, None, None]
        scale = (sigma**2 + 1).sqrt()
        c_skip, c_out = 1 / scale**2, sigma / scale
        return (residual - c_skip * x * scale) / c_out

    return network


def test_the_training_target_is_the_perfect_networks_output():
    clean, conditions = batch()
    process = Residual()
    network = optimal_network(process, clean, conditions)
    terms = process.loss_terms(network, clean, conditions, seed=0, indices=[0, 1])
    assert torch.allclose(terms.prediction, terms.target, rtol=1e-2, atol=1e-2)


def test_the_target_has_unit_variance_at_every_sigma():
    """EDM's reason for its coefficients: the network's task is of the same size at all noise levels."""
    image = torch.randn(2, 4, 64, 64)
    for sigma in (0.05, 1.0, 30.0):
        process = Residual(sigma_min=sigma, sigma_max=sigma * 1.0001)
        conditions = Conditions.of(torch.zeros_like(image), torch.ones(2, 64, 64, dtype=torch.uint8), None, norm=NORM)
        terms = process.loss_terms(lambda x, *_: x, image, conditions, seed=0, indices=[0, 1])
        assert terms.target.std() == pytest.approx(1, abs=0.03)
        assert terms.prediction.std() == pytest.approx(1, abs=0.03)  # the scaled input


@pytest.mark.parametrize("steps", [1, 4])
def test_a_perfect_network_gives_back_the_ground(steps):
    clean, conditions = batch()
    network = optimal_network(Residual(), clean, conditions)
    found = Residual().sample(network, conditions, noise=normal_noise, steps=steps, limits=WIDE)
    assert torch.allclose(found, clean, atol=1e-3)


def test_an_untrained_network_gives_back_the_anchor():
    _, conditions = batch()
    network = build("tiny", condition_channels=conditions.channels().shape[1])
    _, large = batch(size=16)
    found = Residual().sample(network, large, noise=lambda step: normal_noise(step, size=16), steps=1, limits=WIDE)
    assert torch.allclose(found, large.anchor, atol=0.2)


def test_samples_stay_in_the_physical_range():
    _, conditions = batch()
    limits = torch.tensor(-0.2), torch.tensor(0.3)
    for steps in (1, 5):
        found = Residual().sample(lambda x, *_: 100 * x, conditions, noise=normal_noise, steps=steps, limits=limits)
        assert found.min() >= limits[0]
        assert found.max() <= limits[1]


def test_the_spread_is_measured_for_each_kind_of_pixel():
    torch.manual_seed(0)
    ground = torch.randn(8, 4, 32, 32)
    mask = torch.zeros(8, 32, 32, dtype=torch.uint8)
    mask[:, :16] = 1
    cloudy, reference = ground + 0.2 * torch.randn_like(ground), ground + 0.5 * torch.randn_like(ground)
    valid = torch.ones(8, 1, 32, 32, dtype=torch.bool)
    valid[..., 0] = False
    ground[..., 0] = 1e6
    with_reference = Conditions.of(cloudy, mask, reference, norm=NORM)
    assert Residual.measured(ground, with_reference, valid).spread == pytest.approx((0.2, 0.5, 1), rel=0.03)
    without = Conditions.of(cloudy, mask, None, norm=NORM)
    assert Residual.measured(2 * ground, without, valid, rho=5).spread[1:] == pytest.approx((1, 2), rel=0.03)


def test_sigmas_fall_to_zero():
    process = Residual()
    sigmas = process.sigmas(5)
    assert sigmas[0] == pytest.approx(process.sigma_max)
    assert sigmas[4] == pytest.approx(process.sigma_min)
    assert sigmas[5] == 0
    assert (sigmas.diff() < 0).all()


def test_the_share_at_sigma_max():
    levels = []
    _, conditions = batch(count=400, size=1)
    Residual(share_at_max=0.3).loss_terms(
        lambda x, level, _: levels.append(level) or x,
        torch.zeros(400, 4, 1, 1),
        conditions,
        seed=0,
        indices=list(range(400)),
    )
    assert (levels[0] > 0.999).float().mean() == pytest.approx(0.3, abs=0.07)


@pytest.mark.parametrize("process", [Residual(), Ddpm()])
def test_a_draw_belongs_to_the_sample_not_to_the_batch(process):
    clean, conditions = batch(count=3)
    alone = Conditions(*(getattr(conditions, field.name)[2:] for field in dataclasses.fields(conditions)))
    together = process.loss_terms(lambda x, *_: x, clean, conditions, seed=4, indices=[5, 6, 9])
    single = process.loss_terms(lambda x, *_: x, clean[2:], alone, seed=4, indices=[9])
    assert torch.equal(together.target[2], single.target[0])
    assert torch.equal(together.prediction[2], single.prediction[0])


def test_ddpm_noises_by_the_closed_form():
    clean, conditions = batch()
    terms = Ddpm().loss_terms(lambda x, level, _: x, clean, conditions, seed=1, indices=[3, 4])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    for sample, t in enumerate((uniforms(1, [3, 4], "timestep") * 1000).long()):
        alpha_bar = math.prod((1 - betas[: t + 1]).tolist())
        x = alpha_bar**0.5 * clean[sample] + (1 - alpha_bar) ** 0.5 * terms.target[sample]
        assert torch.allclose(terms.prediction[sample], x, atol=1e-5)


def test_ddpm_follows_the_ancestral_recursion_of_the_paper():
    """Algorithm 2 of Ho et al., written step by step in its own form (predicted noise, not x0)."""
    _, conditions = batch()
    process = Ddpm(timesteps=50)

    def network(x, level, channels):
        return torch.tanh(x) * (0.5 + level[:, None, None, None])

    x, alpha_bar = normal_noise(0).double(), 1.0
    alphas = [1 - (1e-4 + (0.02 - 1e-4) * t / 49) for t in range(50)]
    bars = [alpha_bar := alpha_bar * alpha for alpha in alphas]
    for draw, t in enumerate(range(49, -1, -1)):
        predicted = network(x, torch.full((2,), t / 50), None)
        x = (x - (1 - alphas[t]) / (1 - bars[t]) ** 0.5 * predicted) / alphas[t] ** 0.5
        if t:
            x = x + (1 - alphas[t]) ** 0.5 * normal_noise(draw + 1)
    found = process.sample(network, conditions, noise=normal_noise, steps=50)
    assert torch.allclose(found.double(), x, atol=1e-4)


def test_ddpm_with_the_true_noise_gives_back_the_ground():
    clean, conditions = batch()
    process = Ddpm()
    bars = process.alpha_bar()

    def network(x, level, channels):
        alpha_bar = bars[(level[0] * 1000).round().long()]
        return (x - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()

    found = process.sample(network, conditions, noise=normal_noise, steps=20)
    assert torch.allclose(found, clean, atol=1e-3)


def test_weights_follow_the_mask():
    mask = torch.tensor([0, 1, 2, 3, 4, 255, 1], dtype=torch.uint8).view(1, 1, 1, 7)
    valid = torch.tensor([True] * 6 + [False]).view(1, 1, 1, 7)
    weights = pixel_weights(mask, valid, clear_weight=0.25)
    assert weights.flatten().tolist() == [0.25, 1, 1, 1, 0.25, 0, 0]
    error = torch.ones(1, 4, 1, 7)
    assert weighted_mse(error, 0 * error, weights) == pytest.approx(3.5 / 7)


def test_a_few_steps_of_training_lower_the_loss():
    torch.manual_seed(0)
    clean, conditions = batch(count=4, size=16)
    network = build("tiny", condition_channels=conditions.channels().shape[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        terms = Residual().loss_terms(network, clean, conditions, seed=0, indices=[0, 1, 2, 3])
        losses.append(weighted_mse(*terms, torch.ones(4, 1, 16, 16)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
