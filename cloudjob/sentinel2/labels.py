"""Hand labels: masks written for a person to correct in an editor of rasters, and what the person made of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import rasterio

from cloudjob.files import write_bytes
from cloudjob.pixels import CLASSES, CLEAR, NO_DATA
from cloudjob.sentinel2 import foreign_masks, masks
from cloudjob.sentinel2.corrected import corrected, exported
from cloudjob.sentinel2.foreign_masks import Grid
from cloudjob.sentinel2.product import Product
from cloudjob.sentinel2.render import OUTLINES

_WHITE = (255, 255, 255)
_MEANING = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in CLASSES.items())


@dataclass(frozen=True)
class Label:
    """A mask that a person has corrected; arrays (h, w) on the product's grid of `factor` x 10 m."""

    core: np.ndarray  # uint8 mask classes
    by_hand: np.ndarray  # bool: pixels that are not as they were exported; all, of a mask from elsewhere
    before: np.ndarray | None  # uint8 mask classes as they were exported
    factor: int
    note: str  # what a person should know of the file

    @classmethod
    def read(cls, product: Product, folder: Path) -> Self | None:
        """`<folder>/<product>.tif`, on the product's pixels of 10 or 20 m or on others of the same ground (see
        `foreign_masks.read`); None unless a person has changed pixels of it. OwnFileError where it does not fit."""
        if (found := corrected(folder, product.name.name)) is None:
            return None
        core, factor, note = _read(found[0], product)
        if not (copy := exported(folder, product.name.name)).is_file():
            return cls(core, np.ones(core.shape, bool), None, factor, note)
        before, step, _ = _read(copy, product)
        before = masks.upsampled(before, step, product.shape)[::factor, ::factor]
        return cls(core, core != before, before, factor, note) if (core != before).any() else None

    def changes(self) -> dict[str, int]:
        """How many pixels of which class became which, "cloud to clear", the most first."""
        names = {value: name.replace("_", " ") for name, value in CLASSES.items()}
        before = np.zeros_like(self.core) if self.before is None else self.before
        counts = np.bincount(before[self.by_hand].astype(np.uint16) * 256 + self.core[self.by_hand])
        found = {}
        for code in sorted(np.flatnonzero(counts).tolist(), key=lambda code: -counts[code]):
            old = "elsewhere" if self.before is None else names[code // 256]
            found[f"{old} to {names[code % 256]}"] = int(counts[code])
        return found


def export(product: Product, core: np.ndarray, factor: int, folder: Path) -> bool:
    """Writes mask classes (h, w) of `factor` x 10 m as `<folder>/<product>.tif`, in the colours of the review page,
    and a copy. False, and nothing is written, where a person has changed the one that is there."""
    name = product.name.name
    path, copy = folder / f"{name}.tif", exported(folder, name)
    if corrected(folder, name):
        return False
    path.unlink(missing_ok=True)  # a kill before the end must leave none that differs from its copy
    form = {"driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": NO_DATA, "compress": "deflate"}
    grid = Grid.of(product, factor)
    form |= {"crs": grid.crs, "transform": grid.transform, "height": grid.shape[0], "width": grid.shape[1]}
    with rasterio.MemoryFile() as memory:  # on a full disk GDAL leaves out what comes last, and says nothing
        with memory.open(**form) as image:
            image.write(core, 1)
            image.write_colormap(1, {CLEAR: _WHITE} | {value: colour for value, (_, colour) in OUTLINES.items()})
            image.update_tags(TIFFTAG_IMAGEDESCRIPTION=_MEANING)
        for place in (copy, path):
            write_bytes(place, memory.getbuffer())
    return True


def _read(path: Path, product: Product) -> tuple[np.ndarray, int, str]:
    grids = {factor: Grid.of(product, factor) for factor in (1, 2)}
    return foreign_masks.read(path, grids, foreign_masks.HOUSE, cure=f"write {_MEANING}")
