"""What hides the ground on a date: its own masks, and the second opinion of another date of the same ground."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from cloudjob.errors import OwnFileError
from cloudjob.files import reading
from cloudjob.pixels import CLEAR, CLOUD, HIDDEN, NO_DATA, UNKNOWN
from cloudjob.sentinel2 import decode, foreign_masks, masks
from cloudjob.sentinel2.foreign_masks import Grid
from cloudjob.sentinel2.geometry import sun_position
from cloudjob.sentinel2.labels import Label
from cloudjob.sentinel2.masks import Settings
from cloudjob.sentinel2.product import (
    Product,
    read_b11,
    read_b11_20m,
    read_cloud_probability,
    read_overview,
    read_scl,
    read_snow_probability,
)
from cloudjob.sentinel2.radiometry import reflectance

_RED, _GREEN, _BLUE = range(3)  # in `rgb`
_ILLUMINATION = 1.1  # ratio by which the same ground may brighten between dates, as the light changes
_SAME = 0.01  # reflectance; a smaller difference is none
_DARKER, _FLOOR = 0.0035, 0.005  # reflectance: of noise in the visible, and the least that a ratio is taken of
_GREENER = 1.25  # ratio of green to red that does not rise by more in a shadow
_ENOUGH = 16  # cells of 60 m for a median
_HALF_CELL = 30  # metres by which a shadow may end beside its cells


@dataclass(frozen=True)
class Preview:
    """What the small files of a product tell: those that are fetched first, of every product. The arrays but `rgb` lie
    on one grid, whose pixels are `factor` x 10 m wide."""

    product: Product
    core: np.ndarray  # (h, w) uint8 mask classes from this date alone, not grown
    factor: int  # 2; 1 where a raster at 10 m replaces the classification
    snow: np.ndarray  # (h, w) bool
    rgb: np.ndarray  # (3, ceil(H/6), ceil(W/6)) uint16 DN of B04, B03, B02 at 60 m
    scl: np.ndarray | None = None  # (h, w) uint8 scene classification, None where a raster replaces it
    b11: np.ndarray | None = None  # (ceil(H/6), ceil(W/6)) uint16 DN of B11 at 60 m, None where it was not fetched
    note: str = ""  # what a person should know of that raster
    by_hand: np.ndarray | None = None  # (h, w) bool: what a person says of these pixels is final; None: of none

    @property
    def nbytes(self) -> int:
        """The memory that its arrays take, with the cells that have been asked for."""
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))

    # What each comparison with another date asks anew.
    @cached_property
    def visible(self) -> np.ndarray:
        """(h60, w60) float32 mean reflectance of red, green and blue."""
        return reflectance(self.rgb).mean(0)

    @cached_property
    def clear_cells(self) -> np.ndarray:
        """(h60, w60) bool: cells of 60 m that are clear."""
        return _whole_cells(self, self.core == CLEAR)

    @cached_property
    def open_cells(self) -> np.ndarray:
        """(h60, w60) bool: cells of 60 m with nothing hidden."""
        return _whole_cells(self, masks.any_of(self.core, CLEAR, UNKNOWN))

    @cached_property
    def snowy_cells(self) -> np.ndarray:
        """(h60, w60) bool: cells of 60 m with any snow."""
        return masks.pool(self.snow, 6 // self.factor, np.logical_or)

    @classmethod
    def open(cls, product: Product, settings: Settings, *, labels: Path | None = None) -> Self:
        """Reads the files below the product's folder; with source "raster" also `<folder>/<product>.tif` (see
        `foreign_masks.read`). A mask in the folder `labels` that a person has corrected (see `Label`) replaces both."""
        scl, rgb = read_scl(product), read_overview(product)
        fine = read_b11_20m(product) if settings.b11 == 20 else None
        b11 = read_b11(product) if fine is None else decode.means(fine, 3)
        snow = scl == masks.SCL_SNOW
        if labels and (label := Label.read(product, labels)):
            core, times = label.core, 2 // label.factor
            core[masks.upsampled(scl == masks.SCL_NO_DATA, times, core.shape)] = NO_DATA
            snow = masks.upsampled(snow, times, core.shape)
            return cls(product, core, label.factor, snow, rgb, b11=b11, note=label.note, by_hand=label.by_hand)
        if settings.source == "raster":
            assert settings.folder is not None  # as the configuration demands of source "raster"
            path = settings.folder / f"{product.name.name}.tif"
            grids = {factor: Grid.of(product, factor) for factor in (1, 2)}
            core, factor, note = foreign_masks.read(path, grids, settings.values)
            times = 2 // factor
            core[masks.upsampled(scl == masks.SCL_NO_DATA, times, core.shape)] = NO_DATA
            return cls(product, core, factor, masks.upsampled(snow, times, core.shape), rgb, b11=b11, note=note)
        core = masks.combine(
            scl,
            settings,
            cloud_probability=read_cloud_probability(product),
            snow_probability=read_snow_probability(product) if b11 is None else None,  # B11 says it better
            green=None if b11 is None else reflectance(rgb[_GREEN]),
            b11=None if b11 is None else reflectance(b11 if fine is None else fine),
        )
        core[masks.sunny(core, *_sun(product), pixel_m=20)] = UNKNOWN
        return cls(product, core, 2, snow, rgb, scl, b11)

    def doubted(self, flags: np.ndarray) -> np.ndarray:
        """(h, w) bool: these pixels without those of which a person has said what they are."""
        return flags if self.by_hand is None else flags & ~self.by_hand


@dataclass(frozen=True)
class SceneMasks:
    """Mask classes of a date, (h, w) uint8 on a grid whose pixels are `factor` x 10 m wide: `core` as its sources say,
    `mask` with cloud, shadow and cirrus grown."""

    core: np.ndarray
    mask: np.ndarray
    factor: int

    def at_10m(self, array: Literal["core", "mask"], shape: tuple[int, int], rows: slice = slice(None)) -> np.ndarray:
        """(rows, W) uint8: these rows of "core" or "mask" on the 10 m grid of `shape`, a copy."""
        top, bottom, _ = rows.indices(shape[0])
        first = top // self.factor
        part = getattr(self, array)[first : -(-bottom // self.factor)]
        end = (bottom - first * self.factor, shape[1])
        return masks.upsampled(part, self.factor, end)[top - first * self.factor :]


def suspect(preview: Preview, other: Preview, settings: Settings) -> np.ndarray:
    """(h, w) bool on the grid of `preview`: pixels that are clear on both dates, yet brighter on this one. They are
    cloud or haze that the classification missed, or new snow. Ask both ways to find which of two dates it is on."""
    return _brighter(preview, other, settings) & (preview.core == CLEAR)


def dark(preview: Preview, others: Sequence[Preview], settings: Settings) -> np.ndarray:
    """(h, w) bool on the grid of `preview`: pixels that nothing hides by this date's own masks, and that are darker
    than on most of the other dates that are clear there, and than on some of both the earlier and the later ones. They
    lie in a shadow that the classification missed, or the ground is another for a day: nobody can tell."""
    asked = others if _compared(settings) else ()
    darker, _ = _agreed(preview, asked, lambda other: _darker(preview, other, settings))
    return preview.doubted(_on_grid(darker & preview.open_cells, preview))


def without_dark(preview: Preview, others: Sequence[Preview], settings: Settings) -> Preview:
    """The date, unknown where it is `dark`."""
    return replace(preview, core=np.where(dark(preview, others, settings), np.uint8(UNKNOWN), preview.core))


def light(preview: Preview, others: Sequence[Preview]) -> float | None:
    """How bright a date is against others: the median, over the dates, of the median ratio in the visible, where both
    are clear and have snow, or both have none. None where no date has 16 such cells of 60 m."""
    found = []
    for other in others:
        cells = _alike(preview, other) & preview.clear_cells
        here, there = (date.visible[cells] for date in (preview, other))
        known = (there > _SAME) & np.isfinite(here)
        if np.count_nonzero(known) >= _ENOUGH:
            found.append(np.median(np.maximum(here, 0)[known] / there[known]))
    return round(float(np.median(found)), 3) if found else None


def revised_masks(
    preview: Preview, other: Preview | None, settings: Settings, voters: Sequence[Preview] = ()
) -> SceneMasks:
    """The masks of a date, revised by another date of the same pixel grid where that one is clear.

    Pixels brighter than on the other date become cloud where the classification had said so (and B11 or the snow
    probability had doubted it), unknown elsewhere. Medium cloud and thin cirrus that, in the same light, differ from
    the other date in no visible band become unknown: no cloud, or none that matters. Pixels that are `dark` against the
    `voters`, and those around them as around a shadow, become unknown, never shadow: crops and wet soil darken too.
    `brighter` 1 switches all of it off. What a person has said of a pixel stays as it is, in the grown mask too.
    """
    core, darker = preview.core.copy(), dark(preview, voters, settings)
    core[darker] = UNKNOWN
    if other is not None and settings.brighter < 1:
        brighter = _brighter(preview, other, settings)
        core[brighter] = UNKNOWN
        if preview.scl is not None:
            medium_or_thin = masks.any_of(preview.scl, masks.SCL_MEDIUM, masks.SCL_CIRRUS)
            core[brighter & (medium_or_thin | (preview.scl == masks.SCL_HIGH))] = CLOUD
            same = _same(preview, other, medium_or_thin)
            core[medium_or_thin & masks.any_of(core, *HIDDEN) & same] = UNKNOWN
    pixel_m = 10 * preview.factor
    mask = masks.grow(core, settings, pixel_m=pixel_m)
    if darker.any():
        near, rim = (masks.dilate(darker, m / pixel_m) for m in (min(_HALF_CELL, settings.shadow_m), settings.shadow_m))
        mask[(mask == CLEAR) & (near | (rim & ~_as_bright(preview, voters)))] = UNKNOWN
    if preview.by_hand is not None:
        mask[preview.by_hand] = core[preview.by_hand]
    return SceneMasks(core, mask, preview.factor)


def still(found: SceneMasks, product: Product, folder: Path | None) -> SceneMasks:
    """The masks of a clear date, where clear pixels become unknown if the ground drifts there, as sea ice does: they
    show no ground of another day. `core` stays.

    `<folder>/<tile>.tif` is not 0 there, on the product's grid of 10 m. Without a file nothing drifts.
    """
    path = folder and folder / f"{product.name.tile}.tif"
    if path is None or not path.exists():
        return found
    with reading(path, RasterioError, reason="not readable as a raster"), rasterio.open(path) as image:
        here, grid = Grid(image.crs, image.transform, image.shape), Grid.of(product, 1)
        if not here.equals(grid):
            raise OwnFileError(f"{path}: {here}; expected for {product.name.name}: {grid}")
        drifts = masks.pool(image.read(1) != 0, found.factor, np.logical_or)
    return replace(found, mask=np.where(drifts & (found.mask == CLEAR), np.uint8(UNKNOWN), found.mask))


def _brighter(preview: Preview, other: Preview, settings: Settings) -> np.ndarray:
    """(h, w) bool: cells of 60 m with nothing hidden on this date, clear on the other, and brighter in B02 on this one.

    B02 tells haze from ground best: haze scatters blue, while drying and harvested ground brightens in red. On bright
    ground, which clouds hardly brighten, a change of illumination must not count.
    """
    if settings.brighter >= 1:
        return np.zeros(preview.core.shape, bool)
    cells = _bluer(preview, other, settings) & preview.open_cells & other.clear_cells
    return preview.doubted(_on_grid(cells, preview))


def _bluer(preview: Preview, other: Preview, settings: Settings) -> np.ndarray:
    """(h60, w60) bool: cells that are brighter in B02 on this date, whatever hides them."""
    blue, other_blue = (reflectance(date.rgb[_BLUE]) for date in (preview, other))
    return blue - _ILLUMINATION * other_blue > settings.brighter


def _compared(settings: Settings) -> bool:
    return settings.brighter < 1 and settings.darker > 0


def _agreed(
    preview: Preview, others: Sequence[Preview], found: Callable[[Preview], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Two (h60, w60) bool: cells `found` against most of the other dates that are clear there, and against some of both
    the earlier and the later ones; and all cells that are clear on one of them."""
    votes, voters = np.zeros((2, 2, *preview.rgb.shape[1:]), np.uint8)  # of the earlier and of the later dates
    for other in others:
        later, clear = int(other.product.sensing_time > preview.product.sensing_time), _alike(preview, other)
        votes[later] += clear & found(other)
        voters[later] += clear
    most = 2 * votes.sum(0) > voters.sum(0)
    return most & ((votes > 0) | (voters == 0)).all(0), voters.any(0)


