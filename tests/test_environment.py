"""What a user's surroundings may be: variables of loaded modules, and run folders of any name."""

import os
import subprocess
import sys

import pytest
from front_door import copied, forget, good

from cloudjob.files import file_sha256

FOREIGN = dict.fromkeys(("PROJ_LIB", "PROJ_DATA", "GDAL_DATA", "GDAL_DRIVER_PATH", "HDF5_PLUGIN_PATH"), "/opt/none")
FOREIGN |= {"GDAL_SKIP": "JP2OpenJPEG GTiff", "GDAL_PAM_ENABLED": "NO", "CPL_DEBUG": "ON"}
FOREIGN |= {"HDF5_USE_FILE_LOCKING": "TRUE"}
FOREIGN |= {"GDAL_NUM_THREADS": "2", "PROJECT": "p123"}  # harmless, and no variable of PROJ
PROGRAM = """
import os, sys
import cloudjob
print(*sorted(os.environ.keys() & set(sys.argv[1:])))
from rasterio.crs import CRS
from rasterio.drivers import raster_driver_extensions
print(CRS.from_epsg(32605).to_epsg(), raster_driver_extensions()["jp2"])
"""


@pytest.mark.slow
def test_what_a_module_sets_for_libraries_of_its_own_is_left_aside():
    command = [sys.executable, "-c", PROGRAM, *FOREIGN]
    done = subprocess.run(command, env=os.environ | FOREIGN, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "GDAL_NUM_THREADS PROJECT\n32605 JP2OpenJPEG\n"
    assert done.stderr == ""


@pytest.mark.slow
def test_a_run_folder_of_any_name_holds_the_same_results(finished, tmp_path):
    """From the catalogue to the report, but for the training, which follows from the shards."""
    run = copied(finished, tmp_path / '-exp[1] a,b #1 100%? ü$x: "it\'s" *')
    forget(run, "preview", "pair", "review", "shard", "infer", "evaluate", "report")
    done = good("run", run, env=FOREIGN | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, launcher=("env",))
    assert "train: 0 done, 1 skipped" in done.stderr
    for pattern in ("shards/*", "outputs/*/*", "evaluation/scores.jsonl", "pairs.jsonl"):
        files = sorted(finished.glob(pattern))
        assert files
        for path in files:
            assert file_sha256(run / path.relative_to(finished)) == file_sha256(path), path
