"""The sky over a synthetic tile: clouds, cirrus and shadows, and what a sensor sees through them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cloudjob.archive.fields import Noise, slope_light
from cloudjob.archive.safe import pool

VISIBLE = 0.006  # opacity from which a pixel counts as cloud, cirrus or shadow: less is lost in the noise


@dataclass(frozen=True)
class Colours:
    """By band (B04, B03, B02, B08, B11): factors on the brightness of a cloud's top, of water and of ice; reflectance
    of an opaque veil of cirrus; and the light that is lost below an opaque cloud."""

    cloud: tuple[float, ...]
    ice: tuple[float, ...]
    veil: tuple[float, ...]
    shadow: tuple[float, ...]


_CLOUD = (1.0, 1.0, 1.01, 0.96, 0.5)
SHADOW = (0.55, 0.52, 0.47, 0.60, 0.66)  # the sky still lights the ground in blue
WHITE = Colours(cloud=_CLOUD, ice=_CLOUD, veil=tuple(0.55 * each for each in _CLOUD), shadow=SHADOW)


@dataclass
class Sky:
    """Opacity of thick clouds and of cirrus, depth of shadow, reflectance of the cloud tops, all (H, W) float32; how
    much of a top is ice; the colours of all this."""

    thick: np.ndarray
    cirrus: np.ndarray
    shadow: np.ndarray
    tops: np.ndarray
    ice: np.ndarray | None = None
    colours: Colours = WHITE

    @classmethod
    def clear(cls, size: int) -> "Sky":
        return cls(*np.zeros((4, size, size), np.float32))

    def seen(self, light: np.ndarray, band: int) -> np.ndarray:
        """The reflectance at the sensor of ground of reflectance `light` below these clouds."""
        colour: float | np.ndarray = self.colours.cloud[band]
        if self.ice is not None:
            colour = colour + self.ice * (self.colours.ice[band] - colour)
        light = light * (1 - self.colours.shadow[band] * self.shadow)
        light += self.cirrus * (self.colours.veil[band] - light)
        light += self.thick * (self.tops * colour - light)
        return light

    def above(self) -> np.ndarray:
        opacity = 1 - (1 - self.thick) * (1 - self.cirrus)
        return np.rint(100 * np.stack([opacity, self.shadow])).astype(np.uint8)

    def pooled(self, factor: int) -> "Sky":
        return self._of(lambda field: pool(field, factor, np.mean))

    def cut(self, shape: tuple[int, int]) -> "Sky":
        return self._of(lambda field: field[: shape[0], : shape[1]])

    def _of(self, change: Callable[[np.ndarray], np.ndarray]) -> "Sky":
        thick, cirrus, shadow, tops = map(change, (self.thick, self.cirrus, self.shadow, self.tops))
        return Sky(thick, cirrus, shadow, tops, None if self.ice is None else change(self.ice), self.colours)


def make_sky(noise: Noise, cloud: float, elevation: float, azimuth: float, shape: tuple[int, int] | None = None) -> Sky:
    """The sky over a scene; `cloud` is the cloud fraction of its upper left `shape` (rows, columns), or of all."""
    if cloud <= 0:
        return Sky.clear(noise.size)
    rng = noise.rng("sky")
    stratus = rng.uniform(0.3, 1.0)
    layer = stratus * noise.field("stratus", min(noise.size / 1.5, 600), slope=3.5)
    layer += (1.1 - stratus) * noise.field("cumulus", rng.uniform(50, 110), slope=3.3)
    layer += 0.12 * noise.field("wisps", 25, slope=2.4)
    share = rng.uniform(0.08, 0.3)  # of the cloud that is cirrus alone
    inside = np.zeros([-(-noise.size // 2)] * 2, bool)
    inside[tuple(slice(-(-length // 2)) for length in shape or 2 * [noise.size])] = True
    thick = opacity_of(layer, rng.uniform(2.0, 4.0), cloud * (1 - share), inside)
    free = (pool(thick, 2, np.max) <= VISIBLE) & inside
    open_sky = free.sum() / inside.sum()
    veil = noise.field("cirrus", 160, slope=2.8, stretch=4, angle=rng.uniform(0, math.pi), shortest=4)
    cirrus = 0.5 * opacity_of(veil, 0.8, (cloud - 1 + open_sky) / max(open_sky, 1e-9), free, 0.5)
    # A low sun throws shadows kilometres far; 35 pixels at most here, so that small scenes hold cloud and shadow.
    reach = np.clip(rng.uniform(400, 1500) / math.tan(math.radians(max(elevation, 5))) / 10, 6, 35)
    shift = (round(reach * math.cos(math.radians(azimuth))), -round(reach * math.sin(math.radians(azimuth))))
    tops = 0.66 + 0.24 * thick + 0.03 * noise.field("tops", 60, slope=2.6)
    tops += 0.05 * thick * slope_light(ndimage.gaussian_filter(np.log1p(thick * 4), 2), azimuth)
    shadow = ndimage.uniform_filter(np.roll(thick, shift, (0, 1)), 3, mode="wrap")
    return Sky(thick, cirrus, shadow, tops)


def opacity_of(field: np.ndarray, density: float, fraction: float, among: np.ndarray, weight: float = 1) -> np.ndarray:
    """1 - exp(-density * excess) above the level that makes `fraction` of the 20 m pixels `among` visible cloud."""
    level = np.quantile(pool(field, 2, np.max)[among], 1 - np.clip(fraction, 0, 1)) if among.any() else field.max()
    level = float(level) + math.log(1 - VISIBLE / weight) / density
    return -np.expm1(-density * np.clip(field - level, 0, None))
