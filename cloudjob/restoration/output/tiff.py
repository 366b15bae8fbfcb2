"""The Cloud-Optimized GeoTIFF, written as its rows come: the blocks of each overview wait in a file of their own.

GDAL's driver makes one from a finished image alone, and takes four times the processor's time. GDAL still says what
the tags are (place, names, scale): they are taken from a small image that it writes in memory.
"""

import hashlib
import struct
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from cloudjob.pixels import EMPTY_DN
from cloudjob.restoration import placing
from cloudjob.restoration.output.blocks import SIDE, halved, tiff_block
from cloudjob.restoration.output.header import Header

LARGEST = (1 << 32) - (1 << 24)  # bytes of blocks with offsets of 32 bits, and room for what precedes them
Submit = Callable[..., Future]
_SHORT, _LONG, _LONG8 = 3, 4, 16
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}  # of a type
_WIDTH, _HEIGHT, _COMPRESSION, _PREDICTOR, _PLANAR = 256, 257, 259, 317, 284
_TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _COUNTS, _REDUCED = 322, 323, 324, 325, 254
_DEFLATE, _SEPARATE = 8, 2
_OF_EACH = (258, 262, 277, 338, 339, 42113)  # bits, photometric, samples, extra samples, their format; GDAL's no data
_OF_FIRST = (33550, 33922, 34264, 34735, 34736, 34737, 42112)  # place, CRS; GDAL's names, scales, metadata
_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.nir)
_GHOST = b"LAYOUT=IFDS_BEFORE_DATA\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
Tag = tuple[int, int, bytes]  # type, count, value


