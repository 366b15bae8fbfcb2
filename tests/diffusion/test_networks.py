import near
import pytest
import torch
from counting import Autocast, kept
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cloudjob.diffusion import networks, noise
from cloudjob.diffusion.conditions import channel_count
from cloudjob.diffusion.networks import (
    CELL,
    EMBEDDING,
    PRESETS,
    Attention,
    Block,
    Fold,
    MeanAndDetail,
    Norm,
    build,
    describe,
)

CONDITION_CHANNELS = channel_count("surroundings")  # as the checkpoints have that are pinned


@pytest.mark.slow
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
        pytest.param("base", (10e6, 25e6), 60, marks=pytest.mark.slow),
        pytest.param("base-attention", (10e6, 25e6), 60, marks=pytest.mark.slow),
    ],
)
def test_presets_keep_their_budget(preset, parameters, gmacs, capsys):
    counted = describe(preset, 256, condition_channels=CONDITION_CHANNELS)
    assert capsys.readouterr().out == ""
    assert parameters[0] <= counted["parameters"] == PINNED[preset][0] <= parameters[1]
    assert counted["macs"] <= gmacs * 1e9


LARGE = ("base", "base-attention", "diffcr", "diffcr-32", "notebook-2025")
BY_SIZE = [pytest.param(preset, marks=pytest.mark.slow) if preset in LARGE else preset for preset in PRESETS]
# Parameters, multiply-accumulates and bytes of activations for 64 x 64 pixels; the output's root mean square per band,
# and one pixel of it, of a network whose weights and inputs are drawn by their numbers.
PINNED = {
    "tiny": (505_680, 142_254_080, 4.51e6, [0.631212, 0.610753, 0.540397, 0.377601], [0.281765, 0.545290, 0.059602]),
    "small": (2_982_896, 646_676_480, 9.02e6, [0.679781, 0.720930, 0.622369, 0.410639], [0.337425, 0.561444, 0.313245]),
    "base": (
        *(22_792_112, 2_398_027_776, 22.96e6),
        *([0.539054, 0.528129, 0.698786, 0.494243], [1.194459, -0.873464, 0.471313]),
    ),
    "base-attention": (
        *(23_384_240, 2_407_661_568, 23.16e6),
        *([0.501105, 0.446690, 0.373425, 0.655403], [0.214107, 0.704530, 0.140639]),
    ),
    "diffcr": (
        *(20_850_500, 2_332_024_832, 127.74e6),
        *([8.987666, 10.199459, 8.979652, 8.974832], [1.259829, -3.032432, 9.435261]),
    ),
    "diffcr-32": (
        *(5_500_580, 620_488_704, 64.41e6),
        *([9.470660, 9.161694, 9.581909, 9.997313], [6.102715, 0.320843, -3.995152]),
    ),
    "notebook-2025": (
        *(3_452_868, 1_899_372_544, 26.48e6),
        *([0.389998, 0.188472, 0.080319, 0.241238], [-0.398635, 0.200618, 0.090180]),
    ),
}


@pytest.mark.parametrize("preset", BY_SIZE)
def test_a_checkpoint_of_today_means_the_same_tomorrow(preset):
    """Weights by their names and shapes alone are no proof: what is computed with them is pinned too."""
    parameters, macs, activations, rms, pixel = PINNED[preset]
    counted = describe(preset, 64, condition_channels=CONDITION_CHANNELS)
    assert counted["parameters"] == parameters
    assert counted["macs"] == pytest.approx(macs, rel=1e-6)
    assert counted["activation_bytes"] == pytest.approx(activations, rel=0.005)
    network = build(preset, condition_channels=CONDITION_CHANNELS)
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            drawn = noise.normals(1, [number], "weights", like=torch.empty(1, 1, 1, parameter.numel()))
            parameter.copy_(drawn.view_as(parameter) / (parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 4))
        given = noise.normals(2, [0], "inputs", like=torch.empty(1, 4 + CONDITION_CHANNELS, 32, 48))
        found = network(given[:, :4], torch.tensor([0.3]), given[:, 4:])
    assert found.square().mean((0, 2, 3)).sqrt().tolist() == pytest.approx(rms, abs=2e-4, rel=1e-4)
    assert found[0, :3, 5, 40].tolist() == pytest.approx(pixel, abs=1e-3, rel=1e-3)


