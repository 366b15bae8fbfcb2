import dataclasses
import math

import pytest
import torch

from cloudjob.diffusion.conditions import Conditions, Normalisation
from cloudjob.diffusion.ddpm import Ddpm
from cloudjob.diffusion.losses import pixel_weights, weighted_mse
from cloudjob.diffusion.networks import build
from cloudjob.diffusion.processes import Corrective, Regression, Residual, measure_drift, measure_spread

NORM = Normalisation(mean=(0.0,) * 4, std=(1.0,) * 4)
WIDE = (torch.tensor(-1e9), torch.tensor(1e9))


def batch(count: int = 2, size: int = 8) -> tuple[torch.Tensor, Conditions]:
    torch.manual_seed(0)
    clean, cloudy, reference = torch.randn(3, count, 4, size, size)
    mask = torch.randint(0, 4, (count, size, size), dtype=torch.uint8)
    return clean, Conditions.of({"cloudy": cloudy, "mask": mask, "reference": reference}, norm=NORM)


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
    (terms,) = process.loss_terms(network, clean, conditions, seed=0, indices=[0, 1])
    assert torch.allclose(terms.prediction, terms.target, rtol=1e-2, atol=1e-2)


def test_the_target_has_unit_variance_at_every_sigma():
    """EDM's reason for its coefficients: the network's task is of the same size at all noise levels."""
    image = torch.randn(2, 4, 64, 64)
    for sigma in (0.05, 1.0, 30.0):
        process = Residual(sigma_min=sigma, sigma_max=sigma * 1.0001)
        batch = {"cloudy": torch.zeros_like(image), "mask": torch.ones(2, 64, 64, dtype=torch.uint8)}
        conditions = Conditions.of(batch, norm=NORM)
        (terms,) = process.loss_terms(lambda x, *_: x, image, conditions, seed=0, indices=[0, 1])
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
    seen = {"cloudy": cloudy, "mask": mask}
    with_reference = Conditions.of(seen | {"reference": reference}, norm=NORM)
    assert measure_spread(ground, with_reference, valid) == pytest.approx((0.2, 0.5, 1), rel=0.03)
    without = Conditions.of(seen, norm=NORM)
    assert measure_spread(2 * ground, without, valid)[1:] == pytest.approx((1, 2), rel=0.03)


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


@pytest.mark.parametrize("process", [Residual(), Residual(alpha=1.5, drift=(2.0, 0.3)), Ddpm()])
def test_a_draw_belongs_to_the_sample_not_to_the_batch(process):
    clean, conditions = batch(count=3)
    alone = Conditions(*(getattr(conditions, field.name)[2:] for field in dataclasses.fields(conditions)))
    (together,) = process.loss_terms(lambda x, *_: x, clean, conditions, seed=4, indices=[5, 6, 9])
    (single,) = process.loss_terms(lambda x, *_: x, clean[2:], alone, seed=4, indices=[9])
    assert torch.equal(together.target[2], single.target[0])
    assert torch.equal(together.prediction[2], single.prediction[0])


def test_weights_follow_the_mask():
    mask = torch.tensor([0, 1, 2, 3, 4, 255, 1], dtype=torch.uint8).view(1, 1, 1, 7)
    valid = torch.tensor([True] * 6 + [False]).view(1, 1, 1, 7)
    weights = pixel_weights(mask, valid, clear_weight=0.25)
    assert weights.flatten().tolist() == [0.25, 1, 1, 1, 0.25, 0, 0]
    error = torch.ones(1, 4, 1, 7)
    assert weighted_mse(error, 0 * error, weights) == pytest.approx(3.5 / 7)


