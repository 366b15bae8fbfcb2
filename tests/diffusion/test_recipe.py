"""Recipes: what a checkpoint says makes the same one again, and every process trains and restores."""

import dataclasses
import json
import math

import batches
import pytest
import torch

from cloudjob.diffusion import clouds, losses
from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.conditions import NOTEBOOK_2025, Conditions, Guess, Normalisation
from cloudjob.diffusion.ddpm import Ddpm, ResidualDdpm
from cloudjob.diffusion.networks import MeanAndDetail, NotebookUNet
from cloudjob.diffusion.processes import Corrective, Regression, Residual, Terms, measure_drift, measure_spread
from cloudjob.diffusion.recipe import PROCESSES, Recipe
from cloudjob.errors import ConfigError
from cloudjob.pixels import CLEAR

OPTIONS = {"residual": {"alpha": 1.0}, "ddpm": {"prediction": "v", "schedule": "cosine", "zero_terminal_snr": True}}
LOSS = {"clear_weight": 0.2, "drop_reference": 0.3, "drop_mask": 0.1, "synthetic_clouds": 0.5, "other_ground": 0.5}
NORMALS = {"mean": [0.5, 0.6, 0.7, 0.8], "std": [0.1, 0.2, 0.3, 0.4]}
NORM = Normalisation((0.5, 0.6, 0.7, 0.8), (0.1, 0.2, 0.3, 0.4))
SAMPLES = [0, 1, 2, 3]


@pytest.fixture(params=PROCESSES)
def recipe(request) -> Recipe:
    return Recipe.of("tiny", request.param, **NORMALS, **OPTIONS.get(request.param, {}))


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(0)
    clear = 0.6 + 0.2 * torch.randn(4, 4, 16, 16)
    mask = torch.zeros(4, 16, 16, dtype=torch.uint8)
    mask[:, 4:12, 4:] = 1
    days = torch.tensor([3.0, -2.0, 0.0, 5.0])
    return batches.batch(
        torch.where(mask[:, None] > 0, 0.95, clear),
        mask,
        target=clear,
        donor=mask,
        reference=clear + 0.05 * torch.randn_like(clear),
        reference_days=days,
        target_days=-days,
    )


def normal_noise(step: int) -> torch.Tensor:
    return torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(step))


# --- what it is made of ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("process", "options", "expected"),
    [
        ("corrective", {}, Corrective()),
        ("residual", {"alpha": 2.0, "drift": [1.0, 0.5]}, Residual(alpha=2.0, drift=(1.0, 0.5))),
        ("regression", {}, Regression((0.1, 0.4, 1.0))),
        ("regression", {"spread": [1.0, 2.0, 3.0]}, Regression((1.0, 2.0, 3.0))),
        ("ddpm", {"timesteps": 50}, Ddpm(50)),
        ("ddpm-residual", {"spread": [1.0, 2.0, 3.0]}, ResidualDdpm(spread=(1.0, 2.0, 3.0))),
    ],
)
def test_a_recipe_by_the_names_of_a_configuration(process, options, expected):
    found = Recipe.of("tiny", process, **NORMALS, **options)
    assert found == Recipe("tiny", expected, NORM)
    assert type(found.process) is type(expected)


def test_the_notebook_has_its_own_scaling():
    assert Recipe.of("notebook-2025", "ddpm", **NORMALS).norm == NOTEBOOK_2025
    assert isinstance(Recipe.of("notebook-2025", "ddpm", **NORMALS).network(), NotebookUNet)


def test_what_a_checkpoint_says_of_it_makes_the_same_recipe_again(recipe, batch):
    measured = recipe.measure(batch)
    facts = json.loads(json.dumps(measured.facts()))  # plain values
    assert Recipe.of(**facts) == measured
    assert type(Recipe.of(**facts).process) is type(measured.process)
    assert {facts[name] for name in ("preset", "process")} <= {"tiny", *PROCESSES}
    assert (facts["mean"], facts["std"]) == (NORMALS["mean"], NORMALS["std"])


def test_the_corrective_alone_has_two_networks(recipe):
    network = recipe.network()
    assert isinstance(network, MeanAndDetail) is isinstance(recipe.process, Corrective)
    if isinstance(network, MeanAndDetail):
        assert not torch.equal(network.mean.stem.weight, network.detail.stem.weight)


