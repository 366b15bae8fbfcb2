"""HDF5 that is also netCDF-4 with CF-1.11 coordinates: for h5py, xarray (h5netcdf, netCDF4) and GDAL."""

from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS

from cloudjob.files import check_takes, reading
from cloudjob.pixels import BANDS, EMPTY_DN, OFFSET, SCALE
from cloudjob.restoration.output import grid_mapping
from cloudjob.restoration.output.blocks import SIDE, hdf5_chunk
from cloudjob.restoration.output.header import FLAGS, Header
from cloudjob.restoration.output.tiff import Submit

_SCALED = {"scale_factor": np.float32(SCALE), "units": "1"}  # float32, so that readers take no doubles
_NOTES = 2**16  # bytes; more than HDF5 writes when it opens a file
_TIME = "seconds since 1970-01-01T00:00:00Z"


class NetCDF:
    """The file while its rows come: /reflectance, /reconstructed, with several members /uncertainty, and their axes."""

    def __init__(self, path: Path, header: Header, submit: Submit):
        self._submit, self._done = submit, 0
        self._waiting: list[tuple[h5py.Dataset, tuple[int, ...], Any]] = []
        check_takes(path, _NOTES)
        self._file = h5py.File(path, "w", libver=("earliest", "v110"), locking=False)
        self._file.attrs.update({"Conventions": "CF-1.11", "title": f"{header.name} without clouds"})
        self._file.attrs.update({**header.attributes, "references": header.attribution, "history": header.lineage})
        _coordinates(self._file, header)
        shared = {"coordinates": "time"} if header.sensing_time else {}
        shared |= {"grid_mapping": "spatial_ref"} if header.crs else {}
        self._layers = [
            _layer(
                self._file,
                "reflectance",
                (len(BANDS), *header.shape),
                "u2",
                shared | _SCALED | {"add_offset": np.float32(OFFSET), "long_name": "surface reflectance"},
                fill=EMPTY_DN,
            ),
            _layer(self._file, "reconstructed", header.shape, "u1", shared | {
                "long_name": "what was done to the pixel",
                "flag_values": np.array(list(FLAGS), "u1"),
                "flag_meanings": " ".join(FLAGS.values()),
            }),
        ]  # fmt: skip
        if header.uncertainty:
            more = shared | _SCALED | {"long_name": "standard deviation of surface reflectance over members"}
            self._layers.append(_layer(self._file, "uncertainty", (len(BANDS), *header.shape), "u2", more))

    def rows(self, *layers: NDArray) -> None:
        """The next rows of each layer in the file's order, (4, h, W) or (h, W); h is 512 but for the last ones."""
        self._collect()
        height, width = layers[0].shape[-2:]
        for data, pixels in zip(self._layers, layers, strict=True):
            fill = data.fillvalue
            for band, image in enumerate(pixels.reshape(-1, height, width)):
                for left in range(0, width, SIDE):
                    job = self._submit(hdf5_chunk, image[:, left : left + SIDE], data.chunks[-2:], fill)
                    place = (band, self._done, left)[3 - data.ndim :]
                    self._waiting.append((data, place, job))
        self._done += height

    def _collect(self) -> None:
        for data, place, job in self._waiting:
            data.id.write_direct_chunk(place, job.result())
        self._waiting = []

    def finish(self) -> None:
        self._collect()
        self.close()

    def close(self) -> None:
        self._file.close()


def _coordinates(file: h5py.File, header: Header) -> None:
    """Writes the axes, and where they are known the time and the grid mapping."""
    crs = CRS.from_user_input(header.crs) if header.crs else None
    place, (height, width) = header.transform, header.shape
    centres = {"x": place.c + place.a * (np.arange(width) + 0.5), "y": place.f + place.e * (np.arange(height) + 0.5)}
    for name, attributes in grid_mapping.axes(crs).items():
        _scale(file, name, centres[name], attributes)
    _scale(file, "band", np.array(BANDS, dtype=object), {"long_name": "band of Sentinel-2"})
    if header.sensing_time:
        when = datetime.fromisoformat(header.sensing_time).timestamp()
        time = file.create_dataset("time", data=np.float64(when))
        time.attrs.update({"standard_name": "time", "long_name": "time of sensing", "units": _TIME})
        time.attrs.update({"calendar": "standard", "units_metadata": "leap_seconds: none"})
    if crs is not None:
        grid = file.create_dataset("spatial_ref", data=np.int32(0))
        grid.attrs.update(grid_mapping.grid_mapping(crs, place))


def _scale(file: h5py.File, name: str, values: NDArray, attributes: dict[str, str]) -> None:
    data = file.create_dataset(name, data=values)
    data.make_scale(name)
    data.attrs.update(attributes)


def _layer(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: str, attributes: dict, *, fill: int | None = None
) -> h5py.Dataset:
    chunks = (*[1] * (len(shape) - 2), *(min(SIDE, side) for side in shape[-2:]))
    filters: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
    data = file.create_dataset(name, shape, dtype, chunks=chunks, fillvalue=fill, **filters)
    for axis, dimension in enumerate(("band", "y", "x")[3 - len(shape) :]):
        data.dims[axis].attach_scale(file[dimension])
    if fill is not None:
        data.attrs["_FillValue"] = data.dtype.type(fill)
    data.attrs.update(attributes)
    return data


def read_h5(path: Path) -> tuple[NDArray, NDArray]:
    """`reflectance` (4, H, W) uint16 DN and `reconstructed` (H, W) uint8 of an output."""
    with reading(path, LookupError, ValueError, RuntimeError), h5py.File(path, "r", locking=False) as file:
        return file["reflectance"][...], file["reconstructed"][...]
