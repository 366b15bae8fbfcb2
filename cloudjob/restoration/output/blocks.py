"""Squares of pixels as compressed bytes: what HDF5's filters and TIFF's predictor make of them, by ISA-L's deflate."""

from functools import cache

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

SIDE = 512  # pixels of a chunk of HDF5, and of a block of the GeoTIFF
_LEVEL = 1  # of ISA-L's four: a hundredth larger than the highest, in half of the time


def hdf5_chunk(pixels: NDArray, shape: tuple[int, int], fill: int) -> bytes:
    """A chunk (rows, columns) of `shape` as the filters shuffle, deflate and Fletcher-32 leave it; `fill` where the
    `pixels` (h, w) end."""
    whole = _padded(pixels, shape, fill)
    size = whole.itemsize
    planes = whole.reshape(-1).view(np.uint8).reshape(-1, size).T  # the first bytes of all, then the second ones
    packed = isal_zlib.compress(np.ascontiguousarray(planes), _LEVEL)
    return packed + fletcher32(packed).to_bytes(4, "little")


def tiff_block(pixels: NDArray) -> bytes:
    """A block of SIDE x SIDE as TIFF's predictor 2 and deflate leave it; 0 where the `pixels` (h, w) uint16 end."""
    whole = _padded(pixels, (SIDE, SIDE), 0)
    steps = np.empty_like(whole)
    steps[:, 0] = whole[:, 0]
    np.subtract(whole[:, 1:], whole[:, :-1], out=steps[:, 1:])
    return isal_zlib.compress(steps.astype("<u2", copy=False), _LEVEL)


def _padded(pixels: NDArray, shape: tuple[int, int], fill: int) -> NDArray:
    if pixels.shape == shape:
        return np.ascontiguousarray(pixels)
    whole = np.full(shape, fill, pixels.dtype)
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    return whole


def fletcher32(data: bytes) -> int:
    """HDF5's checksum of these bytes: Fletcher's over 16-bit words, most significant byte first (H5checksum.c)."""
    words = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype(np.float64)
    if len(data) % 2:
        words = np.append(words, float(data[-1] << 8))
    # The sums of products stay below 2 ** 53 for a million bytes: exact, in whatever order they are added.
    second = np.einsum("i,i", words, _weights(len(words)))  # not by BLAS, whose threads wait awake
    return _folded(int(second)) << 16 | _folded(int(words.sum()))


@cache
def _ramp(count: int) -> NDArray:
    return np.arange(count, 0, -1, dtype=np.float64)


def _weights(count: int) -> NDArray:
    """`count`, ..., 2, 1."""
    longest = 1 << max(count - 1, 0).bit_length()  # few lengths are kept
    return _ramp(longest)[longest - count :]


def _folded(total: int) -> int:
    """What is left of a sum when its carries are added again: 1 to 65535, and 0 of 0 alone."""
    return (total - 1) % 65535 + 1 if total else 0


def halved(pixels: NDArray, *, nearest: bool) -> NDArray:
    """(h, w) uint16 at half of the resolution, (ceil(h / 2), ceil(w / 2)): means of the pixels that are not 0, or with
    `nearest` the upper left ones."""
    if nearest:
        return pixels[::2, ::2]
    pixels = np.pad(pixels, [(0, side % 2) for side in pixels.shape])
    parts = [pixels[row::2, column::2] for row in (0, 1) for column in (0, 1)]
    total = parts[0].astype(np.uint32)
    for part in parts[1:]:
        total += part
    if pixels.all():
        return ((total + 2) >> 2).astype(np.uint16)
    count = np.zeros(total.shape, np.uint32)
    for part in parts:
        count += part != 0
    return ((total + count // 2) // np.maximum(count, 1)).astype(np.uint16)
