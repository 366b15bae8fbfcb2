import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cloudjob.diffusion.conditions import CHANNELS as TABLES
from cloudjob.diffusion.conditions import channel_count
from cloudjob.diffusion.diffcr import DATES, WIDTHS, Block, DiffCR, LayerNorm, build

CHANNELS = TABLES["similar"]
CONDITION_CHANNELS = channel_count("similar")


def awake(network: nn.Module) -> nn.Module:
    """Without the zeros that blocks begin with."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def tiny(dates: tuple[int, ...] = (0, 5), channels: int = 10) -> nn.Module:
    """Two dates of 4 bands, and channels 4 and 9 beside them."""
    torch.manual_seed(0)
    return awake(DiffCR(8, condition_channels=channels, dates=dates))


# Parameters and billions of multiply-accumulates of the authors' program for 256 x 256 pixels, three dates of three
# bands; the paper says 22.91 M and 45.86 G.
PUBLISHED = {64: (22_937_731, 45.84), 32: (6_019_907, 11.78), 16: (1_678_627, 3.11)}


@pytest.mark.parametrize("width", PUBLISHED)
@pytest.mark.slow
def test_it_is_the_published_network_but_for_a_convolution_that_leads_nowhere(width):
    parameters, gmacs = PUBLISHED[width]
    with torch.device("meta"):
        network = DiffCR(width, condition_channels=9, dates=(0, 3, 6), bands=3)
        nowhere = nn.Conv2d(8 * width, 16 * width, 2, stride=2)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 256, 256), torch.empty(1), torch.empty(1, 9, 256, 256))
            nowhere(torch.empty(3, 8 * width, 32, 32))
    assert sum(p.numel() for p in itertools.chain(network.parameters(), nowhere.parameters())) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.005)


def test_the_norm_is_of_the_channels_of_a_pixel():
    x, norm = torch.randn(2, 6, 3, 5), awake(LayerNorm(6, eps=1e-6))
    spread = (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    expected = (x - x.mean(1, keepdim=True)) / spread * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert torch.allclose(norm(x), expected, atol=1e-5)


def test_a_block_begins_as_the_identity_plus_the_level():
    x, embedding = torch.randn(2, 8, 4, 6), torch.randn(2, 256)
    assert torch.equal(Block(8, timed=False)(x), x)
    block = Block(8, timed=True)
    assert torch.equal(block(x, embedding), x + block.time(embedding)[:, :, None, None])


def test_a_block_by_hand():
    """Channel by channel."""
    torch.manual_seed(1)
    block, x, embedding = awake(Block(4, timed=True)).double(), torch.randn(1, 4, 3, 3).double(), torch.randn(1, 256)

    def gate(values):
        return torch.stack([values[:, k] * values[:, k + values.shape[1] // 2] for k in range(values.shape[1] // 2)], 1)

    with torch.no_grad():
        h = gate(block.spatial(block.widen(block.norm1(x))))
        means = torch.stack([h[0, k].mean() for k in (0, 1)]).view(1, 2, 1, 1)
        maxima = torch.stack([h[0, k].max() for k in (2, 3)]).view(1, 2, 1, 1)
        h = torch.cat([h[:, :2] * block.by_mean(means), h[:, 2:] * block.by_maximum(maxima)], 1)
        y = x + block.beta * block.mix(h) + block.time(embedding.double())[:, :, None, None]
        expected = y + block.gamma * block.back(gate(block.ahead(block.norm2(y))))
        assert torch.allclose(block(x, embedding.double()), expected)


def test_the_order_of_the_dates_means_nothing_and_every_date_is_seen():
    network, x, level = tiny(), torch.randn(2, 4, 16, 32), torch.rand(2)
    conditions = torch.randn(2, 10, 16, 32)
    swapped = conditions[:, [5, 6, 7, 8, 4, 0, 1, 2, 3, 9]]
    found = network(x, level, conditions)
    assert torch.allclose(network(x, level, swapped), found, atol=1e-5)
    for channel in (0, 4, 5, 9):
        other = conditions.clone()
        other[:, channel] += 1
        assert not torch.allclose(network(x, level, other), found, atol=1e-3)


def test_the_level_and_the_dates_reach_every_resolution():
    """The gradient of each block's output as it enters the next tells who is listened to."""
    network, level = tiny(), torch.full((1,), 0.3, requires_grad=True)
    conditions = torch.randn(1, 10, 16, 16, requires_grad=True)
    for number, seen in enumerate(network._dates(conditions)):
        assert seen.shape == (1, 8 * 2**number, 16 // 2**number, 16 // 2**number)
        (reached,) = torch.autograd.grad(seen.sum(), conditions, retain_graph=True)
        assert reached.flatten(2).any(2).all()
    timed = [block for block in network.modules() if isinstance(block, Block) and hasattr(block, "time")]
    assert len(timed) == 9
    network(torch.randn(1, 4, 16, 16), level, conditions).sum().backward()
    assert all(block.time[1].weight.grad.any() for block in timed)
    assert level.grad.any()


def test_a_small_difference_of_level_is_told():
    """With the authors' sinusoids of a number in 0..1 it hardly is."""
    network, x, conditions = tiny(), torch.randn(1, 4, 16, 16), torch.randn(1, 10, 16, 16)
    with torch.no_grad():
        near, far = (network(x, torch.tensor([level]), conditions) for level in (0.50, 0.51))
    assert float((near - far).square().mean()) > 1e-4 * float(near.square().mean())


@pytest.mark.parametrize("preset", WIDTHS)
def test_the_presets_take_the_images_of_the_dates_from_the_table_of_channels(preset):
    network = build(preset, condition_channels=CONDITION_CHANNELS)
    assert network.stem.out_channels == WIDTHS[preset]
    named = [name for name, (width, _) in CHANNELS.items() for _ in range(width)]
    assert [{named[channel] for channel in image} for image in network.images] == [{name} for name in DATES]
    assert len(network.shared) == CONDITION_CHANNELS - 8
    assert not {named[channel] for channel in network.shared} & set(DATES)


@pytest.mark.slow
def test_it_learns_to_add_up_the_dates():
    torch.manual_seed(0)
    network = DiffCR(8, condition_channels=8, dates=(0, 4))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        x, level, conditions = torch.randn(2, 4, 16, 16), torch.rand(2), torch.randn(2, 8, 16, 16)
        loss = (network(x, level, conditions) - conditions[:, 4:] - conditions[:, :4]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]
