"""Images of one's own become the conditions of a scene: decoded, masked, brought onto one image's pixels and matched to
it by a team, straight into place.

As `dates` does it with products of one pixel grid; here each date may be any raster, with pixels of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from cloudjob.errors import OwnFileError
from cloudjob.files import atomic, read_json, write_json
from cloudjob.pixels import BANDS, CLEAR, EMPTY_DN, HIDDEN, NO_DATA, REFERENCES
from cloudjob.restoration import cloud_test, own_mask, placing
from cloudjob.restoration.conditions import NUMBERS
from cloudjob.restoration.dates import decoding
from cloudjob.restoration.own_source import Options, Source
from cloudjob.restoration.placed import Placed, load, release
from cloudjob.restoration.team import Team, Unit
from cloudjob.sentinel2 import decode, masks, radiometry
from cloudjob.sentinel2.foreign_masks import Grid
from cloudjob.sentinel2.scene import open_masks, reduction

_ROWS = 512  # of a file that are read at once
_STRIPE = 256  # rows that are looked at, placed and matched at once: a multiple of what means are taken over
_DOUBTFUL = 0.7  # share of cloud from which on the rough test is rather wrong
_NOTES = "notes.json"


@dataclass(frozen=True)
class _Date:
    """The image (number 0) or one of its clear dates: what is read of it, and its arrays in the working folder."""

    source: Source
    number: int
    window: Window | None  # what is read of a raster; None: all
    beside: bool  # whether it lies on the pixels of the image
    folder: Path

    @classmethod
    def of(cls, source: Source, number: int, target: Grid, folder: Path) -> "_Date":
        part = placing.part(source.grid, target, name=source.path)
        return cls(source, number, None if source.product else part, part is None, folder)

    @property
    def grid(self) -> Grid:
        return self.source.grid if self.window is None else placing.within(self.source.grid, self.window)

    @property
    def read(self) -> Placed:
        """(4, h, w) uint16 DN on its own pixels."""
        name = f"date-{self.number}" if self.number else "cloudy"
        return Placed(self.folder / f"{name}.npy", (len(BANDS), *self.grid.shape), "uint16")

    @cached_property
    def bands(self) -> NDArray:
        """What was `read`, mapped."""
        return self.read.mapped()

    def stripes(self) -> Iterator[tuple[slice, NDArray]]:
        """(rows, bands (4, r, w)) from north to south, of which none stays in memory."""
        for rows in _stripes(self.grid.shape):
            yield rows, self.bands[:, rows]
            release(self.bands)


def make_conditions(
    team: Team,
    sources: Sequence[Source],
    *,
    mask: Path | None,
    options: Options,
    days: Sequence[float | None],
    say: Callable[[str], object],
) -> None:
    """Leaves the conditions of a scene in the team's folder: of an image, the first of the `sources`, and its clear
    dates, the most wanted first. Called on every rank; rank 0 has something to `say`."""
    target, folder = sources[0].grid, team.folder
    dates = [_Date.of(source, number, target, folder) for number, source in enumerate(sources)]
    image, *others = dates
    team.do("decoding", lambda: [unit for date in dates for unit in _reading(date)], threads=team.few)
    team.do("masks", lambda: [Unit(str(date.number), partial(_mask, date, mask, options, team.look)) for date in dates])
    placers = max(1, team.few // 2)  # each takes 200 MB: a stripe of a turned grid needs many rows
    team.do("placing", lambda: [unit for date in others for unit in _placing(date, target)], threads=placers)
    team.do("lines", lambda: [Unit(str(date.number), partial(_measure, date, image, team.look)) for date in others])
    numbers = {"sun_elevation": sources[0].sun_elevation, "reference_days": list(days)}

    def matching() -> list[Unit]:
        for note in _notes(folder, others) if team.rank == 0 else []:
            say(note)
        units = _matching(folder, target.shape, others) if others else []
        return [*units, Unit("numbers", lambda: write_json(folder / NUMBERS, numbers))]

    team.do("matching", matching, threads=team.few)


def grown(core: NDArray, grid: Grid, settings: masks.Settings) -> NDArray:
    """The mask classes with cloud, shadow and cirrus grown by the metres of the settings."""
    return masks.grow(core, settings, pixel_m=placing.pixel_m(grid) or placing.WANTED_M)


def _stripes(shape: tuple[int, int], rows: int = _STRIPE) -> list[slice]:
    return [slice(top, min(top + rows, shape[0])) for top in range(0, shape[0], rows)]


# --- a date on its own pixels ------------------------------------------------------------------------------------
def _reading(date: _Date) -> list[Unit]:
    if date.source.product:
        return decoding(date.source.product, date.read, name=str(date.number))
    return [
        Unit(f"{date.number}-{rows.start:05d}", partial(_read, date, rows), weight=len(BANDS))
        for rows in _stripes(date.grid.shape, _ROWS)
    ]


def _read(date: _Date, rows: slice) -> None:
    left, top = (date.window.col_off, date.window.row_off) if date.window else (0, 0)
    here = Window(left, top + rows.start, date.grid.shape[1], rows.stop - rows.start)
    date.read.write_layers(rows.start, date.source.raster.read(here))
    date.read.flush()


def _mask(date: _Date, mask: Path | None, options: Options, look: Callable[[], object]) -> None:
    """Saves the mask classes of a date, before and after their growth; of a clear one, where it is clear."""
    settings, notes = options.mask_settings, []
    if date.number == 0 and mask:
        data = np.concatenate([(bands != EMPTY_DN).all(0) for _, bands in date.stripes()])
        core, note = own_mask.read(mask, date.grid, options.values, data)
        notes += [note] if note else []
        after = core.copy() if options.grown else grown(core, date.grid, settings)
    elif date.source.product:
        found = open_masks({"cloudy": date.source.product}, settings, look=look)["cloudy"]
        core, after = (found.at_10m(name, date.grid.shape) for name in ("core", "mask"))
    else:
        core = np.concatenate([cloud_test.classes(bands) for _, bands in date.stripes()])
        after = grown(core, date.grid, settings)
    look()
    for rows, bands in date.stripes():
        after[rows][(bands == EMPTY_DN).any(0)] = NO_DATA
    if date.number:
        _save(_clear(date), after == CLEAR)
        return
    notes += _doubts(date.source, after, tested=not mask and date.source.image is not None)
    write_json(date.folder / _NOTES, notes)
    _save(date.folder / "core.npy", core)
    _save(date.folder / "mask.npy", after)


def _doubts(source: Source, mask: NDArray, *, tested: bool) -> list[str]:
    """What people should know of the mask of the image, which is that of the rough test where it is `tested`.
    OwnFileError where the image has no data."""
    seen, hidden = np.count_nonzero(mask != NO_DATA), np.count_nonzero(masks.any_of(mask, *HIDDEN))
    if not seen:
        raise OwnFileError(f"{source.path}: has no pixel with data in all four bands")
    if not hidden:
        return [f"{source.path.name}: nothing of it is hidden, and so nothing is restored"]
    if tested and hidden > _DOUBTFUL * seen:
        return [
            f"WARNING: {source.path.name}: the rough test takes {hidden / seen:.0%} of it for cloud, as it does with "
            "snow and bright ground; give a mask of another tool with --mask"
        ]
    if not (mask == CLEAR).any():
        return [f"WARNING: {source.path.name}: not one pixel of it is clear by the mask; nothing tells its light"]
    return []


def _save(path: Path, array: NDArray) -> None:
    with atomic(path) as temporary:
        np.save(temporary, array)


def _clear(date: _Date) -> Path:
    return date.folder / f"clear-{date.number}.npy"


# --- on the pixels of the image ----------------------------------------------------------------------------------
def _placed(date: _Date, shape: tuple[int, int]) -> Placed:
    return Placed(date.folder / f"placed-{date.number}.npy", (len(BANDS), *shape), "uint16")


def _placing(date: _Date, target: Grid) -> list[Unit]:
    """Units that bring a clear date onto the pixels of the image; none where it lies there already."""
    if date.beside:
        return []
    clear, out = load(_clear(date)), _placed(date, target.shape)

    def cut(window: Window) -> NDArray:
        here = np.s_[..., *window.toslices()]
        found = np.where(clear[here], date.bands[here], EMPTY_DN)
        release(date.bands, clear)
        return found

    def make(rows: slice) -> None:
        out.write_layers(rows.start, placing.onto(cut, date.grid, target, rows=rows))
        out.flush()

    return [Unit(f"{date.number}-{rows.start:05d}", partial(make, rows)) for rows in _stripes(target.shape)]


def _seen(date: _Date, shape: tuple[int, int]) -> Callable[[slice], NDArray]:
    """A function: rows (4, r, W) uint16 DN of a clear date on the pixels of the image, EMPTY_DN where it is not clear.
    None of them stays in memory."""
    clear = load(_clear(date)) if date.beside else None
    bands = date.bands if date.beside else _placed(date, shape).mapped()

    def rows_of(rows: slice) -> NDArray:
        found = np.array(bands[:, rows])
        if clear is not None:
            found[:, ~clear[rows]] = EMPTY_DN
        release(bands, clear)
        return found

    return rows_of


def _notes(folder: Path, others: Sequence[_Date]) -> list[str]:
    """What was found, for people: of the mask, and of clear dates."""
    return [*read_json(folder / _NOTES), *(note for date in others for note in read_json(_line(date))["notes"])]


def _line(date: _Date) -> Path:
    return date.folder / f"line-{date.number}.json"


def _measure(date: _Date, image: _Date, look: Callable[[], object]) -> None:
    """Saves the lines that match a clear date to the image."""
    shape, mask = image.grid.shape, load(image.folder / "mask.npy")
    step, seen, any_clear = reduction(shape), _seen(date, shape), False
    reduced: list[tuple[NDArray, ...]] = []
    for rows, cloudy in image.stripes():
        look()
        other = seen(rows)
        any_clear |= bool(other.any())
        means = (np.stack([decode.means(band, step) for band in bands]) for bands in (other, cloudy))
        reduced.append((*means, masks.pool(mask[rows] == CLEAR, step, np.logical_and)))
    source, target, usable = (np.concatenate(parts, -2) for parts in zip(*reduced, strict=True))
    notes = (
        [] if any_clear else [f"{date.source.path.name}: not one clear pixel of it lies on {image.source.path.name}"]
    )
    write_json(_line(date), {"lines": radiometry.fit(source, target, usable).lines, "notes": notes})


def _matching(folder: Path, shape: tuple[int, int], others: Sequence[_Date]) -> list[Unit]:
    lines = [radiometry.Match(read_json(_line(date))["lines"]) for date in others]
    seen = [_seen(date, shape) for date in others]
    names = REFERENCES[: len(others)]
    references = [Placed(folder / f"{name}.npy", (len(BANDS), *shape), "uint16") for name in names]

    def make(rows: slice) -> None:
        for line, of, reference in zip(lines, seen, references, strict=True):
            reference.write_layers(rows.start, line.apply(of(rows), top=rows.start, height=shape[0]))
            reference.flush()

    return [Unit(f"{rows.start:05d}", partial(make, rows)) for rows in _stripes(shape)]
