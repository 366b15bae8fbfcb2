"""The networks: dense residual-convolution U-Nets of three sizes, DiffCR's, and the U-Net of the notebook of 2025.

All map `network(x, level, conditions)` to (N, 4, H, W): x (N, 4, H, W) the scaled noisy image, level (N,) in 0..1 where
the process stands between least and most noise, both None for a regression, which has no noisy image; conditions
(N, C, H, W), the last four the difference of cloudy image and first guess. Any height and width divisible by `stride`.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cloudjob.diffusion import diffcr
from cloudjob.diffusion.conditions import BAND_COUNT
from cloudjob.diffusion.layers import check_size, noisy_or_empty, sinusoids

EMBEDDING = 128
CELL = 2  # pixels folded into channels by the stem: full resolution costs no convolution


@dataclass(frozen=True)
class Size:
    """Channels at each resolution, and the residual blocks on either side of it."""

    widths: tuple[int, ...]
    blocks: int
    attention: bool = False  # at the lowest resolution, where 256 pixels are 16 or 32 cells wide


SIZES = {
    "tiny": Size(widths=(32, 48, 64), blocks=1),
    "small": Size(widths=(64, 128, 192), blocks=1),
    "base": Size(widths=(96, 192, 256, 384), blocks=2),
    "base-attention": Size(widths=(96, 192, 256, 384), blocks=2, attention=True),
}
PRESETS = (*SIZES, *diffcr.WIDTHS, "notebook-2025")


def build(preset: str, *, condition_channels: int, deviation: bool = False) -> nn.Module:
    """A freshly initialised network (from torch's global generator). With `deviation` it puts out (N, 9, H, W): beside
    the image the logarithm of its deviation, and the logit of the share of the ground's light that is seen."""
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}: must be one of {', '.join(PRESETS)}")
    if preset == "notebook-2025":
        return NotebookUNet()
    if preset in diffcr.WIDTHS:
        return diffcr.build(preset, condition_channels=condition_channels, deviation=deviation)
    return UNet(SIZES[preset], condition_channels=condition_channels, deviation=deviation)


def describe(preset: str, size: int, *, condition_channels: int) -> dict[str, int]:
    """Parameters, multiply-accumulates of one forward pass of one size x size sample, and the bytes of float32
    activations that its backward pass keeps. Counted on the meta device: nothing is computed."""
    with torch.device("meta"):
        network = build(preset, condition_channels=condition_channels)
        x, level = torch.empty(1, BAND_COUNT, size, size), torch.empty(1)
        conditions = torch.empty(1, condition_channels, size, size)
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, saved:
        network(x, level, conditions)
    for parameter in network.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "macs": counter.get_total_flops() // 2,
        "activation_bytes": sum(storage.nbytes() for storage in kept.values()),
    }


class Fold(nn.Module):
    """nn.PixelUnshuffle(CELL), but written with channels last at once, as the stem reads it: half of the time."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        parts = [pixels[:, row::CELL, col::CELL] for row in range(CELL) for col in range(CELL)]
        return torch.stack(parts, -1).flatten(3).permute(0, 3, 1, 2)


class _ByFloat32(torch.autograd.Function):
    """Group normalisation of channels-last images whose backward pass goes through float32, a sample at a time: so it
    stays in the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        ctx.shape = x.shape[1], x.shape[2] * x.shape[3], groups
        y, mean, rstd = torch.ops.aten.native_group_norm(x, weight, bias, len(x), *ctx.shape, eps)
        ctx.save_for_backward(x, mean, rstd, weight)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple:
        *whole, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)  # torch's kernel takes it for granted
        dx, d_weight, d_bias = torch.empty_like(whole[0]), torch.zeros_like(weight), torch.zeros_like(weight)
        for number in range(len(dx)):
            one = [tensor[number : number + 1].float() for tensor in (dy, *whole)]
            found = torch.ops.aten.native_group_norm_backward(*one, weight, 1, *ctx.shape, [True] * 3)
            dx[number] = found[0][0]
            d_weight += found[1]
            d_bias += found[2]
        return dx, d_weight, d_bias, None, None


