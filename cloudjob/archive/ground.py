"""The ground of a synthetic tile: tundra below snow, thaw lakes, a river, sea ice, on any day of late winter."""

import math
from dataclasses import dataclass

import numpy as np

from cloudjob.archive import light
from cloudjob.archive.fields import Noise, line, slope_light, step
from cloudjob.archive.safe import pool

# Reflectance in B04, B03, B02, B08, B11 (factors on the brightness for snow and ice).
SNOW = (0.995, 1.0, 1.0, 0.93, 0.095)
BLUE_ICE = (0.82, 0.94, 1.0, 0.66, 0.03)
TUNDRA = (0.20, 0.165, 0.13, 0.28, 0.22)
WATER = (0.05, 0.06, 0.075, 0.035, 0.02)

_HILLS_M = 24.0  # standard deviation of their heights
_DRIFT_KM = (2, 20)


@dataclass
class Ground:
    """The surface, all (H, W) float32: brightness of snow and ice, blueness of the ice, fractions of bare tundra and
    open water, brightness of the tundra; and the progress of the season (0 mid-February, 1 mid-April)."""

    brightness: np.ndarray
    blue: np.ndarray
    tundra: np.ndarray
    water: np.ndarray
    plants: np.ndarray
    season: float
    direct: np.ndarray | None = None  # the sun's light on a slope over that on flat ground; None: flat
    skylight: tuple[float, ...] = ()  # share of the light on flat ground that comes from the sky, by band
    drifting: np.ndarray | None = None  # (H, W) bool: sea ice that another date shows elsewhere; None: there is none

    def reflectance(self, band: int) -> np.ndarray:
        snow = SNOW[band] - (0.035 * self.season if band == 3 else 0)  # coarser grains darken old snow in B08
        out = self.brightness * (snow + self.blue * (BLUE_ICE[band] - snow))
        out += self.tundra * (TUNDRA[band] * self.plants - out)
        out += self.water * (WATER[band] - out)
        if self.direct is not None:
            out *= self.skylight[band] + (1 - self.skylight[band]) * self.direct
        return out

    def pooled(self, factor: int) -> "Ground":
        fields = (self.brightness, self.blue, self.tundra, self.water, self.plants)
        brightness, blue, tundra, water, plants = (pool(field, factor, np.mean) for field in fields)
        direct = None if self.direct is None else pool(self.direct, factor, np.mean)
        return Ground(brightness, blue, tundra, water, plants, self.season, direct, self.skylight)


def make_ground(noise: Noise, day: float, azimuth: float, *, elevation: float | None = None) -> Ground:
    """The ground on a day (days since 2020), lit from `azimuth` degrees.

    With the sun's `elevation` in degrees the land is hilly, its slopes cast shadows, and the sea ice drifts.
    """
    rng = noise.rng("place")
    season = (day % 365.25 - 45) / 60
    wind = math.radians(rng.uniform(-35, -15))  # east-north-east: drifts lie along it
    sea = _sea_level(noise, rng)
    relief = noise.field("relief", 300, slope=3.2)
    sastrugi = noise.field("sastrugi", 26, slope=2.6, stretch=5, angle=wind, shortest=2.5)
    polygons = line(noise.field("polygons", 14, slope=0, shortest=9), 1.2)  # rims of ice-wedge polygons
    depth = 0.95 - 0.22 * relief + 0.45 * sastrugi - 0.55 * polygons - 0.12 * season
    depth -= 0.62 * noise.field("exposed", 180, slope=2.8)
    depth += 0.11 * noise.evolving("melt", day, 200, 90, slope=2.6)
    sastrugi += 0.3 * noise.evolving("drift", day, 360, 60, slope=2.6, stretch=4, angle=wind)
    bright = 0.85 - 0.02 * season + 0.02 * noise.evolving("fresh snow", day, 180, noise.size / 2, slope=3)
    bright += 0.012 * sastrugi + 0.028 * slope_light(0.8 * relief + 0.05 * sastrugi, azimuth)
    ground = Ground(
        brightness=bright.copy(),
        blue=np.zeros_like(bright),
        tundra=np.clip(0.92 * (1 - step(depth, -0.75, 0.85)) + 0.05 * polygons, 0, 1),
        water=np.zeros_like(bright),
        plants=1 + 0.16 * noise.field("plants", 60, slope=2) + 0.10 * noise.field("tussocks", 6, slope=0.5),
        season=season,
    )
    del relief, sastrugi, polygons, depth  # half a gigabyte each in a whole tile
    _add_lakes(noise, rng, ground, bright, wind)
    _add_river(noise, rng, ground, bright)
    if sea is not None:
        _freeze_sea(noise, noise if elevation is None else drifted(noise, day), ground, sea, bright, day, wind)
    if elevation is not None:
        ground.drifting = None if sea is None else _beyond_fast_ice(noise, sea) > 0
        height = _HILLS_M * noise.field("hills", 250, slope=5, shortest=20)
        height *= 1 if sea is None else 1 - step(sea, -0.12, 0)
        ground.direct, ground.skylight = light.on_slopes(height, elevation, azimuth), light.skylight(elevation)
    return ground


