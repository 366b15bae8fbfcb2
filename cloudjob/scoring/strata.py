"""The kinds of pixels that scores are given on: by how much of the ground is seen."""

import numpy as np
from numpy.typing import NDArray

from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, HIDDEN, NO_DATA, SHADOW

HEADLINE = "thick"
STRATA = {
    "thick": "cloud takes more than half of the ground's light; where a mask alone is known: its cloud before it grows",
    "veil": "cloud of less opacity; of a mask, its cirrus",
    "shadow": "shadow alone",
    "rim": "nothing above, though the grown mask says so",
    "cloud": "all of these: cloud, shadow and cirrus of the grown mask",
    "clear": "what that mask calls clear",
    "all": "all pixels with data, those of unknown state too",
}
_THICK = 50  # percent


def core(above: NDArray) -> NDArray:
    """Classes (..., H, W) uint8 of what lies above pixels: CLOUD where thick, CIRRUS where thin, SHADOW, else CLEAR.

    above: (2, ..., H, W) uint8, percent of the ground's light that cloud takes away, and percent of the deepest shadow.
    """
    opacity, shadow = above
    kinds = [opacity > _THICK, opacity > 0, shadow > 0]
    return np.select(kinds, [CLOUD, CIRRUS, SHADOW], default=CLEAR).astype(np.uint8)


def regions(mask: NDArray, core: NDArray) -> dict[str, NDArray]:
    """Stratum -> pixels (H, W) bool, of the grown mask and what truly lies above, both (H, W) classes."""
    hidden = np.isin(mask, HIDDEN)
    above = {"thick": core == CLOUD, "veil": core == CIRRUS, "shadow": core == SHADOW}
    rim = ~np.logical_or.reduce(list(above.values()))
    found = {name: hidden & pixels for name, pixels in (above | {"rim": rim}).items()}
    return found | {"cloud": hidden, "clear": mask == CLEAR, "all": mask != NO_DATA}