class _KeptInBfloat16(torch.autograd.Function):
    """Group normalisation of which the bfloat16 images before and after are kept, and nothing else. Between them all is
    float32, weights and statistics too, which torch's own kernel for a GPU rounds; the backward pass makes it anew."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.groups, ctx.eps = groups, eps
        return F.group_norm(x.float(), groups, weight, bias, eps).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple:
        given = x, weight, bias = tuple(tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        with torch.enable_grad():
            y = F.group_norm(x.float(), ctx.groups, weight, bias, ctx.eps)
        return *torch.autograd.grad(y, given, dy.float()), None, None


def _widens(x: Tensor) -> bool:
    """Whether torch, unasked, would normalise these bfloat16 images into float32 ones, and keep both until the backward
    pass. A graph that is compiled keeps what it likes."""
    return x.is_cuda and x.dtype == torch.bfloat16 and not torch.compiler.is_compiling()


class Norm(nn.GroupNorm):
    """Normalisation in 8 groups. With fewer than 16 channels in each, torch's backward pass over bfloat16 with channels
    last takes two to five times as long on a processor as one through float32."""

    def __init__(self, channels: int):
        super().__init__(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        if _widens(x):
            return _KeptInBfloat16.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        slow = x.is_cpu and x.dtype == torch.bfloat16 and self.num_channels < 16 * self.num_groups
        if slow and x.is_contiguous(memory_format=torch.channels_last):
            return _ByFloat32.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(x)


class Block(nn.Module):
    """x + conv(silu(scale * norm(conv(silu(norm x))) + shift)), scale and shift from the noise level."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = Norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(EMBEDDING, 2 * channels)
        self.norm2 = Norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        _zero(self.conv2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        return x + self.conv2(F.silu(h * (1 + scale) + shift))


def _zero(layer: nn.Conv2d) -> None:
    """The layer puts nothing out until it has learned to."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _through(blocks: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    for block in blocks.children():
        h = block(h, embedding)
    return h


class Attention(nn.Module):
    """x + what every cell gathers from all others, by heads of 64 channels (Vaswani et al. 2017, 3.2); begins as x."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = channels // 64
        self.norm = Norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        _zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        gathered = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(gathered.transpose(-1, -2).reshape(x.shape))


class UNet(nn.Module):
    """Fully convolutional (attention too takes any size), so the window may be larger at inference than in training.

    Skips are added, which beat concatenation in DiffCR's ablation. The output is, at each pixel, a value, a gain on x
    and a share of the difference: what is left of the noise, or seen of the ground through thin cloud and shadow, is
    taken at full resolution, however narrow the network. One that tells its deviation is a regression and has no x: it
    has the light for a gain on all of it, and so keeps silent where nothing is seen.
    """

    def __init__(self, size: Size, *, condition_channels: int, deviation: bool = False):
        super().__init__()
        widths = size.widths
        self.stride = CELL * 2 ** (len(widths) - 1)

        def stage(width: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width) for _ in range(size.blocks))

        self.embed = nn.Sequential(
            nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU()
        )
        self.fold = Fold()
        self.stem = nn.Conv2d((BAND_COUNT + condition_channels) * CELL**2, widths[0], 3, padding=1)
        steps = list(pairwise(widths))
        self.encoder = nn.ModuleList(stage(width) for width in widths)
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 3, padding=1) for fine, coarse in reversed(steps))
        self.decoder = nn.ModuleList(stage(width) for width in reversed(widths))
        self.attention = Attention(widths[-1]) if size.attention else nn.Identity()
        self.norm = Norm(widths[0])
        self.head = nn.Conv2d(widths[0], (3 + deviation) * BAND_COUNT * CELL**2, 3, padding=1)
        _zero(self.head)

    def forward(self, x: Tensor | None, level: Tensor | None, conditions: Tensor) -> Tensor:
        x, level = noisy_or_empty(x, level, conditions)
        check_size(x, self.stride)
        embedding = self.embed(sinusoids(level, EMBEDDING))
        seen = torch.cat([x.to(embedding.dtype), conditions.to(embedding.dtype)], 1)  # bfloat16 where autocast is on
        h = self.stem(self.fold(seen))
        skips = []
        for index, blocks in enumerate(self.encoder):
            if index:
                h = self.down[index - 1](h)
            h = _through(blocks, h, embedding)
            skips.append(h)
        h = self.attention(h)
        for index, blocks in enumerate(self.decoder):
            if index:
                h = self.up[index - 1](F.interpolate(h, scale_factor=2.0, mode="nearest")) + skips[-1 - index]
            h = _through(blocks, h, embedding)
        value, gain, share, *deviation = F.pixel_shuffle(self.head(F.silu(self.norm(h))), CELL).split(BAND_COUNT, 1)
        found = value + share * conditions[:, -BAND_COUNT:]
        if not deviation:
            return found + gain * x
        light = gain.mean(1, keepdim=True)
        return torch.cat([light.sigmoid() * found, *deviation, light], 1)


class MeanAndDetail(nn.Module):
    """Two networks in one: a regression, and another one for the noisy images of what it leaves."""

    def __init__(self, mean: nn.Module, detail: nn.Module):
        super().__init__()
        self.mean, self.detail = mean, detail

    def forward(self, x: Tensor | None, level: Tensor | None, conditions: Tensor) -> Tensor:
        return self.mean(x, level, conditions) if x is None else self.detail(x, level, conditions)


class DoubleConv(nn.Module):
    """The notebook's block: two convolutions, the noise level added between them."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(1, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(1, channels)
        self.time = nn.Sequential(nn.Linear(256, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.gelu(self.norm1(self.conv1(x))) + self.time(embedding)[:, :, None, None]
        return F.gelu(self.norm2(self.conv2(h)))


class NotebookUNet(nn.Module):
    """The network of the notebook of 2025, 3,452,868 parameters. It sees the cloudy image alone of the conditions."""

    stride = 4

    def __init__(self) -> None:
        super().__init__()
        self.inc = DoubleConv(2 * BAND_COUNT, 64)
        self.down1 = DoubleConv(64, 128)
        self.down2 = DoubleConv(128, 256)
        self.bottleneck = DoubleConv(256, 256)
        self.up1 = nn.ConvTranspose2d(256, 128, 2, stride=2)
        self.merge1 = DoubleConv(256, 128)
        self.up2 = nn.ConvTranspose2d(128, 64, 2, stride=2)
        self.merge2 = DoubleConv(128, 64)
        self.out = nn.Conv2d(64, BAND_COUNT, 1)

    def forward(self, x: Tensor, level: Tensor, conditions: Tensor) -> Tensor:
        check_size(x, self.stride)
        embedding = sinusoids(level, 256)
        fine = self.inc(torch.cat([x, conditions[:, :BAND_COUNT]], 1), embedding)
        middle = self.down1(F.max_pool2d(fine, 2), embedding)
        h = self.bottleneck(self.down2(F.max_pool2d(middle, 2), embedding), embedding)
        h = self.merge1(torch.cat([self.up1(h), middle], 1), embedding)
        return self.out(self.merge2(torch.cat([self.up2(h), fine], 1), embedding))
