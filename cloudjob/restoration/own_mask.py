"""The mask of one's own image, by whatever tool: what its values mean, and how it comes onto the image."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp

from cloudjob.errors import ConfigError, OwnFileError
from cloudjob.pixels import NO_DATA, UNKNOWN
from cloudjob.restoration import placing
from cloudjob.sentinel2 import foreign_masks
from cloudjob.sentinel2.foreign_masks import Grid, Table

_COVERED = 0.99  # share of the image's pixels with data that a mask on other pixels must have
_BEYOND = 254  # no class: pixels that the mask does not reach
_CURE = f"list it in --mask-values, under clear too, or choose one of {', '.join(foreign_masks.NAMES)}"


def check(path: Path, target: Grid, meaning: Table | str | None) -> None:
    """ConfigError where nobody says what the values of a mask mean, or it lies elsewhere than the image."""
    _, grid = _classes(path, meaning)
    placing.part(grid, target, name=path)


def read(path: Path, target: Grid, meaning: Table | str | None, data: np.ndarray) -> tuple[np.ndarray, str]:
    """(H, W) uint8 mask classes, not grown, on the pixels of an image, and a note where the nearest were taken.

    `meaning` as in `foreign_masks`; without one, a mask with one value beside 0 (1, 100, 255) is binary. `data` (H, W)
    bool is where the image has data: OwnFileError where the mask leaves more than a hundredth of that out, and what it
    leaves out is unknown.
    """
    core, grid = _classes(path, meaning)
    if placing.part(grid, target, name=path) is None:
        return core, ""
    core = placing.classes_onto(core, grid, target, beyond=_BEYOND)
    missing = np.mean((core == _BEYOND)[data]) if data.any() else 0.0
    if missing > 1 - _COVERED:
        raise OwnFileError(f"{path}: leaves {missing:.0%} of the image out: make it of all of the image")
    core[core == _BEYOND] = np.where(data, np.uint8(UNKNOWN), np.uint8(NO_DATA))[core == _BEYOND]
    return core, f"{path.name}: lies on other pixels than the image; of each the nearest is taken"


def _classes(path: Path, meaning: Table | str | None) -> tuple[np.ndarray, Grid]:
    """The mask classes as the file has them, and where they lie."""
    if not path.exists():
        raise ConfigError(f"{path}: no such mask")
    with placing.opening(path, "not readable as a mask"), rasterio.open(path) as image:
        bands = image.count - image.colorinterp.count(ColorInterp.alpha)
        if bands != 1:
            raise ConfigError(f"{path}: has {bands} bands, and a mask has one: gdal_translate -b 1 takes the first out")
        values, no_data, grid = image.read(1), image.nodata, placing.grid_of(image)
    if meaning is None:
        meaning = foreign_masks.BINARY
        if values.any() and foreign_masks.by_sight(values) != meaning:
            found = ", ".join(f"{value:g}" for value in np.unique(values)[:20])
            raise ConfigError(
                f"{path}: nobody says what its values {found} mean. Say who made it, --mask-values "
                f"{'|'.join(foreign_masks.NAMES)}, or which is what: --mask-values '{{cloud: [1], shadow: [2]}}'"
            )
    return foreign_masks.classes(values, meaning, source=path, no_data=no_data, cure=_CURE), grid
