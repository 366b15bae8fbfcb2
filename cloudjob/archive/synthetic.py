"""Synthetic acquisitions of the North Slope of Alaska, February to April, and the same clouds over real ground.

All texture is spectral synthesis: white noise shaped in the Fourier domain, thresholded and combined. The ground
depends on seed, tile and size alone, so every date of a tile shows the same place; a date adds season and weather.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from cloudjob.archive import weather
from cloudjob.archive.fields import Noise
from cloudjob.archive.ground import Ground, make_ground
from cloudjob.archive.light import noise_deviation
from cloudjob.archive.safe import pool
from cloudjob.archive.sky import VISIBLE, Sky, make_sky
from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.geometry import sun_position, tile_centre
from cloudjob.sentinel2.radiometry import digital_number, reflectance

NOISE = 0.003  # standard deviation of the sensor noise at reflectance 0.5
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
_B11 = 4  # its index in the tables
_SHADED = 0.1  # of the sun's light on flat ground: less is terrain shadow


@dataclass(frozen=True)
class Acquisition:
    """One overpass. `bands` (4,H,W) uint16 DN as the sensor sees them; `truth` the same without clouds and noise;
    `scl`, `cloud_probability`, `snow_probability` (ceil(H/2), ceil(W/2)) uint8, the probabilities in percent; `b11`
    (ceil(H/6), ceil(W/6)) uint16 DN as the sensor sees it, and `b11_20m` (ceil(H/2), ceil(W/2)), whose 9 pixels it is
    the mean of, or None if unknown; `above` (2,H,W) uint8: percent of the
    ground's light that clouds take away, and percent of the deepest shadow; `sensed` the truth with the sensor's noise,
    where that is kept; `drifting` (H,W) bool where sea ice drifts, if any does."""

    bands: np.ndarray
    truth: np.ndarray
    scl: np.ndarray
    cloud_probability: np.ndarray
    snow_probability: np.ndarray
    b11: np.ndarray | None
    above: np.ndarray
    sensed: np.ndarray | None = None
    drifting: np.ndarray | None = None
    b11_20m: np.ndarray | None = None


def acquire(
    *, tile: str, when: datetime, size: int, seed: int, cloud: float, other_weather: bool = False
) -> Acquisition:
    """What Sentinel-2 would have seen of `size` x `size` pixels of the tile at the (aware) time `when`.

    `cloud` is the wanted fraction of the scene-classification classes 8, 9 and 10; 0 makes a clear acquisition.
    `other_weather` makes what training does not show: other clouds and errors of the classification (`weather`), hills
    and drifting ice (`ground`), noise that grows as the sun sinks (`light`).
    Takes 0.4 s at 512 pixels, other weather 0.5 s; a whole tile of 10980 takes minutes and 10 GB of memory.
    """
    elevation, azimuth = sun_position(when, *tile_centre(tile))
    place, day = Noise(f"{seed}/{tile}", size), (when - EPOCH).total_seconds() / 86400
    ground = make_ground(place, day, azimuth, elevation=elevation if other_weather else None)
    noise = Noise(f"{seed}/{tile}/{when.isoformat()}", size)
    sky = (weather.make_sky if other_weather else make_sky)(noise, cloud, elevation, azimuth)

    def deviation(light: np.ndarray) -> np.ndarray:
        return noise_deviation(light, elevation) if other_weather else _usual_deviation(light)

    bands, truth, sensed = np.empty((3, 4, size, size), np.uint16)
    for band in range(4):
        light = ground.reflectance(band)
        sensor = noise.rng(f"sensor {band}").standard_normal(light.shape, np.float32)
        truth[band] = digital_number(light)
        if other_weather:
            sensed[band] = digital_number(light + sensor * deviation(light))
        light = sky.seen(light, band)
        bands[band] = digital_number(light + sensor * deviation(light))
    b11 = sky.pooled(6).seen(ground.pooled(6).reflectance(_B11), _B11)
    sensor = noise.rng("sensor B11").standard_normal(b11.shape, np.float32)
    b11 += (deviation(b11) if other_weather else NOISE) / 3 * sensor  # of the 9 pixels of 20 m
    fine = sky.pooled(2).seen(ground.pooled(2).reflectance(_B11), _B11)
    sensor = noise.rng("sensor B11 20 m").standard_normal(fine.shape, np.float32)
    fine += (deviation(fine) if other_weather else NOISE) * sensor
    fine += masks.upsampled(b11 - pool(fine, 3, np.mean), 3, fine.shape)
    classes, snow = _ground_classes(ground)
    found = _masks(sky, classes, snow)
    if other_weather:
        found = weather.misread(noise, found, classes)
    return Acquisition(
        bands,
        truth,
        **found,
        b11=digital_number(b11),
        above=sky.above(),
        sensed=sensed if other_weather else None,
        drifting=ground.drifting,
        b11_20m=digital_number(fine),
    )


def overcast(
    ground: np.ndarray, classes: np.ndarray, *, key: str, cloud: float, sun: tuple[float, float]
) -> Acquisition:
    """What Sentinel-2 would have seen of real ground (4, H, W) uint16 DN through synthetic clouds drawn from `key`.

    `classes` (ceil(H/2), ceil(W/2)) uint8 is the ground's scene classification, 0 where there are no data; `cloud` the
    wanted fraction of the classes 8, 9 and 10; `sun` its elevation and azimuth in degrees. Pixels without cloud or
    shadow stay unchanged, as they have their noise already; the others get noise in proportion to the opacity.
    """
    shape = ground.shape[1:]
    noise = Noise(key, max(shape))
    sky = make_sky(noise, cloud, *sun, shape).cut(shape)
    touched, bands = np.maximum.reduce([sky.thick, sky.cirrus, sky.shadow]), np.empty_like(ground)
    for band, dn in enumerate(ground):
        light = sky.seen(reflectance(dn), band)
        sensor = noise.rng(f"sensor {band}").standard_normal(shape, np.float32)
        bands[band] = digital_number(light + touched * sensor * _usual_deviation(light))
    return Acquisition(
        bands,
        ground,
        **_masks(sky, classes, (classes == masks.SCL_SNOW).astype(np.float32)),
        b11=None,
        above=sky.above(),
    )


def _usual_deviation(light: np.ndarray) -> np.ndarray:
    return NOISE * (0.6 + 0.8 * light)


def _ground_classes(ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Sen2Cor's classes of the ground, and the fraction of snow, at 20 m."""
    snow = pool(1 - np.maximum(ground.tundra, ground.water), 2, np.mean)
    water = pool(ground.water, 2, np.mean)
    ground_classes = [masks.SCL_WATER, masks.SCL_DARK, masks.SCL_SNOW]
    classes = np.select([water > 0.6, water > 0.3, snow > 0.4], ground_classes, default=masks.SCL_BARE)
    if ground.direct is not None:
        classes[pool(ground.direct, 2, np.mean) < _SHADED] = masks.SCL_DARK
    return classes, snow