def test_blocks_begin_as_the_identity():
    x = torch.randn(2, 128, 4, 6)
    assert torch.equal(Block(128)(x, torch.randn(2, EMBEDDING)), x)
    assert torch.equal(Attention(128)(x), x)
    assert Attention(128).heads == 2


def test_attention_gathers_by_head_from_every_cell():
    """softmax(q k / 8) v by hand, for two heads of 64 channels; query, key and value come in this order."""
    layer, x = Attention(128), torch.randn(3, 128, 2, 5)
    nn.init.normal_(layer.out.weight, std=0.1)
    with torch.no_grad():
        found = layer(x) - x - layer.out.bias[:, None, None]
        q, k, v = layer.qkv(layer.norm(x)).flatten(2).view(3, 3, 2, 64, 10).unbind(1)
        share = torch.einsum("nhcq,nhck->nhqk", q, k).div(8).softmax(-1)
        gathered = torch.einsum("nhqk,nhck->nhcq", share, v).reshape(3, 128, 2, 5)
        expected = torch.einsum("oc,ncij->noij", layer.out.weight[..., 0, 0], gathered)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("preset", BY_SIZE)
def test_any_size_divisible_by_the_stride(preset):
    network = build(preset, condition_channels=CONDITION_CHANNELS)
    height, width = network.stride, 3 * network.stride
    x, conditions = torch.randn(2, 4, height, width), torch.randn(2, CONDITION_CHANNELS, height, width)
    assert network(x, torch.rand(2), conditions).shape == x.shape
    with pytest.raises(ValueError, match=rf"{height} x {width - 1} .* {network.stride}"):
        network(x[..., 1:], torch.rand(2), conditions[..., 1:])
    with pytest.raises(ValueError, match=f"{height - 1} x {width}"):
        network(x[..., 1:, :], torch.rand(2), conditions[..., 1:, :])


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


def test_a_regression_is_told_the_most_noise_and_an_empty_image():
    torch.manual_seed(0)
    network = build("tiny", condition_channels=CONDITION_CHANNELS)
    nn.init.normal_(network.head.weight)
    for block in (*network.encoder[0], *network.decoder[0]):
        nn.init.normal_(block.conv2.weight, std=0.1)
    conditions = torch.randn(2, CONDITION_CHANNELS, 16, 16)
    told = network(torch.zeros(2, 4, 16, 16), torch.ones(2), conditions)
    assert torch.equal(network(None, None, conditions), told)
    assert not torch.equal(network(torch.zeros(2, 4, 16, 16), torch.zeros(2), conditions), told)


@pytest.mark.parametrize("preset", ["tiny", "diffcr-32"])
def test_a_network_tells_a_deviation_beside_its_image(preset):
    network = build(preset, condition_channels=CONDITION_CHANNELS, deviation=True)
    conditions = torch.randn(2, CONDITION_CHANNELS, 16, 16)
    assert network(None, None, conditions).shape == (2, 9, 16, 16)


def test_a_regression_keeps_silent_where_it_sees_no_light():
    network = build("tiny", condition_channels=CONDITION_CHANNELS, deviation=True)
    conditions = torch.randn(2, CONDITION_CHANNELS, 16, 16)
    _, light, _, deviation = network.head.bias.data.view(4, 4, CELL**2)
    nn.init.normal_(network.head.weight[: 4 * CELL**2].data)  # of the values
    said = network(None, None, conditions)
    assert said[:, :4].any()
    assert not said[:, 4:].any()
    deviation += 2
    light += 100
    told = network(None, None, conditions)
    assert torch.allclose(told[:, :4], 2 * said[:, :4])  # it begins with half of it
    assert (told[:, 4:8] == 2).all()
    assert (told[:, 8] == 100).all()
    light -= 300
    assert not network(None, None, conditions)[:, :4].any()


