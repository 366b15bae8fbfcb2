"""Any image of one's own: four bands of a GeoTIFF, COG, netCDF or other raster of GDAL's, in our digital numbers.

What the file does not say is guessed where a guess is safe, and each guess is noted for people to read.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import rasterio
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window

from cloudjob.errors import ConfigError, OwnFileError
from cloudjob.pixels import EMPTY_DN
from cloudjob.restoration import band_choice, placing, sidecar
from cloudjob.sentinel2.foreign_masks import Grid
from cloudjob.sentinel2.radiometry import digital_number

_REASON = "not readable as an image"
_FILLERS = (0, -9999, -32768, 65535)  # what stands for no data where nothing is declared, in all bands at once
_LOOK, _ROWS = 512, 64  # pixels a side that are looked at for a guess; rows that are changed at once
NO_REFLECTANCE = 3.0  # a middle value above this is none, but perhaps one times 10000
_LOWEST = -0.3  # a middle value below this is none
_LEAST = 30  # a middle value below this is none times 10000, but perhaps in percent
_DATE = re.compile(r"(?<!\d)(20\d\d)-?([01]\d)-?([0-3]\d)(?:T(\d\d):?(\d\d):?(\d\d))?")


class Layer(NamedTuple):
    """One band: GDAL's name of what it lies in, its number there from 1 on; reflectance = value * scale + offset."""

    source: str
    number: int
    scale: float = 1.0
    offset: float = 0.0


class _Found(NamedTuple):
    """A band that may be chosen."""

    layer: Layer
    name: str
    colour: str
    grid: Grid
    dtype: str


@dataclass(frozen=True)
class Image:
    """A raster with the four bands; see `open`."""

    path: Path
    layers: tuple[Layer, ...]  # in the order of BANDS
    grid: Grid  # its CRS is None where the file does not say where it lies
    alpha: Layer | None  # no data where it is 0
    filler: float | None  # what stands for no data in all bands at once, where no band declares any
    acquired: datetime | None  # UTC; of a bare day at midnight
    sun_elevation: float | None  # degrees, where a STAC item beside it says so
    notes: list[str] = field(default_factory=list)  # what was guessed

    @classmethod
    def open(
        cls, path: Path, *, bands: str | None = None, scale: float | None = None, offset: float | None = None
    ) -> Self:
        """Looks at a file. `bands` as `--bands` has them; `scale` and `offset` replace what the file says.

        ConfigError where it does not tell which bands are which, has none that `bands` names, or no scale that can be
        guessed; OwnFileError where it cannot be read.
        """
        notes: list[str] = []
        item = sidecar.read(path)
        with placing.opening(path, _REASON):
            found = list(_bands(path))
            if not found:
                raise OwnFileError(f"{path}: GDAL finds no bands in it")
            places = _choice(path, found, bands, item, notes)
            chosen = [found[place] for place in places]
            told = [item.units[place] for place in places] if len(item.units) == len(found) else []
            if len({each.grid.shape for each in chosen}) > 1:
                sizes = ", ".join(f"{each.name} {each.grid.shape[0]} x {each.grid.shape[1]}" for each in chosen)
                raise ConfigError(f"{path}: its bands have several sizes ({sizes}); bring them to one")
            if any(np.issubdtype(np.dtype(each.dtype), np.complexfloating) for each in chosen):
                raise ConfigError(f"{path}: complex numbers are no reflectance; expected real ones")
            alpha = next((each.layer for each in found if each.colour == "alpha"), None)
            layers = [each.layer for each in chosen]
            with _opened(layers, alpha) as files:  # some hundred pixels a side: enough to guess by
                seen = _values(files, layers, alpha, out_shape=tuple(min(side, _LOOK) for side in chosen[0].grid.shape))
            filler = _filler(seen, chosen, notes)
            seen[seen == filler] = np.nan
            units = _units(path, chosen, told, seen, (scale, offset), notes)
            _check(path, units, seen)
            layers = [layer._replace(scale=a, offset=b) for layer, (a, b) in zip(layers, units, strict=True)]
            acquired = item.acquired or _acquired(path)
        notes = [f"{path.name}: {note}" for note in notes]
        return cls(path, tuple(layers), chosen[0].grid, alpha, filler, acquired, item.sun_elevation, notes)

    @property
    def files(self) -> list[Path]:
        """What it is read from; not what viewers leave beside it."""
        with placing.opening(self.path, _REASON), rasterio.open(self.path) as image:
            return [Path(name) for name in image.files if not name.endswith((".aux.xml", ".ovr"))]

    def read(self, window: Window | None = None) -> np.ndarray:
        """(4, h, w) uint16 in our DN convention, EMPTY_DN in all bands where one has no data; all, or a window."""
        height, width = self.grid.shape if window is None else (int(window.height), int(window.width))
        top, left = (0, 0) if window is None else (int(window.row_off), int(window.col_off))
        out = np.empty((len(self.layers), height, width), np.uint16)
        with placing.opening(self.path, _REASON), _opened(self.layers, self.alpha) as files:
            for row in range(0, height, _ROWS):
                part = Window(left, top + row, width, min(_ROWS, height - row))
                values = _values(files, self.layers, self.alpha, window=part)
                if self.filler is not None:
                    values[:, (values == self.filler).all(0)] = np.nan
                dn = out[:, row : row + _ROWS]
                for layer, band, numbers in zip(self.layers, values, dn, strict=True):
                    numbers[:] = digital_number(band * layer.scale + layer.offset)
                dn[:, (dn == EMPTY_DN).any(0)] = EMPTY_DN
        return out


