"""The conditions of a scene: all that its restoration is given, as arrays of the whole scene, and cut to tiles."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from cloudjob.diffusion.batch import Batch
from cloudjob.files import atomic, read_json, write_json
from cloudjob.pixels import EMPTY_DN, HIDDEN, NO_DATA
from cloudjob.restoration.tiles import Tile, tiles
from cloudjob.sentinel2.scene import Scene

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

    @classmethod
    def of(cls, cloudy: Scene, references: Iterable[Scene], *, days: float | None) -> Self:
        """From the scenes of a place, opened one after the other: the cloudy date, and clear dates, the most wanted
        first. A later date stands in where an earlier one is not clear."""
        reference = None
        for other in references:
            bands = other.clear_only(cloudy.matched(other))
            if reference is None:
                reference = bands
            else:
                reference[reference == EMPTY_DN] = bands[reference == EMPTY_DN]
        return cls(cloudy.bands, cloudy.mask, cloudy.core, reference, cloudy.product.sun_elevation, days)

    def save(self, folder: Path) -> None:
        """As .npy files that all ranks map; `load` finds them once all are there."""
        numbers = {"sun_elevation": self.sun_elevation, "reference_days": self.reference_days}
        write_json(folder / "numbers.json", numbers)
        for name in _ARRAYS:
            if (array := getattr(self, name)) is not None:
                with atomic(folder / f"{name}.npy") as temporary:
                    np.save(temporary, array)

    @staticmethod
    def saved(folder: Path) -> bool:
        """Whether a whole save lies in the folder."""
        return all((folder / name).exists() for name in ("numbers.json", f"{_ARRAYS[-1]}.npy"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote, mapped."""
        paths = {name: folder / f"{name}.npy" for name in _ARRAYS}
        arrays: dict[str, Any] = {
            name: np.load(path, mmap_mode="r") if path.exists() else None for name, path in paths.items()
        }
        return cls(**arrays, **read_json(folder / "numbers.json"))

    def cloudy_tiles(self, *, size: int, overlap: int) -> list[Tile]:
        """The tiles of the scene that have anything hidden."""
        every = tiles(self.mask.shape, size=size, overlap=overlap)
        return [tile for tile in every if np.isin(self.mask[tile.slices], HIDDEN).any()]

    def batch(self, tile: Tile, *, margin: int, device: torch.device | str) -> Batch:
        """One sample: the tile with `margin` pixels around it; beyond the scene there are no data."""
        sun, days = (np.nan if each is None else each for each in (self.sun_elevation, self.reference_days))
        arrays: dict[str, NDArray] = {
            "cloudy": _cut(self.cloudy, tile, margin, EMPTY_DN)[None],
            "mask": _cut(self.mask, tile, margin, NO_DATA)[None],
            "sun_elevation": np.array([sun], np.float32),
            "reference_days": np.array([days], np.float32),
        }
        if self.reference is not None:
            arrays["reference"] = _cut(self.reference, tile, margin, EMPTY_DN)[None]
        return Batch.of(arrays, device)


def _cut(array: NDArray, tile: Tile, margin: int, fill: int) -> NDArray:
    (top, bottom), (left, right) = ((part.start - margin, part.stop + margin) for part in tile.slices)
    height, width = array.shape[-2:]
    part = array[..., max(top, 0) : bottom, max(left, 0) : right]
    beyond = [(max(-top, 0), max(bottom - height, 0)), (max(-left, 0), max(right - width, 0))]
    return np.pad(part, [(0, 0)] * (part.ndim - 2) + beyond, constant_values=fill)
