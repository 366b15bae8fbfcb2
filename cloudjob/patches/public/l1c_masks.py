"""Masks of Level-1C images that come without any: thresholds on seven of the thirteen bands.

Cloud is what Meraner et al. 2020 (DSen2-CR, doi 10.1016/j.isprsjprs.2020.05.013) train with: a score of brightness in
B01, B02, B03, B04 and B10 and of what is not snow, closed and averaged, from 0.2 on. Their shadow, what is dark for its
image, is most water too; here it must also be darker than the same ground is otherwise. Thin cirrus is what is bright
in B10 and no cloud.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import grey_closing, uniform_filter

from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW

BANDS_NEEDED = ("B01", "B02", "B03", "B04", "B08", "B10", "B11")
_CLOUD = 0.2  # score
_CIRRUS = 0.01  # reflectance in B10; the ground is not seen there
_DARKER = 0.7  # of what the ground is otherwise
_MOST = 0.5  # of 5 x 5 pixels: their median


def infrared(image: dict[str, NDArray]) -> NDArray:
    """(n, n) the mean of B08 and B11, in which shadow is dark."""
    return (image["B08"] + image["B11"]) / 2


def classes(image: dict[str, NDArray], usual: NDArray) -> NDArray:
    """(n, n) uint8 mask classes of an image, reflectance by name of BANDS_NEEDED, NaN where there is no data; `usual`
    is the `infrared` of the same ground without clouds."""
    empty = np.isnan(image["B02"])
    filled = {name: np.where(empty, 0, values) for name, values in image.items()}
    cloud = cloud_score(filled) >= _CLOUD
    kinds = [empty, cloud, filled["B10"] > _CIRRUS, shadow(filled, usual, ~empty)]
    return np.select(kinds, [NO_DATA, CLOUD, CIRRUS, SHADOW], default=CLEAR).astype(np.uint8)


def cloud_score(image: dict[str, NDArray]) -> NDArray:
    """(n, n) 0 to 1: how much each test says cloud, the least of them, closed over 5 x 5 and averaged over 7 x 7."""
    blue, green, red, coastal = (image[name] for name in ("B02", "B03", "B04", "B01"))
    total = green + image["B11"]
    snow = (green - image["B11"]) / np.where(total == 0, 1, total)
    tests = [
        _between(blue, 0.1, 0.5),
        _between(coastal, 0.1, 0.3),
        _between(coastal + image["B10"], 0.15, 0.2),
        _between(blue + green + red, 0.2, 0.8),
        _between(snow, 0.8, 0.6),
    ]
    least = np.minimum.reduce([np.ones_like(blue), *tests])
    return uniform_filter(grey_closing(least, size=(5, 5)), 7).clip(0, 1)


def _between(values: NDArray, none: float, full: float) -> NDArray:
    return (values - none) / (full - none)


def shadow(image: dict[str, NDArray], usual: NDArray, known: NDArray) -> NDArray:
    """(n, n) bool: dark in the infrared and in blue for this image, and in the infrared for this ground."""
    here, blue = infrared(image), image["B02"]
    if not known.any():
        return np.zeros(known.shape, bool)
    dark = known & (here < _share(here[known], 3 / 4)) & (blue < _share(blue[known], 5 / 6))
    with np.errstate(invalid="ignore"):
        dark &= here < _DARKER * usual
    return uniform_filter(dark.astype(np.float32), 5) > _MOST


def _share(values: NDArray, share: float) -> float:
    """This far on the way from the least to the mean."""
    return float(values.min() + share * (values.mean() - values.min()))
