"""cloudjob: cloud removal for Sentinel-2 Level-2A scenes, as restartable batch jobs on HPC clusters."""

import importlib
import os

__version__ = "0.1.0"

# A loaded module or conda may have set these for libraries of its own. Those of our wheels bring their data with them,
# and must neither look for others nor read or write pixels in another way; child processes neither.
_FOREIGN = ("GDAL_", "PROJ_", "CPL_", "OGR_", "VSI_", "GTIFF_", "HDF5_")
_HARMLESS = ("GDAL_NUM_THREADS", "GDAL_CACHEMAX")
for _name in [name for name in os.environ if name.startswith(_FOREIGN) and name not in _HARMLESS]:
    del os.environ[_name]

_OFFERED = ("Restored", "Run", "load_checkpoint", "open_run", "restore")


def __getattr__(name: str) -> object:
    """What programs are offered is imported when it is asked for: see `cloudjob.api`."""
    if name in _OFFERED:
        return getattr(importlib.import_module("cloudjob.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_OFFERED])
