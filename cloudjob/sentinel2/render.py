"""Pictures for people: true colour with a fixed stretch, outlines of masks, the difference of two dates, PNG, WebP."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from cloudjob.pixels import BANDS, CIRRUS, CLOUD, NO_DATA, SHADOW, UNKNOWN
from cloudjob.sentinel2.radiometry import reflectance

_RGB = [BANDS.index(band) for band in ("B04", "B03", "B02")]

# Neither ground, cloud, snow nor water has these; told apart also by people who do not see red or green.
OUTLINES = {
    CLOUD: ("cloud", (255, 0, 255)),
    SHADOW: ("shadow", (0, 90, 255)),
    CIRRUS: ("cirrus", (255, 150, 0)),
    UNKNOWN: ("unknown", (0, 215, 140)),
}
_FAINT = 30  # of 255

# Differences: blue, grey, red (Brewer's RdBu, with grey for white, which would be snow)
DARKER, SAME, BRIGHTER = (33, 102, 172), (215, 215, 215), (178, 24, 43)
DIFFERENCE = 0.2  # reflectance at the ends of the colours
_ENOUGH = 16  # pixels for a median


def true_colour(dn: np.ndarray, *, gain: float = 2.5) -> np.ndarray:
    """(H, W, 3) uint8 from DN (3 or 4, H, W), red, green, blue first: 255 * clip(gain * reflectance, 0, 1).

    No data is black. The stretch never depends on the picture, so that two dates can be compared; gain 1.0 suits snow.
    """
    values = np.nan_to_num(reflectance(np.arange(65536, dtype=np.uint16)))
    stretch = np.rint(255 * np.clip(gain * values, 0, 1)).astype(np.uint8)
    return np.stack([stretch[dn[band]] for band in _RGB], axis=-1)


def resized(picture: np.ndarray, shape: tuple[int, int], *, covers: tuple[float, float]) -> np.ndarray:
    """The upper left `covers` (rows, columns, also fractions) of an (H, W) or (H, W, 3) picture as `shape` pixels.

    Means over areas; of mask classes (uint8, two dimensions) the nearest pixel.
    """
    nearest = picture.ndim == 2 and picture.dtype == np.uint8
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BOX
    box = (0, 0, covers[1], covers[0])
    return np.asarray(Image.fromarray(picture).resize((shape[1], shape[0]), how, box))


def outlines(mask: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8: the classes of the (H, W) mask in OUTLINES' colours, for laying over a picture.

    Opaque are the outermost pixels of a class, faint those inside, so that one sees which side of a line is meant.
    The borders of the picture and of what has no data get no line.
    """
    padded = np.pad(mask, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = np.logical_or.reduce([(other != mask) & (other != NO_DATA) for other in neighbours])
    out = np.zeros((*mask.shape, 4), np.uint8)
    for value, (_, colour) in OUTLINES.items():
        out[mask == value] = (*colour, _FAINT)
        out[edge & (mask == value), 3] = 255
    return out


def difference(one: np.ndarray, other: np.ndarray, usable: np.ndarray) -> tuple[float | None, np.ndarray]:
    """`one` minus `other` ((H, W) reflectance, NaN without data), as a gain and (H, W, 3) uint8 colours.

    `other` is multiplied by the gain that gives it the median of `one` where `usable`, so that another height of the
    sun is no difference. It is None, and nothing is changed, where fewer than 16 pixels are usable. Red is brighter
    than `other`, blue darker, full from 0.2 of reflectance on; black is no data.
    """
    gain = _gain(one, other, usable & np.isfinite(one) & np.isfinite(other))
    change = np.clip((one - (gain or 1.0) * other) / DIFFERENCE, -1, 1)[..., None]
    ends = np.where(change > 0, np.array(BRIGHTER), np.array(DARKER))
    colours = SAME + np.abs(change) * (ends - SAME)
    return gain, np.rint(np.nan_to_num(colours)).astype(np.uint8)


def _gain(one: np.ndarray, other: np.ndarray, usable: np.ndarray) -> float | None:
    if np.count_nonzero(usable) < _ENOUGH:
        return None
    wanted, had = (float(np.median(values[usable])) for values in (one, other))
    return wanted / had if wanted > 0 and had > 0 else None


def side_by_side(pictures: list[np.ndarray], gap: int = 8) -> np.ndarray:
    """The (H, W, 3) pictures of equal height in one row, `gap` white columns between them."""
    white = np.full((len(pictures[0]), gap, 3), 255, np.uint8)
    row = [part for picture in pictures for part in (white, picture)]
    return np.concatenate(row[1:], axis=1)


def contact_sheet(lines: Iterable[Iterable[np.ndarray]], *, gain: float) -> np.ndarray:
    """Lines of images (bands, H, W) uint16 DN of one size, in true colour: one (H, W, 3) uint8 picture of them all."""
    return np.concatenate([side_by_side([true_colour(image, gain=gain) for image in line]) for line in lines])


def encode_png(rgb: np.ndarray) -> bytes:
    """The (H, W, 3) uint8 picture as a PNG file."""
    return _encoded(rgb, format="PNG")


def encode_webp(picture: np.ndarray, *, quality: int | None = None) -> bytes:
    """The (H, W, 3 or 4) uint8 picture as a WebP file: `quality` 0 to 100, or without loss."""
    loss: dict[str, Any] = {"lossless": True} if quality is None else {"quality": quality}
    return _encoded(picture, format="WEBP", method=4, **loss)


def _encoded(picture: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, **options)
    return buffer.getvalue()
