"""HDF5 shards of triplets: their layout and how they are read (docs/design.md, contracts of the files)."""

import hashlib
import json
import math
import os
import resource
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from io import RawIOBase
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cloudjob.errors import ConfigError, CorruptFileError, ItemError
from cloudjob.files import raise_open_limit, reading
from cloudjob.names import days_between
from cloudjob.patches.splits import GROUND
from cloudjob.pixels import BANDS, EMPTY_DN, REFERENCES

SCHEMA_VERSION = 2  # the newest that is read; 1 knows no reference but the first
COMPRESSIONS = ("none", "zstd", "gzip")
_ZSTD = 32015  # the number of the filter, as registered with the HDF Group
DAYS = tuple(f"{name}_days" for name in REFERENCES)
_OPTIONAL = (*DAYS, "clear_days")  # columns that a file may lack
COLUMNS = {"row": "i4", "col": "i4", "pair": "i4", "cloud_fraction": "f4"} | dict.fromkeys(_OPTIONAL, "f4")
EACH = "of each triplet"  # `days` of a pair whose triplets have dates of their own: they are in the columns
SCALARS = ("sun_elevation", "reference_days", "clear_days")  # float32, one number per triplet
_NUMBERS = (*SCALARS, *DAYS[1:])  # those of the further references too, where they are asked for
DAMAGE = (OSError, LookupError, ValueError, TypeError, RuntimeError)  # what h5py raises over a broken file


