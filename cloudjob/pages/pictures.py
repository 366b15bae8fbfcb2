"""The pictures of a pair for the review page: both dates, their masks as outlines, and their difference. Those of a
restored scene for the report."""

from functools import partial
from pathlib import Path

import numpy as np
import rasterio

from cloudjob.files import reading
from cloudjob.pixels import BANDS, CLEAR, CLOUD, NO_DATA, SCALE
from cloudjob.restoration.blend import BLENDED_EDGE, RECONSTRUCTED
from cloudjob.sentinel2 import masks, radiometry, render
from cloudjob.sentinel2.labels import Label
from cloudjob.sentinel2.product import Product, bands_of, read_overview
from cloudjob.sentinel2.scene_masks import Preview, revised_masks

SIDE = 915  # pixels of a picture at most: a whole scene at 120 m
_OVERVIEW = 6  # a pixel of a preview's picture, in pixels of 10 m
_HAND = (255, 230, 0)  # neither a class nor ground
SPREAD = 0.05  # reflectance at the brightest colour of an uncertainty
CERTAIN, UNCERTAIN = (20, 20, 30), (255, 225, 80)  # its colours at 0 and there


def of_pair(cloudy: Preview, clear: Preview, settings: masks.Settings, *, gain: float) -> tuple[dict[str, bytes], dict]:
    """(kind -> WebP file, {"size": [width, height], "gain": ...}); the kinds are `review.PICTURES`. Where a person has
    corrected a mask there is "by_hand" too, the share of its pixels by role.

    A picture shows `gain` x reflectance. The gain that is returned is the factor by which the clear date had to be
    multiplied to be as bright as the cloudy one (None where it cannot be measured), before the difference was taken.
    """
    height, width = cloudy.product.shape
    _, shape = _size(cloudy.product)

    def small(array: np.ndarray, factor: int) -> np.ndarray:
        return render.resized(array, shape, covers=(height / factor, width / factor))

    files, brightness, classes = {}, {}, {}
    lossy = partial(render.encode_webp, quality=80)
    for role, date, other in (("cloudy", cloudy, clear), ("clear", clear, cloudy)):
        found = revised_masks(date, other, settings, [clear] if role == "cloudy" else ())
        classes[role] = small(found.mask, found.factor)
        brightness[role] = small(radiometry.reflectance(date.rgb).mean(axis=0), _OVERVIEW)
        files[role] = lossy(small(render.true_colour(date.rgb, gain=gain), _OVERVIEW))
        files[f"{role}-mask"] = render.encode_webp(render.outlines(classes[role]))
    usable = (classes["cloudy"] == CLEAR) & (classes["clear"] == CLEAR)
    factor, change = render.difference(brightness["cloudy"], brightness["clear"], usable)
    files["difference"] = lossy(change)
    dates = {"cloudy": cloudy, "clear": clear}
    by_hand = {role: float(date.by_hand.mean()) for role, date in dates.items() if date.by_hand is not None}
    facts = {"size": [shape[1], shape[0]], "gain": factor and round(factor, 3)}
    return files, facts | ({"by_hand": by_hand} if by_hand else {})


def _size(product: Product) -> tuple[int, tuple[int, int]]:
    """A pixel of a product's picture, in pixels of 10 m, and the picture's rows and columns."""
    height, width = product.shape
    pixel = 2 * -(-max(height, width) // (2 * SIDE))
    return pixel, (-(-height // pixel), -(-width // pixel))


def of_restored(product: Product, tif: Path, *, side: int, gain: float) -> dict[str, np.ndarray]:
    """(kind -> (H, W, 3 or 4) uint8) of at most `side` pixels a side: "cloudy", "restored", "mask" (the outline of what
    was reconstructed), and with several members "uncertainty", their deviation as a mean over bands.

    `tif` is the output of the product, of which a coarser level is read. ItemError where one of the two cannot be."""
    step = 1
    while max(product.shape) > side * step:
        step *= 2  # levels of JPEG 2000 and of the GeoTIFF
    cloudy = np.stack([band.reduced(step) for band in bands_of(product)[:3]])
    shape = cloudy.shape[1:]
    with reading(tif, rasterio.errors.RasterioError), rasterio.open(tif) as image:
        restored = image.read(list(range(1, len(BANDS))), out_shape=(len(BANDS) - 1, *shape))
        flags = image.read(len(BANDS) + 1, out_shape=shape)
        last = range(len(BANDS) + 2, image.count + 1)
        spread = image.read(list(last), out_shape=(len(last), *shape)) if last else None
    touched = np.where(flags == NO_DATA, NO_DATA, np.where(np.isin(flags, (RECONSTRUCTED, BLENDED_EDGE)), CLOUD, CLEAR))
    found = {"cloudy": render.true_colour(cloudy, gain=gain), "restored": render.true_colour(restored, gain=gain)}
    found["mask"] = render.outlines(touched.astype(np.uint8))
    if spread is not None:
        share = np.clip(spread.mean(0) * SCALE / SPREAD, 0, 1)[..., None]
        colours = np.array(CERTAIN) + share * (np.array(UNCERTAIN) - np.array(CERTAIN))
        found["uncertainty"] = np.rint(colours).astype(np.uint8)
    return found


def of_label(product: Product, label: Label, *, gain: float) -> bytes:
    """A PNG: the product in true colour, and beside it the same with the pixels that a person changed in yellow."""
    pixel, shape = _size(product)
    covers = (product.shape[0] / _OVERVIEW, product.shape[1] / _OVERVIEW)
    plain = render.resized(render.true_colour(read_overview(product), gain=gain), shape, covers=covers)
    changed = masks.pool(label.by_hand, pixel // label.factor, np.logical_or)
    marked = np.where(changed[..., None], np.array(_HAND, np.uint8), plain)
    return render.encode_png(render.side_by_side([plain, marked]))
