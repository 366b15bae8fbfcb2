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
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cloudjob.diffusion import neighbours, noise
from cloudjob.diffusion.device import answers, full_products, sent
from cloudjob.diffusion.neighbours import BLEND, BLOCK, CELL, FAR, POINTS, WINDOW, Everywhere

REACH = 240  # pixels: nothing farther away has a say, but where there is no clear pixel so near

_JUDGES = 96  # of the pixels that a block is told: those that its error is judged by
_NEARER = 2.0  # times as much as the next date a date counts in the mean
_SIMILAR, _DISTANCE = 0.06, 100.0  # reflectance, pixels
_LOCAL, _SLOPE, _LEVEL = 4.0, 50.0, 2.5  # of the covariance
_UNIT, _UNIT_WEIGHT = 0.02, 4.0  # reflectance: what the noise is before anything is known, and for how many pixels


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
    """Images on a grid of whole blocks, with `FAR` pixels of nothing around them."""

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
        before = [first % BLOCK + FAR for first in origin]
        after = [-(first + length) % BLOCK + FAR for first, length in zip(origin, size, strict=True)]
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
            rank=drawn.log() + 2 * (3 + neighbours.distances(wanted, cloudy)).log(),
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
        shares = torch.stack([neighbours.shares(each, self.rank) for each in wanted]).cpu().numpy()
        orders = [neighbours.ordered(share) for share in shares]
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
        cells, everywhere = neighbours.sparse(rank, CELL), self._everywhere(rank, pattern)
        dates = [number for number in range(self.references.shape[1]) if pattern >> number & 1]
        most = max(1, _budget(rank) // POINTS**2)
        # A GPU computes many in the time in which it is told of one more chunk.
        parts = neighbours.chunks(colour, share, most) if answers(rank) else neighbours.cut(len(share), most)
        for part in parts:
            here = place[part]
            points, told = neighbours.select(here, rank, cells, everywhere)
            pixels = neighbours.windows(here, wanted.shape, BLOCK, BLEND).flatten(1)
            listed = neighbours.chosen_of(pixels, wanted.flatten()[pixels], round(WINDOW**2 * max(share[part])))
            yield _Problems(here[:, 1:] * BLOCK, dates, points, told, *listed, neighbours.runs(colour[part]))

    def _everywhere(self, rank: Tensor, pattern: int) -> "Everywhere":
        """What blocks are told that have nothing near: with data on the dates of the pattern."""
        if self.far is None:
            lowest, pixel = neighbours.sparse(rank, BLOCK)
            row, col = (torch.arange(n, device=rank.device) for n in lowest.shape[1:])
            place = torch.cartesian_prod(row, col)
            return Everywhere(lowest.flatten(1), place, pixel.flatten(1))
        place, dates = self.far
        lowest = rank.new_zeros(dates.shape).masked_fill(dates & pattern != pattern, torch.inf)
        pixel = rank.numel() + torch.arange(len(place), device=rank.device)
        samples = len(rank)
        return Everywhere(lowest.expand(samples, -1), place / BLOCK - 0.5, pixel.expand(samples, -1))

    def result(self, cloudy: Tensor, margin: int) -> tuple[Tensor, Tensor]:
        cloudy = cloudy[:, :, margin : cloudy.shape[2] - margin, margin : cloudy.shape[3] - margin]
        known, total = (each[:, *self.within] for each in (self.known[..., None], self.total))
        weight = total[..., -1:].masked_fill(known, 1)  # no data anywhere: 0 / 0 is NaN
        guess, variance = (total[..., :-1] / weight).permute(0, 3, 1, 2).chunk(2, 1)
        return torch.where(known[..., 0][:, None], cloudy, guess), variance.sqrt()


def _bits(count: int, like: Tensor) -> Tensor:
    return 2 ** torch.arange(count, device=like.device)


def _budget(like: Tensor) -> int:
    """How many numbers a matrix may have: of a CPU, what its cache holds."""
    return 2**27 if like.is_cuda else 2**19


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
    inside = torch.minimum(place, BLOCK - 1 - place) + BLEND + 0.5
    return (inside / (2 * BLEND)).clamp(max=1).prod(-1, keepdim=True)