def test_spread_and_drift_are_measured_in_normalised_units(recipe, batch):
    batch = dataclasses.replace(batch, target=batch.target.masked_fill(torch.rand(4, 1, 16, 16) < 0.1, torch.nan))
    measured = recipe.measure(batch)
    assert (measured.preset, measured.norm) == (recipe.preset, recipe.norm)
    if type(recipe.process) is Ddpm:
        assert measured is recipe
        return
    told = {"norm": NORM, "first_guess": recipe.first_guess}
    conditions, valid = Conditions.of(batch, **told), batch.target_valid
    bare = Conditions.of(batch.without_references(), **told)
    clean = NORM.forward(batch.target).nan_to_num(0)
    spread = measure_spread(clean, conditions, bare, valid)
    expected = {"spread": spread}
    if getattr(recipe.process, "alpha", 0):
        expected["drift"] = measure_drift(clean, conditions, valid, spread)
    assert measured.process == dataclasses.replace(recipe.process, **expected)
    assert spread[1] != recipe.process.spread[1]


# --- sampler and steps -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("process", "wanted", "expected"),
    [
        ("corrective", ("auto", 7), ("euler", 7)),
        ("residual", ("auto", 7), ("euler", 7)),
        ("residual", ("heun", 7), ("heun", 7)),
        ("residual", ("ancestral", 7), ("ancestral", 7)),
        ("regression", ("auto", 7), ("euler", 1)),
        ("ddpm", ("auto", 7), ("ancestral", 1000)),
        ("ddpm", ("ancestral", 7), ("ancestral", 1000)),
        ("ddpm", ("euler", 7), ("euler", 7)),
        ("ddpm-residual", ("auto", 7), ("ancestral", 1000)),
    ],
)
def test_sampler_and_steps_that_are_taken(process, wanted, expected):
    recipe = Recipe.of("tiny", process, **NORMALS)
    assert recipe.sampling(*wanted) == dict(zip(("sampler", "steps"), expected, strict=True))
    assert recipe.sampler(wanted[0]) == expected[0]
    assert recipe.steps(7, expected[0]) == expected[1]


def test_ancestral_steps_are_refused_where_the_drift_is_no_noise(batch):
    drawn = Recipe.of("tiny", "residual", **NORMALS, alpha=3.0)
    assert drawn.sampling("auto", 2) == {"sampler": "euler", "steps": 2}
    with pytest.raises(ConfigError, match="ancestral draws noise alone: alpha is 3 here"):
        batches.restored(drawn, drawn.network(), batch, noise=lambda step: 0, steps=2, sampler="ancestral")


# --- the loss ----------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Told:
    """A process that keeps what it is told, and answers with two terms of known error."""

    heard: list

    def loss_terms(self, network, clean, conditions, *, seed, indices):
        self.heard.append((network, clean, conditions, seed, indices))
        ones = torch.ones_like(clean)
        return [
            Terms(3 * ones, ones, torch.zeros(len(clean)), scale=1.0, weight=0.5),
            Terms(ones, 2 * ones, torch.zeros(len(clean)), scale=1.0),
        ]


@pytest.mark.parametrize("synthetic", [0.0, 0.7])
def test_a_loss_turns_lays_clouds_drops_and_weighs_by_the_true_mask(batch, synthetic):
    batch = dataclasses.replace(batch, target=batch.target.masked_fill(torch.rand(4, 1, 16, 16) < 0.1, torch.nan))
    options = {"clear_weight": 0.3, "drop_reference": 0.4, "drop_mask": 0.5, "other_ground": 0.5}
    recipe, key = Recipe("tiny", Told([]), NORM), {"seed": 5, "samples": [11, 12, 13, 14]}
    found = recipe.loss("the network", batch, **key, **options, synthetic_clouds=synthetic)
    ((network, clean, conditions, seed, indices),) = recipe.process.heard
    assert (network, seed, indices) == ("the network", 5, [11, 12, 13, 14])
    true = batch.turned(**key)
    if synthetic:
        true = clouds.lay(true, share=synthetic, other_ground=0.5, **key)
        assert not torch.equal(true.mask, batch.turned(**key).mask)
    told = true.drop_references(0.4, **key).drop_mask(0.5, **key)
    assert not torch.equal(told.mask, true.mask)
    assert torch.equal(clean, NORM.forward(true.target).nan_to_num(0))
    assert torch.equal(conditions.channels(), Conditions.of(told, norm=NORM, first_guess="surroundings").channels())
    weights = losses.pixel_weights(true.classes, true.target_valid, clear_weight=0.3)
    assert found.item() == pytest.approx((weights * (0.5 * 4 + 1)).mean().item())
    assert found.shape == ()


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A process whose one term tells how far its target may be."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def loss_terms(self, network, clean, conditions, *, seed, indices):
        level = torch.zeros(len(clean))
        return [Terms(self.mean, clean, level, scale=1.0, log_deviation=self.deviation.log())]


