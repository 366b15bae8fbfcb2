"""Fills an archive with synthetic tiles, with real places below synthetic clouds, or with real pairs as they are.

The ground below synthetic clouds is kept as truth.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from affine import Affine

from cloudjob.archive import series
from cloudjob.archive.rasters import (
    centre,
    clear_classes,
    off_tile,
    product_from_raster,
    read_bands,
    read_raster,
    write_classified,
)
from cloudjob.archive.safe import write_product
from cloudjob.archive.synthetic import Acquisition, acquire, overcast
from cloudjob.errors import ConfigError
from cloudjob.files import read_json, write_bytes, write_json
from cloudjob.names import product_name
from cloudjob.pixels import EMPTY_DN
from cloudjob.sentinel2.geometry import sun_position, tile_centre, tile_corner

_GOLDEN = 0.6180339887  # multiples of it, modulo 1, spread evenly for any number of dates
_REVOLUTION = timedelta(minutes=100)
_Used = dict[tuple[str, datetime], bytes]  # digests of scenes by tile and second of sensing
_BASELINES = {0: "02.14", -1000: "05.10"}


def make_synthetic(
    archive: Path,
    *,
    tiles: list[str],
    size: int,
    clear: list[date],
    cloudy: list[date],
    seed: int,
    cloud: tuple[float, float],
    other_weather: dict[str, Any] | None = None,
) -> list[str]:
    """Writes a product of `size` x `size` pixels per tile and date, and returns their names; existing ones are kept.

    The pixels lie in the tile's north-west corner. Cloudy dates get cloud fractions (of one) spread over `cloud`, clear
    ones at most 0.4 %. About a third of the products have baseline 02.14 without BOA_ADD_OFFSET, the others 05.10 with
    -1000. On a date in both lists, the cloudy overpass is one revolution earlier. The cloud-free ground goes to
    `<archive>/truth/<product>.tif` (our DN convention), how much of it is seen to `<product>_seen.tif` beside it.
    `other_weather` (its own `tiles`, `clear`, `cloudy`, `cloud`) makes tiles of another law (see `acquire`); of them
    there is also `<product>_sensed.tif`, the ground with the sensor's noise, and where sea ice drifts
    `<archive>/drifting/<tile>.tif`, 1 there.
    ConfigError if the archive was begun with another size or seed, or a tile with other weather: its grounds would not
    match.
    """
    if size < 16:
        raise ConfigError(f"size = {size}: expected at least 16 pixels")
    plans = _plans(tiles=tiles, clear=clear, cloudy=cloudy, cloud=cloud, other=False)
    plans += _plans(**other_weather, other=True) if other_weather else []
    _settle(Path(archive) / "synthetic.json", {"size": size, "seed": seed})
    for tile, other in {plan.tile: plan.other for plan in plans}.items():
        _check_weather(Path(archive), tile, other)
    for plan in plans:
        if not (Path(archive) / f"{plan.name}.SAFE").exists():
            _make_one(Path(archive), plan, size, seed)
    return [plan.name for plan in plans]


@dataclass(frozen=True)
class _Plan:
    """A synthetic product to make, its cloud fraction and its BOA_ADD_OFFSET."""

    name: str
    tile: str
    sensing: datetime
    cloud: float
    offset: int
    other: bool


def _plans(
    *, tiles: list[str], clear: list[date], cloudy: list[date], cloud: tuple[float, float], other: bool
) -> list[_Plan]:
    low, high = cloud
    if not 0 <= low <= high <= 1:
        raise ConfigError(f"cloud = {cloud}: expected two fractions of one, 0 <= low <= high <= 1")
    wanted = [
        (tile, day, is_cloudy) for tile in tiles for is_cloudy in (False, True) for day in (clear, cloudy)[is_cloudy]
    ]
    plans = []
    for index, (tile, day, is_cloudy) in enumerate(wanted):
        step = index * _GOLDEN % 1
        fraction = low + (high - low) * step if is_cloudy else max(0.0, 0.008 * step - 0.004)
        offset = 0 if _hash(f"{tile} {day} {is_cloudy}") % 3 == 0 else -1000
        sensing = _overpass(day, *tile_centre(tile))
        if is_cloudy and day in clear:
            sensing -= _REVOLUTION
        plans.append(_Plan(_name(tile, sensing, offset), tile, sensing, fraction, offset, other))
    return plans


def _check_weather(archive: Path, tile: str, other: bool) -> None:
    """ConfigError where the archive holds products of the tile that were made with the other weather or without it."""
    for path in archive.glob(f"*_T{tile}_*.SAFE"):
        if (archive / "truth" / f"{path.stem}_sensed.tif").exists() != other:
            found = "without" if other else "with"
            raise ConfigError(f"{archive} holds {path.stem}, made {found} other_weather: choose another folder")


def make_from_rasters(archive: Path, *, pairs: list[dict], said: Callable[[str], object] = str) -> list[str]:
    """Writes the cloudy and the clear product of each pair, and returns their names; existing ones are kept.

    A pair has `tile`, `cloudy` and `clear` (GeoTIFFs of B04, B03, B02, B08), `cloudy_date`, `clear_date`, `mask` (a
    raster, or None for a comparison of the two dates), maybe the `values` of the mask, and `offset` (BOA_ADD_OFFSET of
    both rasters): see `product_from_raster`. Scenes of one tile and day differ in the second of their sensing time.
    """
    for path in (pair[key] for pair in pairs for key in ("cloudy", "clear", "mask") if pair[key]):
        if not Path(path).is_file():
            raise ConfigError(f"archive.rasters: {path} does not exist")
    names: list[str] = []
    used: _Used = {}
    for pair in pairs:
        for which in ("cloudy", "clear"):
            raster = Path(pair[which])
            mask: Path | Literal["clear"] | None = "clear" if which == "clear" else pair["mask"]
            other = None if which == "clear" else Path(pair["clear"])
            values = pair.get("values") if which == "cloudy" else None
            content = hashlib.sha256(f"{which}{pair['offset']}{values or ''}".encode())
            for path in (raster, mask if which == "cloudy" else None):
                content.update(Path(path).read_bytes() if path else b"")
            dn, crs, transform = read_raster(raster)
            if wrong := off_tile(pair["tile"], crs, transform, dn.shape[1:]):
                said(f"archive.rasters: WARNING: {raster}: {wrong}")
            place = centre(crs, transform, dn.shape[1:])
            sensing = _own_second(pair["tile"], _overpass(pair[f"{which}_date"], *place), content.digest(), used)
            name = _name(pair["tile"], sensing, pair["offset"])
            if name not in names:
                names.append(name)
            if not (Path(archive) / f"{name}.SAFE").exists():
                product_from_raster(
                    Path(archive),
                    name=name,
                    raster=raster,
                    mask=mask,
                    other=other,
                    offset=pair["offset"],
                    values=values,
                    said=said,
                )
    return names


def make_from_places(archive: Path, *, places: list[dict]) -> list[str]:
    """Writes a product for each date of each place, and returns their names; existing ones are kept.

    A place has `tile`, `dates` (day -> clear GeoTIFF of B04, B03, B02, B08, all on the same pixel grid) and their
    `offset` (BOA_ADD_OFFSET). The days in `cloudy` get synthetic clouds drawn from `seed`, with a cloud fraction within
    `cloud` (two fractions of one). The ground below goes unchanged to `<archive>/truth/<product>.tif` (our DN
    convention). ConfigError if a file is missing or has another pixel grid than the place's first one.
    """
    for place in places:
        for day, path in place["dates"].items():
            if not Path(path).is_file():
                raise ConfigError(f"archive.places: {path}, of {place['tile']} on {day}, does not exist")
    used: _Used = {}
    return [name for place in places for name in _make_place(Path(archive), place, used)]


def make_from_series(archive: Path, *, places: list[dict]) -> list[str]:
    """Writes products of real clouds over real ground, and returns their names; existing ones are kept.

    Each place has `tile`, `folder` (see `series`), `offset` (BOA_ADD_OFFSET), `haze` (see `series.Day`), `clouds` (how
    many cloudy dates are laid over each clear one) and `seed`. Each clear date becomes a product as it is, and one
    under each of its clouds, whose ground goes to `<archive>/truth/<product>.tif`.
    """
    used: _Used = {}
    return [name for each in places for name in _make_series(Path(archive), each, used)]


def _make_series(archive: Path, given: dict, used: _Used) -> list[str]:
    days = series.read(Path(given["folder"]), offset=given["offset"], haze=given["haze"])
    wanted: list[tuple[series.Day, np.ndarray | None, np.ndarray, np.ndarray]]
    wanted = [(truth, None, truth.bands, truth.scl) for truth in days if truth.is_clear]
    for truth, cloudy, turn in series.draws(days, clouds=given["clouds"], seed=given["seed"]):
        wanted.append((truth, truth.bands, *series.overlaid(truth, cloudy, turn)))
    names: list[str] = []
    for day, ground, bands, scl in wanted:
        spot = centre(day.crs, day.transform, bands.shape[1:])
        content = hashlib.sha256(bands.tobytes() + scl.tobytes()).digest()
        sensing = _own_second(given["tile"], _overpass(day.day, *spot), content, used)
        names.append(name := _name(given["tile"], sensing, given["offset"]))
        if not (archive / f"{name}.SAFE").exists():
            if ground is not None:
                _write_raster(archive / "truth" / f"{name}.tif", ground, day.crs, day.transform, nodata=EMPTY_DN)
            write_classified(archive, name, bands, scl, day.crs, day.transform, given["offset"])
    return names


def _make_place(archive: Path, place: dict, used: _Used) -> list[str]:
    names: list[str] = []
    first, grid = None, None
    for day, path in place["dates"].items():
        bands, crs, transform = read_bands(path, offset=place["offset"])
        first, grid = first or path, grid or (bands.shape, crs, transform)
        if (bands.shape, crs, transform) != grid:
            raise ConfigError(f"archive.places: {path} is not of the same size, CRS and corner as {first}")
        spot, cloud = centre(crs, transform, bands.shape[1:]), _cloud(place, day)
        content = hashlib.sha256(f"{place['offset']} {cloud} {place['seed']}".encode() + bands.tobytes()).digest()
        sensing = _own_second(place["tile"], _overpass(day, *spot), content, used)
        names.append(name := _name(place["tile"], sensing, place["offset"]))
        if (archive / f"{name}.SAFE").exists():
            continue
        if cloud is None:
            product_from_raster(archive, name=name, raster=path, mask="clear", other=None, offset=place["offset"])
        else:
            sun = sun_position(sensing, *spot)
            seen = overcast(bands, clear_classes(bands), key=f"{place['seed']}/{name}", cloud=cloud, sun=sun)
            _write(archive, name, seen, crs, transform, place["offset"], *sun)
    return names


def _cloud(place: dict, day: date) -> float | None:
    """The cloud fraction, drawn for this place and day independently of all others; None if the day stays clear."""
    low, high = place["cloud"]
    drawn = low + (high - low) * _hash(f"{place['seed']} {place['tile']} {day}") / 2**64
    return drawn if day in place["cloudy"] else None


def _own_second(tile: str, overpass: datetime, content: bytes, used: _Used) -> datetime:
    """A sensing time, to the second, that no other content (by its digest) of the tile has in `used`; it is added."""
    sensing = overpass + timedelta(seconds=int.from_bytes(content[:2], "big") % 1800)
    while used.setdefault((tile, sensing), content) != content:
        sensing += timedelta(seconds=1)
    return sensing


def _settle(path: Path, settings: dict) -> None:
    """Saves the settings that all products of an archive share; ConfigError if a later call asks for others."""
    if not path.exists():
        write_json(path, settings)
    elif (found := read_json(path)) != settings:
        raise ConfigError(f"{path.parent} holds products of {found}, asked for {settings}: choose another folder")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _make_one(archive: Path, plan: _Plan, size: int, seed: int) -> None:
    seen = acquire(tile=plan.tile, when=plan.sensing, size=size, seed=seed, cloud=plan.cloud, other_weather=plan.other)
    crs, left, top = tile_corner(plan.tile)
    transform, sun = Affine(10, 0, left, 0, -10, top), sun_position(plan.sensing, *tile_centre(plan.tile))
    if seen.drifting is not None:
        drifting = seen.drifting[None].astype(np.uint8)
        _write_raster(archive / "drifting" / f"{plan.tile}.tif", drifting, crs, transform, nodata=None)
    _write(archive, plan.name, seen, crs, transform, plan.offset, *sun)


def _write(
    archive: Path,
    name: str,
    acquisition: Acquisition,
    crs: str,
    transform: Affine,
    offset: int,
    sun_elevation: float,
    sun_azimuth: float,
) -> None:
    """Writes a product, the ground below its clouds, how much of it they hide, and the ground as sensed if known."""
    _write_raster(archive / "truth" / f"{name}.tif", acquisition.truth, crs, transform, nodata=EMPTY_DN)
    _write_raster(archive / "truth" / f"{name}_seen.tif", acquisition.above, crs, transform, nodata=None)
    if acquisition.sensed is not None:
        _write_raster(archive / "truth" / f"{name}_sensed.tif", acquisition.sensed, crs, transform, nodata=EMPTY_DN)
    write_product(
        archive,
        name=name,
        bands=acquisition.bands,
        scl=acquisition.scl,
        cloud_probability=acquisition.cloud_probability,
        snow_probability=acquisition.snow_probability,
        b11=acquisition.b11,
        b11_20m=acquisition.b11_20m,
        crs=crs,
        transform=transform,
        offset=offset,
        sun_elevation=sun_elevation,
        sun_azimuth=sun_azimuth,
    )


def _write_raster(path: Path, pixels: np.ndarray, crs: str, transform: Affine, *, nodata: int | None) -> None:
    count, height, width = pixels.shape
    storage = {"driver": "GTiff", "compress": "deflate", "predictor": 2, "tiled": True, "bigtiff": "if_safer"}
    form = {"dtype": pixels.dtype, "count": count, "height": height, "width": width, "nodata": nodata}
    with rasterio.MemoryFile() as memory:  # on a full disk GDAL leaves out what comes last, and says nothing
        with memory.open(**storage, **form, crs=crs, transform=transform) as image:
            image.write(pixels)
        write_bytes(path, memory.getbuffer())


def _overpass(day: date, lon: float, lat: float) -> datetime:
    """Overpass time of Sentinel-2: about 10:40 local solar time, past noon at 70 degrees north."""
    hours = (12.4 if abs(lat) > 60 else 10.7) - lon / 15
    midnight = datetime.combine(day, time(), UTC)
    return midnight + timedelta(seconds=round((hours % 24) * 3600))


def _name(tile: str, sensing: datetime, offset: int) -> str:
    """A product name: the tile gives the relative orbit, satellites alternate, processing is three hours later."""
    if offset not in _BASELINES:
        raise ConfigError(f"offset = {offset}: BOA_ADD_OFFSET is 0 or -1000")
    orbit = _hash(tile) % 143 + 1
    return product_name(
        satellite=f"S2{'AB'[sensing.toordinal() % 2]}",
        sensing=sensing,
        baseline=_BASELINES[offset],
        relative_orbit=orbit,
        tile=tile,
        processed=sensing + timedelta(hours=3, minutes=7),
    )
