"""Images as people have them, made of one ground in every form."""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS

UTM = {"crs": "EPSG:32631", "transform": Affine(10, 0, 500_000, 0, -10, 5_700_000)}
DEGREES = {"crs": "EPSG:4326", "transform": Affine(1.4e-4, 0, 3.0, 0, -9e-5, 51.45)}
NAMES = ("B04", "B03", "B02", "B08")


def ground(height: int = 60, width: int = 70, seed: int = 0) -> np.ndarray:
    """(4, H, W) float32 reflectance of fields, with whole DN."""
    rng = np.random.default_rng(seed)
    fields = rng.integers(300, 1500, (4, -(-height // 10), -(-width // 10))).repeat(10, 1).repeat(10, 2)
    fields = fields[:, :height, :width] + rng.integers(-40, 40, (4, height, width))
    fields[3] += 2500
    return (fields / 10_000).astype(np.float32)


def clouded(image: np.ndarray, rows=slice(10, 30), cols=slice(20, 45)) -> tuple[np.ndarray, np.ndarray]:
    """The image with a white cloud, and where that is."""
    where = np.zeros(image.shape[1:], bool)
    where[rows, cols] = True
    out = image.copy()
    out[:, where] = np.round(0.55 + 0.1 * image[:, where], 4)
    return out, where


def write(path: Path, bands: np.ndarray, *, names=NAMES, nodata=None, scale=None, offset=None, **place) -> Path:
    """A GeoTIFF of (n, H, W)."""
    form = {"driver": "GTiff", "dtype": bands.dtype, "count": len(bands), "nodata": nodata, **place}
    with rasterio.open(path, "w", height=bands.shape[1], width=bands.shape[2], **form) as image:
        image.write(bands)
        if names:
            image.descriptions = names
        if scale is not None:
            image.scales, image.offsets = (scale,) * len(bands), (offset,) * len(bands)
    return path


def netcdf(path: Path, bands: np.ndarray, place: dict, *, packed: bool = False) -> Path:
    """A variable a band, as xarray and rioxarray write them; packed into int16 with scale_factor."""
    import xarray

    where, (height, width) = place["transform"], bands.shape[1:]
    coords = {"x": where.c + where.a * (np.arange(width) + 0.5), "y": where.f + where.e * (np.arange(height) + 0.5)}
    data = xarray.Dataset({name: (("y", "x"), band) for name, band in zip(NAMES, bands, strict=True)}, coords)
    told = {"crs_wkt": CRS.from_user_input(place["crs"]).to_wkt()}
    data["spatial_ref"] = ((), 0, told | {"GeoTransform": " ".join(map(str, where.to_gdal()))})
    for name in NAMES:
        data[name].attrs["grid_mapping"] = "spatial_ref"
    how = {"dtype": "int16", "scale_factor": 1e-4, "add_offset": 0.0, "_FillValue": -999} if packed else {}
    data.to_netcdf(path, engine="h5netcdf", encoding=dict.fromkeys(NAMES, how))
    return path
