"""Synthetic acquisitions of the North Slope of Alaska, February to April, and the same clouds over real ground.

All texture is spectral synthesis: white noise shaped in the Fourier domain, thresholded and combined. The ground
depends on seed, tile and size alone, so every date of a tile shows the same place; a date adds season and weather.
"""

import hashlib
import math
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from scipy import fft, ndimage

from cloudjob.archive.safe import pool
from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.geometry import sun_position, tile_centre
from cloudjob.sentinel2.radiometry import digital_number, reflectance

# Reflectance in B04, B03, B02, B08, B11 (factors on the brightness for snow, ice and clouds).
SNOW = (0.995, 1.0, 1.0, 0.93, 0.095)
BLUE_ICE = (0.82, 0.94, 1.0, 0.66, 0.03)
TUNDRA = (0.20, 0.165, 0.13, 0.28, 0.22)
WATER = (0.05, 0.06, 0.075, 0.035, 0.02)
CLOUD = (1.0, 1.0, 1.01, 0.96, 0.5)
SHADOW = (0.55, 0.52, 0.47, 0.60, 0.66)  # light lost below an opaque cloud: the sky still lights the ground in blue

VISIBLE = 0.006  # opacity from which a pixel counts as cloud, cirrus or shadow: less is lost in the noise
NOISE = 0.003  # standard deviation of the sensor noise at reflectance 0.5
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
_B11 = 4  # its index in the tables


@dataclass(frozen=True)
class Acquisition:
    """One overpass. `bands` (4,H,W) uint16 DN as the sensor sees them; `truth` the same without clouds and noise;
    `scl`, `cloud_probability`, `snow_probability` (ceil(H/2), ceil(W/2)) uint8, the probabilities in percent; `b11`
    (ceil(H/6), ceil(W/6)) uint16 DN as the sensor sees it, or None if unknown; `above` (2,H,W) uint8: percent of the
    ground's light that clouds take away, and percent of the deepest shadow."""

    bands: np.ndarray
    truth: np.ndarray
    scl: np.ndarray
    cloud_probability: np.ndarray
    snow_probability: np.ndarray
    b11: np.ndarray | None
    above: np.ndarray


def acquire(*, tile: str, when: datetime, size: int, seed: int, cloud: float) -> Acquisition:
    """What Sentinel-2 would have seen of `size` x `size` pixels of the tile at the (aware) time `when`.

    `cloud` is the wanted fraction of the scene-classification classes 8, 9 and 10; 0 makes a clear acquisition.
    Takes 0.3 s at 512 pixels; a whole tile of 10980 takes minutes and 10 GB of memory.
    """
    elevation, azimuth = sun_position(when, *tile_centre(tile))
    ground = _ground(_Noise(f"{seed}/{tile}", size), (when - EPOCH).total_seconds() / 86400, azimuth)
    noise = _Noise(f"{seed}/{tile}/{when.isoformat()}", size)
    sky = _sky(noise, cloud, elevation, azimuth)
    bands, truth = np.empty((2, 4, size, size), np.uint16)
    for band in range(4):
        light = ground.reflectance(band)
        truth[band] = digital_number(light)
        light = sky.seen(light, band)
        sensor = noise.rng(f"sensor {band}").standard_normal(light.shape, np.float32)
        bands[band] = digital_number(light + sensor * (NOISE * (0.6 + 0.8 * light)))
    b11 = sky.pooled(6).seen(ground.pooled(6).reflectance(_B11), _B11)
    b11 += NOISE / 3 * noise.rng("sensor B11").standard_normal(b11.shape, np.float32)  # of the 9 pixels of 20 m
    snow = pool(1 - np.maximum(ground.tundra, ground.water), 2, np.mean)
    water = pool(ground.water, 2, np.mean)
    ground_classes = [masks.SCL_WATER, masks.SCL_DARK, masks.SCL_SNOW]
    classes = np.select([water > 0.6, water > 0.3, snow > 0.4], ground_classes, default=masks.SCL_BARE)
    return Acquisition(bands, truth, **_masks(sky, classes, snow), b11=digital_number(b11), above=sky.above())


