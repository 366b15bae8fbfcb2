"""Overlapping restored tiles back to one scene, and into the cloudy image: clear pixels stay bit for bit."""

from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt

from cloudjob.pixels import BANDS, EMPTY_DN, HIDDEN, NO_DATA
from cloudjob.restoration.tiles import Tile, taper

OBSERVED, RECONSTRUCTED, BLENDED_EDGE = 0, 1, 2  # flags of a restored scene, beside NO_DATA; see `compose`


def mosaic(
    parts: list[tuple[Tile, Path]], *, shape: tuple[int, int], overlap: int, spread: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean and, if `spread`, standard deviation over members (4, H, W) float32 DN; 0 where no tile lies.

    `parts` are tiles with their .npy file (members, 4, size, size) uint16 DN. They are added in the order given, so
    the sum does not depend on who restored them. Weighted by a raised cosine over the overlap.
    """
    sums = np.zeros((1 + spread, len(BANDS), *shape), np.float32)
    weights = np.zeros(shape, np.float32)
    for tile, path in parts:
        members = np.load(path).astype(np.float32)
        height, width = (
            min(tile.row + tile.height, shape[0]) - tile.row,
            min(tile.col + tile.width, shape[1]) - tile.col,
        )
        weight = taper(tile.height, overlap)[:height, :width]
        inside = np.s_[tile.row : tile.row + height, tile.col : tile.col + width]
        weights[inside] += weight
        for total, value in zip(sums, (members.mean(0), members.std(0)), strict=False):
            total[:, *inside] += weight * value[:, :height, :width]
    np.divide(sums, weights, out=sums, where=weights > 0)
    return sums[0], sums[1] if spread else None


def compose(
    cloudy: np.ndarray, restored: np.ndarray, *, mask: np.ndarray, core: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The scene (4, H, W) uint16 with the restored ground in the dilated mask, and the flags `reconstructed` (H, W).

    `mask` is dilated, `core` is not. From the rim of the dilation to the core the restored image is faded in (flag 2);
    in the core it stands alone (1). Outside the dilated mask every pixel is the observed one (0), or no data (255).
    """
    inside = np.isin(mask, HIDDEN)
    solid = np.isin(core, HIDDEN) & inside
    depth = distance_transform_edt(inside)
    outward = distance_transform_edt(~solid) if solid.any() else np.full(mask.shape, np.inf)
    alpha = np.where(solid, 1, depth / (depth + outward)).astype(np.float32)
    out = cloudy.copy()
    for band, ground in zip(out, restored, strict=True):
        blended = band + alpha * (ground.clip(EMPTY_DN + 1, 65535) - band)
        band[inside] = np.maximum(np.rint(blended[inside]), EMPTY_DN + 1)
    flags = np.where(inside, np.where(alpha >= 1, RECONSTRUCTED, BLENDED_EDGE), OBSERVED).astype(np.uint8)
    flags[mask == NO_DATA] = NO_DATA
    return out, flags