def test_where_a_deviation_is_told_the_loss_is_the_likelihood_of_a_gaussian(batch):
    mean, deviation = torch.randn(4, 4, 16, 16), torch.rand(4, 4, 16, 16) + 0.1
    recipe = Recipe("tiny", Gaussian(mean, deviation), NORM)
    options = {"clear_weight": 1.0, "drop_reference": 0.0, "drop_mask": 0.0, "other_ground": 0.5}
    found = recipe.loss(None, batch, seed=0, samples=SAMPLES, **options, synthetic_clouds=0.0)
    turned = batch.turned(seed=0, samples=SAMPLES)
    likelihood = torch.distributions.Normal(mean, deviation).log_prob(NORM.forward(turned.target).nan_to_num(0))
    weights = losses.pixel_weights(turned.classes, turned.target_valid, clear_weight=1.0)
    expected = (weights * (-2 * likelihood - math.log(2 * math.pi))).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_light_is_learned_where_clouds_were_laid(batch):
    class Lit(Gaussian):
        def loss_terms(self, *given, **key):
            (terms,) = super().loss_terms(*given, **key)
            return [terms._replace(light=torch.full((4, 1, 16, 16), 0.7))]

    one = torch.ones(4, 4, 16, 16)
    options = {"clear_weight": 0.3, "drop_reference": 0.0, "drop_mask": 0.0, "other_ground": 0.0}
    plain, lit = (
        Recipe("tiny", kind(one, one), NORM).loss(None, batch, seed=5, samples=SAMPLES, **options, synthetic_clouds=0.7)
        for kind in (Gaussian, Lit)
    )
    laid = clouds.lay(batch.turned(seed=5, samples=SAMPLES), share=0.7, other_ground=0.0, seed=5, samples=SAMPLES)
    weights = losses.pixel_weights(laid.classes, laid.target_valid, clear_weight=0.3)
    logit = torch.full((4, 1, 16, 16), 0.7)
    assert (lit - plain).item() == pytest.approx(losses.weighted_entropy(logit, laid.light, weights).item(), rel=1e-4)
    bare = Recipe("tiny", Lit(one, one), NORM).loss(
        None, batch, seed=5, samples=SAMPLES, **options, synthetic_clouds=0.0
    )
    assert bare.isfinite(), "nothing is known of clouds that were not laid"


def test_a_loss_without_clouds_needs_no_donors(batch):
    recipe = Recipe("tiny", Told([]), NORM)
    options = {"clear_weight": 1.0, "drop_reference": 0.0, "drop_mask": 0.0, "other_ground": 0.5}
    bare = dataclasses.replace(batch, donor=None)
    assert recipe.loss(None, bare, seed=0, samples=SAMPLES, **options, synthetic_clouds=0.0).item() == pytest.approx(3)
    with pytest.raises(ValueError, match="no donor"):
        recipe.loss(None, bare, seed=0, samples=SAMPLES, **options, synthetic_clouds=1.0)


def test_terms_are_those_of_the_process_on_the_batch_as_it_is(batch):
    recipe = Recipe("tiny", Told([]), NORM)
    terms = recipe.terms("the network", batch, seed=5, samples=[7, 8, 9, 10])
    assert len(terms) == 2
    ((network, clean, conditions, seed, indices),) = recipe.process.heard
    assert (network, seed, indices) == ("the network", 5, [7, 8, 9, 10])
    assert torch.equal(clean, NORM.forward(batch.target))
    assert torch.equal(conditions.channels(), Conditions.of(batch, norm=NORM, first_guess="surroundings").channels())
    with pytest.raises(ValueError, match="without a target"):
        recipe.terms("the network", dataclasses.replace(batch, target=None), seed=5, samples=SAMPLES)


@pytest.mark.parametrize("low_precision", [False, True])
def test_the_loss_reaches_every_weight(recipe, batch, low_precision):
    torch.manual_seed(0)
    network = recipe.network()
    for parameter in network.parameters():  # the output layers begin at zero, and hold back what is behind them
        torch.nn.init.normal_(parameter, std=0.05)
    with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
        loss = recipe.measure(batch).loss(network, batch, seed=0, samples=SAMPLES, **LOSS)
    loss.backward()
    assert loss.dtype == torch.float32
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    idle = [name for name, parameter in network.named_parameters() if not parameter.grad.any()]
    constant = {name for name in idle if "embed" in name or "modulation" in name}  # a regression is always at level 1
    assert set(idle) <= constant


