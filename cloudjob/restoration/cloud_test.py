"""A rough cloud test on four bands alone, for images that bring no mask.

A pixel is cloud where it is bright in blue, nearly white, neither plants nor water by the index of vegetation, and
hazier than its red tells (the haze-optimised transformation of Zhang et al. 2002, with the slope of Landsat's and
Sentinel-2's clear land). Snow, bright sand and roofs pass for cloud; cloud shadow, thin cirrus and haze are missed.
"""

import numpy as np

from cloudjob.pixels import BANDS, CLEAR, CLOUD, EMPTY_DN, NO_DATA
from cloudjob.sentinel2.radiometry import reflectance

SAID = (
    "a rough test of brightness, whiteness and vegetation index: snow and bright ground pass for cloud, "
    "shadows and thin cirrus are missed"
)
_BLUE, _WHITE, _NDVI, _HAZE = 0.18, 0.35, (-0.25, 0.35), 0.08


def classes(dn: np.ndarray) -> np.ndarray:
    """(H, W) uint8 mask classes, not grown, of an image (4, H, W) uint16 DN: CLOUD, CLEAR, and NO_DATA where a band has
    none."""
    values = dict(zip(BANDS, reflectance(dn), strict=True))
    red, green, blue, nir = (np.nan_to_num(values[band]) for band in ("B04", "B03", "B02", "B08"))
    mean = np.maximum((red + green + blue) / 3, 1e-3)
    whiteness = (abs(red - mean) + abs(green - mean) + abs(blue - mean)) / mean
    ndvi = (nir - red) / np.maximum(nir + red, 1e-3)
    low, high = _NDVI
    cloud = (blue > _BLUE) & (whiteness < _WHITE) & (ndvi > low) & (ndvi < high) & (blue - 0.5 * red > _HAZE)
    found = np.where(cloud, np.uint8(CLOUD), np.uint8(CLEAR))
    found[(dn == EMPTY_DN).any(0)] = NO_DATA
    return found