def drifted(noise: Noise, day: float) -> Noise:
    """The fields of ice that has drifted until this day, 2 to 20 km a day (Kwok et al. 2013, doi:10.1002/jgrc.20191).

    Speed and heading belong to the tile. When a sheet of ice has passed the whole tile, another one follows.
    """
    rng = noise.rng("drift")
    speed, heading = rng.uniform(*_DRIFT_KM) * 1000 / light.PIXEL_M, math.radians(rng.uniform(180, 360))
    sheet, passed = divmod(speed * day, noise.size)
    offset = round(-passed * math.cos(heading)), round(passed * math.sin(heading))
    return Noise(f"{noise.key}/ice {sheet:.0f}", noise.size, offset)


def _sea_level(noise: Noise, rng: np.random.Generator) -> np.ndarray | None:
    """Height of the sea's side of the coast line (positive at sea), or None for an inland tile."""
    share = rng.choice([0, 0, 0.2, 0.35, 0.5])
    heading = rng.uniform(-0.6, 0.6)
    if not share:
        return None
    away = (noise.col * math.sin(heading) - noise.row * math.cos(heading)) / noise.size
    away = away + 0.07 * noise.field("coast", noise.size / 2, slope=3.4)
    return (away - np.quantile(away[::4, ::4], 1 - share)).astype(np.float32)


def _add_lakes(noise: Noise, rng: np.random.Generator, ground: Ground, bright: np.ndarray, wind: float) -> None:
    """Frozen thaw lakes: bare ice, dark or bright, with cracks, and tongues of blown snow."""
    lake, ice, rim = _lakes(noise, rng, wind)
    ice += 0.02 * noise.field("ice", 90, slope=3)
    ice -= 0.07 * line(noise.field("cracks", 70, slope=2.2, shortest=4), 0.6)
    blown = step(noise.field("blown", 45, slope=2.4, stretch=3, angle=wind), -0.4, 1.1)
    ice += blown * 0.7 * (bright - ice)
    ground.brightness += lake * (ice - ground.brightness) + rim
    ground.blue += lake * step(0.8 - ice, 0, 0.4)
    ground.tundra *= 1 - lake


