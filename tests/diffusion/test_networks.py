import pytest
import torch

from cloudjob.diffusion.conditions import CONDITION_CHANNELS
from cloudjob.diffusion.networks import CELL, PRESETS, Fold, Norm, build, describe


def test_the_notebooks_network_is_rebuilt_exactly():
    counted = describe("notebook-2025", 256, condition_channels=4)
    assert counted["parameters"] == 3_452_868
    assert counted["macs"] == pytest.approx(30.38e9, rel=1e-3)
    assert counted["activation_bytes"] == pytest.approx(425e6, rel=0.01)


@pytest.mark.parametrize(
    ("preset", "parameters", "gmacs"),
    [
        ("tiny", (0.3e6, 0.6e6), 2.5),
        ("small", (1.5e6, 4e6), 20),
        ("base", (10e6, 25e6), 60),
        ("base-attention", (10e6, 25e6), 60),
    ],
)
def test_presets_keep_their_budget(preset, parameters, gmacs):
    counted = describe(preset, 256, condition_channels=CONDITION_CHANNELS)
    assert parameters[0] <= counted["parameters"] <= parameters[1]
    assert counted["macs"] <= gmacs * 1e9


@pytest.mark.parametrize("preset", PRESETS)
def test_any_size_divisible_by_the_stride(preset):
    network = build(preset, condition_channels=CONDITION_CHANNELS)
    height, width = network.stride, 3 * network.stride
    x, conditions = torch.randn(2, 4, height, width), torch.randn(2, CONDITION_CHANNELS, height, width)
    assert network(x, torch.rand(2), conditions).shape == x.shape
    with pytest.raises(ValueError, match=rf"{height} x {width - 1} .* {network.stride}"):
        network(x[..., 1:], torch.rand(2), conditions[..., 1:])


def test_an_untrained_network_says_nothing():
    network = build("tiny", condition_channels=5)
    assert not network(torch.randn(1, 4, 16, 16), torch.rand(1), torch.randn(1, 5, 16, 16)).any()


def test_it_can_put_out_a_share_of_noise_and_difference_at_every_pixel():
    network = build("tiny", condition_channels=CONDITION_CHANNELS)
    x, conditions = torch.randn(1, 4, 16, 16), torch.randn(1, CONDITION_CHANNELS, 16, 16)
    with torch.no_grad():
        for part, share in enumerate((0.25, -1.0, 0.5)):  # value, noise, difference
            network.head.bias.view(3, -1)[part] = share
        expected = 0.25 - x + 0.5 * conditions[:, -4:]
        assert torch.allclose(network(x, torch.rand(1), conditions), expected, atol=1e-6)
        alone = network(None, None, conditions)  # a regression
    assert torch.allclose(alone, 0.25 + 0.5 * conditions[:, -4:], atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_is_trained_and_every_input_is_used(preset):
    torch.manual_seed(0)
    network = build(preset, condition_channels=CONDITION_CHANNELS)
    for parameter in network.parameters():  # leave the zero initialisation
        torch.nn.init.normal_(parameter, std=0.05)
    x = torch.randn(1, 4, 32, 32, requires_grad=True)
    conditions = torch.randn(1, CONDITION_CHANNELS, 32, 32, requires_grad=True)
    level = torch.rand(1, requires_grad=True)
    network(x, level, conditions).square().sum().backward()
    assert all(parameter.grad.any() for parameter in network.parameters())
    seen = 4 if preset == "notebook-2025" else CONDITION_CHANNELS
    assert x.grad.flatten(2).any(2).all()
    assert conditions.grad.flatten(2).any(2)[0].tolist() == [True] * seen + [False] * (CONDITION_CHANNELS - seen)
    assert level.grad.any()


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="huge"):
        build("huge", condition_channels=4)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_and_the_order_of_memory_change_little(preset, layout):
    torch.manual_seed(0)
    network = build(preset, condition_channels=CONDITION_CHANNELS).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    x, level, conditions = torch.randn(1, 4, 32, 32), torch.rand(1), torch.randn(1, CONDITION_CHANNELS, 32, 32)
    with torch.no_grad():
        plain = network(x, level, conditions)
        other = network.to(memory_format=layout)(x.to(memory_format=layout), level, conditions)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(x, level, conditions)
    assert torch.allclose(plain, other, atol=1e-3 * float(plain.abs().max()))
    assert float((low.float() - plain).square().mean()) < 2e-3 * float(plain.square().mean())


def test_the_fold_is_that_of_torch_with_channels_last():
    x = torch.randn(2, 5, 6, 8)
    folded = Fold()(x)
    assert folded.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(folded, torch.nn.functional.pixel_unshuffle(x, CELL))


@pytest.mark.parametrize("channels", [32, 64, 128])
def test_the_norm_and_its_gradient_are_torchs(channels):
    torch.manual_seed(0)
    norm, oracle = Norm(channels), torch.nn.GroupNorm(8, channels).double()
    oracle.load_state_dict(norm.state_dict() | {"weight": torch.randn(channels), "bias": torch.randn(channels)})
    norm.load_state_dict(oracle.state_dict())
    x, dy = (torch.randn(3, channels, 12, 10, dtype=torch.bfloat16) + 0.5 for _ in range(2))
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    exact = x.detach().double().requires_grad_()
    y = norm(x)
    y.backward(dy)
    oracle(exact).backward(dy.double())
    assert torch.equal(y, torch.nn.functional.group_norm(x, 8, norm.weight, norm.bias))
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2**-7, atol=2**-7)
    for found, true in zip(norm.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(found.grad.double(), true.grad, rtol=1e-4, atol=1e-3)
