import dataclasses
import math

import batches
import near
import numpy as np
import pytest
import torch

from cloudjob.diffusion.conditions import Conditions, Normalisation
from cloudjob.diffusion.ddpm import Ddpm
from cloudjob.diffusion.losses import weighted_mse
from cloudjob.diffusion.networks import build
from cloudjob.diffusion.noise import normals, uniforms
from cloudjob.diffusion.processes import Corrective, Regression, Residual, measure_drift, measure_spread
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN

NORM = Normalisation(mean=(0.0,) * 4, std=(1.0,) * 4)
WIDE = (torch.tensor(-1e9), torch.tensor(1e9))


def batch(count: int = 2, size: int = 8) -> tuple[torch.Tensor, Conditions]:
    torch.manual_seed(0)
    clean, cloudy, reference = torch.randn(3, count, 4, size, size)
    mask = torch.randint(0, 4, (count, size, size), dtype=torch.uint8)
    return clean, Conditions.of(batches.batch(cloudy, mask, reference=reference), norm=NORM, first_guess="surroundings")


def normal_noise(step: int, *, count: int = 2, size: int = 8) -> torch.Tensor:
    return torch.randn(count, 4, size, size, generator=torch.Generator().manual_seed(step))


def sampled(process, network, conditions: Conditions, *, limits, **options) -> torch.Tensor:
    """As a recipe does it: a corrective's regression comes first."""
    if isinstance(process, Corrective):
        conditions = process.guessed(network, conditions, limits=limits)
    return process.sample(network, conditions, limits=limits, **options)


def heard(answer):
    """(a network that gives `answer` for its x, the list of all that it is told)."""
    told = []

    def network(x, level, channels):
        told.append((x, level, channels))
        return answer(x)

    return network, told


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


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_solver_2m", "ancestral"])
@pytest.mark.parametrize("process", [Regression((0.1, 0.4, 1.0)), Residual(), Corrective()])
def test_whatever_the_network_says_samples_stay_in_the_physical_range(process, sampler, steps):
    _, conditions = batch()
    limits = torch.linspace(-0.2, -0.1, 4).view(4, 1, 1), torch.linspace(0.3, 0.6, 4).view(4, 1, 1)
    wild = torch.where(torch.rand(2, 4, 8, 8) < 0.5, -1e6, 1e6)
    network, _ = heard(lambda x: wild)
    found = sampled(process, network, conditions, noise=normal_noise, steps=steps, limits=limits, sampler=sampler)
    for band in range(4):
        assert found[:, band].min() == pytest.approx(limits[0][band].item(), abs=1e-6)
        assert found[:, band].max() == pytest.approx(limits[1][band].item(), abs=1e-6)
    assert (found >= limits[0]).all()
    assert (found <= limits[1]).all()


def test_a_first_guess_out_of_range_is_mended_too():
    """Of a regression that says nothing, and of the corrective's, before its noise is laid on."""
    _, conditions = batch()
    far = conditions.anchored(torch.full((2, 4, 8, 8), 9.0))
    limits = torch.tensor(-0.5), torch.tensor(0.5)
    network, told = heard(lambda x: torch.zeros(2, 4, 8, 8))
    assert (Regression((0.1, 0.4, 1.0)).sample(network, far, limits=limits) == 0.5).all()
    sampled(Corrective(), network, far, noise=normal_noise, steps=1, limits=limits)
    anchored = far.anchored(torch.full((2, 4, 8, 8), 0.5))
    assert torch.equal(told[-1][2], anchored.channels(far.choose(*Corrective().spread)))


def kinds_of_pixels() -> tuple[torch.Tensor, Conditions, torch.Tensor]:
    """(clean, conditions, valid) with pixels of every class, with and without a reference, valid or not."""
    torch.manual_seed(3)
    clean, cloudy, reference = torch.randn(3, 2, 4, 8, 8)
    classes = torch.tensor([CLEAR, CLOUD, SHADOW, CIRRUS, UNKNOWN, NO_DATA], dtype=torch.uint8)
    mask = classes[torch.randint(0, 6, (2, 8, 8))]
    reference[:, :, :, 5:] = torch.nan
    cloudy[:, 1, 0, :3] = torch.nan
    conditions = Conditions.of(batches.batch(cloudy, mask, reference=reference), norm=NORM, first_guess="surroundings")
    return clean, conditions, torch.rand(2, 1, 8, 8) < 0.8