def _bands(path: Path) -> Iterator[_Found]:
    """All bands of a file, and of the variables of a netCDF or HDF5."""
    with rasterio.open(path) as image:
        inner = image.subdatasets
        yield from _own(image, "")
    for source in inner:
        with rasterio.open(source) as image:
            yield from _own(image, image.tags(1).get("NETCDF_VARNAME") or source.rpartition(":")[2].strip('/"'))


def _own(image: DatasetReader, variable: str) -> Iterator[_Found]:
    grid = placing.grid_of(image)
    values = re.findall(r"[^{},]+", image.tags().get("NETCDF_DIM_band_VALUES", ""))  # the band's own coordinate
    names = values if len(values) == image.count else [None] * image.count
    for place in range(image.count):
        name = image.descriptions[place] or names[place] or ""
        if variable:
            name = variable if image.count == 1 else f"{variable} {name or place + 1}"
        layer = Layer(image.name, place + 1, image.scales[place], image.offsets[place])
        yield _Found(layer, name, image.colorinterp[place].name, grid, image.dtypes[place])


def _choice(path: Path, found: list[_Found], bands: str | None, item: sidecar.Sidecar, notes: list[str]) -> list[int]:
    """The places of the four bands among all."""
    names = [each.name for each in found]
    if bands is not None:
        return band_choice.asked(bands, names, source=path)
    if places := band_choice.by_names(names):
        return places
    if len(item.bands) == len(found) and (places := band_choice.by_names(item.bands)):
        notes.append("its bands are those that the STAC item beside it names")
        return places
    if places := band_choice.by_colours([each.colour for each in found]):
        listed = ", ".join(str(place + 1) for place in places)
        notes.append(f"by their colours its bands {listed} are red, green, blue and near infrared")
        return places
    raise band_choice.unknown(path, names)


def _filler(seen: np.ndarray, chosen: list[_Found], notes: list[str]) -> float | None:
    """What stands for no data, where no band declares it."""
    for each in chosen:
        with rasterio.open(each.layer.source) as image:
            if MaskFlags.all_valid not in image.mask_flag_enums[each.layer.number - 1]:
                return None
    for value in _FILLERS:
        if (seen == value).all(0).any():
            notes.append(f"no value is declared to be no data; where all bands are {value} there are none")
            return float(value)
    return 0.0


