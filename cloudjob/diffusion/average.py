"""Moving average of the weights with a power-function profile (Karras et al. 2024, arXiv 2312.02696, section 3.1)."""

import torch
from torch import Tensor, nn

GAMMAS = {"0.10": 6.94, "0.05": 16.97}  # relative width of the profile -> its exponent (their eq. 122)


class PowerAverage:
    """theta_avg(t) = beta theta_avg(t-1) + (1 - beta) theta(t), beta(t) = (1 - 1/t)^(gamma + 1).

    The profile stretches with training, so that a short run is not dominated by its initial weights. Parameters are
    averaged in float32; buffers are copied.
    """

    def __init__(self, network: nn.Module, *, gamma: float):
        self.gamma = gamma
        self.average = {name: value.detach().float().clone() for name, value in network.named_parameters()}
        self.buffers = {name: value.detach().clone() for name, value in network.named_buffers()}

    @torch.no_grad()
    def update(self, network: nn.Module, *, step: float) -> None:
        """Take in the weights after `step` >= 1 optimizer steps (samples seen / batch size)."""
        beta = (1 - 1 / max(step, 1)) ** (self.gamma + 1)
        theta = dict(network.named_parameters())
        torch._foreach_lerp_(list(self.average.values()), [theta[name].float() for name in self.average], 1 - beta)
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