def layout(window: int, *, references: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Name -> shape and dtype of one triplet's arrays, in the order in which they are written: what the model is shown
    lies together, before the further references."""
    image = ((len(BANDS), window, window), np.dtype("<u2"))
    arrays: dict[str, tuple[tuple[int, ...], np.dtype]] = {"cloudy": image, "clear": image}
    arrays["mask"] = ((window, window), np.dtype("u1"))
    return arrays | dict.fromkeys(REFERENCES[:references], image)


def scalars(pair: dict) -> dict[str, float]:
    """SCALARS of the triplets of a pair, from its facts: the sun's elevation on the cloudy date (degrees), and signed
    days from the cloudy date to the dates of the reference and of the clear image; and the days to the further
    references. NaN where a date or fact is missing.

    Where the clear image is the ground of the cloudy day itself (`target` is GROUND), it is 0 days away, and the pair's
    clear date is the reference.
    """
    products = pair.get("products", {})

    def days(role: str) -> float:
        return days_between(products["cloudy"], products[role]) if role in products else math.nan

    on_the_day = pair.get("target") == GROUND
    sun = pair.get("sun_elevation", {}).get("cloudy")
    return {
        "sun_elevation": math.nan if sun is None else sun,
        "reference_days": days("clear") if on_the_day else days("reference"),
        "clear_days": 0.0 if on_the_day else days("clear"),
        **{f"{role}_days": days(role) for role in REFERENCES[1:]},
    }


def filters(compression: str) -> dict[str, Any]:
    """What h5py's `create_dataset` takes for one of COMPRESSIONS; ConfigError where its library is not installed."""
    if compression == "none":
        return {}
    if compression == "gzip":
        return {"shuffle": True, "compression": "gzip", "compression_opts": 4}
    try:
        import hdf5plugin
    except ImportError:
        raise ConfigError(
            "shard.compression: zstd needs hdf5plugin, which is not installed. Do: pip install 'cloudjob[zstd]', or "
            "choose gzip or none"
        ) from None
    return {"shuffle": True, **hdf5plugin.Zstd(clevel=3)}


def _need_zstd(path: Path) -> None:
    """Makes HDF5 able to read zstd; ItemError where it cannot."""
    if h5py.h5z.filter_avail(_ZSTD):
        return
    try:
        import hdf5plugin  # noqa: F401 (registers the filter)
    except ImportError:
        raise ItemError(
            f"{path}: compressed with zstd, which hdf5plugin reads, and that is not installed. Do: pip install "
            "'cloudjob[zstd]', or make the shards again with shard.compression gzip or none"
        ) from None


def check(path: Path, sha256: str) -> None:
    """CorruptFileError unless the whole file has this checksum, which the index gives."""
    with opened(path) as file, reading(path):
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise CorruptFileError(path, f"sha256 is {found[:16]}..., the index says {sha256[:16]}...")


def columns(path: Path) -> dict:
    """row, col, pair, cloud_fraction and, for each reference that there is, its days: (N,) each; and `attributes`."""
    with _named(path), h5py.File(path, "r", locking=False) as file:
        found = {name: file[name][:] for name in COLUMNS if name in file or name not in _OPTIONAL}
        attributes = {name: v.decode() if isinstance(v, bytes) else v for name, v in file.attrs.items()}
        return found | {"attributes": attributes}


class ShardSet:
    """The triplets of one split, by position 0..len-1. Files are opened when first needed, and stay open: all of them,
    or where the system allows too few (`room`) those opened last, which is slow."""

    def __init__(self, folder: Path, index: dict, split: str):
        raise_open_limit()
        self.room = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3, 1)  # another split, and a descriptor beside
        self.window = index["window"]
        entries = [entry for entry in index["files"] if entry["split"] == split]
        self.files = [(Path(folder) / entry["file"], entry["count"]) for entry in entries]
        self._ends = list(accumulate(count for _, count in self.files))
        self._open: dict[int, ShardFile] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}

    @cached_property
    def references(self) -> int:
        """The most references that a file holds; in triplets of the other files they are EMPTY_DN, no data."""
        return max((self._shard(number).references for number in range(len(self.files))), default=0)

    def buffers(
        self, batch: int, allocate: Callable = np.empty, *, references: int | None = None
    ) -> dict[str, np.ndarray]:
        """Buffers of a batch: cloudy, clear (batch, 4, n, n) uint16, mask (batch, n, n) uint8, so many `references` as
        cloudy (by default all that the split has), SCALARS and the further references' days (batch,) float32.
        """
        if references is None:
            references = self.references
        numbers = dict.fromkeys((*SCALARS, *DAYS[1:references]), ((), np.dtype("f4")))
        arrays = layout(self.window, references=references) | numbers
        return {name: allocate((batch, *shape), dtype) for name, (shape, dtype) in arrays.items()}

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        """The arrays and scalars of one triplet, as `buffers` names them."""
        arrays = self.buffers(1)
        self.read(position, arrays, 0)
        return {name: array[0] for name, array in arrays.items()}

    def evenly(
        self, number: int, part: slice = slice(None), *, references: int | None = None
    ) -> tuple[list[int], dict[str, np.ndarray]]:
        """Positions and arrays (see `buffers`) of up to `number` triplets, or this part of them, evenly spread over the
        split: the same ones each time."""
        number = min(number, len(self))
        positions = [place * len(self) // number for place in range(number)][part]
        arrays = self.buffers(len(positions), references=references)
        for slot, position in enumerate(positions):
            self.read(position, arrays, slot)
        return positions, arrays

    def read(self, position: int, buffers: dict[str, np.ndarray], slot: int) -> None:
        """Fills place `slot` of each of these buffers, named as a triplet's arrays. Threads may call it."""
        if not 0 <= position < len(self):
            raise IndexError(position)
        number = bisect_right(self._ends, position)
        shard = self._shard(number)
        row = position - self._ends[number] + shard.count
        for name, buffer in buffers.items():
            if name in _NUMBERS:
                buffer[slot] = shard.numbers(name)[row]
            else:
                shard.read(name, row, buffer[slot])

    def _shard(self, number: int) -> "ShardFile":
        if self._process != os.getpid():  # forked: HDF5 must not go on with the parent's open files
            self._process, self._open = os.getpid(), {}
        if (found := self._open.get(number)) is None:  # two threads may open it at once; one of the two is kept
            found = self._open.setdefault(number, ShardFile(*self.files[number], self.window))
            for oldest in list(self._open)[: -self.room]:  # closed when the last thread that reads it has done so
                self._open.pop(oldest, None)
        return found


class Filler:
    """Fills buffers, named as a triplet's arrays and scalars, again and again with other triplets.

    What is the same each time is prepared once, and the rest once per batch: a thread then runs little more than one
    system call per triplet. Python's lock lets no two threads run anything else side by side.
    """

    def __init__(self, shards: ShardSet, buffers: dict[str, np.ndarray]):
        self.shards, self.buffers = shards, buffers
        images = {name: buffer for name, buffer in buffers.items() if name not in _NUMBERS}
        stay = len(shards.files) <= shards.room
        places = []
        numbers: dict[str, list[np.ndarray]] = {name: [] for name in _NUMBERS if name in buffers}
        for number in range(len(shards.files)):
            file = shards._shard(number)
            for name, found in numbers.items():
                found.append(file.numbers(name))
            places.append(file.at_once(tuple(images)) if stay else np.full((2, file.count), -1))
        self._scalars = {name: np.concatenate(found) for name, found in numbers.items()}
        self._places = np.concatenate(places, axis=1)
        self._views = [
            [memoryview(image).cast("B") for image in triplet] for triplet in zip(*images.values(), strict=True)
        ]
        self._size = sum(map(len, self._views[0])) if self._views else 0

    def plan(self, positions: list[int]) -> list[tuple]:
        """Fills the scalars of these triplets, from the first slot on, and returns what `fill` takes: one entry per
        triplet."""
        for name, values in self._scalars.items():
            np.take(values, positions, out=self.buffers[name][: len(positions)])
        files, firsts = self._places[:, positions].tolist()
        return list(zip(files, firsts, self._views, positions, range(len(positions)), strict=False))

    def fill(self, plan: list[tuple]) -> None:
        """Reads the arrays of these triplets. Threads may call it side by side, each with its part of the plan."""
        for file, first, views, position, slot in plan:
            try:
                whole = first >= 0 and os.preadv(file, views, first) == self._size
            except OSError:
                whole = False  # `read` says what it is
            if not whole:
                self.shards.read(position, self.buffers, slot)


class ShardFile:
    """One open file. Chunks without a filter are read at their offsets in the file, past HDF5 and its lock."""

    def __init__(self, path: Path, count: int, window: int):
        self.path, self.count = path, count
        self._file = opened(path)
        self._offsets: dict[str, np.ndarray] = {}
        self._sizes: dict[str, int] = {}
        self._filtered: dict[str, h5py.Dataset] = {}
        with _named(path):
            self._hdf5 = h5py.File(path, "r", locking=False, rdcc_nbytes=0)
            version = self._hdf5.attrs["schema_version"]
            if not 1 <= version <= SCHEMA_VERSION:
                raise CorruptFileError(path, f"schema_version is {version}, this cloudjob reads 1 to {SCHEMA_VERSION}")
            facts = json.loads(self._hdf5.attrs["pairs"])[0]
            self.scalars: dict[str, float | np.ndarray] = {**scalars(facts)}
            if facts.get("days") == EACH:
                self.scalars |= {name: self._column(name) for name in _OPTIONAL if name in self._hdf5}
            self.references = sum(name in self._hdf5 for name in REFERENCES)
            arrays = layout(window, references=self.references)
            self.names = tuple(arrays)
            for name, (shape, dtype) in arrays.items():
                self._locate(name, shape, dtype)
            if not self._filtered:
                self._hdf5.close()

    def _column(self, name: str) -> np.ndarray:
        found = self._hdf5[name][:]
        if found.shape != (self.count,):
            raise CorruptFileError(self.path, f"/{name} is {found.shape}, expected {(self.count,)}")
        return found

    def numbers(self, name: str) -> np.ndarray:
        """(count,) float32: one of SCALARS and DAYS of each triplet."""
        return np.broadcast_to(np.asarray(self.scalars[name], "f4"), self.count)

    def _locate(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        data = self._hdf5[name]
        if not isinstance(data, h5py.Dataset):
            raise CorruptFileError(self.path, f"/{name} is no data set")
        if (data.shape, data.dtype, data.chunks) != ((self.count, *shape), dtype, (1, *shape)):
            expected = f"{(self.count, *shape)} {dtype}, a chunk per triplet"
            raise CorruptFileError(self.path, f"/{name} is {data.shape} {data.dtype}, expected {expected}")
        stored = data.id.get_create_plist()
        if count := stored.get_nfilters():
            if any(stored.get_filter(number)[0] == _ZSTD for number in range(count)):
                _need_zstd(self.path)
            self._filtered[name] = data
        else:
            self._sizes[name] = math.prod(shape) * dtype.itemsize
            self._offsets[name] = self._chunks(data, self._sizes[name])

    def _chunks(self, data: h5py.Dataset, size: int) -> np.ndarray:
        """Where the chunk of each triplet, `size` bytes, begins in the file."""
        offsets = np.full(self.count, -1, np.int64)

        def note(chunk: Any) -> None:
            if chunk.size == size:
                offsets[chunk.chunk_offset[0]] = chunk.byte_offset

        data.id.chunk_iter(note)
        outside = (offsets < 0) | (offsets > os.fstat(self._file.fileno()).st_size - size)
        if outside.any():
            raise CorruptFileError(self.path, f"triplet {outside.argmax()} of {data.name} is not in the file")
        return offsets

    def at_once(self, names: tuple[str, ...]) -> np.ndarray:
        """(2, count): per triplet the descriptor of the file, and the byte at which the arrays of these names begin; -1
        where they do not follow each other, as they are written."""
        if not set(names) <= set(self._offsets):
            return np.full((2, self.count), -1)
        offsets = np.stack([self._offsets[name] for name in names])
        sizes = np.array([self._sizes[name] for name in names[:-1]], int)
        adjacent = (np.diff(offsets, axis=0) == sizes[:, None]).all(0)
        return np.stack([np.full(self.count, self._file.fileno()), np.where(adjacent, offsets[0], -1)])

    def read(self, name: str, row: int, out: np.ndarray) -> None:
        """Fills `out` (contiguous) with an array of triplet `row`, or with EMPTY_DN if the file has none such."""
        if name not in self.names:
            out[...] = EMPTY_DN
        elif name in self._filtered:
            with _named(self.path):
                self._filtered[name].read_direct(out, np.s_[row])
        else:
            view, offset = out.data.cast("B"), int(self._offsets[name][row])
            while view:
                with _named(self.path):
                    got = os.preadv(self._file.fileno(), [view], offset)
                if not got:
                    raise CorruptFileError(self.path, f"ends within {name} of triplet {row}")
                view, offset = view[got:], offset + got


def opened(path: Path) -> RawIOBase:
    """The file for reading, without a buffer; CorruptFileError where it is missing."""
    with reading(path):
        return open(path, "rb", buffering=0)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns what h5py or the system raises over a broken file into a CorruptFileError that names it."""
    with reading(path, *DAMAGE, ConfigError, reason="cannot be read as a shard"):  # ConfigError: no product's name
        yield