def rms(error: torch.Tensor, pixels: torch.Tensor) -> float:
    return error.double().permute(0, 2, 3, 1)[pixels[:, 0]].square().mean().sqrt().item()


def test_the_spread_in_closed_form():
    clean, conditions, valid = kinds_of_pixels()
    clean = clean + 0.5 * (conditions.mask == CLEAR)  # the clear pixels differ too
    nothing = {name: torch.zeros_like(getattr(conditions, name)) for name in ("reference", "present", "dates")}
    bare = dataclasses.replace(
        conditions, **nothing, anchor=torch.where(conditions.mask == CLEAR, conditions.cloudy, 0)
    )
    valid_here = valid & (conditions.mask != NO_DATA)
    hidden = valid_here & (conditions.mask != CLEAR)
    expected = (
        rms(clean - conditions.anchor, valid_here & (conditions.mask == CLEAR)),
        rms(clean - conditions.anchor, hidden & conditions.present),
        rms(clean - bare.anchor, hidden),
    )
    assert measure_spread(clean, conditions, bare, valid) == pytest.approx(expected, rel=1e-5)


def test_the_spread_is_at_least_a_twentieth_and_1_where_nothing_is_measured():
    clean, conditions, valid = kinds_of_pixels()
    nothing = torch.zeros_like(valid)
    assert measure_spread(clean, conditions, conditions, nothing) == (1.0, 1.0, 1.0)
    clear = valid & (conditions.mask == CLEAR)
    assert measure_spread(conditions.cloudy, conditions, conditions, clear) == (0.05, 1.0, 1.0)
    assert measure_spread(conditions.cloudy + 0.06, conditions, conditions, clear)[0] == pytest.approx(0.06, rel=1e-4)


def test_the_drift_in_closed_form():
    clean, conditions, valid = kinds_of_pixels()
    spread = (0.5, 1.5, 2.0)
    pixels = (valid & (conditions.mask != NO_DATA))[:, 0]
    scale = conditions.choose(*spread)
    mu, r = (((x - conditions.anchor) / scale).permute(0, 2, 3, 1)[pixels] for x in (conditions.cloudy, clean))
    expected = (mu.square().mean().item(), (mu * r).mean().item())
    assert measure_drift(clean, conditions, valid, spread) == pytest.approx(expected, rel=1e-5)


def test_sigmas_are_those_of_the_paper_and_fall_to_zero():
    """Equation 5 of Karras et al. with rho = 7, from 40 to 0.02; of the corrective from 10."""
    for process, high in ((Residual(), 40.0), (Corrective(), 10.0)):
        sigmas = process.sigmas(5)
        ends = high ** (1 / 7), 0.02 ** (1 / 7)
        expected = [(ends[0] + i / 4 * (ends[1] - ends[0])) ** 7 for i in range(5)]
        assert torch.equal(sigmas, torch.tensor([*expected, 0])), "rounded once, from double precision"
        assert process.sigmas(1).tolist() == [high, 0]


def test_the_noise_level_is_told_from_0_to_1_by_its_logarithm():
    sigma = torch.tensor([1e-9, 0.02, (0.02 * 40) ** 0.5, 40, 1e9])
    assert Residual()._level(sigma).tolist() == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("process", "mean", "share", "high"),
    [
        (Residual(), -0.5, 0.4, 40.0),
        (Corrective(), -0.5, 0.05, 10.0),
        (Residual(log_mean=1.0, log_std=3.0, share_at_max=0.0, sigma_min=0.5, sigma_max=2.0), 1.0, 0.0, 2.0),
    ],
)
def test_training_sigmas_are_lognormal_but_for_a_share_at_the_most(process, mean, share, high):
    indices = list(range(200))
    _, conditions = batch(count=200, size=1)
    network = Two(lambda x, *_: 0 * x)
    terms = process.loss_terms(network, torch.zeros(200, 4, 1, 1), conditions, seed=3, indices=indices)[-1]
    pick, level = (uniforms(3, indices, use).numpy() for use in ("share", "sigma"))
    normal = torch.special.ndtri(torch.from_numpy(level)).numpy()
    sigma = np.exp(mean + process.log_std * normal).clip(process.sigma_min, high)
    sigma = np.where(pick < share, high, sigma)
    expected = np.log(sigma / process.sigma_min) / np.log(high / process.sigma_min)
    np.testing.assert_allclose(terms.level.numpy(), expected, atol=1e-5)
    assert process.log_std == (3.0 if share == 0 else 1.2)


