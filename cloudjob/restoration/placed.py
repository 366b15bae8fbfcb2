"""Arrays of a whole scene as .npy files that many processes fill at once, each in its own place.

They are written, not mapped: between nodes a shared file system loses what two nodes have mapped of one page, and a
full disk is an error here, no bus error. Once all is written, everybody maps them.
"""

import io
import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudjob.errors import ItemError
from cloudjob.files import disk_full, flush, is_disk_full

# NumPy reads a header by Python's `ast`, and CPython 3.11 may fail there when threads take turns (its issue 106905).
_one_at_a_time = threading.Lock()


def load(path: Path) -> NDArray:
    """The array of a .npy file, mapped for reading; any thread may ask."""
    with _one_at_a_time:
        return np.load(path, mmap_mode="r")


@dataclass(frozen=True)
class Placed:
    """The array of this shape in the file `path`, (..., H, W)."""

    path: Path
    shape: tuple[int, ...]
    dtype: str

    def write(self, top: int, rows: NDArray, *, layer: int = 0) -> None:
        """Puts (r, W) in its place, from row `top` of a layer on; DiskFullError where there is no room."""
        head, width = self._head(), self.shape[-1]
        first = (layer * self.shape[-2] + top) * width
        data = np.ascontiguousarray(rows, self.dtype)
        try:
            with open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "wb", buffering=0) as file:
                _write_all(file.fileno(), head, 0)  # by everybody: the same bytes
                _write_all(file.fileno(), data.data.cast("B"), len(head) + first * data.itemsize)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(self.path) from error
            raise

    def write_layers(self, top: int, layers: NDArray) -> None:
        """Puts (layers, r, W) in its place."""
        for number, rows in enumerate(layers):
            self.write(top, rows, layer=number)

    def flush(self) -> None:
        """Brings it to the disk."""
        flush(self.path)

    def mapped(self) -> NDArray:
        """The whole array, mapped for reading. ItemError where the file is not whole."""
        try:
            return load(self.path)
        except ValueError as error:
            raise ItemError(f"{self.path}: {error}; remove its folder and run the same command again") from error

    def _head(self) -> bytes:
        text = io.BytesIO()
        described = {"descr": np.dtype(self.dtype).str, "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(text, described)
        return text.getvalue()


def _write_all(handle: int, data: Any, place: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(handle, left, place)
        left, place = left[written:], place + written


def release(*arrays: NDArray | None) -> None:
    """Gives back the memory that pages of mapped arrays take in this process; they stay mapped."""
    for array in arrays:
        if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
            array.base.madvise(mmap.MADV_DONTNEED)
