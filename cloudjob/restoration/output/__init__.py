"""The restored scene as files that other tools open: CF/netCDF-4 HDF5, Cloud-Optimized GeoTIFF, STAC, PNG."""

from cloudjob.restoration.output.hdf5 import read_h5
from cloudjob.restoration.output.header import FLAGS, Header, data_space
from cloudjob.restoration.output.stac import write_collection
from cloudjob.restoration.output.writer import Writer

__all__ = ["FLAGS", "Header", "Writer", "data_space", "read_h5", "write_collection"]
