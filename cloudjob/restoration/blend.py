"""Overlapping restored tiles back to one scene, and into the cloudy image: clear pixels stay bit for bit.

All of it by stripes, full rows of the scene: none needs its neighbours, and any of them comes out as of the whole.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudjob.pixels import BANDS, EMPTY_DN, HIDDEN, NO_DATA
from cloudjob.restoration.placed import load
from cloudjob.restoration.tiles import Tile, taper
from cloudjob.sentinel2.masks import any_of

OBSERVED, RECONSTRUCTED, BLENDED_EDGE = 0, 1, 2  # flags of a restored scene, beside NO_DATA; see `Feather`
ROWS = 128  # of a stripe, at most 255: distances to its edges are counted in bytes
_COLUMNS = 512  # that distances are looked for in at once: they stay in the processor's cache
_LOOKS = 8  # steps of a search between two looks whether it may end


def mosaic(
    parts: list[tuple[Tile, Path]],
    *,
    shape: tuple[int, int],
    overlap: int,
    spread: bool = False,
    rows: slice = slice(None),
) -> tuple[NDArray, NDArray | None]:
    """Mean and, if `spread`, standard deviation over members (4, r, W) float32 DN of these rows; 0 where no tile lies.

    `parts` are tiles with their .npy file (members, 4, size, size) uint16 DN. They are added in the order given, so
    the sum does not depend on who restored them. Weighted by a raised cosine over the overlap.
    """
    top, bottom, _ = rows.indices(shape[0])
    sums = np.zeros((1 + spread, len(BANDS), bottom - top, shape[1]), np.float32)
    weights = np.zeros(sums.shape[2:], np.float32)
    for tile, path in parts:
        first, last = max(tile.row, top), min(tile.row + tile.height, bottom)
        if first >= last:
            continue
        width = min(tile.col + tile.width, shape[1]) - tile.col
        own = np.s_[first - tile.row : last - tile.row, :width]
        members = load(path)[..., *own].astype(np.float32)
        weight = taper(tile.height, overlap)[own]
        inside = np.s_[first - top : last - top, tile.col : tile.col + width]
        weights[inside] += weight
        for total, value in zip(sums, _moments(members, spread), strict=True):
            total[:, *inside] += weight * value
    np.divide(sums, weights, out=sums, where=weights > 0)
    return sums[0], sums[1] if spread else None


def _moments(members: NDArray, spread: bool) -> list[NDArray]:
    mean = members[0] if len(members) == 1 else members.mean(0)
    return [mean, members.std(0)] if spread else [mean]


class Feather:
    """How the restored ground is put into the cloudy image: within the dilated mask alone.

    `mask` (H, W) is dilated, `core` is not; both may be mapped from files. From the rim of the dilation to the core the
    restored image is faded in (flag 2), by the distances to the two: exact ones, but only where they are needed. In the
    core it stands alone (1). Outside the dilated mask every pixel is the observed one (0), or no data (255).
    """

    def __init__(self, mask: NDArray, core: NDArray):
        self.mask, self.core = mask, core
        self._far = sum(mask.shape) + 1  # further than any pixel
        self._edges: dict[str, tuple[NDArray, NDArray]] = {}

    @property
    def tops(self) -> range:
        """The first rows of the stripes."""
        return range(0, self.mask.shape[0], ROWS)

    def look(self) -> None:
        """Reads the masks once, for how far it is from each stripe to what lies beyond it."""
        if self._edges:
            return
        found: dict[str, list[NDArray]] = {"open": [], "solid": []}
        for top in self.tops:
            inside, solid = self._flags(top)
            found["open"].append(_ends(~inside))
            found["solid"].append(_ends(solid))
        heights = [min(ROWS, self.mask.shape[0] - top) for top in self.tops]
        self._edges = {name: _beyond(ends, heights, self._far) for name, ends in found.items()}

    def compose(self, top: int, cloudy: NDArray, restored: NDArray) -> tuple[NDArray, NDArray]:
        """The stripe that begins at row `top`, from its cloudy image (4, r, W) uint16 and restored ground (4, r, W)
        float32 DN: the image (4, r, W) uint16, and the flags `reconstructed` (r, W) uint8."""
        self.look()
        inside, solid = self._flags(top)
        alpha = self._alpha(top, inside, solid)[inside]
        out = np.array(cloudy)
        for band, ground in zip(out, restored, strict=True):
            seen = band[inside]
            blended = seen + alpha * (ground[inside].clip(EMPTY_DN + 1, 65535) - seen)
            band[inside] = np.maximum(np.rint(blended), EMPTY_DN + 1)
        flags = np.full(inside.shape, OBSERVED, np.uint8)
        flags[inside] = np.where(alpha >= 1, RECONSTRUCTED, BLENDED_EDGE)
        flags[self.mask[top : top + ROWS] == NO_DATA] = NO_DATA
        return out, flags

    def _flags(self, top: int) -> tuple[NDArray, NDArray]:
        inside, solid = (any_of(part[top : top + ROWS], *HIDDEN) for part in (self.mask, self.core))
        return inside, solid & inside

    def _alpha(self, top: int, inside: NDArray, solid: NDArray) -> NDArray:
        """(r, W) float32 shares of the restored ground, right where `inside`."""
        alpha = np.ones(inside.shape, np.float32)
        rim = inside & ~solid
        if not rim.any():
            return alpha
        number = top // ROWS
        depth, outward = (
            _distances(flags, above[number], below[number], rim, self._far)
            for flags, (above, below) in ((~inside, self._edges["open"]), (solid, self._edges["solid"]))
        )
        with np.errstate(invalid="ignore"):  # endless depth, next to the core: the ground alone
            share = np.where(np.isinf(depth), 1.0, depth / (depth + outward))
        alpha[rim] = np.where(np.isinf(outward), 0.0, share)
        return alpha


def _ends(flags: NDArray) -> NDArray:
    """(2, W) uint8: how many of the first rows, and of the last ones, have no flag in a column; all of them at most."""
    height = len(flags)
    down = np.arange(1, height + 1, dtype=np.uint8)[:, None]
    return np.stack([height - (flags * down[::-1]).max(0), height - (flags * down).max(0)])


def _beyond(ends: list[NDArray], heights: list[int], far: int) -> tuple[NDArray, NDArray]:
    """Two (stripes, W) int32: rows from the first row of each stripe to the nearest flag above it, and from its last
    row to the nearest below; `far` where there is none."""
    above = np.full((len(ends), ends[0].shape[1]), far, np.int32)
    below = above.copy()
    for number in range(1, len(ends)):
        free, height = ends[number - 1][1].astype(np.int32), heights[number - 1]
        above[number] = np.where(free < height, free + 1, np.minimum(above[number - 1] + height, far))
    for number in reversed(range(len(ends) - 1)):
        free, height = ends[number + 1][0].astype(np.int32), heights[number + 1]
        below[number] = np.where(free < height, free + 1, np.minimum(below[number + 1] + height, far))
    return above, below


def _distances(flags: NDArray, above: NDArray, below: NDArray, wanted: NDArray, far: int) -> NDArray:
    """Distance in pixels from each `wanted` pixel of a stripe to the nearest flag of the scene, in the order of
    `flags[wanted]`; infinite where there is none. Meijster's two passes (Mathematical Morphology, 2000), the second one
    only where pixels are wanted, and only so far as one of them may still come nearer."""
    kind = np.int32 if 2 * far**2 < 2**31 else np.int64
    rows = np.empty(flags.shape, kind)
    nearest = above.astype(kind) - 1
    for row, flagged in zip(rows, flags, strict=True):
        nearest = np.minimum(np.where(flagged, 0, nearest + 1), far)
        row[:] = nearest
    nearest = below.astype(kind) - 1
    for row in rows[::-1]:
        nearest = np.minimum(nearest + 1, row)
        row[:] = nearest
    squares, width = rows * rows, flags.shape[1]
    out = np.empty(flags.shape)
    for left in range(0, width, _COLUMNS):
        here = np.s_[:, left : left + _COLUMNS]
        if (ask := wanted[here]).any():
            found = _across(squares, left, ask)
            out[here] = np.where(found < far**2, np.sqrt(found), np.inf)
    return out[wanted]


def _across(squares: NDArray, left: int, wanted: NDArray) -> NDArray:
    """Squared distances of a block of columns from `left` on, right where wanted, from those within each column."""
    width, right = squares.shape[1], left + wanted.shape[1]
    found = squares[:, left:right].copy()
    most = found[wanted].max()
    for shift in range(1, width):
        if shift**2 >= most:
            break
        for first, last in ((left - shift, right - shift), (left + shift, right + shift)):
            begin, end = max(first, 0), min(last, width)
            if begin < end:
                part = found[:, begin - first : end - first]
                np.minimum(part, squares[:, begin:end] + shift**2, out=part)
        if shift % _LOOKS == 0:
            most = found[wanted].max()
    return found