def _lakes(noise: Noise, rng: np.random.Generator, wind: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Oriented thaw lakes: fraction, brightness of their ice, and brightness that snow drifts add at the shore."""
    size = noise.size
    lake, ice, rim = (np.zeros((size, size), np.float32) for _ in range(3))
    ragged = 0.10 * noise.field("shore", 80, slope=3.4, shortest=9)
    for _ in range(rng.poisson((size / 125) ** 2) + 2):
        length = float(np.clip(np.exp(rng.normal(3.1, 0.75)), 6, 130))
        width = length / rng.uniform(1.5, 2.6)
        angle, row, col = rng.normal(math.radians(80), 0.1), *rng.uniform(0, size, 2)
        level = rng.choice([rng.uniform(0.74, 0.84), rng.uniform(0.42, 0.7)])
        reach = int(1.5 * length) + 2
        box = np.s_[max(0, int(row) - reach) : int(row) + reach, max(0, int(col) - reach) : int(col) + reach]
        y, x = noise.row[box[0]] - row, noise.col[:, box[1]] - col
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        radius = (np.abs(along / length) ** 2.4 + np.abs(across / width) ** 2.4) ** (1 / 2.4) + ragged[box]
        inside = step(1 - radius, -1.2 / width, 1.2 / width)
        new = inside > lake[box]
        lake[box][new], ice[box][new] = inside[new], level
        lee = (x * math.cos(wind) + y * math.sin(wind)) / length
        rim[box] += 0.07 * lee * np.exp(-(((radius - 1) * width / 2.5) ** 2))
    return lake, ice, np.clip(rim, -0.12, 0.06)


def _add_river(noise: Noise, rng: np.random.Generator, ground: Ground, bright: np.ndarray) -> None:
    """A braided, meandering river that runs north: snow on ice, blue where it has overflowed, bare banks."""
    heading, place = rng.uniform(-0.5, 0.5), rng.uniform(0.15, 0.85)
    across = noise.col * math.cos(heading) + noise.row * math.sin(heading) - place * noise.size
    across = across + 45 * noise.field("bends", 320, slope=4, shortest=60)
    across += 9 * noise.field("meanders", 90, slope=4, shortest=30)
    width = 5 + 2.5 * noise.field("width", 150, slope=3)
    edge = np.minimum(  # distance from the water's edge of the main arm or the side arm, negative inside
        np.abs(across) - width,
        np.abs(across + 9 + 7 * noise.field("braid", 110, slope=4, shortest=35)) - 0.35 * width,
    )
    river = step(-edge, -0.8, 0.8)
    overflow = step(noise.field("overflow", 50, slope=2.4), 0.3, 1.2)
    ground.brightness += river * (bright + 0.01 - 0.22 * overflow - ground.brightness)
    ground.blue += river * (overflow - ground.blue)
    ground.tundra = np.maximum(ground.tundra, 0.5 * np.exp(-(((edge - 1.5) / 1.5) ** 2))) * (1 - river)


def _freeze_sea(
    noise: Noise, ice: Noise, ground: Ground, sea: np.ndarray, bright: np.ndarray, day: float, wind: float
) -> None:
    """Replace the land beyond the coast by landfast ice with ridges and, farther out, by floes and leads."""
    snow = bright if ice is noise else bright.mean() + 0.012 * ice.field("sastrugi", 26, slope=2.6)
    pack = snow - 0.06 + 0.02 * ice.field("floe snow", 20, slope=2)
    leads = np.zeros_like(bright)
    for name, longest, width, floe in (
        ("large", 260, 5, 0.035),
        ("middle", 110, 2.2, 0.03),
        ("small", 45, 0.8, 0.02),
    ):
        opening = width * (1 + 0.8 * ice.evolving(name + " opening", day, 300, 200))
        shape = {"slope": 3.6, "stretch": 1.8, "angle": wind + 0.7, "shortest": longest / 9}
        field = ice.evolving(name, day, 4500, longest, **shape)
        lines = line(field, opening)
        pack += floe * np.sign(field) * (1 - lines)  # each side of a crack is a floe of its own brightness
        leads = np.maximum(leads, lines * (0.45 if name == "small" else 1))
    thin = step(ice.field("thin ice", 140), 0.2, 1.4)  # leads that have frozen over are grey
    pack += leads * thin * (0.38 - pack)
    ridges = line(noise.field("ridges", 40, slope=2.2, shortest=5), 0.8) * step(noise.field("ridged", 150), -0.3, 1.2)
    fast = bright - 0.03 + 0.05 * ridges * np.sign(noise.field("blocks", 8, slope=1))
    drifting = _beyond_fast_ice(noise, sea)
    offshore = step(sea, 0, 2.5 / noise.size)
    leads *= drifting
    ground.brightness += offshore * (fast + drifting * (pack - fast) - ground.brightness)
    ground.blue += offshore * (leads * thin * 0.5 - ground.blue)
    ground.water += offshore * leads * (1 - thin)
    ground.tundra *= 1 - offshore


def _beyond_fast_ice(noise: Noise, sea: np.ndarray) -> np.ndarray:
    return step(sea + 0.03 * noise.field("shear", 120), 0.10, 0.115)
