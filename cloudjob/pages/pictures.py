"""The pictures of a pair for the review page: both dates, their masks as outlines, and their difference."""

from functools import partial

import numpy as np

from cloudjob.pixels import CLEAR
from cloudjob.sentinel2 import masks, radiometry, render
from cloudjob.sentinel2.labels import Label
from cloudjob.sentinel2.product import Product, read_overview
from cloudjob.sentinel2.scene_masks import Preview, revised_masks

SIDE = 915  # pixels of a picture at most: a whole scene at 120 m
_OVERVIEW = 6  # a pixel of a preview's picture, in pixels of 10 m
_HAND = (255, 230, 0)  # neither a class nor ground


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


def of_label(product: Product, label: Label, *, gain: float) -> bytes:
    """A PNG: the product in true colour, and beside it the same with the pixels that a person changed in yellow."""
    pixel, shape = _size(product)
    covers = (product.shape[0] / _OVERVIEW, product.shape[1] / _OVERVIEW)
    plain = render.resized(render.true_colour(read_overview(product), gain=gain), shape, covers=covers)
    changed = masks.pool(label.by_hand, pixel // label.factor, np.logical_or)
    marked = np.where(changed[..., None], np.array(_HAND, np.uint8), plain)
    return render.encode_png(render.side_by_side([plain, marked]))
