"""cloudjob: cloud removal for Sentinel-2 Level-2A scenes, as restartable batch jobs on HPC clusters."""

import os

__version__ = "0.1.0"

# A loaded module or conda may have set these for libraries of its own. Those of our wheels bring their data with them,
# and must neither look for others nor read or write pixels in another way; child processes neither.
_FOREIGN = ("GDAL_", "PROJ_", "CPL_", "OGR_", "VSI_", "GTIFF_", "HDF5_")
_HARMLESS = ("GDAL_NUM_THREADS", "GDAL_CACHEMAX")
for _name in [name for name in os.environ if name.startswith(_FOREIGN) and name not in _HARMLESS]:
    del os.environ[_name]
