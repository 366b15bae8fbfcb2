"""The restored scene as files that other tools open: CF/netCDF-4 HDF5, Cloud-Optimized GeoTIFF, STAC item, PNG."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from cloudjob import footprints
from cloudjob.files import check_takes, json_text, reading
from cloudjob.pixels import BANDS, EMPTY_DN, NO_DATA, OFFSET, SCALE
from cloudjob.restoration import placing
from cloudjob.restoration.blend import BLENDED_EDGE, OBSERVED, RECONSTRUCTED
from cloudjob.sentinel2.render import encode_png, true_colour

# STAC asks for a range of time where it is not known; this one begins with Sentinel-2.
_ANY_TIME = {"start_datetime": "2015-06-23T00:00:00Z", "end_datetime": "2099-12-31T23:59:59Z"}
FLAGS = {OBSERVED: "observed", RECONSTRUCTED: "reconstructed", BLENDED_EDGE: "blended_edge", NO_DATA: "no_data"}

_NOTES = 2**16  # bytes; more than HDF5 writes when it opens a file


@dataclass(frozen=True)
class Restored:
    """One restored scene. Images (4, H, W) uint16 DN, `reconstructed` (H, W) uint8 (see FLAGS)."""

    product: str
    reflectance: np.ndarray
    reconstructed: np.ndarray
    uncertainty: np.ndarray | None  # standard deviation over members, in the units of reflectance / SCALE
    crs: str | None  # None where nobody knows where the pixels lie
    transform: Affine
    sensing_time: str | None  # ISO 8601; None where nobody knows
    attributes: dict[str, str | int | float]  # source products, checkpoint, configuration, seed, sampler, ...

    @property
    def attribution(self) -> str:
        return f"Contains modified Copernicus Sentinel data {(self.sensing_time or '')[:4]}".rstrip()


def write_h5(path: Path, scene: Restored) -> None:
    """HDF5 that is also netCDF-4 with CF-1.10 coordinates: for h5py, xarray (h5netcdf) and GDAL's netCDF driver."""
    height, width = scene.reconstructed.shape
    check_takes(path, _NOTES)
    with h5py.File(path, "w", libver=("earliest", "v110"), locking=False) as file:
        file.attrs.update({"Conventions": "CF-1.10", "title": f"{scene.product} without clouds", **scene.attributes})
        file.attrs["references"] = scene.attribution
        degrees = scene.crs is not None and CRS.from_user_input(scene.crs).is_geographic
        names = ("longitude", "latitude") if degrees else ("projection_x_coordinate", "projection_y_coordinate")
        units = ("degrees_east", "degrees_north") if degrees else ("m", "m")
        _scale(file, "x", _centres(scene.transform.c, scene.transform.a, width), names[0], units[0])
        _scale(file, "y", _centres(scene.transform.f, scene.transform.e, height), names[1], units[1])
        _scale(file, "band", np.array(BANDS, dtype=object), None, None)
        grid = file.create_dataset("spatial_ref", data=np.int32(0))
        if scene.crs is not None:
            grid.attrs.update(_grid_mapping(CRS.from_user_input(scene.crs), scene.transform))
        scaled = {"scale_factor": SCALE, "units": "1"}
        _layer(
            file,
            "reflectance",
            scene.reflectance,
            EMPTY_DN,
            {**scaled, "add_offset": OFFSET, "long_name": "surface reflectance"},
        )
        _layer(file, "reconstructed", scene.reconstructed, None, {
            "long_name": "what was done to the pixel",
            "flag_values": np.array(list(FLAGS), "u1"),
            "flag_meanings": " ".join(FLAGS.values()),
        })  # fmt: skip
        if scene.uncertainty is not None:
            _layer(
                file,
                "uncertainty",
                scene.uncertainty,
                None,
                {**scaled, "long_name": "standard deviation over members"},
            )


def _grid_mapping(crs: CRS, transform: Affine) -> dict[str, str]:
    wkt, kind = crs.to_wkt(), "latitude_longitude" if crs.is_geographic else "transverse_mercator"
    place = {"crs_wkt": wkt, "spatial_ref": wkt, "GeoTransform": " ".join(map(repr, transform.to_gdal()))}
    return place | {"grid_mapping_name": kind}


def _centres(origin: float, step: float, count: int) -> np.ndarray:
    return origin + step * (np.arange(count) + 0.5)


def _scale(file: h5py.File, name: str, values: np.ndarray, standard_name: str | None, units: str | None) -> None:
    data = file.create_dataset(name, data=values)
    data.make_scale(name)
    if standard_name:
        data.attrs.update({"standard_name": standard_name, "units": units, "axis": name.upper()})


