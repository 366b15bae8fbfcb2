import copy

import numpy as np
import pytest
import torch
from torch import nn

from cloudjob.diffusion.average import GAMMAS, ExponentialAverage, PowerAverage, averages_of


def one_weight(value: float) -> nn.Linear:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return network


def test_the_average_has_the_power_function_profile():
    """Equation 120 of Karras et al. 2024: the weight of step tau is proportional to about tau^gamma."""
    network, gamma, last = nn.Linear(1, 1, bias=False), 3.0, 2000
    average = PowerAverage(network, gamma=gamma)
    for step in range(1, last + 1):
        nn.init.constant_(network.weight, float(step))
        average.update(network, step=step)
    tau = np.arange(1, last + 1, dtype=float)
    expected = np.average(tau, weights=tau**gamma)
    assert abs(average.state_dict()["weight"].item() - expected) < 2


def test_two_steps_by_hand():
    """beta(2) = (1 - 1/2)^(3 + 1) = 1/16."""
    average = PowerAverage(one_weight(7), gamma=3)
    average.update(one_weight(1), step=1)
    average.update(one_weight(3), step=2)
    assert average.state_dict()["weight"].item() == pytest.approx(1 / 16 + 3 * 15 / 16)


def test_the_exponential_average_by_its_definition():
    """Each step's weights by decay^age, over the sum of these; after many steps its usual recursion."""
    network = one_weight(7)
    average, values = ExponentialAverage(network, decay=0.9), [3.0, -1.0, 4.0, 1.0, -5.0]
    for step, value in enumerate(values, 1):
        nn.init.constant_(network.weight, value)
        average.update(network, step=step)
        ages = [0.9 ** (step - number) for number in range(1, step + 1)]
        expected = np.average(values[:step], weights=ages)
        assert average.state_dict()["weight"].item() == pytest.approx(expected, abs=1e-6)
    assert ExponentialAverage(network, decay=0.9999).beta(10**6) == pytest.approx(0.9999)


@pytest.mark.parametrize("choice", ["auto", "0.10", "0.05", "none"])
def test_a_training_keeps_both_widths_or_the_exponential_one_alone(choice):
    found = averages_of(one_weight(7), choice)
    assert {width: average.gamma for width, average in found.items()} == GAMMAS
    ((name, average),) = averages_of(one_weight(7), "0.9999").items()
    assert (name, average.decay) == ("0.9999", 0.9999)


@pytest.mark.parametrize(("width", "gamma"), GAMMAS.items())
def test_the_exponents_give_the_widths_that_name_them(width, gamma):
    """The relative standard deviation of a profile tau^gamma on 0..1, from its first two moments."""
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert (square - mean**2) ** 0.5 == pytest.approx(float(width), abs=1e-4)


@pytest.mark.parametrize("step", [0.25, 1])
@pytest.mark.parametrize("choice", ["0.05", "0.9999"])
def test_the_first_step_forgets_the_initial_weights(step, choice):
    network = nn.Linear(3, 3)
    average = averages_of(network, choice)[choice]
    nn.init.ones_(network.weight)
    average.update(network, step=step)
    assert torch.equal(average.state_dict()["weight"], torch.ones(3, 3))


def test_it_is_float32_and_its_own_whatever_the_network_does():
    network = nn.BatchNorm1d(2).bfloat16()
    average = PowerAverage(network, gamma=1)
    kept = copy.deepcopy(average.state_dict())
    with torch.no_grad():
        for value in (network.weight, network.bias, network.running_mean, network.num_batches_tracked):
            value.add_(5)
    assert average.state_dict().keys() == network.state_dict().keys()
    assert {kept[name].dtype for name in ("weight", "bias")} == {torch.float32}
    assert all(torch.equal(average.state_dict()[name], kept[name]) for name in kept)


def test_buffers_are_copied_and_the_state_goes_round():
    network = nn.BatchNorm1d(2)
    average = PowerAverage(network, gamma=6.94)
    network(torch.randn(8, 2))
    nn.init.constant_(network.weight, 4)
    average.update(network, step=10)
    assert average.state_dict()["num_batches_tracked"] == 1
    assert torch.equal(average.state_dict()["running_mean"], network.running_mean)
    other = PowerAverage(nn.BatchNorm1d(2), gamma=6.94)
    other.load_state_dict(average.state_dict())
    target = nn.BatchNorm1d(2)
    other.copy_to(target)
    assert not torch.equal(target.weight, torch.ones(2))
    for name, value in target.state_dict().items():
        assert torch.equal(value, average.state_dict()[name])
    target.load_state_dict(average.state_dict())
