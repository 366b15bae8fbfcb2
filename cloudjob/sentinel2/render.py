"""Pictures for people: true colour with a fixed stretch, outlines of masks, PNG."""

import io

import numpy as np
from PIL import Image

from cloudjob.sentinel2.masks import dilate
from cloudjob.sentinel2.radiometry import BANDS, reflectance

_RGB = [BANDS.index(band) for band in ("B04", "B03", "B02")]
_MAGENTA = (255, 0, 255)  # neither ground, cloud, snow nor water has it


def true_colour(dn: np.ndarray, *, gain: float = 2.5) -> np.ndarray:
    """(H, W, 3) uint8 from DN (3 or 4, H, W), red, green, blue first: 255 * clip(gain * reflectance, 0, 1).

    Black where there is no data.

    The stretch never depends on the picture, so that two dates can be compared; gain 1.0 suits snow.
    """
    values = np.nan_to_num(reflectance(np.arange(65536, dtype=np.uint16)))
    stretch = np.rint(255 * np.clip(gain * values, 0, 1)).astype(np.uint8)
    return np.stack([stretch[dn[band]] for band in _RGB], axis=-1)


def outline(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of the (H, W, 3) picture with the outermost pixels of mask > 0 painted."""
    inside = mask > 0
    edge = inside & dilate(~inside, 1)
    return np.where(edge[..., None], np.array(_MAGENTA, np.uint8), rgb)


def side_by_side(pictures: list[np.ndarray], gap: int = 8) -> np.ndarray:
    """The (H, W, 3) pictures of equal height in one row, `gap` white columns between them."""
    white = np.full((len(pictures[0]), gap, 3), 255, np.uint8)
    row = [part for picture in pictures for part in (white, picture)]
    return np.concatenate(row[1:], axis=1)


def encode_png(rgb: np.ndarray) -> bytes:
    """The (H, W, 3) uint8 picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