def test_what_is_not_said_is_plain_edm():
    plain = {"sigma_min": 0.02, "rho": 7.0, "log_mean": -0.5, "log_std": 1.2}
    spread, alpha, drift = (0.1, 0.4, 1.0), 0.0, (0.0, 0.0)
    assert Residual() == Residual(spread, alpha, drift, sigma_max=40.0, share_at_max=0.4, **plain)
    assert Corrective() == Corrective(spread, alpha, drift, sigma_max=10.0, share_at_max=0.05, **plain)


def test_the_share_at_the_most_ends_below_its_border():
    pick = uniforms(0, [5], "share").item()
    _, conditions = batch(count=1, size=1)
    for share, expected in ((pick, False), (pick + 1e-9, True)):
        process = Residual(share_at_max=share)
        (terms,) = process.loss_terms(lambda x, *_: x, torch.zeros(1, 4, 1, 1), conditions, seed=0, indices=[5])
        assert (terms.level.item() == 1) is expected


@pytest.mark.parametrize(("alpha", "drift"), [(0.0, (0.0, 0.0)), (0.0, (2.0, 0.3)), (1.5, (2.0, 0.3))])
def test_the_terms_of_a_residual_in_closed_form(alpha, drift):
    """D = c_skip x + c_out F of x = r + sigma (n + alpha mu), by the best linear estimate of r from x."""
    clean, conditions = batch()
    process = Residual((0.5, 1.5, 2.0), alpha, drift, share_at_max=0.2)
    network, told = heard(lambda x: (0.1 * x).bfloat16())
    (terms,) = process.loss_terms(network, clean, conditions, seed=7, indices=[4, 9])
    (x_in, level, channels) = told[0]
    spread = conditions.choose(0.5, 1.5, 2.0).double()
    low, high = math.log(0.02), math.log(40)
    sigma = (low + level.double() * (high - low)).exp()[:, None, None, None]
    noise = normals(7, [4, 9], "noise", like=clean).double()
    r, mu = ((image - conditions.anchor).double() / spread for image in (clean, conditions.cloudy))
    x = r + sigma * (noise + alpha * mu)
    variance = 1 + 2 * sigma * alpha * drift[1] + sigma**2 * (1 + alpha**2 * drift[0])
    covariance = 1 + sigma * alpha * drift[1]
    c_out = (1 - covariance**2 / variance).sqrt()
    close = {"rtol": 2e-4, "atol": 2e-4}
    near.assert_close(x_in.double(), x / variance.sqrt(), **close)
    near.assert_close(terms.target.double(), (r - covariance / variance * x) / c_out, **close)
    near.assert_close(terms.scale.double(), (c_out * spread), **close)
    assert torch.equal(terms.prediction, (0.1 * x_in).bfloat16().float())
    assert torch.equal(channels, conditions.channels(conditions.choose(0.5, 1.5, 2.0)))
    assert torch.equal(terms.level, level)
    assert terms.weight == 1


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_a_sample_of_two_steps_by_hand(alpha):
    """Each estimate is held to the limits, and so is what the next step goes on from."""
    _, conditions = batch()
    process = Residual((0.5, 1.5, 2.0), alpha, (2.0, 0.3))
    limits = torch.tensor(-0.5), torch.tensor(0.7)
    network, told = heard(lambda x: (0.3 * x).bfloat16())
    found = process.sample(network, conditions, noise=normal_noise, steps=2, limits=limits)
    anchor, spread = conditions.anchor.double(), conditions.choose(0.5, 1.5, 2.0).double()
    x = 40 * (normal_noise(0).double() + alpha * (conditions.cloudy.double() - anchor) / spread)
    for step, (sigma, following) in enumerate(((40.0, 0.02), (0.02, 0.0))):
        along = alpha * 0.3
        variance = 1 + 2 * sigma * along + sigma**2 * (1 + alpha**2 * 2)
        covariance = 1 + sigma * along
        x_in, level, channels = told[step]
        near.assert_close(x_in.double(), x / variance**0.5, rtol=1e-4, atol=1e-4)
        assert level.tolist() == pytest.approx([1 - step] * 2, abs=1e-6)
        assert torch.equal(channels, conditions.channels(conditions.choose(0.5, 1.5, 2.0)))
        output = (0.3 * x_in).bfloat16().double()
        estimate = covariance / variance * x + (1 - covariance**2 / variance) ** 0.5 * output
        clean = (anchor + spread * estimate).clamp(-0.5, 0.7)
        x = following / sigma * x + (1 - following / sigma) * (clean - anchor) / spread
    near.assert_close(found.double(), clean, rtol=1e-4, atol=1e-4)
    assert found.min() == -0.5
    assert found.max() == pytest.approx(0.7)


