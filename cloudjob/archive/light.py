"""What a low sun does: light of the sky, slopes and their shadows, the sensor's noise."""

import math

import numpy as np
from scipy import ndimage

from cloudjob.archive.fields import fall_towards

PIXEL_M = 10
SUN_RAD = 0.0093  # angle across the sun's disc
_WAVELENGTHS = (0.665, 0.560, 0.492, 0.833, 1.614)  # um, of B04, B03, B02, B08, B11
_HAZE = 0.08  # optical depth of aerosol at 0.55 um, as of Arctic haze in spring (Tomasi et al. 2007)
_MOST = 1.4  # light on a slope: snow's reflectance hardly exceeds 1.2 in Level-2A
_READOUT, _SHOT = 5.0e-4, 3.75e-6  # see `noise_deviation`


def skylight(elevation: float) -> tuple[float, ...]:
    """The share of the light on flat ground that comes from the sky, by band (B04, B03, B02, B08, B11), for a sun
    `elevation` degrees high.

    Rayleigh's optical depth by Hansen & Travis 1974 (eq. 2.29), haze by Angstrom's law with exponent 1.3; half of the
    light that is scattered once goes down.
    """
    found = []
    for wavelength in _WAVELENGTHS:
        depth = 0.008569 * wavelength**-4 * (1 + 0.0113 * wavelength**-2 + 0.00013 * wavelength**-4)
        depth += _HAZE * (wavelength / 0.55) ** -1.3
        direct = math.exp(-depth / math.sin(math.radians(elevation)))
        found.append((1 - direct) / (1 + direct))
    return tuple(found)


def shadow_offset(height: float, elevation: float, azimuth: float) -> tuple[float, float]:
    """Rows and columns from what is `height` metres above the ground to its shadow."""
    reach = height / math.tan(math.radians(elevation)) / PIXEL_M
    return reach * math.cos(math.radians(azimuth)), -reach * math.sin(math.radians(azimuth))


def on_slopes(height: np.ndarray, elevation: float, azimuth: float) -> np.ndarray:
    """(H, W) float32: the sun's light on ground of `height` (metres), over that on flat ground; 0 in cast shadow."""
    up = math.tan(math.radians(elevation))
    facing = np.clip(1 + fall_towards(height, azimuth) / np.float32(PIXEL_M * up), 0, _MOST)
    return facing * ~_in_shadow(height, elevation, azimuth)


def _in_shadow(height: np.ndarray, elevation: float, azimuth: float) -> np.ndarray:
    """(H, W) bool: where something towards the sun rises above the ray to it.

    The highest ray over 2 n steps is that over n steps, and the same seen n steps nearer to the sun.
    """
    up = PIXEL_M * math.tan(math.radians(elevation))  # of the ray in one step of a pixel
    rows, cols = shadow_offset(up, elevation, azimuth)  # one step
    rays, steps = height, 1
    while steps * up < 2 * np.ptp(height):
        nearer = ndimage.shift(rays, (steps * rows, steps * cols), order=0, cval=-np.inf)
        rays = np.maximum(rays, nearer - np.float32(steps * up))
        steps *= 2
    return rays > height


def noise_deviation(reflectance: np.ndarray, elevation: float) -> np.ndarray:
    """Standard deviation of the sensor's noise in reflectance, at 10 m.

    The sensor's noise in radiance L is sqrt(a^2 + b L) (Gorrono et al. 2017, doi:10.3390/rs9020178), and reflectance is
    radiance over the sine of the sun's elevation. The constants give the SNR of 200 that Sentinel-2 has at a
    reflectance of 0.2 below the sun in the zenith.
    """
    up = math.sin(math.radians(elevation))
    return np.sqrt((_READOUT / up) ** 2 + _SHOT / up * np.clip(reflectance, 0, None))