class Cog:
    """A COG of `header.layers`, all of uint16, in blocks of 512 compressed by deflate with predictor 2.

    Overviews are halves of halves until one block holds them: means without no data, the flag's nearest pixels.
    """

    def __init__(self, folder: Path, header: Header, submit: Submit):
        """`folder` has room for the blocks until `finish`; `submit` has an executor's signature."""
        self._tags = _tags_of_gdal(header)
        layers = [layer.name for layer in header.layers]
        nearest = [name == "reconstructed" for name in layers]
        height, width = header.shape
        self._levels = [_Level(folder, (height, width), nearest, submit)]
        while max(height, width) > SIDE:
            height, width = -(-height // 2), -(-width // 2)
            below = _Level(folder, (height, width), nearest, submit)
            self._levels[-1].smaller = below
            self._levels.append(below)

    def rows(self, pixels: NDArray) -> None:
        """The next rows, (layers, h, W) uint16; h is 512 but for the last ones. They must not change afterwards."""
        self._levels[0].rows(pixels)

    def finish(self, path: Path) -> str:
        """Writes the file once all rows are there; its SHA-256."""
        for level in self._levels:
            level.finish()
        blocks = sum(level.size for level in self._levels)
        big = blocks > LARGEST
        base = len(self._head(big, 0))
        head = self._head(big, base)
        seen = hashlib.sha256(head)
        with path.open("wb") as file:
            file.write(head)
            for level in reversed(self._levels):  # the smallest first: readers want them at once
                for piece in level.pieces():
                    seen.update(piece)
                    file.write(piece)
        return seen.hexdigest()

    def close(self) -> None:
        """Drops the blocks that wait."""
        for level in self._levels:
            level.close()

    def _head(self, big: bool, base: int) -> bytes:
        """All that precedes the blocks, of which the first lies at `base`."""
        starts, at = {}, base
        for level in reversed(self._levels):
            starts[level] = at
            at += level.size
        ghost = b"GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n" % len(_GHOST) + _GHOST
        head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if big else struct.pack("<2sHI", b"II", 42, 0)
        first = -(-(len(head) + len(ghost)) // 8) * 8
        head = head[:-8] + struct.pack("<Q", first) if big else head[:-4] + struct.pack("<I", first)
        head = (head + ghost).ljust(first, b"\0")
        for number, level in enumerate(self._levels):
            tags = level.tags(self._tags, starts[level], big, reduced=number > 0)
            last = level is self._levels[-1]
            head += _directory(tags, len(head), big, last=last)
        return head


class _Level:
    """The image at one resolution: blocks, in the order in which they were made, in a file that has no name."""

    def __init__(self, folder: Path, shape: tuple[int, int], nearest: list[bool], submit: Submit):
        self.shape, self._nearest, self._submit = shape, nearest, submit
        self.smaller: _Level | None = None
        self.size = 0
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix=".tmp-")  # noqa: SIM115 - until `close`
        down, across = (-(-side // SIDE) for side in shape)
        self._offsets, self._counts = np.zeros((2, len(nearest), down, across), np.uint64)
        self._done = 0  # rows
        self._waiting: list[tuple[tuple[int, int, int], Future]] = []
        self._halves: list[Future] = []
        self._filled: list[NDArray] = []  # halves of rows that do not make a row of blocks yet

    def rows(self, pixels: NDArray) -> None:
        self._collect()
        row, self._done = self._done // SIDE, self._done + pixels.shape[1]
        for band, image in enumerate(pixels):
            for column, left in enumerate(range(0, self.shape[1], SIDE)):
                job = self._submit(tiff_block, image[:, left : left + SIDE])
                self._waiting.append(((band, row, column), job))
        if self.smaller is not None:
            pairs = zip(pixels, self._nearest, strict=True)
            self._halves = [self._submit(halved, image, nearest=nearest) for image, nearest in pairs]

    def finish(self) -> None:
        self._collect()
        if self._filled and self.smaller is not None:
            self.smaller.rows(np.concatenate(self._filled, axis=1))
        self._filled = []

    def _collect(self) -> None:
        """Takes what was compressed and halved of the last rows."""
        for place, job in self._waiting:
            block = job.result()
            self._offsets[place], self._counts[place] = self.size, len(block)
            self._spool.write(block)
            self.size += len(block)
        self._waiting = []
        if self._halves and self.smaller is not None:
            self._filled.append(np.stack([job.result() for job in self._halves]))
            self._halves = []
            if sum(half.shape[1] for half in self._filled) == SIDE:
                self.smaller.rows(np.concatenate(self._filled, axis=1))
                self._filled = []

    def pieces(self) -> Any:
        self._spool.seek(0)
        while piece := self._spool.read(1 << 22):
            yield piece

    def close(self) -> None:
        self._spool.close()

    def tags(self, known: dict[int, Tag], start: int, big: bool, *, reduced: bool) -> dict[int, Tag]:
        kind, letter = (_LONG8, "<u8") if big else (_LONG, "<u4")
        places = (kind, self._offsets.size, (self._offsets + np.uint64(start)).astype(letter).tobytes())
        counts = (_LONG, self._counts.size, self._counts.astype("<u4").tobytes())
        found = {code: known[code] for code in (_OF_EACH if reduced else _OF_EACH + _OF_FIRST) if code in known}
        found |= {_OFFSETS: places, _COUNTS: counts, _REDUCED: _number(_LONG, int(reduced))}
        found |= {_WIDTH: _number(_LONG, self.shape[1]), _HEIGHT: _number(_LONG, self.shape[0])}
        found |= {_TILE_WIDTH: _number(_LONG, SIDE), _TILE_HEIGHT: _number(_LONG, SIDE)}
        fixed = {_COMPRESSION: _DEFLATE, _PREDICTOR: 2, _PLANAR: _SEPARATE}
        return found | {code: _number(_SHORT, value) for code, value in fixed.items()}


def _number(kind: int, value: int) -> Tag:
    return kind, 1, struct.pack("<H" if kind == _SHORT else "<I", value)


def _directory(tags: dict[int, Tag], at: int, big: bool, *, last: bool) -> bytes:
    """An image file directory that lies at byte `at`, and the values that have no room in it; the next follows."""
    count, entry, room, pointer = ("<Q", "<HHQ", 8, "<Q") if big else ("<H", "<HHI", 4, "<I")
    length = struct.calcsize(count) + len(tags) * (struct.calcsize(entry) + room) + room
    out, values = struct.pack(count, len(tags)), b""
    for code, (kind, number, value) in sorted(tags.items()):
        if len(value) > room:
            place = at + length + len(values)
            values += value + b"\0" * (-len(value) % 8)
            value = struct.pack(pointer, place)
        out += struct.pack(entry, code, kind, number) + value.ljust(room, b"\0")
    values += b"\0" * (-(at + length + len(values)) % 8)
    return out + struct.pack(pointer, 0 if last else at + length + len(values)) + values


def _tags_of_gdal(header: Header) -> dict[int, Tag]:
    """The tags of an image with the header's place, names and metadata."""
    layers = header.layers
    size = {"width": 16, "height": 16, "count": len(layers), "dtype": "uint16", "nodata": EMPTY_DN}
    more = {"photometric": "RGB", "crs": header.crs, "transform": header.transform}
    with placing.unplaced(), rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", **size, **more) as target:
            target.descriptions = [layer.name for layer in layers]
            target.scales, target.offsets = [each.scale for each in layers], [each.offset for each in layers]
            target.colorinterp = [*_COLOURS, *[ColorInterp.undefined] * (len(layers) - len(_COLOURS))]
            texts = {key: str(value) for key, value in header.attributes.items()}
            target.update_tags(**texts, copyright=header.attribution)
        return _read_tags(bytes(memory.getbuffer()))


def _read_tags(data: bytes) -> dict[int, Tag]:
    """The tags of the first directory of a classic TIFF."""
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    found = {}
    for number in range(count):
        code, kind, values, place = struct.unpack_from("<HHII", data, at + 2 + 12 * number)
        length = _SIZES[kind] * values
        start = place if length > 4 else at + 2 + 12 * number + 8
        found[code] = (kind, values, data[start : start + length])
    return found