def test_a_sampler_is_chosen_by_name():
    _, conditions = batch()
    network, _ = heard(torch.sin)
    options = {"noise": normal_noise, "steps": 3, "limits": WIDE}
    found = {
        name: Residual().sample(network, conditions, sampler=name, **options)
        for name in ("euler", "heun", "dpm_solver_2m", "ancestral")
    }
    assert torch.equal(found["euler"], Residual().sample(network, conditions, **options))
    assert all(not torch.equal(found["euler"], found[name]) for name in list(found)[1:])


@pytest.mark.parametrize("process", [Residual(), Residual(alpha=1.5, drift=(2.0, 0.3)), Ddpm()])
def test_a_draw_belongs_to_the_sample_not_to_the_batch(process):
    clean, conditions = batch(count=3)
    alone = conditions.samples([2])
    (together,) = process.loss_terms(lambda x, *_: x, clean, conditions, seed=4, indices=[5, 6, 9])
    (single,) = process.loss_terms(lambda x, *_: x, clean[2:], alone, seed=4, indices=[9])
    assert torch.equal(together.target[2], single.target[0])
    assert torch.equal(together.prediction[2], single.prediction[0])


@pytest.mark.slow
def test_a_few_steps_of_training_lower_the_loss():
    torch.manual_seed(0)
    clean, conditions = batch(count=4, size=16)
    network = build("tiny", condition_channels=conditions.channels().shape[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        (terms,) = Residual().loss_terms(network, clean, conditions, seed=0, indices=[0, 1, 2, 3])
        losses.append(weighted_mse(terms.prediction, terms.target, torch.ones(4, 1, 16, 16)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_with_the_measured_drift_input_and_target_have_unit_variance_at_every_sigma(alpha):
    torch.manual_seed(1)
    ground = torch.randn(16, 4, 32, 32)
    seen = batches.batch(ground + 2 * torch.randn(16, 4, 1, 1), torch.ones(16, 32, 32, dtype=torch.uint8))
    conditions = Conditions.of(seen, norm=NORM, first_guess="surroundings")
    everywhere = torch.ones(16, 1, 32, 32, dtype=torch.bool)
    spread = measure_spread(ground, conditions, conditions, everywhere)
    drift = measure_drift(ground, conditions, everywhere, spread)
    for sigma in (0.05, 1.0, 30.0):
        process = Residual(spread, alpha, drift, sigma_min=sigma, sigma_max=sigma * 1.0001)
        (terms,) = process.loss_terms(lambda x, *_: x, ground, conditions, seed=0, indices=list(range(16)))
        assert terms.prediction.square().mean() == pytest.approx(1, abs=0.05)  # the scaled input
        assert terms.target.square().mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("alpha", [0.0, pytest.param(1.0, marks=pytest.mark.slow), 3.0])
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
    assert torch.equal(terms.scale, conditions.choose(0.5, 1.0, 2.0))
    assert terms.level.tolist() == [1, 1]
    assert terms.weight == 1
    found = process.sample(lambda *_: truth, conditions, noise=normal_noise, steps=7, limits=WIDE, sampler="euler")
    assert torch.allclose(found, clean, atol=1e-5)


def test_a_regression_is_told_the_conditions_alone():
    clean, conditions = batch()
    process = Regression(spread=(0.5, 1.0, 2.0))
    network, told = heard(lambda x: torch.full((2, 4, 8, 8), 0.25, dtype=torch.bfloat16))
    (terms,) = process.loss_terms(network, clean, conditions, seed=0, indices=[0, 1])
    found = process.sample(network, conditions, limits=WIDE)
    for x, level, channels in told:
        assert x is level is None
        assert torch.equal(channels, conditions.channels(conditions.choose(0.5, 1.0, 2.0)))
    assert terms.prediction.dtype == found.dtype == torch.float32
    assert torch.allclose(found, conditions.anchor + 0.25 * conditions.choose(0.5, 1.0, 2.0))


@pytest.mark.parametrize("process", [Regression((0.5, 1.0, 2.0), deviation=True), Corrective(deviation=True)])
def test_a_deviation_that_is_told_is_the_spread_of_what_is_left(process):
    clean, conditions = batch()
    spread = conditions.choose(*process.spread)
    r, log = torch.rand(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    light = torch.randn(2, 1, 8, 8)
    network, told = heard(lambda x: torch.cat([r, log, light], 1) if x is None else 0 * x)
    mean, *detail = process.loss_terms(network, clean, conditions, seed=0, indices=[0, 1])
    assert torch.equal(mean.prediction, r)
    assert torch.equal(mean.light, light)
    deviation = ((8 * (log / 4).tanh()).exp() + (0.02 / spread) ** 2).sqrt()
    assert torch.allclose(mean.log_deviation.exp(), deviation, rtol=1e-5)
    assert torch.allclose(mean.trusted, mean.log_deviation.exp() ** -2)
    guessed = process.guessed(network, conditions, limits=WIDE)
    assert torch.allclose(guessed.anchor, conditions.anchor + spread * r)
    assert torch.allclose(guessed.unit, spread * mean.log_deviation.exp())
    assert torch.equal(guessed.spread(9, 9, 9), guessed.unit)
    for terms in detail:
        assert torch.allclose(told[1][2], guessed.channels(guessed.unit), atol=1e-5)  # beside the limits
        assert terms.log_deviation is terms.light is None
        assert not terms.scale.requires_grad


def test_a_deviation_cannot_be_told_without_bounds():
    clean, conditions = batch()
    process = Regression((0.5, 1.0, 2.0), deviation=True)
    for told in (-1e4, 1e4):
        (terms,) = process.loss_terms(
            lambda *_, told=told: torch.full((2, 9, 8, 8), told), clean, conditions, seed=0, indices=[0, 1]
        )
        spread = conditions.choose(*process.spread)
        deviation = (math.exp(math.copysign(8, told)) + (0.02 / spread) ** 2).sqrt().expand(2, 4, 8, 8)
        assert torch.allclose(terms.log_deviation.exp(), deviation, rtol=1e-5)


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
    found = sampled(process, network, conditions, noise=normal_noise, steps=steps, limits=WIDE)
    assert torch.allclose(found, clean, atol=1e-3)


def test_corrective_opposite_noise_spreads_about_the_regression():
    """Where the estimate is linear in the noise, the mean of an antithetic pair is the regression."""
    _, conditions = batch()
    process = Corrective()
    network = Two(lambda x, *_: 0.3 * x)
    one = sampled(process, network, conditions, noise=normal_noise, steps=4, limits=WIDE)
    other = sampled(process, network, conditions, noise=lambda step: -normal_noise(step), steps=4, limits=WIDE)
    assert (one - other).abs().mean() > 0.1
    expected = Regression(process.spread).sample(network, conditions, limits=WIDE)
    assert torch.allclose((one + other) / 2, expected, atol=1e-5)