@pytest.mark.slow
def test_a_few_steps_of_training_lower_the_loss():
    torch.manual_seed(0)
    clean, conditions = batch(count=4, size=16)
    network = build("tiny", condition_channels=conditions.channels().shape[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        (terms,) = Residual().loss_terms(network, clean, conditions, seed=0, indices=[0, 1, 2, 3])
        losses.append(weighted_mse(terms.prediction, terms.target, torch.ones(4, 1, 16, 16)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_with_the_measured_drift_input_and_target_have_unit_variance_at_every_sigma(alpha):
    torch.manual_seed(1)
    ground = torch.randn(16, 4, 32, 32)
    seen = {"cloudy": ground + 2 * torch.randn(16, 4, 1, 1), "mask": torch.ones(16, 32, 32, dtype=torch.uint8)}
    conditions, everywhere = Conditions.of(seen, norm=NORM), torch.ones(16, 1, 32, 32, dtype=torch.bool)
    spread = measure_spread(ground, conditions, everywhere)
    drift = measure_drift(ground, conditions, everywhere, spread)
    for sigma in (0.05, 1.0, 30.0):
        process = Residual(spread, alpha, drift, sigma_min=sigma, sigma_max=sigma * 1.0001)
        (terms,) = process.loss_terms(lambda x, *_: x, ground, conditions, seed=0, indices=list(range(16)))
        assert terms.prediction.square().mean() == pytest.approx(1, abs=0.05)  # the scaled input
        assert terms.target.square().mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_solver_2m"])
def test_drawn_towards_the_cloudy_image_it_samples_a_gaussian_by_the_closed_form(alpha, sampler):
    """r ~ N(m, s^2), so D(x; sigma) is linear, and dx/dsigma = (x - D) / sigma is solved by the map of one normal
    variable to the other; with a drift, for s = 0, it ends in m wherever it began."""
    torch.manual_seed(0)
    _, conditions = batch(size=4)
    mean, spread = 0.3, 0.0 if alpha else 0.5
    process = Residual(spread=(1.0, 1.0, 1.0), alpha=alpha, sigma_min=1e-3)
    mu = alpha * (conditions.cloudy - conditions.anchor)

    def network(x, level, channels):
        low, high = math.log(process.sigma_min), math.log(process.sigma_max)
        sigma = (low + level * (high - low)).exp()[:, None, None, None]
        x = x * (1 + sigma**2).sqrt()
        best = mean + spread**2 / (spread**2 + sigma**2) * (x - sigma * mu - mean)
        return (best - x / (1 + sigma**2)) * (1 + sigma**2).sqrt() / sigma

    found = process.sample(
        network, conditions, noise=lambda step: normal_noise(step, size=4), steps=200, limits=WIDE, sampler=sampler
    )
    drawn = normal_noise(0, size=4) * process.sigma_max
    expected = mean + spread * (drawn - mean) / math.hypot(spread, process.sigma_max)
    assert torch.allclose(
        found - conditions.anchor, torch.as_tensor(expected).expand_as(found), atol=0.1 if sampler == "euler" else 0.02
    )


def test_a_regression_gives_what_it_was_asked_for_whatever_the_noise():
    clean, conditions = batch()
    process = Regression(spread=(0.5, 1.0, 2.0))
    truth = (clean - conditions.anchor) / conditions.choose(*process.spread)
    (terms,) = process.loss_terms(lambda *_: truth, clean, conditions, seed=0, indices=[0, 1])
    assert torch.equal(terms.prediction, terms.target)
    found = process.sample(lambda *_: truth, conditions, noise=normal_noise, steps=7, limits=WIDE, sampler="euler")
    assert torch.allclose(found, clean, atol=1e-5)


class Two(torch.nn.Module):
    """As networks.MeanAndDetail: a constant regression, and for the noisy image what `detail` says."""

    def __init__(self, detail):
        super().__init__()
        self.mean, self.detail = torch.nn.Parameter(torch.tensor(0.5)), detail

    def forward(self, x, level, channels):
        return (
            self.mean.expand(len(channels), 4, *channels.shape[-2:]) if x is None else self.detail(x, level, channels)
        )


def test_corrective_its_noise_is_on_what_the_regression_leaves():
    clean, conditions = batch()
    process = Corrective()
    seen = []
    network = Two(lambda x, level, channels: seen.append(channels) or 0 * x + network.mean)
    mean, detail = process.loss_terms(network, clean, conditions, seed=0, indices=[0, 1])
    guess = conditions.anchor + 0.5 * conditions.choose(*process.spread)
    anchored = conditions.anchored(guess)
    assert torch.equal(seen[0], anchored.channels(conditions.choose(*process.spread)))
    (alone,) = Residual(sigma_max=10.0, share_at_max=0.05).loss_terms(
        lambda x, *_: 0 * x, clean, anchored, seed=0, indices=[0, 1]
    )
    assert torch.equal(detail.target, alone.target)
    (regression,) = Regression(process.spread).loss_terms(network, clean, conditions, seed=0, indices=[0, 1])
    assert torch.equal(mean.target, regression.target)
    assert not detail.target.requires_grad, "the regression is to be right, not to make the diffusion's task easy"


@pytest.mark.parametrize("steps", [1, 4])
def test_corrective_a_perfect_detail_mends_any_regression(steps):
    clean, conditions = batch()
    process = Corrective()
    guess = conditions.anchor + 0.5 * conditions.choose(*process.spread)
    network = Two(optimal_network(process, clean, conditions.anchored(guess)))
    found = process.sample(network, conditions, noise=normal_noise, steps=steps, limits=WIDE)
    assert torch.allclose(found, clean, atol=1e-3)


def test_corrective_opposite_noise_spreads_about_the_regression():
    """Where the estimate is linear in the noise, the mean of an antithetic pair is the regression."""
    _, conditions = batch()
    process = Corrective()
    network = Two(lambda x, *_: 0.3 * x)
    one = process.sample(network, conditions, noise=normal_noise, steps=4, limits=WIDE)
    other = process.sample(network, conditions, noise=lambda step: -normal_noise(step), steps=4, limits=WIDE)
    assert (one - other).abs().mean() > 0.1
    expected = Regression(process.spread).sample(network, conditions, limits=WIDE)
    assert torch.allclose((one + other) / 2, expected, atol=1e-5)
