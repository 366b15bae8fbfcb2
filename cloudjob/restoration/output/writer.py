"""Writes a restored scene as its rows come, in files that have their names only once they are whole."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cloudjob.files import atomic, file_sha256, write_bytes, write_text
from cloudjob.pixels import BANDS
from cloudjob.restoration.output import stac, views
from cloudjob.restoration.output.blocks import SIDE
from cloudjob.restoration.output.hdf5 import NetCDF
from cloudjob.restoration.output.header import Header
from cloudjob.restoration.output.tiff import Cog
from cloudjob.sentinel2.render import encode_png, true_colour

_PREVIEW = 1024  # pixels a side of the PNG, at most


class Writer:
    """Takes a scene's rows from north to south, while the ground further south is still being restored:

        with Writer(Path("outputs/NAME/NAME"), header) as writer:
            for top, reflectance, flags, uncertainty in stripes:
                writer.rows(top, reflectance, flags, uncertainty)
        writer.files  # paths of all files with their SHA-256

    Blocks are compressed by `threads` threads. It holds 512 rows, and those that are being compressed. No file gets its
    name unless the block ends well; DiskFullError where there is no room.
    """

    def __init__(self, stem: Path, header: Header, *, gain: float = 1.0, threads: int = 2):
        """Files are named `stem` and a suffix. `gain` is that of the PNG, see `render.true_colour`."""
        self.stem, self.header, self.gain = Path(stem), header, gain
        self.files: dict[Path, str] = {}
        self._threads, self._stack = threads, ExitStack()
        self._top = 0  # of the rows that are expected next
        self._held = np.empty((len(header.layers), 0, 0), np.uint16)
        self._step = -(-max(header.shape) // _PREVIEW)
        self._preview: list[NDArray] = []

    def _path(self, suffix: str) -> Path:
        return self.stem.with_name(self.stem.name + suffix)

    def __enter__(self) -> Self:
        stack = self._stack
        try:
            self._temporary = {key: stack.enter_context(atomic(self._path(f".{key}"))) for key in ("h5", "tif")}
            pool = ThreadPoolExecutor(self._threads, "blocks")
            stack.callback(pool.shutdown, cancel_futures=True)
            self._cog = Cog(self.stem.parent, self.header, pool.submit)
            stack.callback(self._cog.close)
            self._netcdf = NetCDF(self._temporary["h5"], self.header, pool.submit)
            stack.callback(self._netcdf.close)
        except BaseException:
            stack.close()
            raise
        return self

    def rows(self, top: int, reflectance: NDArray, flags: NDArray, uncertainty: NDArray | None = None) -> None:
        """Rows from `top` on: (4, h, W) uint16 DN, what was reconstructed (h, W) uint8 (see FLAGS), and if the header
        has `uncertainty` that of the reflectance (4, h, W) uint16, in units of SCALE. The arrays are copied."""
        given = [reflectance, flags[None]] + ([uncertainty] if uncertainty is not None else [])
        rows, width = flags.shape
        if top != self._top or top + rows > self.header.shape[0] or width != self.header.shape[1]:
            known = f"{self.header.shape}, of which {self._top} are there"
            raise ValueError(f"{rows} rows of {width} pixels from {top} on do not fit {known}")
        if sum(map(len, given)) != len(self.header.layers):
            raise ValueError(f"{sum(map(len, given))} layers, expected {[layer.name for layer in self.header.layers]}")
        self._top += rows
        first = -top % self._step
        self._preview.append(reflectance[: len(BANDS) - 1, first :: self._step, :: self._step].copy())
        done = 0
        while done < rows:
            at = (top + done) % SIDE
            if not at:
                self._held = np.empty((len(self._held), min(SIDE, self.header.shape[0] - top - done), width), np.uint16)
            more = min(self._held.shape[1] - at, rows - done)
            np.concatenate([layer[:, done : done + more] for layer in given], out=self._held[:, at : at + more])
            done += more
            if at + more == self._held.shape[1]:
                self._flush()

    def _flush(self) -> None:
        """Hands the rows that are held to the files; from now on nobody changes them."""
        self._cog.rows(self._held)
        image, flags, spread = np.split(self._held, [len(BANDS), len(BANDS) + 1])
        self._netcdf.rows(image, flags[0].astype(np.uint8), *([spread] if self.header.uncertainty else []))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:  # closes the files, and gives them their names unless something is raised
            if error is not None:
                raise error
            if self._top != self.header.shape[0]:
                raise ValueError(f"{self._top} rows of {self.header.shape[0]} were written")
            self._netcdf.finish()
            self.files[self._path(".tif")] = self._cog.finish(self._temporary["tif"])
            self.files[self._path(".h5")] = file_sha256(self._temporary["h5"])
        self._small_files()

    def _small_files(self) -> None:
        """What says how to read the others; the item last, since it counts on all of them."""
        header, tif = self.header, self._path(".tif").name
        texts = {f"_{layer.name}.vrt": views.view(header, n, tif) for n, layer in enumerate(header.layers, 1)}
        texts[".h5.aux.xml"] = views.beside_h5(header)
        for suffix, text in texts.items():
            self._write(suffix, write_text, text)
        for old in self.stem.parent.glob(f"{escape(self.stem.name)}_uncertainty_*.vrt"):
            if old not in self.files:  # of an earlier scene of this name, with more members
                old.unlink()
        picture = true_colour(np.concatenate(self._preview, axis=1), gain=self.gain)
        self._write(".png", write_bytes, encode_png(picture))
        files = {key: self._file(f".{key}") for key in ("h5", "tif", "png")}
        known = {layer.name: self._file(f"_{layer.name}.vrt") for layer in header.layers}
        self._write(".json", write_text, stac.item(header, files, known))

    def _write(self, suffix: str, write: Callable, content: str | bytes) -> None:
        write(self._path(suffix), content)
        self.files[self._path(suffix)] = file_sha256(self._path(suffix))

    def _file(self, suffix: str) -> stac.File:
        path = self._path(suffix)
        return stac.File(path, path.stat().st_size, self.files[path])
