"""HDF5 shards of triplets: the one module that writes and reads them (layout: DESIGN, contracts of the files)."""

import errno
import hashlib
import json
import math
import os
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile

import h5py
import hdf5plugin
import numpy as np

from cloudjob.errors import CorruptFileError, ItemError
from cloudjob.pixels import BANDS, EMPTY_DN, OFFSET, SCALE

SCHEMA_VERSION = 1
COMPRESSIONS = {
    "none": {},
    "zstd": {"shuffle": True, **hdf5plugin.Zstd(clevel=3)},
    "gzip": {"shuffle": True, "compression": "gzip", "compression_opts": 4},
}
_THIN = 4  # the normalisation comes from every 4th pixel of every 4th row: windows overlap more than that
_ROOM = 2**20  # bytes; attributes, and what HDF5 notes of each dataset
_COLUMNS = {"row": "i4", "col": "i4", "pair": "i4", "cloud_fraction": "f4", "reference_days": "f4"}
SCALARS = ("sun_elevation", "reference_days", "clear_days")  # float32, one number a triplet
_DAMAGE = (OSError, LookupError, ValueError, TypeError, RuntimeError)  # what h5py raises over a broken file


def layout(window: int, *, reference: bool) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Name -> shape and dtype of one triplet's arrays, in the order in which they are written."""
    image = ((len(BANDS), window, window), np.dtype("<u2"))
    arrays = {"cloudy": image, "clear": image, "mask": ((window, window), np.dtype("u1"))}
    return arrays | ({"reference": image} if reference else {})


def scalars(pair: dict) -> dict[str, float]:
    """SCALARS of the triplets of a pair, from its facts: elevation of the sun on the cloudy date (degrees), and signed
    days from it to the dates of the reference and of the clear image, 0 where that is the ground of the day itself
    (`target`), under which the pair's clear date is the reference. NaN where there is none, or nothing is told."""
    taken = {role: datetime.strptime(n.split("_")[2], "%Y%m%dT%H%M%S") for role, n in pair.get("products", {}).items()}

    def days(role: str) -> float:
        return (taken[role] - taken["cloudy"]).total_seconds() / 86400 if role in taken else math.nan

    ground = pair.get("target") == "ground"
    found = (days("clear"), 0.0) if ground else (days("reference"), days("clear"))
    return dict(zip(SCALARS, (pair.get("sun_elevation", {}).get("cloudy", math.nan), *found), strict=True))