def _layer(file: h5py.File, name: str, values: np.ndarray, fill: int | None, attributes: dict) -> None:
    chunks = (*[1] * (values.ndim - 2), *(min(512, side) for side in values.shape[-2:]))
    data = file.create_dataset(
        name,
        data=values,
        chunks=chunks,
        compression="gzip",
        shuffle=True,
        fletcher32=True,
        fillvalue=fill,
    )
    for axis, dimension in enumerate(("band", "y", "x")[3 - values.ndim :]):
        data.dims[axis].attach_scale(file[dimension])
    if fill is not None:
        data.attrs["_FillValue"] = values.dtype.type(fill)
    data.attrs.update({**attributes, "grid_mapping": "spatial_ref"})


def write_cog(path: Path, scene: Restored) -> None:
    """Cloud-Optimized GeoTIFF of the four bands, uint16 with scale and offset tags; averaged overviews."""
    height, width = scene.reconstructed.shape
    profile = {
        "driver": "GTiff",
        "dtype": "uint16",
        "count": 4,
        "height": height,
        "width": width,
        "nodata": EMPTY_DN,
    }
    with placing.unplaced(), rasterio.MemoryFile() as memory:
        with memory.open(**profile, crs=scene.crs, transform=scene.transform) as target:
            target.write(scene.reflectance)
            target.descriptions = BANDS
            target.scales, target.offsets = (SCALE,) * 4, (OFFSET,) * 4
            target.update_tags(
                **{key: str(value) for key, value in scene.attributes.items()}, copyright=scene.attribution
            )
        with memory.open() as source:
            options = {
                "COMPRESS": "DEFLATE",
                "PREDICTOR": 2,
                "BLOCKSIZE": 512,
                "OVERVIEW_RESAMPLING": "AVERAGE",
            }
            with rasterio.MemoryFile() as whole:  # on a full disk GDAL leaves out what comes last, and says nothing
                rasterio.shutil.copy(source, whole.name, driver="COG", **options)
                path.write_bytes(whole.getbuffer())


def write_png(path: Path, scene: Restored, *, gain: float) -> None:
    """True colour, at most 1024 pixels a side."""
    step = -(-max(scene.reconstructed.shape) // 1024)
    path.write_bytes(encode_png(true_colour(scene.reflectance[:, ::step, ::step], gain=gain)))


def write_item(path: Path, scene: Restored, files: dict[str, Path]) -> None:
    """A STAC 1.1 item beside the files, with their sizes and SHA-256 multihashes."""
    height, width = scene.reconstructed.shape
    left, top = scene.transform.c, scene.transform.f
    right, bottom = scene.transform @ (width, height)
    ring = [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]
    geometry, bbox = (None, None) if scene.crs is None else _footprint(scene.crs, ring)
    types = {
        "h5": ("application/x-hdf5", ["data"]),
        "tif": ("image/tiff; application=geotiff; profile=cloud-optimized", ["data"]),
        "png": ("image/png", ["overview"]),
    }
    bands = [{"name": band, "raster:scale": SCALE, "raster:offset": OFFSET} for band in BANDS]
    assets = {}
    for key, file in files.items():
        content = file.read_bytes()
        media, roles = types[key]
        assets[key] = {
            "href": f"./{scene.product}.{key}",
            "type": media,
            "roles": roles,
            "file:size": len(content),
            "file:checksum": "1220" + hashlib.sha256(content).hexdigest(),
        } | ({"bands": bands, "data_type": "uint16", "nodata": EMPTY_DN} if key != "png" else {})
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [
            f"https://stac-extensions.github.io/{name}/schema.json"
            for name in ("projection/v2.0.0", "file/v2.1.0", "raster/v2.0.0", "processing/v1.2.0")
        ],
        "id": scene.product,
        "geometry": geometry,
        **({} if bbox is None else {"bbox": bbox}),
        "properties": {
            "datetime": scene.sensing_time,
            **({} if scene.sensing_time else _ANY_TIME),
            "proj:code": scene.crs,
            "proj:shape": [height, width],
            "proj:transform": list(scene.transform)[:6],
            "processing:software": {"cloudjob": scene.attributes["cloudjob_version"]},
            "processing:level": "L3",
            "attribution": scene.attribution,
            **{f"cloudjob:{key}": value for key, value in scene.attributes.items()},
        },
        "links": [
            {"rel": "derived_from", "href": name, "title": name}
            for name in str(scene.attributes["source_products"]).split()
        ],
        "assets": assets,
    }
    path.write_text(json_text(item, indent=1) + "\n", encoding="utf-8")


def _footprint(crs: str, ring: list[list[float]]) -> tuple[dict, list[float]]:
    """A ring in `crs` as a GeoJSON geometry, and its box: see `footprints`."""
    points = zip(*transform(crs, "EPSG:4326", *zip(*ring, strict=True)), strict=True)
    rounded = [[round(value, 7) for value in point] for point in points]
    geometry = footprints.split({"type": "Polygon", "coordinates": [rounded]})
    return geometry, footprints.bbox(geometry)


def read_h5(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`reflectance` (4, H, W) uint16 DN and `reconstructed` (H, W) uint8 of an output."""
    with reading(path, LookupError, ValueError, RuntimeError), h5py.File(path, "r", locking=False) as file:
        return file["reflectance"][...], file["reconstructed"][...]
