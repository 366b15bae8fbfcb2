"""The real benchmark's data from a copy of WorldCereal's test data: `python tests/real_series.py DATA OUT`.

Writes the series that `archive.series` takes: OUT/31UDS at 10 m, OUT/20m/31UDS and OUT/20m/31UES at 20 m.
"""

import sys
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from cloudjob.pixels import BANDS

PLACES = {"31UDS": "00002806639B424A", "31UES": "000028085BF08E7E"}  # both in Flanders, 47 km apart
# In the places of B04, B03, B02, B08. Haze shows best in the shortest wave, so B05 stands in for B02.
BANDS_20M = ("B11", "B07", "B05", "B8A")


def main(data: Path, out: Path) -> Path:
    """The folder `out` with the series of 640 x 640 m: 118 dates of 2017 and 2018, 143 of 2018 and 2019. Files that
    exist are kept."""
    write(data, out / "31UDS", "31UDS", BANDS, 10)
    for tile in PLACES:
        write(data, out / "20m" / tile, tile, BANDS_20M, 20)
    return out


def write(data: Path, folder: Path, tile: str, names: tuple[str, ...], metres: int) -> None:
    """The dates of a place in these bands; of two images of a day the first."""
    import xarray

    folder.mkdir(parents=True, exist_ok=True)
    with xarray.open_dataset(_file(data, tile, metres), mask_and_scale=False) as source:
        bands = np.stack([source[name].values for name in names], 1)
        days = [f"{moment:%Y-%m-%d}" for moment in source["timestamp"].values.astype("datetime64[s]").tolist()]
        corner = float(source["x"][0]) - metres / 2, float(source["y"][0]) + metres / 2
    with xarray.open_dataset(_file(data, tile, 20), mask_and_scale=False) as source:
        classes = source["SCL"].values
    for day, image, scl in zip(days, bands, classes, strict=True):
        for name, pixels, width in ((f"{day}.tif", image, metres), (f"{day}_scl.tif", scl[None], 20)):
            facts = {"driver": "GTiff", "count": len(pixels), "dtype": pixels.dtype, "crs": "EPSG:32631"}
            facts["transform"] = Affine(width, 0, corner[0], 0, -width, corner[1])
            if not (folder / name).exists():
                with rasterio.open(folder / name, "w", **facts, height=pixels.shape[1], width=pixels.shape[2]) as file:
                    file.write(pixels)


def _file(data: Path, tile: str, metres: int) -> Path:
    (path,) = data.glob(f"S2_L2A_{metres}m_{PLACES[tile]}*.nc")
    return path


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))
