"""Dates of one place side by side: their masks, whole scenes, reduced scenes, and the normalisation and shift between
them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from cloudjob.pixels import BANDS, CLEAR, EMPTY_DN, NO_DATA
from cloudjob.sentinel2 import masks, radiometry
from cloudjob.sentinel2.product import Product, read_bands, read_reduced
from cloudjob.sentinel2.scene_masks import Preview, SceneMasks, revised_masks, still, without_dark
from cloudjob.sentinel2.sums import window_sums

_TILE = 1024  # rows and columns of a JPEG 2000 tile, which is decoded whole: a chip lies within one
_CHIPS = 3  # chips along a side of the scene: 3 x 3 of them settle two numbers
_CLEAR_SHARE = 0.95  # of the pixels of a chip


def masks_of_pair(previews: dict[str, Preview], settings: masks.Settings) -> dict[str, SceneMasks]:
    """Masks of the dates of a pair by role (cloudy, clear and any references), each held against the clear date, and
    that against the cloudy one. On what is dark the others vote; the cloudy date, which may be hazy, not alone. What is
    dark on a date does not tell that another is too bright there. A date without the other stands alone."""
    voters = {role: [name for name in previews if name != role] for role in previews}
    voting = {role: [previews[name] for name in names] for role, names in voters.items() if names != ["cloudy"]}
    lit = {role: without_dark(date, voting.get(role, []), settings) for role, date in previews.items()}
    return {
        role: revised_masks(date, lit.get("cloudy" if role == "clear" else "clear"), settings, voting.get(role, []))
        for role, date in previews.items()
    }


@dataclass(frozen=True)
class Scene:
    """A whole acquisition at 10 m. `mask` is grown, and NO_DATA where a band has none; `core` is as its sources say."""

    product: Product
    masks: SceneMasks
    bands: np.ndarray  # (4, H, W) uint16 DN
    mask: np.ndarray  # (H, W) uint8 mask classes
    core: np.ndarray  # (H, W) uint8 mask classes

    @classmethod
    def open(cls, product: Product, masks: SceneMasks, *, processes: int = 1) -> Self:
        """Decodes the four bands, each once."""
        bands = read_bands(product, processes=processes)
        mask, core = masks.at_10m("mask", product.shape), masks.at_10m("core", product.shape)
        mask[(bands == EMPTY_DN).any(0)] = NO_DATA
        return cls(product, masks, bands, mask, core)

    def matched(self, other: "Scene") -> np.ndarray:
        """The bands of `other`, radiometrically normalised to this scene."""
        step = reduction(self.product.shape)
        source, target = (ReducedScene.open(scene.product, scene.masks, step) for scene in (other, self))
        return fit(source, target).apply(other.bands, height=self.product.shape[0])

    def clear_only(self, bands: np.ndarray) -> np.ndarray:
        """A copy of `bands` (4, H, W) with EMPTY_DN wherever this scene is not clear."""
        return np.where(self.mask == CLEAR, bands, EMPTY_DN)


def open_pair(
    folders: dict[str, Path],
    settings: masks.Settings,
    *,
    labels: Path | None = None,
    drifting: Path | None = None,
    processes: int = 1,
) -> Callable[[str], Scene]:
    """A function that opens the scene of a role, of a pair whose products lie in these folders by role (see
    `open_masks`)."""
    products = {role: Product.open(folder) for role, folder in folders.items()}
    found = open_masks(products, settings, labels=labels, drifting=drifting)
    return lambda role: Scene.open(products[role], found[role], processes=processes)


def open_masks(
    products: dict[str, Product],
    settings: masks.Settings,
    *,
    labels: Path | None = None,
    drifting: Path | None = None,
    look: Callable[[], object] = lambda: None,
) -> dict[str, SceneMasks]:
    """The masks of a pair's products by role (see `masks_of_pair`), from their small files, or as a person corrected
    them in the folder `labels`; those of the clear dates leave out what drifts, by the rasters of the folder `drifting`
    (see `still`). `look` is called after each date that was read: it may end this by an error."""
    previews = {}
    for role, product in products.items():
        previews[role] = Preview.open(product, settings, labels=labels)
        look()
    found = masks_of_pair(previews, settings)
    return {role: each if role == "cloudy" else still(each, products[role], drifting) for role, each in found.items()}


def reduction(shape: tuple[int, int], *, window: int = 256) -> int:
    """By how much a scene is reduced to be measured: a whole one 16 times, which costs a hundredth of decoding it.
    Small scenes and small windows are reduced less, so that enough pixels are left to measure."""
    return next(step for step in (16, 8, 4, 2, 1) if step == 1 or (max(shape) >= 512 * step and window >= 16 * step))


@dataclass(frozen=True)
class ReducedScene:
    """A date reduced by `step`, to measure it at little cost: bands (4, h, w) uint16 DN, and (h, w) bool where all
    pixels are clear, away from clouds."""

    product: Product
    bands: np.ndarray
    clear: np.ndarray
    step: int

    @classmethod
    def open(cls, product: Product, masks: SceneMasks, step: int) -> Self:
        """Reads the bands at 1/step of their resolution."""
        bands = read_reduced(product, step)
        clear = _all_within(masks.mask == CLEAR, masks.factor, step, bands.shape[1:])
        return cls(product, bands, clear & (bands != EMPTY_DN).all(0), step)


def fit(source: ReducedScene, target: ReducedScene, *, grid: bool = False) -> radiometry.Match:
    """The radiometric normalisation of `source` to `target`."""
    return radiometry.fit(source.bands, target.bands, source.clear & target.clear, grid=grid)


class ShiftEstimator:
    """Measures how far the grounds of two dates are shifted, on chips: small squares of B04 at full resolution in the
    clearest places. The chips are cut from stripes that are decoded anyway, so the shift costs no decoding."""

    def __init__(self, first: ReducedScene, second: ReducedScene):
        clear, step = first.clear & second.clear, first.step
        self.side = next(side for side in (256, 128, 64) if side == 64 or min(first.product.shape) >= 4 * side)
        self.places = _clearest(clear, self.side // step, step=step)
        self.clear, self._step = clear, step
        self._chips: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, top: int, first: np.ndarray, second: np.ndarray) -> None:
        """Cuts the chips that lie in this stripe: bands (4, r, W) of both dates, from row `top` of the scene on."""
        side, step = self.side, self._step
        for row, col in self.places:
            if top <= row and row + side <= top + first.shape[1]:
                here = np.s_[BANDS.index("B04"), row - top : row - top + side, col : col + side]
                small = np.s_[row // step : (row + side) // step, col // step : (col + side) // step]
                usable = self.clear[small].repeat(step, 0).repeat(step, 1)
                self._chips.append((first[here].copy(), second[here].copy(), usable))

    def shift(self) -> dict:
        """How far the ground of the second date lies off that of the first (see radiometry.shift)."""
        return radiometry.shift(self._chips)


def _clearest(clear: np.ndarray, side: int, *, step: int) -> list[tuple[int, int]]:
    """(row, column) in pixels of 10 m of the clearest square in each of 3 x 3 parts of the scene, if clear enough.
    Each square lies within one JPEG 2000 tile, and so within one stripe. `clear` and `side` are reduced by `step`."""
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
                if block[i, j] >= _CLEAR_SHARE * side**2:
                    places.append((int(rows[i]) * stride * step, int(cols[j]) * stride * step))
    return places


def _all_within(flags: np.ndarray, factor: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """(h, w) bool: pixels of a grid reduced by `step` within which all flags of a grid reduced by `factor` are True."""
    if step <= factor:
        return flags.repeat(factor // step, 0).repeat(factor // step, 1)[: shape[0], : shape[1]]
    cell = step // factor
    padded = np.pad(flags, [(0, n * cell - have) for n, have in zip(shape, flags.shape, strict=True)], mode="edge")
    return np.logical_and.reduce(padded.reshape(shape[0], cell, shape[1], cell), axis=(1, 3))
