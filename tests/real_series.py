"""The real benchmark's data from a copy of WorldCereal's test data: `python tests/real_series.py DATA OUT`.

Writes OUT/<tile>/<YYYY-MM-DD>.tif (B04, B03, B02, B08) and _scl.tif, as `archive.series` takes them.
"""

import sys
from pathlib import Path

import numpy as np
import rasterio
import xarray
from affine import Affine

from cloudjob.pixels import BANDS

PLACE, EPSG = "00002806639B424A", 32631


def main(data: Path, out: Path) -> Path:
    """The folder of Flanders, 31UDS, 64 x 64 pixels on 118 dates of 2017 and 2018; files that exist are kept."""
    folder = out / "31UDS"
    folder.mkdir(parents=True, exist_ok=True)
    (fine,), (coarse,) = (data.glob(f"S2_L2A_{metres}m_{PLACE}*.nc") for metres in (10, 20))
    with xarray.open_dataset(fine, mask_and_scale=False) as source:
        bands = np.stack([source[band].values for band in BANDS], 1)
        days = [f"{moment:%Y-%m-%d}" for moment in source["timestamp"].values.astype("datetime64[s]").tolist()]
        corner = float(source["x"][0]) - 5, float(source["y"][0]) + 5
    with xarray.open_dataset(coarse, mask_and_scale=False) as source:
        classes = source["SCL"].values
    for day, image, scl in zip(days, bands, classes, strict=True):
        for name, pixels, metres in ((f"{day}.tif", image, 10), (f"{day}_scl.tif", scl[None], 20)):
            facts = {"driver": "GTiff", "count": len(pixels), "dtype": pixels.dtype, "crs": f"EPSG:{EPSG}"}
            facts["transform"] = Affine(metres, 0, corner[0], 0, -metres, corner[1])
            if not (folder / name).exists():
                with rasterio.open(folder / name, "w", **facts, height=pixels.shape[1], width=pixels.shape[2]) as file:
                    file.write(pixels)
    return folder


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))
