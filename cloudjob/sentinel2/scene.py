"""One acquisition as the later stages need it: bands with a dilated mask, and another date brought to its light."""

from dataclasses import dataclass

import numpy as np

from cloudjob.sentinel2 import masks, radiometry
from cloudjob.sentinel2.product import Product, read_bands, read_scl


@dataclass(frozen=True)
class Scene:
    """Images on the product's 10 m grid. `mask` is dilated, and 255 wherever a band has no data; `core` is neither."""

    product: Product
    bands: np.ndarray  # (4, H, W) uint16 DN
    mask: np.ndarray  # (H, W) uint8 mask classes
    core: np.ndarray  # (H, W) uint8 mask classes

    @classmethod
    def open(cls, product: Product, *, dilate_m: float) -> "Scene":
        """Decodes the four bands and the scene classification, each once."""
        bands, scl = read_bands(product), read_scl(product)
        shape = bands.shape[1:]
        mask = masks.from_scl(scl, shape=shape, dilate_px=round(dilate_m / 10))
        mask[(bands == radiometry.NO_DATA).any(0)] = masks.NO_DATA
        return cls(product, bands, mask, masks.from_scl(scl, shape=shape))

    def match(self, other: "Scene") -> list[dict]:
        """Per band the line that takes `other` to the light of this scene, from the pixels clear in both."""
        usable = (self.mask == masks.CLEAR) & (other.mask == masks.CLEAR)
        return radiometry.match(other.bands, self.bands, usable)

    def matched(self, other: "Scene") -> np.ndarray:
        """The bands of `other` in the light of this scene."""
        return radiometry.apply_match(other.bands, self.match(other))

    def clear_only(self, bands: np.ndarray) -> np.ndarray:
        """A copy of `bands` (4, H, W) with no data (0) wherever this scene is not clear."""
        return np.where(self.mask == masks.CLEAR, bands, radiometry.NO_DATA)