# --- restoring ---------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Sampled:
    """A process that keeps what it is asked, and gives the first guess."""

    heard: list

    def sample(self, network, conditions, **options):
        self.heard.append((network, conditions, options))
        return conditions.anchor


@pytest.mark.parametrize("preset", ["tiny", "notebook-2025"])
def test_a_restoration_is_told_the_batch_and_comes_back_as_reflectance(batch, preset):
    """Within the physical range, but for the notebook's."""
    norm = NOTEBOOK_2025 if preset == "notebook-2025" else NORM
    recipe = Recipe(preset, Sampled([]), norm)
    found = batches.restored(recipe, "the network", batch, noise=normal_noise, steps=6, sampler="heun")
    ((network, conditions, asked),) = recipe.process.heard
    whole = Conditions.of(batch, norm=norm, first_guess="surroundings")
    assert network == "the network"
    assert torch.equal(conditions.channels(), whole.channels())
    assert found.shape == (4, 4, 16, 16)
    assert torch.equal(found, norm.inverse(whole.anchor))
    limits = asked.pop("limits")
    assert asked == {"noise": normal_noise, "steps": 6, "sampler": "heun"}
    if preset == "notebook-2025":
        assert limits is None
    else:
        assert [limit.tolist() for limit in limits] == [limit.tolist() for limit in NORM.limits()]


@pytest.mark.parametrize("first_guess", ["similar", "surroundings"])
def test_what_more_surroundings_tell_makes_the_first_guess(batch, first_guess):
    recipe = Recipe("tiny", Sampled([]), NORM, first_guess)
    ground, deviation = torch.rand(2, *batch.cloudy.shape)
    ground[0, :, 3, 4] = deviation[0, :, 3, 4] = torch.nan
    plain = recipe.told("the network", batch)
    given = Guess(ground, deviation if first_guess == "similar" else None)
    told = recipe.told("the network", batch, guess=given)
    hidden = (plain.mask != CLEAR).expand_as(ground)
    assert torch.equal(told.anchor[~hidden], plain.cloudy[~hidden])
    assert torch.equal(told.anchor[hidden], NORM.forward(ground).nan_to_num(0)[hidden])
    if first_guess == "similar":
        expected = deviation / torch.tensor(NORM.std)[:, None, None]
        assert torch.equal(told.deviation, expected.nan_to_num(1))
    else:
        assert told.deviation is None


def test_the_regression_of_a_corrective_is_computed_once_for_all_that_is_drawn(batch):
    """Members differ by their noise alone: one regression, then a pass per member and step."""
    recipe, asked = Recipe("tiny", Corrective(), NORM), []

    def network(x, level, channels):
        asked.append(x is None)
        return torch.zeros(len(channels), 4, *channels.shape[-2:])

    told = recipe.told(network, batch)
    drawn = [recipe.draw(network, told, noise=lambda step, k=k: k + normal_noise(step), steps=3) for k in range(3)]
    assert asked == [True] + [False] * 9
    assert torch.equal(drawn[0], batches.restored(recipe, network, batch, noise=normal_noise, steps=3))
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("process", PROCESSES)
def test_whatever_a_network_says_a_restoration_stays_in_the_physical_range(process, batch):
    """Reflectance -0.1 to 2."""
    options = {"timesteps": 20} if "ddpm" in process else {}
    recipe = Recipe.of("tiny", process, **NORMALS, **options)
    wild = torch.where(torch.rand(4, 4, 16, 16) < 0.5, -1e6, 1e6)
    found = batches.restored(recipe, lambda x, level, channels: wild, batch, noise=normal_noise, steps=3)
    for band in range(4):
        assert found[:, band].min().item() == pytest.approx(-0.1, abs=1e-5)
        assert found[:, band].max().item() == pytest.approx(2, abs=1e-5)


def test_a_restoration_needs_no_target(recipe, batch):
    bare = dataclasses.replace(batch, target=None, donor=None)
    network = recipe.network().eval()
    options = {"noise": normal_noise, "steps": 2, "sampler": "euler"}
    assert torch.equal(
        batches.restored(recipe, network, bare, **options), batches.restored(recipe, network, batch, **options)
    )
