"""Moving averages of weights: with a power-function profile (Karras et al. 2024, arXiv 2312.02696, section 3.1), which
stretches with training, so that a short run is not dominated by its early weights; and an exponential one."""

import torch
from torch import Tensor, nn

GAMMAS = {"0.10": 6.94, "0.05": 16.97}  # relative width of the profile -> its exponent (their eq. 122)
DECAY = "0.9999"  # of the exponential one, per step; also what it is called


def averages_of(network: nn.Module, choice: str) -> dict[str, "Average"]:
    """The averages that a training keeps, by name: both power-function ones, unless the exponential one is chosen."""
    if choice == DECAY:
        return {DECAY: ExponentialAverage(network, decay=float(DECAY))}
    return {width: PowerAverage(network, gamma=gamma) for width, gamma in GAMMAS.items()}


class Average:
    """theta_avg(t) = beta(t) theta_avg(t-1) + (1 - beta(t)) theta(t), with beta(1) = 0: initial weights have no share.

    Parameters are averaged in float32; buffers are copied.
    """

    def __init__(self, network: nn.Module):
        self.average = {name: value.detach().float().clone() for name, value in network.named_parameters()}
        self.buffers = {name: value.detach().clone() for name, value in network.named_buffers()}

    def beta(self, step: float) -> float:
        raise NotImplementedError

    @torch.no_grad()
    def update(self, network: nn.Module, *, step: float) -> None:
        """Take in the weights after `step` >= 1 optimizer steps (samples seen / batch size)."""
        theta = dict(network.named_parameters())
        share = 1 - self.beta(max(step, 1))
        torch._foreach_lerp_(list(self.average.values()), [theta[name].float() for name in self.average], share)
        for name, value in network.named_buffers():
            self.buffers[name].copy_(value)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Write the averaged weights into `network`."""
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            value.copy_(self.average[name] if name in self.average else self.buffers[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Loadable by `network.load_state_dict` as it is."""
        return {**self.average, **self.buffers}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in [*self.average.items(), *self.buffers.items()]:
            value.copy_(state[name])


class PowerAverage(Average):
    """beta(t) = (1 - 1/t)^(gamma + 1)."""

    def __init__(self, network: nn.Module, *, gamma: float):
        super().__init__(network)
        self.gamma = gamma

    def beta(self, step: float) -> float:
        return (1 - 1 / step) ** (self.gamma + 1)


class ExponentialAverage(Average):
    """Weights of `decay`^age, which sum up to 1 from the first step on, as Adam's do (Kingma & Ba 2015, section 3)."""

    def __init__(self, network: nn.Module, *, decay: float):
        super().__init__(network)
        self.decay = decay

    def beta(self, step: float) -> float:
        return 1 - (1 - self.decay) / (1 - self.decay**step)