def _darker(preview: Preview, other: Preview, settings: Settings) -> np.ndarray:
    """(h60, w60) bool: cells that are darker than on the other date.

    A shadow takes about as much from each band, and from B11, which haze does not light up. Without B11, what is
    suspiciously brighter on the other date may be haze there, and no shadow here. Ground that turns green loses red
    before green, and counts as another ground; so does ground whose snow has gone.
    """
    cells = preview.visible < settings.darker * other.visible - _DARKER
    if preview.b11 is not None and other.b11 is not None:
        cells &= reflectance(preview.b11) < settings.darker * reflectance(other.b11)
    else:
        cells &= ~_bluer(other, preview, settings)
    here, there = (np.maximum(reflectance(date.rgb), _FLOOR) for date in (preview, other))
    return cells & (here[_GREEN] * there[_RED] < _GREENER * there[_GREEN] * here[_RED])


def _as_bright(preview: Preview, others: Sequence[Preview]) -> np.ndarray:
    """(h, w) bool: cells with nothing hidden that the other dates show no brighter, but for a change of light."""
    least = _ILLUMINATION * preview.visible
    dimmer, asked = _agreed(preview, others, lambda other: least < other.visible)
    return _on_grid(asked & ~dimmer & preview.open_cells, preview)


def _alike(preview: Preview, other: Preview) -> np.ndarray:
    """(h60, w60) bool: cells that are clear on the other date, and have snow on both dates or on none."""
    return other.clear_cells & (preview.snowy_cells == other.snowy_cells)


