"""What public data sets have in common: samples and their files, how an image is read, and what becomes a triplet."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from cloudjob.errors import CorruptFileError
from cloudjob.files import reading
from cloudjob.patches.shards import DAYS
from cloudjob.pixels import BANDS, CIRRUS, CLOUD, EMPTY_DN, HIDDEN
from cloudjob.sentinel2.radiometry import digital_number

L1C = "L1C"  # top of atmosphere; the shards of one's own region are L2A, at the surface
THIRTEEN = tuple(f"B{name}" for name in ("01", "02", "03", "04", "05", "06", "07", "08", "8A", "09", "10", "11", "12"))


@dataclass(frozen=True)
class Sample:
    """Files of one patch of ground that belong together, in the order of their kind, with the days of their images
    where their names tell; `number` is the patch's own in its region."""

    region: str
    split: str
    number: int
    files: tuple[Path, ...]
    days: tuple[date, ...] = ()


@dataclass(frozen=True)
class Found:
    """What lies in a folder: the samples, sorted by split and region, and what there is to say of the rest."""

    samples: list[Sample]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rules:
    """How samples become triplets. `cloud` is the share of cloud and cirrus of a cloudy date, `clear_cloud` the most
    that is hidden of a reference, `target_cloud` of a target, where there are dates to choose from."""

    window: int
    cloud: tuple[float, float]
    target_cloud: float
    clear_cloud: float
    references: int
    reference_days: float


@dataclass(frozen=True)
class Triplet:
    """cloudy, clear (4, n, n) uint16 DN, `core` (n, n) uint8 classes before they are grown, and the references, which
    hold EMPTY_DN where they are hidden; signed days from the cloudy date to the clear one and to each reference."""

    cloudy: NDArray
    clear: NDArray
    core: NDArray
    references: Sequence[NDArray] = ()
    clear_days: float = np.nan
    reference_days: Sequence[float] = ()

    def days(self) -> dict[str, float]:
        """As the shard writer takes them."""
        return {"clear_days": self.clear_days} | dict(zip(DAYS, self.reference_days, strict=False))


def read(path: Path, bands: Iterable[int], size: int) -> NDArray:
    """(bands, size, size) float32, the middle of a raster; NaN where it says that it has no data.

    CorruptFileError where it cannot be read, is smaller, or has fewer bands.
    """
    wanted = list(bands)
    with reading(path, RasterioError, reason="cannot be read as a raster"), rasterio.open(path) as image:
        if image.count < max(wanted) or min(image.shape) < size:
            found = f"{image.count} bands of {image.height} x {image.width} pixels"
            raise CorruptFileError(path, f"{found}; expected {max(wanted)} of {size} x {size} or more")
        top, left = (image.height - size) // 2, (image.width - size) // 2
        values = image.read(wanted, window=Window(left, top, size, size)).astype(np.float32)
        if image.nodata is not None and not np.isnan(image.nodata):
            values[values == image.nodata] = np.nan
    return values


def by_name(path: Path, names: Sequence[str], size: int) -> dict[str, NDArray]:
    """Reflectance (size, size) float32 of these of the THIRTEEN bands, as `read`; NaN where all of them are 0."""
    values = read(path, (THIRTEEN.index(name) + 1 for name in names), size) / 10000
    values[:, (values == 0).all(0)] = np.nan
    return dict(zip(names, values, strict=True))


def image(reflectance: dict[str, NDArray]) -> NDArray:
    """(4, n, n) uint16 DN of the bands of this project."""
    return digital_number(np.stack([reflectance[name] for name in BANDS]))


def without(dn: NDArray, core: NDArray) -> NDArray:
    """The same with no data where a mask hides it."""
    return np.where(np.isin(core, HIDDEN), np.uint16(EMPTY_DN), dn)


def cloud_share(core: NDArray) -> float:
    """Share of cloud and cirrus."""
    return float(np.isin(core, (CLOUD, CIRRUS)).mean())


def hidden_share(core: NDArray) -> float:
    """Share of cloud, shadow and cirrus."""
    return float(np.isin(core, HIDDEN).mean())


def numbered(name: str, pattern: str) -> int | None:
    """The number at the end of a file's name, by a pattern with one group; None where it is another file."""
    match = re.fullmatch(pattern, name)
    return int(match[1]) if match else None