def _units(
    path: Path,
    chosen: list[_Found],
    beside: list[tuple[float, float]],
    seen: np.ndarray,
    given: tuple[float | None, float | None],
    notes: list[str],
) -> list[tuple[float, float]]:
    """Scale and offset of each band: as given, as the file says, as the item `beside` it says, or as a guess."""
    scale, offset = given
    if scale is not None:
        return [(scale, offset or 0.0)] * len(chosen)
    told = [(each.layer.scale, each.layer.offset) for each in chosen]
    if all(each == (1.0, 0.0) for each in told):
        told = beside or told
    if any(each != (1.0, 0.0) for each in told):
        return [(a, b if offset is None else offset) for a, b in told]
    middle = float(np.nanmedian(seen)) if np.isfinite(seen).any() else 0.0
    if chosen[0].dtype == "uint8":
        raise ConfigError(f"{path}: bytes without a scale are a picture, not reflectance; say --scale and --offset")
    whole = np.issubdtype(np.dtype(chosen[0].dtype), np.integer)
    if not whole and middle <= NO_REFLECTANCE:
        return [(1.0, offset or 0.0)] * len(chosen)
    if middle < _LEAST and np.isfinite(seen).any():
        raise ConfigError(
            f"{path}: values of about {middle:.3g} are neither reflectance nor 10000 times as much; say --scale and "
            "--offset (--scale 0.01 for percent)"
        )
    notes.append(
        f"it says no scale; values of about {middle:.0f} are taken for reflectance x 10000 with offset "
        f"{offset or 0.0:g} (--scale, --offset: Sentinel-2 of baseline 04.00 and later has -0.1)"
    )
    return [(1e-4, offset or 0.0)] * len(chosen)


def _check(path: Path, units: list[tuple[float, float]], seen: np.ndarray) -> None:
    """ConfigError where the scales and offsets make no reflectance of the numbers."""
    for scale, offset in units:
        if not (math.isfinite(scale) and math.isfinite(offset) and scale > 0):
            raise ConfigError(
                f"{path}: scale {scale:g} and offset {offset:g} give no reflectance (value x scale + offset); say "
                "--scale and --offset, as 0.0001 and -0.1"
            )
    made = seen * np.array(units)[:, :1, None] + np.array(units)[:, 1:, None]
    middle = float(np.nanmedian(made)) if np.isfinite(made).any() else 0.0
    if not _LOWEST <= middle <= NO_REFLECTANCE:
        scale, offset = units[0]
        raise ConfigError(
            f"{path}: by scale {scale:g} and offset {offset:g} its reflectance is about {middle:.3g}, and should lie "
            "between 0 and 1; say --scale and --offset (reflectance = value x scale + offset), as 0.0001 and -0.1"
        )


@contextmanager
def _opened(layers: Sequence[Layer], alpha: Layer | None) -> Iterator[dict[str, DatasetReader]]:
    """What the bands lie in, by GDAL's names, each opened once: blocks that hold several bands are decoded once."""
    with ExitStack() as stack:
        names = dict.fromkeys(layer.source for layer in (*layers, alpha) if layer)
        yield {name: stack.enter_context(rasterio.open(name)) for name in names}


def _values(files: dict[str, DatasetReader], layers: Sequence[Layer], alpha: Layer | None, **where: Any) -> np.ndarray:
    """(4, h, w) float64 numbers of the file, NaN without data, `where` rasterio's `read` is told to look."""
    found = []
    for layer in layers:
        image = files[layer.source]
        values = image.read(layer.number, **where).astype(np.float64)
        values[image.read_masks(layer.number, **where) == 0] = np.nan
        found.append(values)
    out = np.stack(found)
    if alpha:
        out[:, files[alpha.source].read(alpha.number, **where) == 0] = np.nan
    return out


def _acquired(path: Path) -> datetime | None:
    """The day, and the time where it is there too, in the name of a file: 20240310T222035, 2024-03-10."""
    for match in _DATE.finditer(path.name):
        year, month, day, hour, minute, second = (int(part or 0) for part in match.groups())
        try:
            return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            continue
    return None