class Writer:
    """Writes the triplets of one pair as they come; one at a time is in memory.

    One chunk a triplet, by default without a filter: it is read by one `preadv`. `capacity` is the most that may be
    added. `pair` goes into the attribute `pairs` (products, baselines, offsets, radiometric gains); `attributes` are
    plain values; dicts and lists become JSON, strings have a fixed length (HDF5 keeps others in a heap without a
    checksum, and hangs where that is damaged). After a clean exit `result` holds what `normalisation` and `read_back`
    need. The caller flushes the file to the disk.
    """

    def __init__(
        self,
        path: Path,
        capacity: int,
        *,
        window: int,
        reference: bool,
        pair: dict,
        attributes: dict,
        compression: str = "none",
        reference_days: float | None = None,
    ):
        self.path, self.capacity, self.window = Path(path), capacity, window
        self.layout = layout(window, reference=reference)
        self.filters, self.reference_days = COMPRESSIONS[compression], reference_days
        self.attributes = {"pairs": [pair]} | attributes
        self.result: dict = {}
        self._places: list[tuple[int, int, float]] = []
        self._checksums: list[int] = []
        self._sums = np.zeros((3, len(BANDS)), np.int64)

    def __enter__(self) -> "Writer":
        # No locks (nobody else knows the name) and no cache: what cannot be written is to fail in `add`.
        self._file = h5py.File(self.path, "w", libver="latest", locking=False, rdcc_nbytes=0)
        self._data = {}
        for name, (shape, dtype) in self.layout.items():
            most = (self.capacity, *shape)
            self._data[name] = self._file.create_dataset(
                name, most, dtype, maxshape=most, chunks=(1, *shape), **self.filters
            )
        return self

    def add(self, cloudy, clear, mask, reference, row: int, col: int, cloud_fraction: float) -> None:
        """cloudy, clear, reference (4, n, n) uint16 DN, mask (n, n) uint8 classes; may be views of a whole scene.

        `reference` is None where the shard has none; row and col are the upper left pixel of the window.
        """
        given = {"cloudy": cloudy, "clear": clear, "mask": mask, "reference": reference}
        number, checksum = len(self._places), 0
        if number == self.capacity:
            raise ValueError(f"{self.path}: made for {self.capacity} triplets")
        for name, (shape, dtype) in self.layout.items():
            array = np.ascontiguousarray(given[name])  # a strided view is written 12 times slower
            if (array.shape, array.dtype) != (shape, dtype):
                raise ValueError(f"{name}: {array.shape} {array.dtype}, expected {shape} {dtype}")
            if self.filters:
                self._data[name][number] = array
            else:
                self._data[name].id.write_direct_chunk((number,) + (0,) * array.ndim, array)
            checksum = zlib.crc32(array, checksum)
        self._checksums.append(checksum)
        self._places.append((row, col, cloud_fraction))
        self._sums += _sums(clear)

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            self._give_up()
            return
        try:
            with TemporaryFile(dir=self.path.parent) as room:  # for what HDF5 still has to write
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
        with suppress(*_DAMAGE):
            self._file.close()

    def _finish(self) -> None:
        count, file = len(self._places), self._file
        for data in self._data.values():
            data.resize(count, axis=0)
        row, col, fraction = zip(*self._places, strict=True) if count else ((), (), ())
        columns = {"row": row, "col": col, "pair": np.zeros(count), "cloud_fraction": fraction}
        if self.reference_days is not None:
            columns["reference_days"] = np.full(count, self.reference_days)
        for name, values in columns.items():
            file[name] = np.asarray(values, _COLUMNS[name])
        facts = {"schema_version": SCHEMA_VERSION, "bands": ",".join(BANDS), "scale": SCALE, "offset": OFFSET}
        for name, value in (facts | self.attributes).items():
            text = json.dumps(value) if isinstance(value, dict | list) else value
            file.attrs[name] = np.bytes_(text) if isinstance(text, str) else text
        pixels, total, squares = self._sums.tolist()
        self.result = {
            "count": count,
            "window": self.window,
            "reference": "reference" in self.layout,
            "pixels": pixels,
            "sum": total,
            "sum2": squares,
            "checksums": self._checksums,
        }


def _sums(clear: np.ndarray) -> np.ndarray:
    """Per band of the thinned (4, n, n) uint16 DN: how many have data, their sum, the sum of their squares."""
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
    """CorruptFileError unless a reader finds in the file just written each triplet that the writer was given."""
    shard = _Shard(path, result["count"], result["window"])
    buffers = {name: np.empty(*form) for name, form in layout(result["window"], reference=result["reference"]).items()}
    if set(shard.names) != set(buffers):
        raise CorruptFileError(path, f"holds {', '.join(shard.names)}; written were {', '.join(buffers)}")
    for number, written in enumerate(result["checksums"]):
        checksum = 0
        for name, buffer in buffers.items():
            shard.read(name, number, buffer)
            checksum = zlib.crc32(buffer, checksum)
        if checksum != written:
            raise CorruptFileError(path, f"triplet {number} is not what was written")
    columns(path)


def check(path: Path, sha256: str) -> None:
    """CorruptFileError unless the whole file has this checksum, which is the one of the index."""
    with opened(path) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise CorruptFileError(path, f"sha256 is {found[:16]}..., the index says {sha256[:16]}...")


def columns(path: Path) -> dict:
    """row, col, pair, cloud_fraction and, where there is a reference, reference_days: (N,) each; and `attributes`."""
    with _named(path), h5py.File(path, "r", locking=False) as file:
        found = {name: file[name][:] for name in _COLUMNS if name in file or name != "reference_days"}
        attributes = {name: v.decode() if isinstance(v, bytes) else v for name, v in file.attrs.items()}
        return found | {"attributes": attributes}


