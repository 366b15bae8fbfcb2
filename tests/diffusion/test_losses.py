import pytest
import torch

from cloudjob.diffusion.losses import pixel_weights, weighted_entropy, weighted_mse
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN


def row(values: list) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def test_weights_follow_the_mask():
    mask = row([CLEAR, CLOUD, SHADOW, CIRRUS, UNKNOWN, NO_DATA, CLOUD, CLEAR]).byte()
    valid = row([True] * 6 + [False] * 2)
    weights = pixel_weights(mask, valid, clear_weight=0.25)
    assert weights.dtype == torch.float32
    assert weights.flatten().tolist() == [0.25, 1, 1, 1, 0.25, 0, 0, 0]


def test_the_error_is_squared_weighted_and_divided_by_all_pixels_and_bands():
    """Also by those that weigh nothing: so the mean over ranks is the mean over the batch."""
    prediction, target = torch.zeros(1, 4, 1, 3), torch.zeros(1, 4, 1, 3)
    prediction[0, 0] = torch.tensor([1.0, 3.0, 5.0])
    target[0, 1] = torch.tensor([2.0, 0.0, 7.0])
    found = weighted_mse(prediction, target, row([0.5, 1.0, 0.0]))
    assert found == pytest.approx((0.5 * (1 + 4) + 9) / 12)


def test_the_error_is_taken_in_float32():
    prediction = torch.full((1, 4, 1, 1), 1.0078125, dtype=torch.bfloat16)
    found = weighted_mse(prediction, torch.ones(1, 4, 1, 1), torch.ones(1, 1, 1, 1))
    assert found.dtype == torch.float32
    assert found.item() == 0.0078125**2


def test_entropy_of_what_is_known_alone():
    share, logit = torch.tensor([0.0, 0.25, 1.0, torch.nan]), torch.tensor([-1.0, 2.0, 3.0, 50.0])
    chance = 1 / (1 + (-logit.double()).exp())
    each = -(share * chance.log() + (1 - share) * (1 - chance).log())
    weights = torch.tensor([1.0, 0.5, 0.0, 1.0])
    found = weighted_entropy(logit.view(1, 1, 2, 2), share.view(1, 1, 2, 2), weights.view(1, 1, 2, 2))
    assert found.item() == pytest.approx(((each[0] + 0.5 * each[1]) / 4).item(), rel=1e-5)
    best = torch.special.logit(share[:3]).clamp(-30, 30).view(1, 1, 1, 3).requires_grad_()
    weighted_entropy(best, share[:3].view(1, 1, 1, 3), torch.ones(1, 1, 1, 3)).backward()
    assert best.grad.abs().max() < 1e-6