def overcast(
    ground: np.ndarray, classes: np.ndarray, *, key: str, cloud: float, sun: tuple[float, float]
) -> Acquisition:
    """What Sentinel-2 would have seen of real ground (4, H, W) uint16 DN through synthetic clouds drawn from `key`.

    `classes` (ceil(H/2), ceil(W/2)) uint8 is the ground's scene classification, 0 where there are no data; `cloud` the
    wanted fraction of the classes 8, 9 and 10; `sun` its elevation and azimuth in degrees. Pixels without cloud or
    shadow stay unchanged, as they have their noise already; the others get noise in proportion to the opacity.
    """
    shape = ground.shape[1:]
    noise = _Noise(key, max(shape))
    sky = _sky(noise, cloud, *sun, shape).cut(shape)
    touched, bands = np.maximum.reduce([sky.thick, sky.cirrus, sky.shadow]), np.empty_like(ground)
    for band, dn in enumerate(ground):
        light = sky.seen(reflectance(dn), band)
        sensor = noise.rng(f"sensor {band}").standard_normal(shape, np.float32)
        bands[band] = digital_number(light + touched * sensor * (NOISE * (0.6 + 0.8 * light)))
    return Acquisition(
        bands,
        ground,
        **_masks(sky, classes, (classes == masks.SCL_SNOW).astype(np.float32)),
        b11=None,
        above=sky.above(),
    )


@dataclass
class _Ground:
    """The surface, all (H, W) float32: brightness of snow and ice, blueness of the ice, fractions of bare tundra and
    open water, brightness of the tundra; and the progress of the season (0 mid-February, 1 mid-April)."""

    brightness: np.ndarray
    blue: np.ndarray
    tundra: np.ndarray
    water: np.ndarray
    plants: np.ndarray
    season: float

    def reflectance(self, band: int) -> np.ndarray:
        snow = SNOW[band] - (0.035 * self.season if band == 3 else 0)  # coarser grains darken old snow in B08
        out = self.brightness * (snow + self.blue * (BLUE_ICE[band] - snow))
        out += self.tundra * (TUNDRA[band] * self.plants - out)
        out += self.water * (WATER[band] - out)
        return out

    def pooled(self, factor: int) -> "_Ground":
        fields = (self.brightness, self.blue, self.tundra, self.water, self.plants)
        brightness, blue, tundra, water, plants = (pool(field, factor, np.mean) for field in fields)
        return _Ground(brightness, blue, tundra, water, plants, self.season)


@dataclass
class _Sky:
    """Opacity of thick clouds and of cirrus, depth of shadow, reflectance of the cloud tops, all (H, W) float32."""

    thick: np.ndarray
    cirrus: np.ndarray
    shadow: np.ndarray
    tops: np.ndarray

    def seen(self, light: np.ndarray, band: int) -> np.ndarray:
        """The reflectance at the sensor of ground of reflectance `light` below these clouds."""
        light = light * (1 - SHADOW[band] * self.shadow)
        light += self.cirrus * (0.55 * CLOUD[band] - light)
        light += self.thick * (self.tops * CLOUD[band] - light)
        return light

    def above(self) -> np.ndarray:
        opacity = 1 - (1 - self.thick) * (1 - self.cirrus)
        return np.rint(100 * np.stack([opacity, self.shadow])).astype(np.uint8)

    def pooled(self, factor: int) -> "_Sky":
        fields = (self.thick, self.cirrus, self.shadow, self.tops)
        return _Sky(*(pool(field, factor, np.mean) for field in fields))

    def cut(self, shape: tuple[int, int]) -> "_Sky":
        fields = (self.thick, self.cirrus, self.shadow, self.tops)
        return _Sky(*(field[: shape[0], : shape[1]] for field in fields))


