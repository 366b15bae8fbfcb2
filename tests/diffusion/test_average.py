import numpy as np
import torch
from torch import nn

from cloudjob.diffusion.average import PowerAverage


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


def test_the_first_step_forgets_the_initial_weights():
    network = nn.Linear(3, 3)
    average = PowerAverage(network, gamma=6.94)
    nn.init.ones_(network.weight)
    average.update(network, step=1)
    assert torch.equal(average.state_dict()["weight"], torch.ones(3, 3))


def test_buffers_are_copied_and_the_state_goes_round():
    network = nn.BatchNorm1d(2)
    average = PowerAverage(network, gamma=6.94)
    network(torch.randn(8, 2))
    average.update(network, step=10)
    assert average.state_dict()["num_batches_tracked"] == 1
    other = PowerAverage(nn.BatchNorm1d(2), gamma=6.94)
    other.load_state_dict(average.state_dict())
    target = nn.BatchNorm1d(2)
    other.copy_to(target)
    for name, value in target.state_dict().items():
        assert torch.equal(value, average.state_dict()[name])
    target.load_state_dict(average.state_dict())
