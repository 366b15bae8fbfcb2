import dataclasses
import math

import batches
import near
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.diffusion.conditions import Conditions, Normalisation
from cloudjob.diffusion.ddpm import Ddpm, ResidualDdpm
from cloudjob.diffusion.noise import normals, uniforms
from cloudjob.pixels import CLOUD

SHAPE = (2, 4, 8, 8)
CONDITIONS = Conditions.of(
    batches.batch(torch.zeros(SHAPE), torch.zeros(2, 8, 8, dtype=torch.uint8)),
    norm=Normalisation((0.0,) * 4, (1.0,) * 4),
    first_guess="surroundings",
)
CLEAN = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
LIMITS = torch.tensor(-0.4), torch.tensor(0.4)
NAMES = {"noise": "epsilon", "x0": "sample", "v": "v_prediction"}  # as diffusers calls them
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def noises(seed: int = 0, dtype=torch.float64):
    """Draws one after the other, as diffusers draws from a generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda step: torch.randn(SHAPE, dtype=dtype, generator=generator)


def curved(x, level, channels=None):
    return torch.tanh(x) * (0.5 + level[:, None, None, None])


def true_network(process: Ddpm, clean=CLEAN):
    """What a network that knows the clean image says at any level."""
    bars = process.alpha_bar()

    def network(x, level, channels):
        alpha_bar = bars[(level * process.timesteps).round().long()][:, None, None, None]
        a, b = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        noise = (x - a * clean) / b
        return {"noise": noise, "x0": clean.expand_as(x), "v": a * noise - b * clean}[process.prediction]

    return network


def test_the_closed_form_of_the_noisy_image():
    process = Ddpm()
    (terms,) = process.loss_terms(lambda x, level, _: x, CLEAN, CONDITIONS, seed=1, indices=[3, 4])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    for sample, t in enumerate((uniforms(1, [3, 4], "timestep") * 1000).long()):
        alpha_bar = math.prod((1 - betas[: t + 1]).tolist())
        x = alpha_bar**0.5 * CLEAN[sample] + (1 - alpha_bar) ** 0.5 * terms.target[sample]
        assert torch.allclose(terms.prediction[sample], x, atol=1e-5)


@pytest.mark.parametrize("prediction", NAMES)
def test_the_training_target_is_what_a_network_that_knows_would_say(prediction):
    process = Ddpm(schedule="cosine", prediction=prediction, zero_terminal_snr=prediction != "noise")
    for seed in range(10):
        (terms,) = process.loss_terms(true_network(process), CLEAN, CONDITIONS, seed=seed, indices=[0, 1])
        assert torch.allclose(terms.prediction, terms.target, atol=1e-3)


@pytest.mark.parametrize("prediction", NAMES)
def test_what_is_told_and_compared_in_closed_form(prediction):
    """The scale is what an error of 1 in the prediction is in x0: x0 = (x - b n) / a = a x - b v."""
    process = Ddpm(timesteps=100, schedule="cosine", prediction=prediction)
    told = []

    def network(x, level, channels):
        told.append((x, level, channels))
        return (0.1 * x).bfloat16()

    (terms,) = process.loss_terms(network, CLEAN, CONDITIONS, seed=2, indices=[3, 8])
    x, level, channels = told[0]
    t = (uniforms(2, [3, 8], "timestep") * 100).long()
    assert level.tolist() == terms.level.tolist() == pytest.approx((t / 100).tolist())
    assert torch.equal(channels, CONDITIONS.channels())
    noise = normals(2, [3, 8], "noise", like=CLEAN)
    a = process.alpha_bar()[t].sqrt().float()[:, None, None, None]
    b = (1 - a**2).sqrt()
    near.assert_close(x, a * CLEAN + b * noise)
    target, scale = {"noise": (noise, b / a), "x0": (CLEAN, 1.0), "v": (a * noise - b * CLEAN, b)}[prediction]
    near.assert_close(terms.target, target)
    assert torch.as_tensor(terms.scale).flatten().tolist() == pytest.approx(torch.as_tensor(scale).flatten().tolist())
    assert torch.equal(terms.prediction, (0.1 * x).bfloat16().float())
    if prediction != "x0":
        assert terms.weight == 1


def test_x0_weighs_its_signal_to_noise_ratio_within_bounds():
    process = Ddpm(prediction="x0", zero_terminal_snr=True)
    indices = list(range(500))
    clean = torch.zeros(500, 4, 1, 1)
    (terms,) = process.loss_terms(lambda x, *_: x, clean, CONDITIONS, seed=0, indices=indices)
    t = (uniforms(0, indices, "timestep") * 1000).long()
    snr = process.alpha_bar()[t] / (1 - process.alpha_bar()[t])
    weight = terms.weight.flatten().double()
    assert (weight[snr < 1] == 1).all()
    assert (weight[snr > 5] == 5).all()
    between = (snr > 1) & (snr < 5)
    assert torch.allclose(weight[between], snr[between], rtol=1e-4)


def test_the_ancestral_recursion_of_the_paper():
    """Algorithm 2 of Ho et al., written step by step in its own form (predicted noise, not x0)."""
    process = Ddpm(timesteps=50)
    noise = noises(dtype=torch.float32)
    x, alpha_bar = noise(0).double(), 1.0
    alphas = [1 - (1e-4 + (0.02 - 1e-4) * t / 49) for t in range(50)]
    bars = [alpha_bar := alpha_bar * alpha for alpha in alphas]
    for t in range(49, -1, -1):
        predicted = curved(x, torch.full((2,), t / 50))
        x = (x - (1 - alphas[t]) / (1 - bars[t]) ** 0.5 * predicted) / alphas[t] ** 0.5
        if t:
            x = x + (1 - alphas[t]) ** 0.5 * noise(50 - t)
    found = process.sample(curved, CONDITIONS, noise=noises(dtype=torch.float32), steps=50, limits=None)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), x, atol=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_solver_2m", "ancestral"])
@pytest.mark.parametrize(
    "process",
    [
        Ddpm(),
        Ddpm(schedule="cosine"),
        Ddpm(schedule="sigmoid", prediction="v"),
        Ddpm(schedule="sigmoid", prediction="v", zero_terminal_snr=True),
        Ddpm(prediction="x0", zero_terminal_snr=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_a_network_that_knows_gives_back_the_ground(process, sampler, steps):
    found = process.sample(true_network(process), CONDITIONS, noise=noises(), steps=steps, limits=None, sampler=sampler)
    assert torch.allclose(found, CLEAN.double(), atol=1e-6)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_solver_2m", "ancestral"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("zero", [False, True])
def test_an_ill_behaved_network_stays_in_the_limits(zero, schedule, sampler):
    process = Ddpm(schedule=schedule, prediction="v", zero_terminal_snr=zero)
    seen = []

    def network(x, level, channels):
        seen.append(x.abs().max().item())
        return 10 * torch.sin(9 * x)

    found = process.sample(network, CONDITIONS, noise=noises(), steps=20, limits=LIMITS, sampler=sampler)
    assert LIMITS[0] <= found.min() <= found.max() <= LIMITS[1]
    assert max(seen) < 10


@pytest.mark.slow
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_those_of_diffusers(schedule, zero):
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DDPMScheduler(beta_schedule=SCHEDULES[schedule], rescale_betas_zero_snr=zero)
    process = Ddpm(schedule=schedule, prediction="v", zero_terminal_snr=zero)
    assert torch.allclose(process.alpha_bar(), peer.alphas_cumprod.double(), atol=2e-6)


def test_zero_terminal_snr_is_that_of_its_paper():
    """Lin et al. 2024, algorithm 1: the first square root stays, the last becomes 0, the others in proportion."""
    before = Ddpm(prediction="v").alpha_bar().sqrt()
    after = Ddpm(prediction="v", zero_terminal_snr=True).alpha_bar().sqrt()
    assert after[[0, -1]].tolist() == pytest.approx([float(before[0]), 0])
    assert torch.allclose((after[0] - after) / after[0], (before[0] - before) / (before[0] - before[-1]), atol=1e-12)


def test_the_linear_schedule_is_that_of_its_paper():
    """Ho et al. 2020, section 4: betas from 1e-4 to 0.02 in equal steps."""
    found = Ddpm().alpha_bar()
    for t in (0, 250, 500, 999):
        kept = [1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(t + 1)]
        assert found[t].item() == pytest.approx(math.prod(kept), rel=1e-9)


def test_the_cosine_schedule_is_that_of_its_paper():
    """Nichol & Dhariwal 2021, equation 17 with s = 0.008; the last beta, which would be 1, is 0.999."""

    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    found = Ddpm(schedule="cosine").alpha_bar()
    for t in (0, 250, 500, 998):
        assert found[t].item() == pytest.approx(f(t + 1) / f(0), rel=1e-9)
    assert (found[999] / found[998]).item() == pytest.approx(1e-3)


def test_the_sigmoid_schedule_is_that_of_its_paper():
    """Chen 2023, algorithm 1, at its numbers: start -3, end 3, tau 1."""

    def logistic(z):
        return 1 / (1 + math.exp(-z))

    found = Ddpm(schedule="sigmoid").alpha_bar()
    for t in (0, 250, 500, 998):
        gamma = (logistic(3) - logistic(6 * (t + 1) / 1000 - 3)) / (logistic(3) - logistic(-3))
        assert found[t] == pytest.approx(gamma, rel=1e-9)


@given(
    timesteps=st.integers(2, 1000),
    schedule=st.sampled_from(["linear", "cosine", "sigmoid"]),
    zero=st.booleans(),
    share=st.floats(0, 1),
)
def test_signal_falls_and_times_are_distinct(timesteps, schedule, zero, share):
    process = Ddpm(timesteps=timesteps, schedule=schedule, prediction="v", zero_terminal_snr=zero)
    alpha_bar = process.alpha_bar()
    assert alpha_bar[0] < 1
    assert (alpha_bar.diff() < 0).all()
    assert alpha_bar[-1] == 0 if zero else alpha_bar[-1] > 0
    steps = max(1, round(share * timesteps))
    times = process.times(steps)
    assert len(times) == steps
    assert times == sorted(set(times), reverse=True)
    assert times[0] == timesteps - 1
    assert times[-1] >= 0


def test_times_are_evenly_spaced_from_the_most_noise():
    process = Ddpm(timesteps=50)
    assert process.times(1) == [49]
    assert process.times(4) == [49, 37, 24, 11]  # 50, 37.5, 25, 12.5; halves to the even number
    assert process.times(50) == list(range(49, -1, -1))


def test_the_network_is_told_the_level_and_the_conditions_at_every_step():
    process, told, asked = Ddpm(timesteps=50, prediction="v"), [], []
    process.sample(
        lambda x, level, channels: told.append((level, channels)) or 0 * x,
        CONDITIONS,
        noise=lambda step: asked.append(step) or torch.zeros(SHAPE),
        steps=4,
        limits=None,
    )
    assert asked == [0, 1, 2, 3], "each draw of noise once, by its number"
    assert [level.tolist() for level, _ in told] == [pytest.approx([t / 50] * 2) for t in (49, 37, 24, 11)]
    assert all(torch.equal(channels, CONDITIONS.channels()) for _, channels in told)


def test_it_is_the_recipe_of_the_notebook_unless_told_otherwise():
    assert Ddpm() == Ddpm(1000, "linear", "noise", False)


# --- on the error of the first guess ------------------------------------------------------------------------------
SPREAD = (0.5, 2.0, 3.0)


def hidden() -> Conditions:
    """Half under cloud; a quarter with a reference."""
    generator = torch.Generator().manual_seed(6)
    mask = torch.zeros(len(CLEAN), 8, 8, dtype=torch.uint8)
    mask[:, 4:] = CLOUD
    reference = torch.randn(SHAPE, generator=generator)
    reference[..., :4] = torch.nan
    return Conditions.of(
        batches.batch(torch.randn(SHAPE, generator=generator), mask, reference=reference),
        norm=Normalisation((0.0,) * 4, (1.0,) * 4),
        first_guess="surroundings",
    )


def test_on_the_first_guess_a_ddpm_learns_what_is_left_of_it():
    """The same as a Ddpm whose clean image is r, which is told the difference in units of the spread."""
    for prediction in NAMES:
        conditions, told = hidden(), []
        spread = conditions.choose(*SPREAD)
        assert spread.unique().tolist() == sorted(SPREAD)

        def network(x, level, channels, told=told):
            told.append(channels)
            return curved(x, level)

        key = {"seed": 3, "indices": [4, 7]}
        (found,) = ResidualDdpm(prediction=prediction, spread=SPREAD).loss_terms(network, CLEAN, conditions, **key)
        residual = (CLEAN - conditions.anchor) / spread
        (expected,) = Ddpm(prediction=prediction).loss_terms(curved, residual, conditions, **key)
        assert torch.equal(found.prediction, expected.prediction)
        assert torch.equal(found.target, expected.target)
        assert torch.equal(torch.as_tensor(found.weight), torch.as_tensor(expected.weight))
        near.assert_close(found.scale, expected.scale * spread)
        assert torch.equal(told[0], conditions.channels(spread))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_solver_2m", "ancestral"])
@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("limits", [None, (torch.tensor(-9.0), torch.tensor(9.0))])
def test_on_the_first_guess_a_network_that_knows_gives_back_the_ground(prediction, sampler, limits):
    conditions = hidden()
    process = ResidualDdpm(schedule="sigmoid", prediction=prediction, zero_terminal_snr=True, spread=SPREAD)
    residual = (CLEAN - conditions.anchor) / conditions.choose(*SPREAD)
    network = true_network(process, residual)
    found = process.sample(network, conditions, noise=noises(), steps=5, limits=limits, sampler=sampler)
    assert torch.allclose(found, CLEAN.double(), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_on_the_first_guess_a_network_that_says_nothing_gives_it_back(steps):
    conditions, heard = hidden(), []

    def network(x, level, channels):
        heard.append(channels)
        return 0 * x

    process = ResidualDdpm(prediction="x0", spread=SPREAD)
    found = process.sample(network, conditions, noise=noises(), steps=steps, limits=LIMITS, sampler="dpm_solver_2m")
    assert torch.allclose(found, conditions.anchor.double().clamp(*LIMITS), atol=1e-6)
    assert all(torch.equal(channels, conditions.channels(conditions.choose(*SPREAD))) for channels in heard)
    unlimited = process.sample(network, conditions, noise=noises(), steps=steps, limits=None, sampler="dpm_solver_2m")
    assert torch.equal(unlimited, conditions.anchor.double())


def test_every_estimate_on_the_first_guess_is_kept_in_the_limits_of_the_ground():
    conditions, seen = hidden(), []
    process = ResidualDdpm(prediction="x0", zero_terminal_snr=True, spread=SPREAD)

    def network(x, level, channels):
        seen.append(x)
        return torch.full_like(x, 1e6)

    found = process.sample(
        network, conditions, noise=lambda step: torch.zeros(SHAPE), steps=2, limits=LIMITS, sampler="euler"
    )
    assert torch.allclose(found, LIMITS[1].expand(SHAPE))
    highest = (LIMITS[1] - conditions.anchor) / conditions.choose(*SPREAD)
    assert torch.allclose(seen[1], process.alpha_bar()[499].sqrt().float() * highest, atol=1e-5)


def test_nothing_else_is_changed_by_the_first_guess():
    """With a guess of 0 and a spread of 1, as where nothing is known, it is a Ddpm."""
    conditions = CONDITIONS.anchored(torch.zeros(SHAPE))
    options = {"noise": noises(), "steps": 6, "limits": LIMITS, "sampler": "euler"}
    expected = Ddpm(prediction="v").sample(curved, conditions, **options)
    options["noise"] = noises()
    found = ResidualDdpm(prediction="v", spread=(1.0, 1.0, 1.0)).sample(curved, conditions, **options)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("steps", [0, 51])
def test_impossible_numbers_of_steps(steps):
    with pytest.raises(ValueError, match=f"{steps} sampling steps: must be 1 to 50"):
        Ddpm(timesteps=50).times(steps)


def test_noise_prediction_needs_signal():
    with pytest.raises(ValueError, match="zero terminal SNR"):
        Ddpm(zero_terminal_snr=True)


def peer(scheduler: str, process: Ddpm, steps: int, **options):
    """A scheduler of diffusers with the schedule of `process`, in float64 where it allows."""
    diffusers = pytest.importorskip("diffusers")
    found = getattr(diffusers, scheduler)(
        num_train_timesteps=process.timesteps,
        prediction_type=NAMES[process.prediction],
        timestep_spacing="trailing",
        **options,
    )
    found.alphas_cumprod = process.alpha_bar()
    found.set_timesteps(steps)
    assert found.timesteps.unique().flip(0).tolist() == process.times(steps)
    return found


VARIANTS = [Ddpm(), Ddpm(schedule="cosine", prediction="v"), Ddpm(prediction="v", zero_terminal_snr=True)]


@pytest.mark.slow
@pytest.mark.parametrize("process", VARIANTS, ids=str)
@pytest.mark.parametrize("limits", [None, LIMITS])
def test_euler_is_the_ddim_of_diffusers(process, limits):
    scheduler = peer("DDIMScheduler", process, 20, clip_sample=limits is not None, clip_sample_range=0.4)
    x = noises()(0)
    for t in scheduler.timesteps:
        output = curved(x, torch.full((2,), t / process.timesteps))
        x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
    found = process.sample(curved, CONDITIONS, noise=noises(), steps=20, limits=limits, sampler="euler")
    assert torch.allclose(found, x, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("process", VARIANTS, ids=str)
@pytest.mark.parametrize("limits", [None, LIMITS])
@pytest.mark.parametrize(("steps", "variance"), [(20, "fixed_small"), (99, "fixed_small"), (100, "fixed_large")])
def test_ancestral_sampling_is_that_of_diffusers(process, limits, steps, variance):
    process = dataclasses.replace(process, timesteps=100)
    scheduler = peer(
        "DDPMScheduler", process, steps, variance_type=variance, clip_sample=limits is not None, clip_sample_range=0.4
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, dtype=torch.float64, generator=generator)
    for t in scheduler.timesteps:
        output = curved(x, torch.full((2,), t / process.timesteps))
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    found = process.sample(curved, CONDITIONS, noise=noises(), steps=steps, limits=limits)
    assert torch.allclose(found, x, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("process", VARIANTS[:2], ids=str)  # they have no zero terminal SNR, but 2^-24
@pytest.mark.parametrize("steps", [1, 2, 8, 20])
def test_dpm_solver_is_that_of_diffusers(process, steps):
    scheduler = peer("DPMSolverMultistepScheduler", process, steps)
    x = noises()(0)
    for t in scheduler.timesteps:
        x = scheduler.step(curved(x, torch.full((2,), t / process.timesteps)), t, x).prev_sample
    found = process.sample(curved, CONDITIONS, noise=noises(), steps=steps, limits=None, sampler="dpm_solver_2m")
    assert torch.allclose(found, x, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("process", [Ddpm(), Ddpm(prediction="v")], ids=str)
def test_heun_is_that_of_diffusers(process):
    scheduler = peer("HeunDiscreteScheduler", process, 20)
    scheduler.sigmas = scheduler.sigmas.double()
    x = noises()(0) * (1 + scheduler.sigmas[0] ** 2).sqrt()  # their x is ours / a
    for k, t in enumerate(scheduler.timesteps):
        scaled = x / (1 + scheduler.sigmas[k] ** 2).sqrt()
        x = scheduler.step(curved(scaled, torch.full((2,), t / process.timesteps)), t, x).prev_sample
    found = process.sample(curved, CONDITIONS, noise=noises(), steps=20, limits=None, sampler="heun")
    assert torch.allclose(found, x, atol=1e-5, rtol=1e-5)
