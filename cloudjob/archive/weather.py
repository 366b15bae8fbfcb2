"""Another weather than the one that networks are trained under: other clouds, and a scene classification that errs.

Training lays white clouds with near, grey-blue shadows over the ground (`diffusion.clouds`), and `sky` makes such ones.
A score on those alone would praise a network for having learned their law. Here there are two decks of cloud, with
tops of two brightnesses, edges sharper or softer than theirs, and shadows by the geometry of the sun.
"""

import math

import numpy as np
from scipy import ndimage

from cloudjob.archive import light
from cloudjob.archive.fields import Noise, slope_light
from cloudjob.archive.safe import pool
from cloudjob.archive.sky import VISIBLE, Colours, Sky, opacity_of
from cloudjob.sentinel2 import masks

# Water clouds are yellowish: Level-2A subtracts the blue of the air below them too, which they hide. Ice absorbs at
# 1.6 um (Dozier 1989), so that B11 tells high clouds less well from snow.
_WATER, _ICE, _CIRRUS = (1.0, 0.97, 0.93, 1.06, 0.62), (1.0, 0.985, 0.96, 1.01, 0.26), (0.46, 0.455, 0.45, 0.48, 0.12)
LOW_M, HIGH_M = (200, 1500), (3000, 6500)  # bases: most Arctic cloud is low (Shupe 2011, doi:10.1175/2010JAMC2467.1)
_LOW_TOP, _HIGH_TOP = (0.42, 0.58), (0.80, 0.95)  # their reflectance in B04

# How often the scene classification errs. Sen2Cor confuses snow with cloud and misses shadows (Zekoll et al. 2021,
# doi:10.3390/rs13010137); how often depends on the scene, and these are our own choice of a bad day.
SNOW_AS_CLOUD = 0.03  # of snow without cloud
CLOUD_AS_SNOW = 0.10  # of cloud and cirrus
SHADOW_MISSED = 0.30  # of shadow


def make_sky(noise: Noise, cloud: float, elevation: float, azimuth: float) -> Sky:
    """The sky over a scene; `cloud` is its fraction of visible cloud, of both decks and of cirrus."""
    if cloud <= 0:
        return Sky.clear(noise.size)
    rng = noise.rng("weather")
    veiled, lowest = rng.uniform(0.1, 0.3), rng.uniform(0.25, 0.75)  # of the cloud: cirrus; of the rest: the low deck
    low = _low_deck(noise, rng, cloud * (1 - veiled) * lowest)
    high = _high_deck(noise, rng, low, cloud * (1 - veiled))
    thick = 1 - (1 - low) * (1 - high)
    veil = 0.4 * _above(thick, _streaks(noise, rng), 1.2, cloud, weight=0.4)
    bases = rng.uniform(*LOW_M), rng.uniform(*HIGH_M)
    to_low, to_high = (cast(deck, base, elevation, azimuth) for deck, base in zip((low, high), bases, strict=True))
    on_low = cast(high, bases[1] - bases[0], elevation, azimuth)
    low_top = rng.uniform(*_LOW_TOP) + 0.06 * low + 0.03 * slope_light(ndimage.gaussian_filter(low, 2), azimuth)
    low_top *= 1 - 0.35 * on_low
    high_top = rng.uniform(*_HIGH_TOP) + 0.02 * noise.field("high tops", 90, slope=2.6)
    ice = high / np.maximum(thick, 1e-6)  # of the light that comes from cloud
    return Sky(
        thick,
        veil,
        1 - (1 - to_low) * (1 - to_high),
        low_top + ice * (high_top - low_top),
        ice,
        Colours(_WATER, _ICE, _CIRRUS, shadow=tuple(1 - share for share in light.skylight(elevation))),
    )


def _low_deck(noise: Noise, rng: np.random.Generator, fraction: float) -> np.ndarray:
    """Opacity of cumulus with hard edges, or of stratus and fog, which fade over a kilometre."""
    if rng.uniform() < 0.5:
        field = noise.field("cumulus heaps", rng.uniform(25, 60), slope=3.4, shortest=3)
        return _above(np.zeros_like(field), field, rng.uniform(12, 25), fraction)
    field = noise.field("fog", min(noise.size / 1.5, 600), slope=4.2)
    return _above(np.zeros_like(field), field, rng.uniform(0.9, 1.5), fraction)