def test_two_networks_in_one_by_whether_there_is_a_noisy_image():
    class Said(nn.Module):
        def __init__(self, name: str):
            super().__init__()
            self.name = name

        def forward(self, *given):
            return self.name, given

    network = MeanAndDetail(Said("mean"), Said("detail"))
    assert network(None, None, 3) == ("mean", (None, None, 3))
    assert network(1, 2, 3) == ("detail", (1, 2, 3))


@pytest.mark.parametrize("preset", ["tiny", "base-attention", "notebook-2025", "diffcr-32"])
@pytest.mark.slow
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
@pytest.mark.parametrize("preset", ["tiny", "base-attention", "notebook-2025", "diffcr-32"])
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


@pytest.mark.parametrize(
    ("channels", "dtype", "layout", "expected"),
    [
        (120, torch.bfloat16, torch.channels_last, True),
        (128, torch.bfloat16, torch.channels_last, False),
        (120, torch.float32, torch.channels_last, False),
        (120, torch.bfloat16, torch.contiguous_format, False),
    ],
)
def test_narrow_bfloat16_with_channels_last_goes_back_through_float32(channels, dtype, layout, expected):
    x = torch.randn(2, channels, 4, 6, dtype=dtype).to(memory_format=layout).requires_grad_()
    assert ("ByFloat32" in Norm(channels)(x).grad_fn.name()) is expected


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
    near.assert_close(x.grad.double(), exact.grad, rtol=2**-7, atol=2**-7)
    for found, true in zip(norm.parameters(), oracle.parameters(), strict=True):
        near.assert_close(found.grad.double(), true.grad, rtol=1e-4, atol=1e-3)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(networks, "_widens", lambda x: x.dtype == torch.bfloat16)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_on_a_gpu_the_norm_is_float32_between_bfloat16_images(as_on_a_gpu, layout):
    """Its statistics too: of groups whose mean is many times their deviation they must not be rounded."""
    torch.manual_seed(0)
    norm = Norm(32)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x, dy = (torch.randn(3, 32, 12, 10, dtype=torch.bfloat16).to(memory_format=layout) for _ in range(2))
    x = (x / 8 + 5).requires_grad_()
    y = norm(x)
    y.backward(dy)
    found = [x.grad, *(parameter.grad for parameter in norm.parameters())]
    wide = nn.functional.group_norm(x.float(), 8, norm.weight, norm.bias)
    assert torch.equal(y, wide.to(torch.bfloat16))
    expected = torch.autograd.grad(wide, (x, *norm.parameters()), dy.float())
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert [each.dtype for each in found] == [torch.bfloat16, torch.float32, torch.float32]


def test_only_a_gpu_would_widen_and_only_where_it_does_not_compile(monkeypatch):
    with FakeTensorMode():
        there = torch.empty(1, 8, 2, 2, device="cuda", dtype=torch.bfloat16)
        assert networks._widens(there)
        assert not networks._widens(torch.empty(1, 8, 2, 2, device="cuda"))
        assert not networks._widens(torch.empty(1, 8, 2, 2, dtype=torch.bfloat16))
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not networks._widens(there)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "before", "after"), [("small", 111, 73), ("base", 289, 180)])
def test_under_autocast_no_image_of_a_network_is_kept_in_float32(monkeypatch, preset, before, after):
    """MiB of a sample of 256 x 256, as docs/many-gpus.md has them: counted on the meta device."""
    channels, kinds, found = channel_count("similar"), [], []
    with torch.device("meta"):
        network = build(preset, condition_channels=channels)
        given = torch.empty(1, 4, 256, 256), torch.empty(1), torch.empty(1, channels, 256, 256)
    for layer in network.modules():
        if isinstance(layer, Norm):
            layer.register_forward_hook(lambda layer, x, y: kinds.append((x[0].dtype, y.dtype)))
    for widens in (False, True):
        monkeypatch.setattr(networks, "_widens", lambda x, widens=widens: widens)
        kinds.clear()
        with Autocast():
            found.append(round(kept(network, *given) / 2**20))
    assert found == [before, after]
    assert set(kinds) == {(torch.bfloat16, torch.bfloat16)}
