"""DiffCR's network, a rival: Zou et al. 2024, IEEE TGRS, doi:10.1109/TGRS.2024.3365806, arXiv 2308.04417.

Two encoders of NAF blocks (Chen et al. 2022, arXiv 2204.04676), one of the noisy image and one of the dates, whose
features are added at each resolution. The authors' program differs in two points: it tells the level by sinusoids of a
number in 0..1, which hardly vary, and its last convolution of the dates' features leads nowhere.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cloudjob.diffusion.conditions import BAND_COUNT, CHANNELS
from cloudjob.diffusion.layers import check_size, noisy_or_empty, sinusoids

WIDTHS = {"diffcr": 64, "diffcr-32": 32}  # as published, and with the multiply-accumulates of `small`
DATES = ("cloudy", "reference")  # the channels that are the image of a date
EMBEDDING = 256
_LEVELS = 4  # times that the image is halved, each doubling the channels


def build(preset: str, *, condition_channels: int, deviation: bool = False) -> "DiffCR":
    """The network of one of WIDTHS. The dates come before what tells one table of CHANNELS from another."""
    table = CHANNELS["similar"]
    widths = [width for width, _ in table.values()]
    first = {name: sum(widths[:number]) for number, name in enumerate(table)}
    dates = tuple(first[name] for name in DATES)
    return DiffCR(WIDTHS[preset], condition_channels=condition_channels, dates=dates, more=(BAND_COUNT + 1) * deviation)


class LayerNorm(nn.LayerNorm):
    """Over the channels of each pixel of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _gate(x: Tensor) -> Tensor:
    """One half of the channels times the other, in place of an activation."""
    first, second = x.chunk(2, 1)
    return first * second


class Block(nn.Module):
    """A NAF block whose channel attention looks at means in one half of its channels and at maxima in the other; begins
    as the identity. With `timed`, a block of the denoiser: between its two halves the noise level is added."""

    def __init__(self, channels: int, *, timed: bool):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(channels, eps=1e-6), LayerNorm(channels, eps=1e-6)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.spatial = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.by_mean, self.by_maximum = (nn.Conv2d(channels // 2, channels // 2, 1) for _ in range(2))
        self.mix = nn.Conv2d(channels, channels, 1)
        self.ahead = nn.Conv2d(channels, 2 * channels, 1)
        self.back = nn.Conv2d(channels, channels, 1)
        self.beta, self.gamma = (nn.Parameter(torch.zeros(channels, 1, 1)) for _ in range(2))
        if timed:
            self.time = nn.Sequential(nn.SiLU(), nn.Linear(EMBEDDING, channels))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        half, other = _gate(self.spatial(self.widen(self.norm1(x)))).chunk(2, 1)
        half = half * self.by_mean(half.mean((2, 3), keepdim=True))
        other = other * self.by_maximum(other.amax((2, 3), keepdim=True))
        y = x + self.beta * self.mix(torch.cat([half, other], 1))
        if embedding is not None:
            y = y + self.time(embedding)[:, :, None, None]
        return y + self.gamma * self.back(_gate(self.ahead(self.norm2(y))))


class DiffCR(nn.Module):
    """As all networks (see `networks`). In the conditions the image of a date begins at each of the channels `dates`.

    All dates go through one encoder, each with the channels that are no image of a date beside it; their features are
    summed. So the order of the dates means nothing, as in the paper.
    """

    stride = 2**_LEVELS

    def __init__(
        self,
        width: int,
        *,
        condition_channels: int,
        dates: tuple[int, ...],
        bands: int = BAND_COUNT,
        more: int = 0,  # channels that it puts out beside the image
    ):
        super().__init__()
        self.images = [list(range(first, first + bands)) for first in dates]
        self.shared = sorted(set(range(condition_channels)).difference(*self.images))
        widths = [width * 2**level for level in range(_LEVELS + 1)]
        *fine, coarsest = widths
        self.embed = nn.Sequential(nn.Linear(64, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING))
        self.stem = nn.Conv2d(bands, width, 3, padding=1)
        self.date_stem = nn.Conv2d(bands + len(self.shared), width, 3, padding=1)
        self.encoder = nn.ModuleList(Block(channels, timed=True) for channels in fine)
        self.date_encoder = nn.ModuleList(Block(channels, timed=False) for channels in fine)
        self.down = nn.ModuleList(nn.Conv2d(channels, 2 * channels, 2, stride=2) for channels in fine)
        self.date_down = nn.ModuleList(nn.Conv2d(channels, 2 * channels, 2, stride=2) for channels in fine[:-1])
        self.middle = Block(coarsest, timed=True)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, 2 * channels, 1, bias=False), nn.PixelShuffle(2))
            for channels in reversed(widths[1:])
        )
        self.decoder = nn.ModuleList(Block(channels, timed=True) for channels in reversed(fine))
        self.head = nn.Conv2d(width, bands + more, 3, padding=1)

    def forward(self, x: Tensor | None, level: Tensor | None, conditions: Tensor) -> Tensor:
        x, level = noisy_or_empty(x, level, conditions)
        check_size(x, self.stride)
        embedding = self.embed(sinusoids(level, 64))
        h, skips = self.stem(x), []
        for number, seen in enumerate(self._dates(conditions)):
            h = self.encoder[number](h, embedding) + seen
            skips.append(h)
            h = self.down[number](h)
        h = self.middle(h, embedding)
        for up, block, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            h = block(up(h) + skip, embedding)
        return self.head(h)

    def _dates(self, conditions: Tensor) -> Iterator[Tensor]:
        """What the dates show at each resolution, from the finest on: the sum of their features."""
        count = len(self.images)
        told = torch.cat([conditions[:, image + self.shared] for image in self.images])
        h = self.date_stem(told)
        for number, block in enumerate(self.date_encoder):
            h = block(self.date_down[number - 1](h) if number else h)
            yield h.unflatten(0, (count, -1)).sum(0)
