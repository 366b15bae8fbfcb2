import pytest
import torch

from cloudjob.scoring.diagnosis import diagnose, warnings
from cloudjob.diffusion.recipe import Recipe


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    clear = 0.5 + 0.1 * torch.randn(6, 4, 16, 16)
    mask = torch.zeros(6, 16, 16, dtype=torch.uint8)
    mask[:, :, :8] = 1
    cloudy = torch.where(mask[:, None] > 0, 0.9, clear)
    return {"cloudy": cloudy, "mask": mask, "clear": clear, "reference": clear + 0.05 * torch.randn_like(clear)}


@pytest.mark.parametrize("process", ["corrective", "residual", "ddpm", "regression"])
def test_an_untrained_network_is_as_good_as_zero_and_looks_at_nothing(batch, process):
    recipe = Recipe.of("tiny", process, mean=[0.5] * 4, std=[0.2] * 4)
    found = diagnose(recipe, lambda x, level, channels: 0 * channels[:, :4], batch, seed=0)
    assert all(value is None or value == pytest.approx(1) for value in found["against_zero"])
    assert found["against_shuffled"] == pytest.approx({"cloudy": 1, "mask": 1, "reference": 1})
    assert "noise" in warnings(found, share=0.05)[0]
    assert not warnings(found, share=0.01)


def test_what_a_network_looks_at_is_found(batch):
    """This one gives the reference of its channels as the ground, which is right, and not that of another sample."""
    recipe = Recipe.of("tiny", "ddpm", mean=[0.5] * 4, std=[0.2] * 4, prediction="x0")
    found = diagnose(recipe, lambda x, level, channels: channels[:, 8:12], batch, seed=0)
    assert max(found["against_zero"]) < 0.5
    assert found["x0_error"] == pytest.approx([0.25] * 3, rel=0.1)  # 0.05 of the reference over a deviation of 0.2
    assert found["against_shuffled"]["reference"] < 0.5
    assert found["against_shuffled"]["cloudy"] == pytest.approx(1)
    (said,) = warnings(found, share=0.5)
    assert "another sample's cloudy does" in said


def test_a_layer_of_noise_is_foreseen():
    found = {"against_zero": [0.99, 0.5, 0.2], "against_shuffled": {"cloudy": 0.5, "mask": 0.9, "reference": 0.5}}
    (said,) = warnings(found, share=0.3)
    assert "layer of noise" in said
    assert not warnings(found | {"against_zero": [0.6, 0.5, 0.2]}, share=1.0)
