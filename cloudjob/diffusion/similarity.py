"""First guess of the ground under clouds: what clear pixels nearby, and alike on other dates, tell of the hidden ones.

A Gaussian process over space and spectrum (Rasmussen & Williams 2006, eq. 2.25 and 2.26) of the cloudy date less the
mean of the other dates, where each counts twice as much as the next. In units of its noise its covariance is
4 exp(-d / 100 - s^2 / 2 h^2) + 50 x x' + 2.5: d is the distance in pixels, s that of all bands x of all R other dates
(reflectance), h = 0.06 sqrt(R). So it is also a linear regression on the other dates.

Each block of 64 x 64 pixels has a process of its own, which is told 320 of the clear pixels around it; what it does not
know of a pixel is judged by 96 of them, in units of the noise that the block shows. Which pixels these are depends on
their row and column in the scene and on what is hidden around them, so that neighbours share most, and a window gives
what the scene gives, but for what lies within `REACH` of its edges. Where none of them is near, it is told of the
nearest there are: what a window does not hold is given to it as `Far`. Blocks are blended over 8 pixels. Where some of
the dates have no data, a process is made of the others; without any, it varies over space alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cloudjob.diffusion import noise
from cloudjob.diffusion.device import answers, full_products, sent

REACH = 240  # pixels: nothing farther away has a say, but where there is no clear pixel so near

_BLOCK, _BLEND, _NEAR, _FAR = 64, 4, 32, 128  # pixels: of a block, and around it
_WINDOW = _BLOCK + 2 * _BLEND
_CELL = 8  # pixels: of each such cell one pixel is told where it is far from the block
_POINTS, _JUDGES = 320, 96  # clear pixels that a block is told; those of them that its error is judged by
_NEARER = 2.0  # times as much as the next date a date counts in the mean
_AFTER = 100.0  # more than ranks differ by
_SIMILAR, _DISTANCE = 0.06, 100.0  # reflectance, pixels
_LOCAL, _SLOPE, _LEVEL = 4.0, 50.0, 2.5  # of the covariance
_UNIT, _UNIT_WEIGHT = 0.02, 4.0  # reflectance: what the noise is before anything is known, and for how many pixels
# Rings around what is wanted: their width in pixels, and how much farther than the ring before the next one is.
_RINGS = ((1, 1.0), (1, 1.0), (2, 1.5), (4, 3.0), (8, 6.0), (16, 12.0), (0, 24.0))


@dataclass(frozen=True)
class Far:
    """Clear pixels all over a scene, for blocks that have none near: about one for every block."""

    place: Tensor  # (K, 2) int, row and column in the scene
    cloudy: Tensor  # (K, C) reflectance
    references: Tensor  # (K, R, C), NaN where a date has no data


@torch.compiler.disable  # how many blocks there are is a question of each batch
def similar(
    cloudy: Tensor,
    references: Tensor,
    known: Tensor,
    *,
    margin: int = 0,
    origin: tuple[int, int] = (0, 0),
    seed: int = 0,
    far: Far | None = None,
) -> tuple[Tensor, Tensor]:
    """(guess, deviation) of the ground, each as `cloudy` (N, C, H, W) but for the outermost `margin` pixels, which are
    only seen: a window with a margin of `REACH` gives what the scene gives.

    cloudy: floating-point reflectance, NaN without data. references: (N, R, C, H, W) other dates, normalised to the
    cloudy one; R may be 0, and any of them may lack data. known: (N, H, W) bool, where the cloudy date shows the
    ground: these pixels come back as they are, with a deviation of 0. origin: row and column in the scene of the first
    pixel. far: what blocks are told that have no clear pixel near; of the images alone where it is not given. The
    deviation is that of the ground from the guess. Where nothing is known, the guess is the mean of the
    references. NaN where no date has data.
    """
    # Products in bfloat16 are too coarse, and so are those in TF32.
    with torch.no_grad(), torch.autocast(cloudy.device.type, enabled=False), full_products():
        scene = _Scene.of(cloudy, references, known, margin=margin, origin=origin, seed=seed, far=far)
        for problems in scene.problems():
            _solve(scene, problems)
        return scene.result(cloudy, margin)


@dataclass(frozen=True)
class _Problems:
    """Blocks whose wanted pixels have data on the same dates. Pixels are numbered through."""

    corner: Tensor  # (G, 2) row and column of the first pixel
    dates: list[int]  # those of them
    points: Tensor  # (G, M) the pixels that are told, the soonest first
    told: Tensor  # (G, M) bool: there may be fewer
    wanted: Tensor  # (G, P) the pixels that are asked for
    asked: Tensor  # (G, P) bool: there may be fewer
    apart: list[slice]  # all of G, in parts whose blocks do not overlap


@dataclass(frozen=True)
class _Scene:
    """Images on a grid of whole blocks, with `_FAR` pixels of nothing around them."""

    cloudy: Tensor  # (N H W + K, C) of all pixels, then of those far off; 0 without data
    references: Tensor  # (N H W + K, R, C), 0 without data
    far: tuple[Tensor, Tensor] | None  # (K, 2) row and column in these images, and (K,) pattern, of the pixels far off
    pattern: Tensor  # (N, H, W) int, bit r: reference r has data
    known: Tensor  # (N, H, W) bool
    wanted: Tensor  # (N, H, W) bool: hidden, and asked for
    rank: Tensor  # (N, H, W) the lower, the sooner it is told
    total: Tensor  # (N, H, W, 2 C + 1) sums over blocks: weighted guess, weighted variance, weight
    within: tuple[slice, ...]  # rows and columns that are asked for

    @classmethod
    def of(
        cls,
        cloudy: Tensor,
        references: Tensor,
        known: Tensor,
        *,
        margin: int,
        origin: tuple[int, int],
        seed: int,
        far: Far | None,
    ) -> Self:
        bands, *size = cloudy.shape[1:]
        before = [first % _BLOCK + _FAR for first in origin]
        after = [-(first + length) % _BLOCK + _FAR for first, length in zip(origin, size, strict=True)]
        edge = (before[1], after[1], before[0], after[0])
        present, seen = references.isfinite().all(2), cloudy.isfinite().all(1)
        pattern = (present * _bits(references.shape[1], cloudy)[:, None, None]).sum(1)
        known, wanted = known & seen, ~(known & seen) & (seen | (pattern > 0))
        known, wanted, pattern = (F.pad(each, edge) for each in (known, wanted, pattern))
        others = F.pad(references.masked_fill(~present[:, :, None], 0), edge)
        starts = [first - more for first, more in zip(origin, before, strict=True)]
        rows, cols = (range(at, at + length) for at, length in zip(starts, known.shape[1:], strict=True))
        drawn = noise.uniform_field(seed, rows=rows, cols=cols, device=cloudy.device).to(cloudy.dtype)
        within = tuple(slice(more + margin, more + n - margin) for more, n in zip(before, size, strict=True))
        asked = torch.zeros_like(wanted)
        asked[:, *within] = wanted[:, *within]
        tables = [F.pad(cloudy.nan_to_num(0), edge).permute(0, 2, 3, 1), others.permute(0, 3, 4, 1, 2)]
        tables = [table.flatten(0, 2) for table in tables]
        beyond = None
        if far:
            there = far.references.isfinite().all(2)
            beyond = (far.place - far.place.new_tensor(starts), (there * _bits(there.shape[1], cloudy)).sum(1))
            more = far.cloudy, far.references.masked_fill(~there[:, :, None], 0)
            tables = [torch.cat(both) for both in zip(tables, more, strict=True)]
        return cls(
            cloudy=tables[0],
            references=tables[1],
            far=beyond,
            pattern=pattern,
            known=known,
            wanted=asked,
            rank=drawn.log() + 2 * (3 + _distance(wanted, cloudy)).log(),
            total=cloudy.new_zeros(*known.shape, 2 * bands + 1),
            within=within,
        )

    def problems(self) -> Iterator[_Problems]:
        """All that is wanted, one pattern after the other."""
        # Of a GPU nobody asks which patterns there are: that would be one wait more.
        dates = self.references.shape[1]
        some = self.pattern[self.wanted].unique().tolist() if answers(self.wanted) else range(2**dates)
        if not some:
            return
        wanted = [self.wanted & (self.pattern == pattern) for pattern in some]
        orders = [_ordered(share) for share in torch.stack([_shares(each, self.rank) for each in wanted]).cpu().numpy()]
        places = sent(torch.from_numpy(np.concatenate([place for place, *_ in orders])), self.rank.device)
        parts = places.split([len(place) for place, *_ in orders])
        for pattern, each, place, (_, colour, share) in zip(some, wanted, parts, orders, strict=True):
            if share:
                yield from self._problems(pattern, each, place, colour, share)

    def _problems(
        self, pattern: int, wanted: Tensor, place: Tensor, colour: list[int], share: list[float]
    ) -> Iterator[_Problems]:
        """The blocks (B, 3) that have wanted pixels of the pattern, in chunks of about as many pixels that fit the
        memory."""
        rank = self.rank.masked_fill(~self.known | (self.pattern & pattern != pattern), torch.inf)
        cells, everywhere = _sparse(rank, _CELL), self._everywhere(rank, pattern)
        dates = [number for number in range(self.references.shape[1]) if pattern >> number & 1]
        most = max(1, _budget(rank) // _POINTS**2)
        # A GPU computes many in the time in which it is told of one more chunk.
        parts = _chunks(colour, share, most) if answers(rank) else _cut(len(share), most)
        for part in parts:
            here = place[part]
            points, told = _told(here, rank, cells, everywhere)
            pixels = _windows(here, wanted.shape, _BLOCK, _BLEND).flatten(1)
            listed = _listed(pixels, wanted.flatten()[pixels], round(_WINDOW**2 * max(share[part])))
            yield _Problems(here[:, 1:] * _BLOCK, dates, points, told, *listed, _runs(colour[part]))

    def _everywhere(self, rank: Tensor, pattern: int) -> "_Everywhere":
        """What blocks are told that have nothing near: with data on the dates of the pattern."""
        if self.far is None:
            lowest, pixel = _sparse(rank, _BLOCK)
            row, col = (torch.arange(n, device=rank.device) for n in lowest.shape[1:])
            place = torch.cartesian_prod(row, col)
            return _Everywhere(lowest.flatten(1), place, pixel.flatten(1))
        place, dates = self.far
        lowest = rank.new_zeros(dates.shape).masked_fill(dates & pattern != pattern, torch.inf)
        pixel = rank.numel() + torch.arange(len(place), device=rank.device)
        samples = len(rank)
        return _Everywhere(lowest.expand(samples, -1), place / _BLOCK - 0.5, pixel.expand(samples, -1))

    def result(self, cloudy: Tensor, margin: int) -> tuple[Tensor, Tensor]:
        cloudy = cloudy[:, :, margin : cloudy.shape[2] - margin, margin : cloudy.shape[3] - margin]
        known, total = (each[:, *self.within] for each in (self.known[..., None], self.total))
        weight = total[..., -1:].masked_fill(known, 1)  # no data anywhere: 0 / 0 is NaN
        guess, variance = (total[..., :-1] / weight).permute(0, 3, 1, 2).chunk(2, 1)
        return torch.where(known[..., 0][:, None], cloudy, guess), variance.sqrt()


def _shares(wanted: Tensor, like: Tensor) -> Tensor:
    """(N, H / 64, W / 64): how much of the window of each block is wanted, 0 in the border of nothing."""
    around = _FAR // _BLOCK
    share = F.avg_pool2d(wanted[:, None].to(like.dtype), _WINDOW, _BLOCK, _BLEND)[:, 0]
    return F.pad(share[:, around:-around, around:-around], (around,) * 4)


def _ordered(share: NDArray) -> tuple[NDArray, list[int], list[float]]:
    """(place (B, 3), colour, share) of the blocks that are wanted at all, by colour, the most wanted first. Blocks of
    one colour do not overlap: so the sums of pixels have one order."""
    place = np.argwhere(share)
    wanted, colour = share[tuple(place.T)], place[:, 1] % 2 * 2 + place[:, 2] % 2
    order = np.argsort(2 * colour.astype(share.dtype) - wanted, kind="stable")
    return place[order], colour[order].tolist(), wanted[order].tolist()


def _bits(count: int, like: Tensor) -> Tensor:
    return 2 ** torch.arange(count, device=like.device)


def _budget(like: Tensor) -> int:
    """How many numbers a matrix may have: of a CPU, what its cache holds."""
    return 2**27 if like.is_cuda else 2**19


def _distance(wanted: Tensor, like: Tensor) -> Tensor:
    """(N, H, W) about how far the nearest wanted pixel is, the longer way of rows and columns; at most 48.5 pixels."""
    distance = torch.zeros(wanted.shape, dtype=like.dtype, device=like.device)
    for width, farther in _RINGS:
        distance += torch.where(wanted, 0, farther)
        for along in (1, 2):
            wanted = _spread(wanted, along, width)
    return distance


def _spread(chosen: Tensor, along: int, width: int) -> Tensor:
    """The pixels, and those that are so far from one of them along a dimension."""
    spread = chosen.clone()
    length = chosen.shape[along] - width
    for start, other in ((0, width), (width, 0)):
        spread.narrow(along, start, length).logical_or_(chosen.narrow(along, other, length))
    return spread


def _sparse(rank: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(N, H / size, W / size): in each cell the lowest rank, and the pixel that has it."""
    samples, height, width = rank.shape
    cells = rank.view(samples, height // size, size, width // size, size).transpose(2, 3).flatten(3)
    lowest, at = cells.min(-1)
    number = torch.arange(rank.numel(), device=rank.device).view(rank.shape)
    first = number[:, ::size, ::size]
    return lowest, first + at // size * width + at % size


def _windows(place: Tensor, shape: torch.Size, size: int, margin: int) -> Tensor:
    """(G, size + 2 margin, the same) the pixels of blocks of that size and of a margin around them. place: (G, 3)."""
    side = torch.arange(-margin, size + margin, device=place.device)
    sample, row, col = place[:, :, None].unbind(1)
    rows, cols = row * size + side, col * size + side
    return ((sample * shape[1] + rows)[:, :, None] * shape[2]) + cols[:, None]


def _listed(pixels: Tensor, chosen: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(G, P) those of the pixels (G, n) that are chosen, of which no row has more than `most` (P), and whether there
    is one; 0 where there is none."""
    count = chosen.cumsum(1)
    number = torch.arange(1, most + 1, device=pixels.device).expand(len(pixels), -1)
    there = number <= count[:, -1:]
    at = torch.searchsorted(count, number.contiguous()).clamp(max=pixels.shape[1] - 1)
    return pixels.gather(1, at) * there, there


def _chunks(colour: list[int], share: list[float], most: int) -> Iterator[slice]:
    """Runs of at most so many blocks of one colour, none of which is asked for much less than the first."""
    start = 0
    while start < len(colour):
        stop = start + 1
        alike = (colour[start], 0.75 * share[start])
        while stop < min(len(colour), start + most) and colour[stop] == alike[0] and share[stop] >= alike[1]:
            stop += 1
        yield slice(start, stop)
        start = stop


def _cut(count: int, most: int) -> list[slice]:
    return [slice(start, start + most) for start in range(0, count, most)]


def _runs(colour: list[int]) -> list[slice]:
    """Where one colour follows on another."""
    ends = [*(place for place in range(1, len(colour)) if colour[place] != colour[place - 1]), len(colour)]
    return [slice(start, end) for start, end in pairwise([0, *ends])]


@dataclass(frozen=True)
class _Everywhere:
    """About one pixel for each block of all there are."""

    rank: Tensor  # (N, K)
    place: Tensor  # (K, 2) row and column, in blocks
    pixel: Tensor  # (N, K) their numbers

    def nearest(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """(G, M) those to be told to blocks (G, 3), the pixels and whether there is one."""
        apart = (self.place - place[:, None, 1:]).to(self.rank.dtype).square().sum(-1).sqrt()
        ranks = self.rank[place[:, 0]] + 2 * (1 + apart).log()
        found, chosen = ranks.topk(min(_POINTS, ranks.shape[1]), largest=False)
        return self.pixel[place[:, 0]].gather(1, chosen), found.isfinite()


def _told(place: Tensor, rank: Tensor, cells: tuple[Tensor, Tensor], everywhere: _Everywhere) -> tuple[Tensor, Tensor]:
    """(G, M) the pixels that blocks are told, and whether there is one: of those nearby the ones of the lowest rank; if
    they are too few, of cells farther off, the nearer ones the likelier; if there is none, of all the image."""
    near = _windows(place, rank.shape, _BLOCK, _NEAR).flatten(1)
    share = _BLOCK // _CELL
    far = _windows(place, cells[0].shape, share, _FAR // _CELL)
    side = torch.arange(far.shape[1], device=rank.device) - _FAR // _CELL
    apart = _CELL * torch.maximum(-side, side - share + 1).clamp(min=0).to(rank.dtype)
    apart = torch.hypot(apart[:, None], apart)
    far_rank = cells[0].flatten()[far] + 2 * (3 + apart).log() + _AFTER
    inner = slice((_FAR - _NEAR) // _CELL, -(_FAR - _NEAR) // _CELL)
    far_rank[:, inner, inner].fill_(torch.inf)
    ranks = torch.cat([rank.flatten()[near], far_rank.flatten(1)], 1)
    pixels = torch.cat([near, cells[1].flatten()[far.flatten(1)]], 1)
    found, chosen = ranks.topk(_POINTS, largest=False)
    points, told = pixels.gather(1, chosen), found.isfinite()
    lost = ~told.any(1, keepdim=True)
    # Where there are few to choose from, that costs less than to wait for the answer of a GPU.
    if (answers(lost) or everywhere.rank.shape[1] > _POINTS) and not lost.any():
        return points, told
    pixels, there = everywhere.nearest(place)
    first = slice(pixels.shape[1])
    points[:, first], told[:, first] = torch.where(lost, pixels, points[:, first]), told[:, first] | (lost & there)
    return points, told


@dataclass(frozen=True)
class _Seen:
    """What the processes know about n pixels."""

    place: Tensor  # (G, n, 2) row and column from the block's first pixel on
    spectrum: Tensor  # (G, n, F) all bands of all dates
    mean: Tensor  # (G, n, C) of the dates, where the nearer ones count more

    @classmethod
    def of(cls, scene: _Scene, problems: _Problems, pixels: Tensor) -> Self:
        height, width = scene.known.shape[1:]
        place = torch.stack([pixels // width % height, pixels % width], -1)
        if scene.far and len(scene.far[0]):
            beyond = pixels - scene.known.numel()
            place = torch.where((beyond < 0)[..., None], place, scene.far[0][beyond.clamp(min=0)])
        place = place - problems.corner[:, None]
        dates = scene.references[pixels]
        if len(problems.dates) < dates.shape[2]:
            chosen = [dates[:, :, number : number + 1] for number in problems.dates]
            dates = torch.cat([dates[:, :, :0], *chosen], 2)
        shares = _NEARER ** -torch.arange(dates.shape[2], dtype=dates.dtype, device=dates.device)
        return cls(place.to(dates.dtype), dates.flatten(2), (dates * (shares / shares.sum())[:, None]).sum(2))

    def less(self, centre: Tensor) -> Self:
        return replace(self, spectrum=self.spectrum - centre)

    def alike(self, *, told: bool) -> tuple[Tensor, Tensor]:
        """What `_local` compares: (G, n, F + 2), products of which with those of the told are -s^2 / 2 h^2; places."""
        dates = max(1, self.spectrum.shape[2] // self.mean.shape[2])
        scaled = self.spectrum / (_SIMILAR * dates**0.5)
        half = scaled.square().sum(-1, keepdim=True) / -2
        ones = torch.ones_like(half)
        return torch.cat([scaled, *((ones, half) if told else (half, ones))], -1), self.place / _DISTANCE


def _solve(scene: _Scene, problems: _Problems) -> None:
    """Adds what the processes say of the pixels that are asked for."""
    told = problems.told[:, :, None].to(scene.rank.dtype)
    count = told.sum(1, keepdim=True)
    points = _Seen.of(scene, problems, problems.points)
    left = scene.cloudy[problems.points] - points.mean
    centre, level = ((each * told).sum(1, keepdim=True) / count.clamp(min=1) for each in (points.spectrum, left))
    points, left = points.less(centre), (left - level) * told
    key, slopes = points.alike(told=True), _SLOPE * points.spectrum
    covariance = _LOCAL * _local(points.alike(told=False), key) + slopes @ points.spectrum.mT + _LEVEL
    covariance *= told * told.mT
    covariance.diagonal(dim1=1, dim2=2).add_(1)  # the noise; pixels that are not told are this alone
    # With the noise it is positive definite; a GPU is not asked whether it was.
    factor = torch.linalg.cholesky_ex(covariance, check_errors=answers(covariance)).L
    weights = torch.cholesky_solve(left, factor)
    unit = ((left * weights).sum(1, keepdim=True) + _UNIT_WEIGHT * _UNIT**2) / (count + _UNIT_WEIGHT)
    identity = torch.eye(_JUDGES, dtype=told.dtype, device=told.device).expand(len(told), -1, -1)
    whiten = torch.linalg.solve_triangular(factor[:, :_JUDGES, :_JUDGES], identity, upper=False).mT
    whiten = whiten * told[:, :_JUDGES]

    seen = _Seen.of(scene, problems, problems.wanted).less(centre)
    guess = seen.mean + level + _LEVEL * weights.sum(1, keepdim=True) + seen.spectrum @ (slopes.mT @ weights)
    explained = seen.spectrum @ (slopes[:, :_JUDGES].mT @ whiten) + _LEVEL * whiten.sum(1, keepdim=True)
    variance = 1 + _LOCAL + _LEVEL + _SLOPE * seen.spectrum.square().sum(-1, keepdim=True)
    weights, whiten = _LOCAL * weights.mT.contiguous(), _LOCAL * whiten
    alike = seen.alike(told=False)
    step = max(64, _budget(told) // told.numel())
    for start in range(0, problems.wanted.shape[1], step):
        part = slice(start, start + step)
        local = _local(tuple(each[:, part] for each in alike), key)
        guess[:, part] += local @ weights.mT
        whitened = torch.baddbmm(explained[:, part], local[:, :, :_JUDGES], whiten)
        variance[:, part] -= whitened.square_().sum(-1, keepdim=True)
    answered = problems.asked & (problems.told.any(1, keepdim=True) | bool(problems.dates))
    share = _share(seen.place) * answered[..., None]  # nothing is added to a pixel of no date, nor to one of the border
    values = torch.cat([guess * share, variance.clamp(min=1) * unit * share, share], -1)
    for part in problems.apart:
        scene.total.flatten(0, 2)[problems.wanted[part]] += values[part]


def _local(alike: tuple[Tensor, ...], told: tuple[Tensor, Tensor]) -> Tensor:
    """(G, n, M) the part of the covariance that falls off with distance."""
    return (alike[0] @ told[0].mT).sub_(torch.cdist(alike[1], told[1])).exp_()


def _share(place: Tensor) -> Tensor:
    """(G, n, 1) of a block in the blend: 1 in its inside, falling linearly where it overlaps with its neighbours."""
    inside = torch.minimum(place, _BLOCK - 1 - place) + _BLEND + 0.5
    return (inside / (2 * _BLEND)).clamp(max=1).prod(-1, keepdim=True)