def _masks(sky: Sky, classes: np.ndarray, snow: np.ndarray) -> dict[str, np.ndarray]:
    """The masks of an acquisition on the 20 m grid; `classes` are Sen2Cor's of the ground, `snow` its snow fraction."""
    opacity = pool(np.maximum(sky.thick, sky.cirrus), 2, np.mean)
    return {
        "scl": _scene_classification(sky, classes),
        "cloud_probability": np.rint(100 * opacity**0.6).astype(np.uint8),
        "snow_probability": np.rint(100 * snow * (1 - opacity)).astype(np.uint8),
    }


def _scene_classification(sky: Sky, classes: np.ndarray) -> np.ndarray:
    """Sen2Cor's classes of the scene; `classes` are those of the ground below the clouds."""
    scl = classes.copy()
    scl[pool(sky.shadow, 2, np.max) > VISIBLE] = masks.SCL_SHADOW
    scl[pool(sky.cirrus, 2, np.max) > VISIBLE] = masks.SCL_CIRRUS
    scl[pool(sky.thick, 2, np.max) > VISIBLE] = masks.SCL_MEDIUM
    scl[pool(sky.thick, 2, np.mean) > 0.6] = masks.SCL_HIGH
    scl[classes == masks.SCL_NO_DATA] = masks.SCL_NO_DATA
    return scl.astype(np.uint8)