def _high_deck(noise: Noise, rng: np.random.Generator, low: np.ndarray, fraction: float) -> np.ndarray:
    """Opacity of drawn-out altocumulus or altostratus, so that with the low deck this fraction is visible cloud."""
    longest, angle = rng.uniform(90, 260), rng.uniform(0, math.pi)
    field = noise.field("high deck", longest, slope=3.1, stretch=2.5, angle=angle)
    return _above(low, field, math.exp(rng.uniform(0.2, 2.1)), fraction)


def _above(below: np.ndarray, field: np.ndarray, density: float, fraction: float, *, weight: float = 1) -> np.ndarray:
    """`opacity_of` a field such that, with what lies below, this fraction of the scene is visible cloud."""
    free = pool(below, 2, np.max) <= VISIBLE
    return opacity_of(field, density, (fraction - 1 + free.mean()) / max(free.mean(), 1e-9), free, weight)


def _streaks(noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """Fibres of cirrus, and above them up to three contrails."""
    field = noise.field("fibres", 120, slope=2.2, stretch=9, angle=rng.uniform(0, math.pi), shortest=4)
    for _ in range(rng.integers(4)):
        angle, width = rng.uniform(0, math.pi), rng.uniform(2, 6)
        away = noise.col * math.sin(angle) - noise.row * math.cos(angle) - rng.uniform(-0.5, 0.5) * noise.size
        field += 2.5 * np.exp(-((away / width) ** 2))
    return field


def cast(deck: np.ndarray, height: float, elevation: float, azimuth: float) -> np.ndarray:
    """The shadow of a deck `height` metres above: displaced by height over the tangent of the sun's elevation, blurred
    by the sun's disc. What leaves at one edge comes in at the other, as from a like cloud beyond."""
    rows, cols = light.shadow_offset(height, elevation, azimuth)
    moved = np.roll(deck, (round(rows), round(cols)), (0, 1))
    penumbra = light.SUN_RAD * height / math.sin(math.radians(elevation)) / light.PIXEL_M
    return ndimage.gaussian_filter(moved, penumbra / 4, mode="wrap")  # a disc's deviation along a line is 1/4 of it


def misread(noise: Noise, found: dict[str, np.ndarray], ground: np.ndarray) -> dict[str, np.ndarray]:
    """The masks of an acquisition (`scl`, `cloud_probability`, `snow_probability`, at 20 m) with the errors that the
    classification makes, in patches of some 200 m; `ground` are the classes below the clouds."""
    scl, cloud, snow = (found[name].copy() for name in ("scl", "cloud_probability", "snow_probability"))
    fields = Noise(f"{noise.key}/misread", max(scl.shape))
    doubt = fields.field("doubt", 14, slope=2.6)

    def patches(among: np.ndarray, share: float) -> np.ndarray:
        return among & (doubt > np.quantile(doubt[among], 1 - share)) if among.any() else among

    snowy = patches(scl == masks.SCL_SNOW, SNOW_AS_CLOUD)
    cloudy = patches(masks.any_of(scl, *masks.SCL_CLOUDS), CLOUD_AS_SNOW)
    missed = patches(scl == masks.SCL_SHADOW, SHADOW_MISSED)
    scl[snowy] = np.where(patches(snowy, 0.3), masks.SCL_HIGH, masks.SCL_MEDIUM)[snowy]
    cloud[snowy] = 40 + 50 * fields.rng("probability").random(np.count_nonzero(snowy))
    scl[cloudy], cloud[cloudy] = masks.SCL_SNOW, cloud[cloudy] // 4
    scl[missed] = ground[missed]
    changed = snowy | cloudy
    snow[changed] = 100 - cloud[changed]
    return {"scl": scl, "cloud_probability": cloud, "snow_probability": snow}
