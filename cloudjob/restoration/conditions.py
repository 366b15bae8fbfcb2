"""The conditions of a scene: all that its restoration is given, as arrays of the whole scene, and cut to tiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cloudjob.diffusion.batch import pinned
from cloudjob.files import atomic, read_json, write_json
from cloudjob.pixels import EMPTY_DN, HIDDEN, NO_DATA, REFERENCES
from cloudjob.restoration.placed import load, release
from cloudjob.restoration.tiles import Tile, own_parts
from cloudjob.sentinel2.masks import any_of

NUMBERS = "numbers.json"


@dataclass(frozen=True)
class SceneConditions:
    """What is known of a scene of H x W pixels; arrays may be mapped from files."""

    cloudy: NDArray  # (4, H, W) uint16 DN
    mask: NDArray  # (H, W) uint8 mask classes, grown
    core: NDArray  # (H, W) uint8 mask classes, not grown
    # Each (4, H, W) uint16 DN of a clear date normalised to the cloudy one, the most wanted first: at most as many as
    # REFERENCES. EMPTY_DN where it is not clear.
    references: tuple[NDArray, ...]
    sun_elevation: float | None  # degrees, on the cloudy date; None where it is not known
    reference_days: tuple[float | None, ...]  # signed days from the cloudy date to each of them; None if not known

    def save(self, folder: Path) -> None:
        """As .npy files that all ranks map; `load` finds them once all are there."""
        numbers = {"sun_elevation": self.sun_elevation, "reference_days": self.reference_days}
        write_json(folder / NUMBERS, numbers)
        images = dict(zip(REFERENCES, self.references, strict=False))
        images |= {"cloudy": self.cloudy, "core": self.core, "mask": self.mask}  # the last says that all are there
        for name, array in images.items():
            with atomic(folder / f"{name}.npy") as temporary:
                np.save(temporary, array)

    @staticmethod
    def saved(folder: Path) -> bool:
        """Whether a whole save lies in the folder."""
        return all((folder / name).exists() for name in (NUMBERS, "mask.npy"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote, mapped."""
        numbers = read_json(folder / NUMBERS)
        days = tuple(numbers["reference_days"])
        cloudy, mask, core, *others = (
            load(folder / f"{name}.npy") for name in ("cloudy", "mask", "core", *REFERENCES[: len(days)])
        )
        return cls(cloudy, mask, core, tuple(others), numbers["sun_elevation"], days)

    def cloudy_tiles(self, *, size: int, overlap: int) -> list[Tile]:
        """The tiles of the scene that have anything hidden in their own part: what another has at its edge alone is
        better seen by its neighbour."""
        every = own_parts(self.mask.shape, size=size, overlap=overlap)
        return [tile for tile, own in every if any_of(self.mask[own], *HIDDEN).any()]

    def arrays(self, places: Sequence[Tile], *, pin: bool = False) -> dict[str, NDArray]:
        """What `Batch.of` takes, a sample a tile; beyond the scene there are no data. `pin` puts images into memory
        that a GPU reads by itself: keep them until it is done."""
        numbers = {"sun_elevation": self.sun_elevation}
        numbers |= {f"{name}_days": days for name, days in zip(REFERENCES, self.reference_days, strict=False)}
        found: dict[str, NDArray] = {
            name: np.full(len(places), np.nan if value is None else value, np.float32)
            for name, value in numbers.items()
        }
        arrays = {"cloudy": self.cloudy, "mask": self.mask, **dict(zip(REFERENCES, self.references, strict=False))}
        for name, array in arrays.items():
            fill = NO_DATA if name == "mask" else EMPTY_DN
            shape = (len(places), *array.shape[:-2], places[0].height, places[0].width)
            images = pinned(shape, array.dtype) if pin else np.empty(shape, array.dtype)
            for image, tile in zip(images, places, strict=True):
                _cut(array, tile, fill, out=image)
            found[name] = images
        return found

    def release(self) -> None:
        """Gives back the memory that mapped pages take, until they are read again."""
        release(self.cloudy, self.mask, self.core, *self.references)


def _cut(array: NDArray, tile: Tile, fill: int, *, out: NDArray) -> None:
    height, width = array.shape[-2:]
    out[...] = fill
    if common := tile.common(Tile(0, 0, height, width)):
        out[..., *common.within(tile)] = array[..., *common.slices]
