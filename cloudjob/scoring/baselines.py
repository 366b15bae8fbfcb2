"""What can be done about clouds with one date and without learning. Images are (bands, H, W) float32 reflectance."""

import numpy as np
from numpy.typing import NDArray
from skimage.restoration import inpaint_biharmonic
from skimage.transform import resize

_NOTHING_KNOWN = 0.2  # reflectance
_MOST_UNKNOWN = 2**17  # pixels: 2 s and 0.5 GB


def mean_fill(image: NDArray, known: NDArray) -> NDArray:
    """The image with the mean of each band's known pixels in the others; 0.2 where nothing is known.

    known: (H, W) bool; pixels without data (NaN) are not known.
    """
    known = known & np.isfinite(image).all(0)
    mean = image[:, known].mean(1, dtype=np.float64) if known.any() else np.full(len(image), _NOTHING_KNOWN)
    return np.where(known, image, mean[:, None, None]).astype(np.float32)


def smooth_fill(image: NDArray, known: NDArray) -> NDArray:
    """The image with a smooth surface through the known pixels in the others, within each band's range of them.

    Biharmonic (Damelin & Hoang 2018, doi:10.1155/2018/3950312, by scikit-image). Where more than 2^17 pixels are not
    known, these come from the same at half the resolution, by bilinear interpolation. `known` as for `mean_fill`.
    """
    known = known & np.isfinite(image).all(0)
    filled = mean_fill(image, known)
    if known.all() or not known.any():
        return filled
    if np.count_nonzero(~known) <= _MOST_UNKNOWN:
        return inpaint_biharmonic(filled, ~known, split_into_regions=True, channel_axis=0)
    rows, cols = known.shape
    coarse = smooth_fill(*_half(filled, known))
    fine = resize(coarse, (len(image), 2 * coarse.shape[1], 2 * coarse.shape[2]), order=1, mode="edge")
    return np.where(known, filled, fine[:, :rows, :cols])


def _half(image: NDArray, known: NDArray) -> tuple[NDArray, NDArray]:
    """Means of the known pixels of each 2 x 2, and where there are any."""
    edge = [(0, size % 2) for size in known.shape]
    known, image = np.pad(known, edge), np.pad(np.where(known, image, 0), [(0, 0), *edge])
    count = known[::2, ::2].astype(np.float32) + known[1::2, ::2] + known[::2, 1::2] + known[1::2, 1::2]
    total = image[:, ::2, ::2] + image[:, 1::2, ::2] + image[:, ::2, 1::2] + image[:, 1::2, 1::2]
    return total / count.clip(1), count > 0