class _Noise:
    """Random numbers and fields by key and name: the same name gives the same field, whatever was drawn before."""

    def __init__(self, key: str, size: int):
        self.key, self.size = key, size
        self.row, self.col = np.ogrid[0:size, 0:size]  # small: they broadcast
        self.row, self.col = self.row.astype(np.float32), self.col.astype(np.float32)

    def rng(self, name: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.key}/{name}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "big"))

    def field(
        self,
        name: str,
        longest: float,
        *,
        slope: float = 3.0,
        shortest: float = 2.0,
        stretch: float = 1.0,
        angle: float = 0.0,
    ) -> np.ndarray:
        """(size, size) float32, mean 0, standard deviation 1, power ~ frequency**-slope from `shortest` to `longest`
        wavelength (pixels); `stretch` times longer along `angle` (radians, columns to rows). Wraps at the edges."""
        rng, shape = self.rng(name), (self.size, self.size // 2 + 1)
        row = fft.fftfreq(self.size)[:, None].astype(np.float32)
        col = fft.rfftfreq(self.size)[None].astype(np.float32)
        along = (col * math.cos(angle) + row * math.sin(angle)) * stretch
        squared = along**2 + (row * math.cos(angle) - col * math.sin(angle)) ** 2
        amplitude = (squared + np.float32(longest**-2)) ** np.float32(-slope / 4)
        amplitude *= np.exp(-squared * np.float32((shortest / 2) ** 2 * 2))
        spectrum = np.empty(shape, np.complex64)
        spectrum.real = rng.standard_normal(shape, np.float32)
        spectrum.imag = rng.standard_normal(shape, np.float32)
        spectrum *= amplitude
        spectrum[0, 0] = 0
        out = fft.irfft2(spectrum, s=(self.size, self.size), overwrite_x=True)
        out /= out.std()
        return out

    def evolving(self, name: str, day: float, period: float, longest: float, **shape: float) -> np.ndarray:
        """A field that turns into another one and back in `period` days, at constant variance."""
        turn = 2 * math.pi * day / period
        out = math.cos(turn) * self.field(name + "a", longest, **shape)
        out += math.sin(turn) * self.field(name + "b", longest, **shape)
        return out


def _step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    x = np.clip((x - low) / (high - low), 0, 1)
    return x * x * (3 - 2 * x)


def _slope_light(height: np.ndarray, azimuth: float) -> np.ndarray:
    """Slope towards the sun, standard deviation 1: positive faces are lit, negative ones lie in shade."""
    east, south = math.sin(math.radians(azimuth)), -math.cos(math.radians(azimuth))
    light = -(np.gradient(height, axis=1) * np.float32(east) + np.gradient(height, axis=0) * np.float32(south))
    return np.clip(light / light.std(), -3, 3)


def _line(field: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """1 on the zero line of a field, falling to 0 at half of `width` pixels (plus one pixel of blur)."""
    steepness = np.hypot(np.gradient(field, axis=0), np.gradient(field, axis=1)) + 1e-4
    return np.clip(0.5 + 0.5 * width - np.abs(field) / steepness, 0, 1)


def _ground(noise: _Noise, day: float, azimuth: float) -> _Ground:
    """The ground on a day (days since 2020), lit from `azimuth` degrees."""
    rng = noise.rng("place")
    season = (day % 365.25 - 45) / 60
    wind = math.radians(rng.uniform(-35, -15))  # east-north-east: drifts lie along it
    sea = _sea_level(noise, rng)
    relief = noise.field("relief", 300, slope=3.2)
    sastrugi = noise.field("sastrugi", 26, slope=2.6, stretch=5, angle=wind, shortest=2.5)
    polygons = _line(noise.field("polygons", 14, slope=0, shortest=9), 1.2)  # rims of ice-wedge polygons
    depth = 0.95 - 0.22 * relief + 0.45 * sastrugi - 0.55 * polygons - 0.12 * season
    depth -= 0.62 * noise.field("exposed", 180, slope=2.8)
    depth += 0.11 * noise.evolving("melt", day, 200, 90, slope=2.6)
    sastrugi += 0.3 * noise.evolving("drift", day, 360, 60, slope=2.6, stretch=4, angle=wind)
    bright = 0.85 - 0.02 * season + 0.02 * noise.evolving("fresh snow", day, 180, noise.size / 2, slope=3)
    bright += 0.012 * sastrugi + 0.028 * _slope_light(0.8 * relief + 0.05 * sastrugi, azimuth)
    ground = _Ground(
        brightness=bright.copy(),
        blue=np.zeros_like(bright),
        tundra=np.clip(0.92 * (1 - _step(depth, -0.75, 0.85)) + 0.05 * polygons, 0, 1),
        water=np.zeros_like(bright),
        plants=1 + 0.16 * noise.field("plants", 60, slope=2) + 0.10 * noise.field("tussocks", 6, slope=0.5),
        season=season,
    )
    del relief, sastrugi, polygons, depth  # half a gigabyte each in a whole tile
    _add_lakes(noise, rng, ground, bright, wind)
    _add_river(noise, rng, ground, bright)
    if sea is not None:
        _freeze_sea(noise, ground, sea, bright, day, wind)
    return ground


def _sea_level(noise: _Noise, rng: np.random.Generator) -> np.ndarray | None:
    """Height of the sea's side of the coast line (positive at sea), or None for an inland tile."""
    share = rng.choice([0, 0, 0.2, 0.35, 0.5])
    heading = rng.uniform(-0.6, 0.6)
    if not share:
        return None
    away = (noise.col * math.sin(heading) - noise.row * math.cos(heading)) / noise.size
    away = away + 0.07 * noise.field("coast", noise.size / 2, slope=3.4)
    return (away - np.quantile(away[::4, ::4], 1 - share)).astype(np.float32)


def _add_lakes(noise: _Noise, rng: np.random.Generator, ground: _Ground, bright: np.ndarray, wind: float) -> None:
    """Frozen thaw lakes: bare ice, dark or bright, with cracks, and tongues of blown snow."""
    lake, ice, rim = _lakes(noise, rng, wind)
    ice += 0.02 * noise.field("ice", 90, slope=3)
    ice -= 0.07 * _line(noise.field("cracks", 70, slope=2.2, shortest=4), 0.6)
    blown = _step(noise.field("blown", 45, slope=2.4, stretch=3, angle=wind), -0.4, 1.1)
    ice += blown * 0.7 * (bright - ice)
    ground.brightness += lake * (ice - ground.brightness) + rim
    ground.blue += lake * _step(0.8 - ice, 0, 0.4)
    ground.tundra *= 1 - lake


def _lakes(noise: _Noise, rng: np.random.Generator, wind: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
        inside = _step(1 - radius, -1.2 / width, 1.2 / width)
        new = inside > lake[box]
        lake[box][new], ice[box][new] = inside[new], level
        lee = (x * math.cos(wind) + y * math.sin(wind)) / length
        rim[box] += 0.07 * lee * np.exp(-(((radius - 1) * width / 2.5) ** 2))
    return lake, ice, np.clip(rim, -0.12, 0.06)


def _add_river(noise: _Noise, rng: np.random.Generator, ground: _Ground, bright: np.ndarray) -> None:
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
    river = _step(-edge, -0.8, 0.8)
    overflow = _step(noise.field("overflow", 50, slope=2.4), 0.3, 1.2)
    ground.brightness += river * (bright + 0.01 - 0.22 * overflow - ground.brightness)
    ground.blue += river * (overflow - ground.blue)
    ground.tundra = np.maximum(ground.tundra, 0.5 * np.exp(-(((edge - 1.5) / 1.5) ** 2))) * (1 - river)


def _freeze_sea(noise: _Noise, ground: _Ground, sea: np.ndarray, bright: np.ndarray, day: float, wind: float) -> None:
    """Replace the land beyond the coast by landfast ice with ridges and, farther out, by floes and leads."""
    pack = bright - 0.06 + 0.02 * noise.field("floe snow", 20, slope=2)
    leads = np.zeros_like(bright)
    for name, longest, width, floe in (
        ("large", 260, 5, 0.035),
        ("middle", 110, 2.2, 0.03),
        ("small", 45, 0.8, 0.02),
    ):
        opening = width * (1 + 0.8 * noise.evolving(name + " opening", day, 300, 200))
        shape = {"slope": 3.6, "stretch": 1.8, "angle": wind + 0.7, "shortest": longest / 9}
        field = noise.evolving(name, day, 4500, longest, **shape)
        lines = _line(field, opening)
        pack += floe * np.sign(field) * (1 - lines)  # each side of a crack is a floe of its own brightness
        leads = np.maximum(leads, lines * (0.45 if name == "small" else 1))
    thin = _step(noise.field("thin ice", 140), 0.2, 1.4)  # leads that have frozen over are grey
    pack += leads * thin * (0.38 - pack)
    ridges = _line(noise.field("ridges", 40, slope=2.2, shortest=5), 0.8) * _step(noise.field("ridged", 150), -0.3, 1.2)
    fast = bright - 0.03 + 0.05 * ridges * np.sign(noise.field("blocks", 8, slope=1))
    drifting = _step(sea + 0.03 * noise.field("shear", 120), 0.10, 0.115)
    offshore = _step(sea, 0, 2.5 / noise.size)
    leads *= drifting
    ground.brightness += offshore * (fast + drifting * (pack - fast) - ground.brightness)
    ground.blue += offshore * (leads * thin * 0.5 - ground.blue)
    ground.water += offshore * leads * (1 - thin)
    ground.tundra *= 1 - offshore


def _sky(noise: _Noise, cloud: float, elevation: float, azimuth: float, shape: tuple[int, int] | None = None) -> _Sky:
    """The sky over a scene; `cloud` is the cloud fraction of its upper left `shape` (rows, columns), or of all."""
    if cloud <= 0:
        return _Sky(*np.zeros((4, noise.size, noise.size), np.float32))
    rng = noise.rng("sky")
    stratus = rng.uniform(0.3, 1.0)
    layer = stratus * noise.field("stratus", min(noise.size / 1.5, 600), slope=3.5)
    layer += (1.1 - stratus) * noise.field("cumulus", rng.uniform(50, 110), slope=3.3)
    layer += 0.12 * noise.field("wisps", 25, slope=2.4)
    share = rng.uniform(0.08, 0.3)  # of the cloud that is cirrus alone
    inside = np.zeros([-(-noise.size // 2)] * 2, bool)
    inside[tuple(slice(-(-length // 2)) for length in shape or 2 * [noise.size])] = True
    thick = _opacity(layer, rng.uniform(2.0, 4.0), cloud * (1 - share), inside)
    free = (pool(thick, 2, np.max) <= VISIBLE) & inside
    open_sky = free.sum() / inside.sum()
    veil = noise.field("cirrus", 160, slope=2.8, stretch=4, angle=rng.uniform(0, math.pi), shortest=4)
    cirrus = 0.5 * _opacity(veil, 0.8, (cloud - 1 + open_sky) / max(open_sky, 1e-9), free, 0.5)
    # A low sun throws shadows kilometres far; 35 pixels at most here, so that small scenes hold cloud and shadow.
    reach = np.clip(rng.uniform(400, 1500) / math.tan(math.radians(max(elevation, 5))) / 10, 6, 35)
    shift = (round(reach * math.cos(math.radians(azimuth))), -round(reach * math.sin(math.radians(azimuth))))
    tops = 0.66 + 0.24 * thick + 0.03 * noise.field("tops", 60, slope=2.6)
    tops += 0.05 * thick * _slope_light(ndimage.gaussian_filter(np.log1p(thick * 4), 2), azimuth)
    shadow = ndimage.uniform_filter(np.roll(thick, shift, (0, 1)), 3, mode="wrap")
    return _Sky(thick, cirrus, shadow, tops)


def _opacity(field: np.ndarray, density: float, fraction: float, among: np.ndarray, weight: float = 1) -> np.ndarray:
    """1 - exp(-density * excess) above the level that makes `fraction` of the 20 m pixels `among` visible cloud."""
    level = np.quantile(pool(field, 2, np.max)[among], 1 - np.clip(fraction, 0, 1)) if among.any() else field.max()
    level = float(level) + math.log(1 - VISIBLE / weight) / density
    return -np.expm1(-density * np.clip(field - level, 0, None))


def _masks(sky: _Sky, classes: np.ndarray, snow: np.ndarray) -> dict[str, np.ndarray]:
    """The masks of an acquisition on the 20 m grid; `classes` are Sen2Cor's of the ground, `snow` its snow fraction."""
    opacity = pool(np.maximum(sky.thick, sky.cirrus), 2, np.mean)
    return {
        "scl": _scene_classification(sky, classes),
        "cloud_probability": np.rint(100 * opacity**0.6).astype(np.uint8),
        "snow_probability": np.rint(100 * snow * (1 - opacity)).astype(np.uint8),
    }


def _scene_classification(sky: _Sky, classes: np.ndarray) -> np.ndarray:
    """Sen2Cor's classes of the scene; `classes` are those of the ground below the clouds."""
    scl = classes.copy()
    scl[pool(sky.shadow, 2, np.max) > VISIBLE] = masks.SCL_SHADOW
    scl[pool(sky.cirrus, 2, np.max) > VISIBLE] = masks.SCL_CIRRUS
    scl[pool(sky.thick, 2, np.max) > VISIBLE] = masks.SCL_MEDIUM
    scl[pool(sky.thick, 2, np.mean) > 0.6] = masks.SCL_HIGH
    scl[classes == masks.SCL_NO_DATA] = masks.SCL_NO_DATA
    return scl.astype(np.uint8)
