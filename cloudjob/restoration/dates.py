"""The dates of a place become the conditions of a scene: decoded, masked and matched by a team, straight into place.

Each row of JPEG 2000 tiles of each band is decoded once, by one rank. What the dates are measured by - their masks, and
how a clear date is matched to the cloudy one - is found by one rank meanwhile, and then used by all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudjob.files import atomic, read_json, write_json
from cloudjob.pixels import BANDS, CLEAR, EMPTY_DN, NO_DATA, REFERENCES
from cloudjob.restoration.conditions import NUMBERS
from cloudjob.restoration.placed import Placed, load, release
from cloudjob.restoration.team import Team, Unit
from cloudjob.sentinel2 import masks, radiometry
from cloudjob.sentinel2.decode import Band
from cloudjob.sentinel2.product import Product, bands_of
from cloudjob.sentinel2.scene import ReducedScene, fit, open_masks, reduction
from cloudjob.sentinel2.scene_masks import SceneMasks

_ROWS = 1024  # of a unit, where the tiles of a file are no higher
_STRIPE = 256  # rows that are matched at once
_SURVEY = 0.5  # its cost beside the decoding of one band


@dataclass(frozen=True)
class Dates:
    """The products of a pair by role; `shown` are the roles of the clear dates that the model is shown, the most wanted
    first and at most as many as REFERENCES, and `days` the signed days from the cloudy date to each of them. The others
    only vote on the masks."""

    products: dict[str, Product]
    shown: tuple[str, ...]
    days: tuple[float | None, ...]
    masks: masks.Settings
    labels: Path | None = None  # see `open_masks`, as `drifting`
    drifting: Path | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.products["cloudy"].shape


def make_conditions(team: Team, dates: Callable[[], Dates]) -> None:
    """Leaves the conditions of the scene in the team's folder, for `SceneConditions.load`. `dates` is asked on each
    rank."""
    team.do("decoding", lambda: _decoding(team, dates()), threads=team.threads)
    team.do("matching", lambda: _matching(team.folder, dates()), threads=team.few)


def _decoding(team: Team, dates: Dates) -> list[Unit]:
    folder, units = team.folder, []
    for role in ("cloudy", *dates.shown):
        units += decoding(dates.products[role], _bands(folder, role, dates.shape), name=role)
    survey = Unit("survey", lambda: _survey(team, dates), weight=_SURVEY * dates.shape[0] / _ROWS)
    return [survey, *units]


def decoding(product: Product, whole: Placed, *, name: str) -> list[Unit]:
    """Units, called by a `name` of the date, that decode the bands of a product into place."""
    units = []
    for number, band in enumerate(bands_of(product)):
        high = band.tile_rows()
        for top in range(0, product.shape[0], max(_ROWS // high * high, high)):
            part = slice(top, top + max(_ROWS // high * high, high))
            units.append(Unit(f"{name}-{BANDS[number]}-{top:05d}", partial(_decode, band, part, whole, number)))
    return units


def _bands(folder: Path, role: str, shape: tuple[int, int]) -> Placed:
    name = "cloudy" if role == "cloudy" else f"date-{role}"
    return Placed(folder / f"{name}.npy", (len(BANDS), *shape), "uint16")


def _decode(band: Band, rows: slice, whole: Placed, number: int) -> None:
    whole.write(rows.start, band.read(rows), layer=number)
    whole.flush()


def _survey(team: Team, dates: Dates) -> None:
    """The masks of the dates, and the lines that match the clear ones to the cloudy one."""
    folder, roles = team.folder, ("cloudy", *dates.shown)
    found = open_masks(dates.products, dates.masks, labels=dates.labels, drifting=dates.drifting, look=team.look)
    for role in roles:
        with atomic(folder / f"masks-{role}.npy") as temporary:
            np.save(temporary, np.stack([found[role].core, found[role].mask]))
    lines = {}
    if dates.shown:
        reduced = {}
        for role in roles:
            team.look()
            reduced[role] = ReducedScene.open(dates.products[role], found[role], reduction(dates.shape))
        lines = {role: fit(reduced[role], reduced["cloudy"]).lines for role in dates.shown}
    factors = {role: found[role].factor for role in roles}
    write_json(folder / "survey.json", {"factors": factors, "lines": lines})


def _matching(folder: Path, dates: Dates) -> list[Unit]:
    survey = read_json(folder / "survey.json")
    roles = ("cloudy", *dates.shown)
    masks = {role: _masks(folder, role, survey["factors"][role]) for role in roles}
    bands = {role: _bands(folder, role, dates.shape).mapped() for role in roles}
    lines = {role: radiometry.Match(survey["lines"][role]) for role in dates.shown}
    mask, core = (Placed(folder / f"{name}.npy", dates.shape, "uint8") for name in ("mask", "core"))
    references = {
        role: Placed(folder / f"{name}.npy", (len(BANDS), *dates.shape), "uint16")
        for name, role in zip(REFERENCES, dates.shown, strict=False)
    }

    def make(tops: range) -> None:
        for top in tops:
            rows = slice(top, min(top + _STRIPE, dates.shape[0]))
            seen = {role: _mask(masks[role], bands[role][:, rows], rows, dates.shape) for role in roles}
            mask.write(top, seen["cloudy"])
            core.write(top, masks["cloudy"].at_10m("core", dates.shape, rows))
            for role, reference in references.items():
                shown = _shown(lines[role], bands[role][:, rows], seen[role], top, dates.shape)
                reference.write_layers(top, shown)
        for placed in (mask, core, *references.values()):
            placed.flush()
        release(*bands.values())

    tops = range(0, dates.shape[0], _STRIPE)
    units = [Unit(f"{tops[n]:05d}", partial(make, tops[n : n + 4])) for n in range(0, len(tops), 4)]
    numbers = {"sun_elevation": dates.products["cloudy"].sun_elevation, "reference_days": dates.days}
    return [*units, Unit("numbers", lambda: write_json(folder / NUMBERS, numbers))]


def _masks(folder: Path, role: str, factor: int) -> SceneMasks:
    core, mask = load(folder / f"masks-{role}.npy")
    return SceneMasks(core, mask, factor)


def _mask(masks: SceneMasks, bands: NDArray, rows: slice, shape: tuple[int, int]) -> NDArray:
    """(r, W) uint8 mask classes of these rows, as `Scene.mask`."""
    mask = masks.at_10m("mask", shape, rows)
    mask[(bands == EMPTY_DN).any(0)] = NO_DATA
    return mask


def _shown(match: radiometry.Match, bands: NDArray, mask: NDArray, top: int, shape: tuple[int, int]) -> NDArray:
    """(4, r, W) uint16 DN of a clear date, normalised to the cloudy one; EMPTY_DN where it is not clear."""
    return np.where(mask == CLEAR, match.apply(bands, top=top, height=shape[0]), EMPTY_DN)
