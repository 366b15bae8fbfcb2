"""The conditions of a scene: all that its restoration is given, as arrays of the whole scene, and cut to tiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cloudjob.diffusion.batch import pinned
from cloudjob.files import atomic, read_json, write_json
from cloudjob.pixels import EMPTY_DN, HIDDEN, NO_DATA
from cloudjob.restoration.placed import load, release
from cloudjob.restoration.tiles import Tile, own_parts
from cloudjob.sentinel2.masks import any_of

NUMBERS = "numbers.json"
_ARRAYS = ("cloudy", "core", "reference", "mask")  # in the order they are saved: the mask says that all are there


@dataclass(frozen=True)
class SceneConditions:
    """What is known of a scene of H x W pixels; arrays may be mapped from files."""

    cloudy: NDArray  # (4, H, W) uint16 DN
    mask: NDArray  # (H, W) uint8 mask classes, grown
    core: NDArray  # (H, W) uint8 mask classes, not grown
    reference: NDArray | None  # (4, H, W) uint16 DN of clear dates normalised to the cloudy one; None without any
    sun_elevation: float | None  # degrees, on the cloudy date; None where it is not known
    reference_days: float | None  # signed days from the cloudy date to the first reference's; None without any

    def save(self, folder: Path) -> None:
        """As .npy files that all ranks map; `load` finds them once all are there."""
        numbers = {"sun_elevation": self.sun_elevation, "reference_days": self.reference_days}
        write_json(folder / NUMBERS, numbers)
        for name in _ARRAYS:
            if (array := getattr(self, name)) is not None:
                with atomic(folder / f"{name}.npy") as temporary:
                    np.save(temporary, array)

    @staticmethod
    def saved(folder: Path) -> bool:
        """Whether a whole save lies in the folder."""
        return all((folder / name).exists() for name in (NUMBERS, f"{_ARRAYS[-1]}.npy"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote, mapped."""
        paths = {name: folder / f"{name}.npy" for name in _ARRAYS}
        arrays: dict[str, Any] = {name: load(path) if path.exists() else None for name, path in paths.items()}
        return cls(**arrays, **read_json(folder / NUMBERS))

    def cloudy_tiles(self, *, size: int, overlap: int) -> list[Tile]:
        """The tiles of the scene that have anything hidden in their own part: what another has at its edge alone is
        better seen by its neighbour."""
        every = own_parts(self.mask.shape, size=size, overlap=overlap)
        return [tile for tile, own in every if any_of(self.mask[own], *HIDDEN).any()]

    def arrays(self, places: Sequence[Tile], *, pin: bool = False) -> dict[str, NDArray]:
        """What `Batch.of` takes, a sample a tile; beyond the scene there are no data. `pin` puts images into memory
        that a GPU reads by itself: keep them until it is done."""
        sun, days = (np.nan if each is None else each for each in (self.sun_elevation, self.reference_days))
        found: dict[str, NDArray] = {
            "sun_elevation": np.full(len(places), sun, np.float32),
            "reference_days": np.full(len(places), days, np.float32),
        }
        for name, fill in (("cloudy", EMPTY_DN), ("mask", NO_DATA), ("reference", EMPTY_DN)):
            if (array := getattr(self, name)) is None:
                continue
            shape = (len(places), *array.shape[:-2], places[0].height, places[0].width)
            images = pinned(shape, array.dtype) if pin else np.empty(shape, array.dtype)
            for image, tile in zip(images, places, strict=True):
                _cut(array, tile, fill, out=image)
            found[name] = images
        return found

    def release(self) -> None:
        """Gives back the memory that mapped pages take, until they are read again."""
        release(self.cloudy, self.mask, self.core, self.reference)


def first_known(dates: Sequence[NDArray]) -> NDArray:
    """Of the same pixels on several dates, those of the first; where it has no data, of the next one that has."""
    out = dates[0].copy()
    for other in dates[1:]:
        fill_gaps(out, other)
    return out


def fill_gaps(image: NDArray, other: NDArray) -> None:
    """Puts the pixels of another date where an image has no data."""
    np.copyto(image, other, where=image == EMPTY_DN)


def _cut(array: NDArray, tile: Tile, fill: int, *, out: NDArray) -> None:
    part = array[..., *tile.slices]
    height, width = part.shape[-2:]
    out[..., height:, :] = fill
    out[..., :height, width:] = fill
    out[..., :height, :width] = part
