"""Writes HDF5 shards, and reads back what was written (layout: docs/design.md, contracts of the files)."""

import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

import h5py
import numpy as np

from cloudjob.errors import CorruptFileError, ItemError
from cloudjob.files import json_text
from cloudjob.patches.shards import COLUMNS, DAMAGE, DAYS, ShardFile, columns, filters, layout
from cloudjob.pixels import BANDS, EMPTY_DN, OFFSET, SCALE

_THIN = 4  # the normalisation comes from every 4th pixel of every 4th row: windows overlap more than that
_ROOM = 2**20  # bytes; attributes, and what HDF5 notes of each dataset


class Writer:
    """Writes the triplets of one pair as they come; one at a time is in memory.

    There is one chunk per triplet, by default without a filter, so that one `preadv` reads a triplet. At most
    `capacity` triplets may be added. `reference_days` are signed days to each of their references, up to three, the
    nearest first. `pair`, facts such as products, baselines, offsets and radiometric gains, becomes
    the attribute `pairs`; it may still be changed until the writer is closed. `attributes` are plain values. Dicts and
    lists become JSON; strings have a fixed length (HDF5 keeps others in a heap without a checksum, and hangs where that
    is damaged). After a clean exit `result` holds what `normalisation` and `read_back` need. The caller flushes the
    file to the disk.
    """

    def __init__(
        self,
        path: Path,
        capacity: int,
        *,
        window: int,
        pair: dict,
        attributes: dict,
        compression: str = "none",
        reference_days: Sequence[float] = (),
    ):
        self.path, self.capacity, self.window = Path(path), capacity, window
        self.layout = layout(window, references=len(reference_days))
        self.filters, self.reference_days = filters(compression), reference_days
        self.pair, self.attributes = pair, attributes
        self.result: dict = {}
        self._places: list[tuple[int, int, float]] = []
        self._days: list[Mapping[str, float]] = []
        self._checksums: list[int] = []
        self._sums = np.zeros((3, len(BANDS)), np.int64)

    def __enter__(self) -> Self:
        # No locks (nobody else knows the name) and no cache: what cannot be written is to fail in `add`.
        self._file = h5py.File(self.path, "w", libver="latest", locking=False, rdcc_nbytes=0)
        self._data = {}
        for name, (shape, dtype) in self.layout.items():
            most = (self.capacity, *shape)
            self._data[name] = self._file.create_dataset(
                name, most, dtype, maxshape=most, chunks=(1, *shape), **self.filters
            )
        return self

    def add(
        self,
        days: Mapping[str, float] | None = None,
        /,
        *,
        row: int,
        col: int,
        cloud_fraction: float,
        **images: np.ndarray,
    ) -> None:
        """Adds a triplet: cloudy, clear, its references (4, n, n) uint16 DN and mask (n, n) uint8 classes, maybe views
        of a whole scene. row and col are the upper left pixel of the window. `days`, of triplets with dates of their
        own: clear_days, reference_days, ..., NaN those that are not given.
        """
        number, checksum = len(self._places), 0
        if number == self.capacity:
            raise ValueError(f"{self.path}: made for {self.capacity} triplets")
        for name, (shape, dtype) in self.layout.items():
            array = np.ascontiguousarray(images[name])  # a strided view is written 12 times slower
            if (array.shape, array.dtype) != (shape, dtype):
                raise ValueError(f"{name}: {array.shape} {array.dtype}, expected {shape} {dtype}")
            if self.filters:
                self._data[name][number] = array
            else:
                self._data[name].id.write_direct_chunk((number,) + (0,) * array.ndim, array)
            checksum = zlib.crc32(array.data, checksum)
        self._checksums.append(checksum)
        self._places.append((row, col, cloud_fraction))
        self._days += [] if days is None else [days]
        self._sums += _sums(images["clear"])

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._give_up()
            return
        try:
            with TemporaryFile(dir=self.path.parent) as room:  # for what HDF5 has yet to write
                os.posix_fallocate(room.fileno(), 0, _ROOM + 64 * self.capacity)
            self._finish()
            self._file.flush()
        except BaseException:
            self._give_up()
            raise
        self._file.close()

    def _give_up(self) -> None:
        """Closes a file that nobody will read. HDF5 writes even then; on a full disk it would crash the process."""
        os.truncate(self.path, 0)
        with suppress(*DAMAGE):
            self._file.close()

    def _finish(self) -> None:
        count, file = len(self._places), self._file
        for data in self._data.values():
            data.resize(count, axis=0)
        row, col, fraction = zip(*self._places, strict=True) if count else ((), (), ())
        columns = {"row": row, "col": col, "pair": np.zeros(count), "cloud_fraction": fraction}
        columns |= {name: np.full(count, days) for name, days in zip(DAYS, self.reference_days, strict=False)}
        if self._days:
            own = ("clear_days", *DAYS[: len(self.reference_days)])
            columns |= {name: [each.get(name, np.nan) for each in self._days] for name in own}
        for name, values in columns.items():
            file[name] = np.asarray(values, COLUMNS[name])
        facts: dict[str, Any] = {
            "schema_version": 2 if len(self.reference_days) > 1 else 1,
            "bands": ",".join(BANDS),
            "scale": SCALE,
            "offset": OFFSET,
        }
        for name, value in (facts | {"pairs": [self.pair]} | self.attributes).items():
            text = json_text(value) if isinstance(value, dict | list) else value
            file.attrs[name] = np.bytes_(text) if isinstance(text, str) else text
        pixels, total, squares = self._sums.tolist()
        self.result = {
            "count": count,
            "window": self.window,
            "references": len(self.reference_days),
            "pixels": pixels,
            "sum": total,
            "sum2": squares,
            "checksums": self._checksums,
        }


def _sums(clear: np.ndarray) -> np.ndarray:
    """Per band of the thinned (4, n, n) uint16 DN: the number with data, their sum, the sum of their squares."""
    values = clear[:, ::_THIN, ::_THIN].reshape(len(BANDS), -1).astype(np.float64)
    squares = np.einsum("bp,bp->b", values, values)
    return np.stack([np.count_nonzero(values != EMPTY_DN, axis=1), values.sum(1), squares]).astype(np.int64)


def normalisation(parts: list[dict]) -> dict:
    """Per-band mean and standard deviation of reflectance, from the results of the writers."""
    pixels, total, squares = (np.sum([part[key] for part in parts], axis=0) for key in ("pixels", "sum", "sum2"))
    if not np.all(pixels):
        raise ItemError("the clear images of the training split hold no data in some band")
    mean = total / pixels
    spread = np.sqrt(np.maximum(squares / pixels - mean**2, 1.0))
    return {"mean": (mean * SCALE + OFFSET).round(6).tolist(), "std": (spread * SCALE).round(6).tolist()}


def read_back(path: Path, result: dict) -> None:
    """CorruptFileError unless a reader finds in the file just written every triplet that the writer was given."""
    shard = ShardFile(path, result["count"], result["window"])
    arrays = layout(result["window"], references=result["references"])
    buffers = {name: np.empty(*form) for name, form in arrays.items()}
    if set(shard.names) != set(buffers):
        raise CorruptFileError(path, f"holds {', '.join(shard.names)}; written were {', '.join(buffers)}")
    for number, written in enumerate(result["checksums"]):
        checksum = 0
        for name, buffer in buffers.items():
            shard.read(name, number, buffer)
            checksum = zlib.crc32(buffer.data, checksum)
        if checksum != written:
            raise CorruptFileError(path, f"triplet {number} is not what was written")
    columns(path)
