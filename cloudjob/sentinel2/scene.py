"""Acquisitions side by side as the later stages need them: whole scenes, quick looks, and the match between dates."""

from cloudjob.pixels import CLEAR, EMPTY_DN, NO_DATA
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloudjob.sentinel2 import masks, radiometry
from cloudjob.sentinel2.scene_masks import Cover, View, cover
from cloudjob.sentinel2.sums import window_sums
from cloudjob.sentinel2.product import Product, read_bands, read_reduced
from cloudjob.pixels import BANDS

_TILE = 1024  # of JPEG 2000: a chip lies in one, which is decoded whole
_CHIPS = 3  # a grid of 3 x 3 chips over the scene settles two numbers


def covers(views: dict[str, View], settings: masks.Settings) -> dict[str, Cover]:
    """Masks of the dates of a pair (roles cloudy, clear and, where there is one, reference), each with the second
    opinion of another date: the clear one's, and for that the cloudy one's."""
    others = {"cloudy": "clear", "clear": "cloudy", "reference": "clear"}
    return {role: cover(view, views[others[role]], settings) for role, view in views.items()}


@dataclass(frozen=True)
class Scene:
    """A whole acquisition at 10 m. `mask` is grown, and 255 wherever a band has no data; `core` is neither."""

    product: Product
    cover: Cover
    bands: np.ndarray  # (4, H, W) uint16 DN
    mask: np.ndarray  # (H, W) uint8 mask classes
    core: np.ndarray  # (H, W) uint8 mask classes

    @classmethod
    def open(cls, product: Product, cover: Cover, *, processes: int = 1) -> "Scene":
        """Decodes the four bands, each once."""
        bands = read_bands(product, processes=processes)
        mask, core = (cover.at_10m(name, product.shape) for name in ("mask", "core"))
        mask[(bands == EMPTY_DN).any(0)] = NO_DATA
        return cls(product, cover, bands, mask, core)

    def matched(self, other: "Scene") -> np.ndarray:
        """The bands of `other` in the light of this scene."""
        step = reduction(self.product.shape)
        looks = [Look.open(scene.product, scene.cover, step) for scene in (other, self)]
        return fit(*looks).apply(other.bands, height=self.product.shape[0])

    def clear_only(self, bands: np.ndarray) -> np.ndarray:
        """A copy of `bands` (4, H, W) with no data (0) wherever this scene is not clear."""
        return np.where(self.mask == CLEAR, bands, EMPTY_DN)


def open_pair(folders: dict[str, Path], settings: masks.Settings, *, processes: int = 1) -> Callable[[str], Scene]:
    """A function that opens the scene of a role, of a pair whose products lie in these folders (see `covers`)."""
    products = {role: Product.open(folder) for role, folder in folders.items()}
    found = covers({role: View.open(product, settings) for role, product in products.items()}, settings)
    return lambda role: Scene.open(products[role], found[role], processes=processes)


def reduction(shape: tuple[int, int], *, window: int = 256) -> int:
    """By how much a quick look may be reduced: a whole scene 16 times, which costs a hundredth of decoding it. Small
    scenes and small windows less, so that there is something left to measure."""
    return next(step for step in (16, 8, 4, 2, 1) if step == 1 or (max(shape) >= 512 * step and window >= 16 * step))


@dataclass(frozen=True)
class Look:
    """A date reduced by `step`: bands (4, h, w) uint16 DN, and where it is clear, away from clouds, (h, w) bool."""

    product: Product
    bands: np.ndarray
    clear: np.ndarray
    step: int

    @classmethod
    def open(cls, product: Product, cover: Cover, step: int) -> "Look":
        bands = read_reduced(product, step)
        clear = _reduced(cover.mask == CLEAR, cover.factor, step, bands.shape[1:])
        return cls(product, bands, clear & (bands > 0).all(0), step)


def fit(source: Look, target: Look, *, grid: bool = False) -> radiometry.Match:
    """What takes the light of `source` to that of `target`."""
    return radiometry.fit(source.bands, target.bands, source.clear & target.clear, grid=grid)


class Chips:
    """Chips of B04 at full resolution, in the clearest places of two dates, taken from the stripes as they go by: so
    the shift between the dates costs no decoding of its own."""

    def __init__(self, a: Look, b: Look):
        clear = a.clear & b.clear
        self.side = next(side for side in (256, 128, 64) if side == 64 or min(a.product.shape) >= 4 * side)
        self.places = _clearest(clear, self.side // a.step, step=a.step)
        self._clear, self._step, self._pairs = clear, a.step, []

    def take(self, top: int, first: np.ndarray, second: np.ndarray) -> None:
        """The chips that lie in this stripe: bands (4, r, W) of both dates, from row `top` of the scene on."""
        side, step = self.side, self._step
        for row, col in self.places:
            if top <= row and row + side <= top + first.shape[1]:
                here = np.s_[BANDS.index("B04"), row - top : row - top + side, col : col + side]
                small = np.s_[row // step : (row + side) // step, col // step : (col + side) // step]
                usable = self._clear[small].repeat(step, 0).repeat(step, 1)
                self._pairs.append((first[here].copy(), second[here].copy(), usable))

    def shift(self) -> dict:
        """How far the ground of the second date lies off that of the first (see radiometry.shift)."""
        return radiometry.shift(self._pairs)


def _clearest(clear: np.ndarray, side: int, *, step: int) -> list[tuple[int, int]]:
    """(row, column) in pixels of 10 m of the clearest square in each of 3 x 3 parts of the scene, if it is 95 % clear;
    each within one tile of JPEG 2000, and so within one stripe. `clear` and `side` are reduced by `step`."""
    stride = max(side // 4, 1)
    sums = window_sums(clear, size=side, stride=stride)
    rows_of, cols_of = (
        [
            part[part * stride * step % _TILE + side * step <= _TILE]
            for part in np.array_split(np.arange(length), _CHIPS)
        ]
        for length in sums.shape
    )
    places = []
    for rows in rows_of:
        for cols in cols_of:
            if rows.size and cols.size:
                block = sums[np.ix_(rows, cols)]
                i, j = np.unravel_index(block.argmax(), block.shape)
                if block[i, j] >= 0.95 * side**2:
                    places.append((int(rows[i]) * stride * step, int(cols[j]) * stride * step))
    return places


def _reduced(flags: np.ndarray, factor: int, step: int, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: all of the flags that a pixel of the reduced grid covers; `factor` and `step` in pixels of 10 m."""
    if step <= factor:
        return flags.repeat(factor // step, 0).repeat(factor // step, 1)[: shape[0], : shape[1]]
    cell = step // factor
    padded = np.pad(flags, [(0, n * cell - have) for n, have in zip(shape, flags.shape, strict=True)], mode="edge")
    return padded.reshape(shape[0], cell, shape[1], cell).all((1, 3))
