"""Recipes: what a checkpoint says makes the same one again, and every process trains and restores."""

import json

import pytest
import torch

from cloudjob.diffusion.recipe import PROCESSES, Recipe
from cloudjob.errors import ConfigError

OPTIONS = {"residual": {"alpha": 1.0}, "ddpm": {"prediction": "v", "schedule": "cosine", "zero_terminal_snr": True}}
LOSS = {"clear_weight": 0.2, "drop_reference": 0.3, "drop_mask": 0.1, "synthetic_clouds": 0.5, "other_ground": 0.5}


@pytest.fixture(params=PROCESSES)
def recipe(request) -> Recipe:
    return Recipe.of("tiny", request.param, mean=[0.6] * 4, std=[0.2] * 4, **OPTIONS.get(request.param, {}))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    clear = 0.6 + 0.2 * torch.randn(4, 4, 16, 16)
    mask = torch.zeros(4, 16, 16, dtype=torch.uint8)
    mask[:, 4:12, 4:] = 1
    batch = {"cloudy": torch.where(mask[:, None] > 0, 0.95, clear), "clear": clear, "mask": mask, "donor": mask}
    return batch | {"reference": clear + 0.05 * torch.randn_like(clear)}


def test_what_a_checkpoint_says_of_it_makes_the_same_recipe_again(recipe, batch):
    measured = recipe.measure(batch)
    facts = json.loads(json.dumps(measured.facts()))  # plain values
    assert Recipe.of(**facts) == measured
    assert Recipe.of(**facts).process == measured.process


@pytest.mark.parametrize("low_precision", [False, True])
def test_the_loss_reaches_every_weight(recipe, batch, low_precision):
    torch.manual_seed(0)
    network = recipe.network()
    for parameter in network.parameters():  # the output layers begin at zero, and hold back what is behind them
        torch.nn.init.normal_(parameter, std=0.05)
    with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
        loss = recipe.measure(batch).loss(network, batch, seed=0, samples=[0, 1, 2, 3], **LOSS)
    loss.backward()
    assert loss.dtype == torch.float32
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    idle = [name for name, parameter in network.named_parameters() if not parameter.grad.any()]
    constant = {name for name in idle if "embed" in name or "modulation" in name}  # a regression is always at level 1
    assert set(idle) <= constant


def test_a_checkpoint_restores_as_the_network_that_it_was_made_of(recipe, batch):
    torch.manual_seed(0)
    network = recipe.network().eval()
    state = {"recipe": recipe.facts(), "averages": {"0.10": network.state_dict()}, "chosen": "0.10", "model": {}}
    again, loaded = Recipe.load(state, "cpu")

    def noise(step: int) -> torch.Tensor:
        return torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(step))

    options = {"noise": noise, "steps": 3, "sampler": "euler"}
    images = [one.restore(net, batch, **options) for one, net in ((recipe, network), (again, loaded))]
    assert torch.equal(*images)
    assert images[0].shape == batch["clear"].shape
    assert images[0].isfinite().all()


def test_ancestral_steps_are_refused_where_the_drift_is_no_noise(batch):
    drawn, plain = (Recipe.of("tiny", "residual", mean=[0.6] * 4, std=[0.2] * 4, alpha=a) for a in (3.0, 0.0))
    assert plain.taken("ancestral", 2) == {"sampler": "ancestral", "steps": 2}
    with pytest.raises(ConfigError, match="ancestral draws noise alone: alpha is 3 here"):
        drawn.restore(drawn.network(), batch, noise=lambda step: 0, steps=2, sampler="ancestral")