class ShardSet:
    """The triplets of one split, by position 0..len-1. Files are opened when first needed, once a process."""

    def __init__(self, folder: Path, index: dict, split: str):
        self.window = index["window"]
        entries = [entry for entry in index["files"] if entry["split"] == split]
        self.files = [(Path(folder) / entry["file"], entry["count"]) for entry in entries]
        self._ends = list(accumulate(count for _, count in self.files))
        self._open: dict[int, _Shard] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}

    @cached_property
    def has_reference(self) -> bool:
        """Whether any of the files holds a third image; that of the others' triplets is 0, no data."""
        return any("reference" in self._shard(number).names for number in range(len(self.files)))

    def buffers(self, batch: int, allocate: Callable = np.empty) -> dict[str, np.ndarray]:
        """cloudy, clear (batch, 4, n, n) uint16, mask (batch, n, n) uint8, reference as cloudy if there is any, and
        each of SCALARS (batch,) float32."""
        arrays = layout(self.window, reference=self.has_reference) | dict.fromkeys(SCALARS, ((), np.dtype("f4")))
        return {name: allocate((batch, *shape), dtype) for name, (shape, dtype) in arrays.items()}

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        """The arrays and scalars of one triplet, as `buffers` names them."""
        arrays = self.buffers(1)
        self.read(position, arrays, 0)
        return {name: array[0] for name, array in arrays.items()}

    def look(self, number: int) -> tuple[list[int], dict[str, np.ndarray]]:
        """Positions and arrays of up to `number` triplets from all over the split, the same ones each time."""
        number = min(number, len(self))
        positions = [place * len(self) // number for place in range(number)]
        arrays = self.buffers(number)
        for slot, position in enumerate(positions):
            self.read(position, arrays, slot)
        return positions, arrays

    def read(self, position: int, buffers: dict[str, np.ndarray], slot: int) -> None:
        """Fills place `slot` of each of these buffers, named as a triplet's arrays. Threads may do so at once."""
        if not 0 <= position < len(self):
            raise IndexError(position)
        number = bisect_right(self._ends, position)
        shard = self._shard(number)
        row = position - self._ends[number] + shard.count
        for name, buffer in buffers.items():
            if name in SCALARS:
                buffer[slot] = shard.scalars[name]
            else:
                shard.read(name, row, buffer[slot])

    def _shard(self, number: int) -> "_Shard":
        if self._process != os.getpid():  # forked: HDF5 must not go on with the parent's open files
            self._process, self._open = os.getpid(), {}
        if number not in self._open:  # two threads may open it at once; one of the two is kept
            self._open.setdefault(number, _Shard(*self.files[number], self.window))
        return self._open[number]


class Filler:
    """Fills buffers, named as a triplet's arrays and scalars, again and again with other triplets.

    What is the same each time is prepared once, and the rest for a batch at a time: a thread then runs little more
    than one call to the system a triplet. Python's lock lets no two threads run anything else side by side.
    """

    def __init__(self, shards: ShardSet, buffers: dict[str, np.ndarray]):
        self.shards, self.buffers = shards, buffers
        files = [shards._shard(number) for number in range(len(shards.files))]
        self._scalars = {
            name: np.repeat(np.float32([file.scalars[name] for file in files]), [file.count for file in files])
            for name in SCALARS
            if name in buffers
        }
        images = {name: buffer for name, buffer in buffers.items() if name not in SCALARS}
        self._places = np.concatenate([file.at_once(tuple(images)) for file in files], axis=1)
        self._views = [
            [memoryview(image).cast("B") for image in triplet] for triplet in zip(*images.values(), strict=True)
        ]
        self._size = sum(map(len, self._views[0])) if self._views else 0

    def plan(self, positions: list[int]) -> list[tuple]:
        """Fills the scalars of these triplets, from the first slot on; what `fill` takes, an entry a triplet."""
        for name, values in self._scalars.items():
            np.take(values, positions, out=self.buffers[name][: len(positions)])
        files, firsts = self._places[:, positions].tolist()
        return list(zip(files, firsts, self._views, positions, range(len(positions)), strict=False))

    def fill(self, plan: list[tuple]) -> None:
        """Reads the arrays of these triplets. Threads may do so at once, each with its part of the plan."""
        for file, first, views, position, slot in plan:
            try:
                whole = first >= 0 and os.preadv(file, views, first) == self._size
            except OSError:
                whole = False  # `read` says what it is
            if not whole:
                self.shards.read(position, self.buffers, slot)


class _Shard:
    """One open file. Chunks without a filter are read at their offsets in it, past HDF5 and its lock."""

    def __init__(self, path: Path, count: int, window: int):
        self.path, self.count = path, count
        self._file = opened(path)
        self._offsets: dict[str, np.ndarray] = {}
        self._sizes: dict[str, int] = {}
        self._filtered: dict[str, h5py.Dataset] = {}
        with _named(path):
            self._hdf5 = h5py.File(path, "r", locking=False, rdcc_nbytes=0)
            version = self._hdf5.attrs["schema_version"]
            if version != SCHEMA_VERSION:
                raise CorruptFileError(path, f"schema_version is {version}, this cloudjob reads {SCHEMA_VERSION}")
            self.scalars = scalars(json.loads(self._hdf5.attrs["pairs"])[0])
            arrays = layout(window, reference="reference" in self._hdf5)
            self.names = tuple(arrays)
            for name, (shape, dtype) in arrays.items():
                self._locate(name, shape, dtype)
            if not self._filtered:
                self._hdf5.close()

    def _locate(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        data = self._hdf5[name]
        if not isinstance(data, h5py.Dataset):
            raise CorruptFileError(self.path, f"/{name} is no data set")
        if (data.shape, data.dtype, data.chunks) != ((self.count, *shape), dtype, (1, *shape)):
            expected = f"{(self.count, *shape)} {dtype}, a chunk a triplet"
            raise CorruptFileError(self.path, f"/{name} is {data.shape} {data.dtype}, expected {expected}")
        if data.id.get_create_plist().get_nfilters():
            self._filtered[name] = data
        else:
            self._sizes[name] = math.prod(shape) * dtype.itemsize
            self._offsets[name] = self._chunks(data, self._sizes[name])

    def _chunks(self, data: h5py.Dataset, size: int) -> np.ndarray:
        """Where the chunk of each triplet, `size` bytes, begins in the file."""
        offsets = np.full(self.count, -1, np.int64)

        def note(chunk) -> None:
            if chunk.size == size:
                offsets[chunk.chunk_offset[0]] = chunk.byte_offset

        data.id.chunk_iter(note)
        outside = (offsets < 0) | (offsets > os.fstat(self._file.fileno()).st_size - size)
        if outside.any():
            raise CorruptFileError(self.path, f"triplet {outside.argmax()} of {data.name} is not in the file")
        return offsets

    def at_once(self, names: tuple[str, ...]) -> np.ndarray:
        """(2, count): descriptor of the file, and the byte at which each triplet's arrays of these names begin where
        they follow each other, as they are written; -1 where they do not."""
        if not set(names) <= set(self._offsets):
            return np.full((2, self.count), -1)
        offsets = np.stack([self._offsets[name] for name in names])
        sizes = np.array([self._sizes[name] for name in names[:-1]], int)
        together = (np.diff(offsets, axis=0) == sizes[:, None]).all(0)
        return np.stack([np.full(self.count, self._file.fileno()), np.where(together, offsets[0], -1)])

    def read(self, name: str, row: int, out: np.ndarray) -> None:
        """Fills `out` (contiguous) with an array of triplet `row`; zeros for a reference that the file has not."""
        if name not in self.names:
            out[...] = 0
        elif name in self._filtered:
            with _named(self.path):
                self._filtered[name].read_direct(out, np.s_[row])
        else:
            view, offset = memoryview(out).cast("B"), int(self._offsets[name][row])
            while view:
                with _named(self.path):
                    got = os.preadv(self._file.fileno(), [view], offset)
                if not got:
                    raise CorruptFileError(self.path, f"ends within {name} of triplet {row}")
                view, offset = view[got:], offset + got


def opened(path: Path):
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError:
        raise CorruptFileError(path, "missing") from None
    except OSError as error:  # not the file's fault: it must not be set aside as broken
        raise ItemError(f"{path}: cannot be opened ({error.strerror})") from None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What h5py or the system says of a broken file, with its name."""
    try:
        yield
    except _DAMAGE as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise ItemError(f"{path}: cannot be opened ({os.strerror(error.errno)})") from None
        raise CorruptFileError(path, f"cannot be read as a shard: {error}") from None
