"""Decodes JPEG 2000: whole images, windows, reduced bands, and bands in stripes by several processes side by side.

A tile (ESA: 1024 x 1024 pixels at 10 m) can only be decoded whole, so each reader here decodes a tile once.

The processes are plain ones (`python -m cloudjob.sentinel2.decode`) instead of those of `multiprocessing`. They import
this module alone, not the caller's main module, so they are safe below MPI ranks, threads and CUDA. They end by
themselves when nobody is left to ask them. They write pixels into memory that has no name: a killed job leaves nothing
in /dev/shm, whose size does not matter either.
"""

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from cloudjob.errors import CorruptFileError, ItemError, SystemTroubleError
from cloudjob.files import reading
from cloudjob.pixels import EMPTY_DN
from cloudjob.sentinel2 import zipped
from cloudjob.sentinel2.radiometry import to_convention

_CACHE_BYTES = 16 << 20  # of GDAL, whose own choice is 5 % of the node's memory; a tile takes 2 MB
_SMALL = 2048 * 2048  # pixels; below, starting processes costs more than they save
_SMEAR = 2  # reduced pixels over which the wavelet spreads an edge
_STOP = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPJ_NUM_THREADS"), "1")


def read_image(path: Path, shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """The whole image, (bands, rows, columns); CorruptFileError unless it has `shape` and `dtype`."""
    out = np.empty(shape, dtype)
    with _open(path, shape, dtype) as image:
        _fill(out, image)
    return out


def _fill(out: np.ndarray, image: DatasetReader, top: int = 0, left: int = 0) -> None:
    """`out` (bands, r, c) from this row and column on, tile by tile: GDAL's cache need not hold a row of tiles."""
    high, wide = image.block_shapes[0]
    for row in range(0, out.shape[1], high):
        for col in range(0, out.shape[2], wide):
            part = out[:, row : row + high, col : col + wide]
            image.read(window=Window(left + col, top + row, part.shape[2], part.shape[1]), out=part)


@contextmanager
def _open(path: Path, shape: tuple[int, int, int], dtype: str) -> Iterator[DatasetReader]:
    # One thread: with more, GDAL's JPEG 2000 driver reads a truncated file as garbage, without an error.
    with (
        reading(Path(path), RasterioError, reason="cannot be decoded"),
        rasterio.Env(GDAL_NUM_THREADS="1", GDAL_CACHEMAX=_CACHE_BYTES),
        rasterio.open(zipped.for_gdal(Path(path))) as image,
    ):
        found = (image.count, image.height, image.width)
        if found != tuple(shape) or set(image.dtypes) != {dtype}:
            reason = f"{found} pixels of {image.dtypes[0]}, the metadata say {tuple(shape)} of {dtype}"
            raise CorruptFileError(path, reason)
        yield image


@dataclass(frozen=True)
class Band:
    """A file of one band, uint16, with the size and the numbers that the product's metadata give it."""

    path: Path
    shape: tuple[int, int]
    offset: int  # BOA_ADD_OFFSET
    quantification: float

    def read(self, rows: slice = slice(None), cols: slice = slice(None), out: np.ndarray | None = None) -> np.ndarray:
        """(rows, columns) uint16 in our DN convention, in `out` where that is given."""
        (top, bottom, _), (left, right, _) = rows.indices(self.shape[0]), cols.indices(self.shape[1])
        out = np.empty((bottom - top, right - left), np.uint16) if out is None else out
        with self._open() as image:
            _fill(out[None], image, top, left)
        return self._convert(out)

    def tile_rows(self) -> int:
        """The rows of its tiles, each of which can only be decoded whole."""
        with self._open() as image:
            return image.block_shapes[0][0]

    def reduced(self, step: int) -> np.ndarray:
        """The resolution level of 1/step; where the file has none, the means of the pixels of its coarsest level that
        divides `step` (of small images, of all pixels)."""
        with self._open() as image:
            level = max((each for each in image.overviews(1) if step % each == 0), default=1)
            if level > 1:
                dn = image.read(1, out_shape=tuple(-(-length // level) for length in self.shape))
        dn = self._convert(_without_smear(dn)) if level > 1 else self.read()
        return dn if level == step else means(dn, step // level)

    def _open(self) -> AbstractContextManager[DatasetReader]:
        return _open(self.path, (1, *self.shape), "uint16")

    def _convert(self, dn: np.ndarray) -> np.ndarray:
        for rows in (slice(top, top + 128) for top in range(0, len(dn), 128)):  # the change works in 32 bits
            dn[rows] = to_convention(dn[rows], offset=self.offset, quantification=self.quantification)
        return dn


def means(dn: np.ndarray, step: int) -> np.ndarray:
    """Of `step` x `step` pixels, the last of which may be repeated at the edges; EMPTY_DN where one of them is."""
    padded = np.pad(dn, [(0, -length % step) for length in dn.shape], mode="edge")
    cells = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    return np.where((cells == EMPTY_DN).any((1, 3)), EMPTY_DN, np.rint(cells.mean((1, 3)))).astype(np.uint16)


def _without_smear(dn: np.ndarray) -> np.ndarray:
    """No data also next to no data, where the wavelet has mixed it into the pixels."""
    from scipy.ndimage import minimum_filter

    dn[minimum_filter(dn, 2 * _SMEAR + 1) == EMPTY_DN] = EMPTY_DN
    return dn


def stripes(bands: list[Band], *, rows: int, processes: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, pixels (len(bands), r, W) uint16 in our DN convention) from north to south; bands of one shape.

    The pixels are valid until the next are asked for. Memory: two stripes and 50 MB per process, or one stripe.
    """
    height, width = bands[0].shape
    if processes < 2 or height * width < _SMALL:
        return _inline(bands, min(rows, height))
    return _side_by_side(bands, min(rows, height), processes)


def _inline(bands: list[Band], rows: int) -> Iterator[tuple[int, np.ndarray]]:
    height, width = bands[0].shape
    stripe = np.empty((len(bands), rows, width), np.uint16)
    for top in range(0, height, rows):
        pixels = stripe[:, : height - top]
        for band, out in zip(bands, pixels, strict=True):
            band.read(slice(top, top + rows), out=out)
        yield top, pixels


def _side_by_side(bands: list[Band], rows: int, processes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Two stripes take turns: the caller has one while the other is decoded. A process per band keeps up with that."""
    height, width = bands[0].shape
    tops = range(0, height, rows)
    shape = (2, len(bands), rows, width)
    with _shared_memory(2 * int(np.prod(shape))) as memory, _workers(min(processes, len(bands)), memory) as submit:
        turns = list(np.frombuffer(mmap.mmap(memory.fileno(), 0), np.uint16).reshape(shape))

        def begin(number: int) -> list[Future]:
            if number == len(tops):
                return []
            wanted = range(tops[number], height)[:rows]
            first = number % 2 * len(bands)
            return [submit(band, wanted, (first + i) * rows * width) for i, band in enumerate(bands)]

        try:
            ahead = begin(0)
            for number, top in enumerate(tops):
                current, ahead = ahead, begin(number + 1)
                for unit in current:
                    unit.result()
                yield top, turns[number % 2][:, : height - top]
        finally:
            turns.clear()  # an exception keeps this frame, and must not keep the memory


@contextmanager
def _shared_memory(size: int) -> Iterator[BinaryIO]:
    """An open file without a name, which is gone with the last process that has it open."""
    named = hasattr(os, "memfd_create")  # not in a Python that was built for a glibc before 2.27
    with open(os.memfd_create("stripes"), "r+b") if named else tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, size)  # no room is an error now, not a bus error later
        yield file


@contextmanager
def _workers(count: int, memory: BinaryIO) -> Iterator[Callable[..., Future]]:
    """A function that has rows of a band decoded by one of `count` processes: see `_ask`."""
    processes: list[subprocess.Popen] = []
    idle: SimpleQueue[subprocess.Popen] = SimpleQueue()

    def ask(*unit: Any) -> None:
        process = idle.get()
        try:
            _ask(process, *unit)
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(count)
    try:
        for _ in range(count):
            processes.append(_start(memory))
            idle.put(processes[-1])
        yield lambda *unit: threads.submit(ask, *unit)
    finally:
        for process in processes:  # they have nothing to put in order
            process.kill()
        threads.shutdown(cancel_futures=True)
        for process in processes:
            with process:
                process.wait()


def _start(memory: BinaryIO) -> subprocess.Popen:
    """Signals that ask a job to stop are blocked in the process: stopping in good order is up to its parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(memory.fileno())],
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[memory.fileno()],
            bufsize=0,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ask(process: subprocess.Popen, band: Band, rows: range, start: int) -> None:
    """When this returns, these rows of the band lie in the memory, from its pixel number `start` on."""
    assert process.stdin is not None  # pipes, see `_start`
    assert process.stdout is not None
    request = {"band": asdict(band), "rows": [rows.start, rows.stop], "start": start}
    try:
        process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = b""
    if not answer:
        raise ItemError(f"{band.path}: the process that decoded it ended with {process.wait()} (-9: out of memory?)")
    damage, trouble = json.loads(answer)
    if damage:
        raise CorruptFileError(band.path, damage)
    if trouble:
        raise SystemTroubleError(trouble)


def _serve(memory: int) -> None:
    """Answers each request, a line of JSON on standard input, with the reason of a CorruptFileError and the text of
    another error, both mostly null."""
    pixels = np.frombuffer(mmap.mmap(memory, 0), np.uint16)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        band, (top, bottom), start = Band(**request["band"]), request["rows"], request["start"]
        shape = (bottom - top, band.shape[1])
        damage = trouble = None
        try:
            band.read(slice(top, bottom), out=pixels[start:][: shape[0] * shape[1]].reshape(shape))
        except CorruptFileError as error:
            damage = error.reason
        except ItemError as error:
            trouble = str(error)
        print(json.dumps([damage, trouble]), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