def _same(preview: Preview, other: Preview, doubtful: np.ndarray) -> np.ndarray:
    """(h, w) bool: cells of 60 m that are clear on the other date and differ from it in no visible band, in the same
    light: the median ratio where this date is clear or `doubtful`, up to the tenth by which light may change. More
    would be the cloud."""
    cells = other.clear_cells
    here, there = reflectance(preview.rgb), reflectance(other.rgb)
    alike = cells & _whole_cells(preview, doubtful | (preview.core == CLEAR))
    alike &= ((there > _FLOOR) & np.isfinite(here)).all(0)
    if np.count_nonzero(alike) >= _ENOUGH:
        ratio = np.median(here[:, alike] / there[:, alike])
        there *= np.clip(ratio, 1 / _ILLUMINATION, _ILLUMINATION)
    return _on_grid(cells & (np.abs(here - there) <= _SAME).all(0), preview)


def _sun(product: Product) -> tuple[float | None, float | None]:
    """Elevation and azimuth in degrees; None where they are not known."""
    place = product.middle
    return product.sun_elevation, place and sun_position(product.sensing_time, *place)[1]


def _whole_cells(preview: Preview, flags: np.ndarray) -> np.ndarray:
    """(h60, w60) bool: cells of 60 m with all their pixels flagged."""
    return masks.pool(flags, 6 // preview.factor, np.logical_and)


def _on_grid(cells: np.ndarray, preview: Preview) -> np.ndarray:
    """Cells of 60 m as pixels of the preview's own grid."""
    return masks.upsampled(cells, 6 // preview.factor, preview.core.shape)
