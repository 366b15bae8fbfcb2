"""A restored scene shaped as its source: the 10 m bands as JPEG 2000 in the folders of a SAFE product, for tools that
read Sentinel-2 as ESA packs it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError  # what GDAL reports has no other common name
from rasterio.errors import RasterioError
from rasterio.windows import Window

from cloudjob.errors import ItemError
from cloudjob.files import atomic, check_room, disk_full, free, write_bytes
from cloudjob.pixels import BANDS
from cloudjob.restoration.output.blocks import SIDE
from cloudjob.sentinel2 import zipped
from cloudjob.sentinel2.product import Product
from cloudjob.sentinel2.radiometry import from_convention

_METADATA = "MTD_MSIL2A.xml"
# Lossless, with ESA's tiles, resolutions and 15 bits
_JPEG_2000 = {"QUALITY": 100, "REVERSIBLE": "YES", "YCC": "NO", "NBITS": 15, "RESOLUTIONS": 5, "PROGRESSION": "LRCP"}
_TILE = 1024


def is_safe(product: Product) -> bool:
    """Whether the product is as ESA packs it: a folder or an archive with JPEG 2000 in it."""
    names = [product.files.get(f"{band}_10m", "") for band in BANDS]
    return zipped.is_file(product.folder / _METADATA) and all(name.endswith(".jp2") for name in names)


def write(tif: Path, source: Product, folder: Path) -> list[Path]:
    """Writes the bands of the GeoTIFF `tif` below `folder`, under the names that the source's have, in its numbers (its
    offset, 15 bits), beside its metadata, which tell nothing of what was restored. Returns the files."""
    found = []
    granule = PurePosixPath(*PurePosixPath(source.files[f"{BANDS[0]}_10m"]).parts[:2])
    for name in (_METADATA, granule / "MTD_TL.xml"):
        found.append(folder / name)
        write_bytes(found[-1], zipped.read_bytes(source.folder / name))
    for number, band in enumerate(BANDS, 1):
        found.append(folder / source.files[f"{band}_10m"])
        with _writing(found[-1], source.shape), atomic(found[-1]) as temporary:
            _write_band(tif, number, temporary, offset=source.offsets[band])
    return found


@contextmanager
def _writing(path: Path, shape: tuple[int, int]) -> Iterator[None]:
    """Tells a full disk, which GDAL hides, from what else it may not write."""
    needed = 2 * 2 * shape[0] * shape[1]  # bytes, of the image that is not compressed, and of that which hardly is
    path.parent.mkdir(parents=True, exist_ok=True)
    check_room(path.parent, needed, path.name, "make room and run the same command again")
    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        if (free(path.parent) or 0) < needed:
            raise disk_full(path) from error
        raise ItemError(f"{path}: cannot be written ({error})") from error


def _write_band(tif: Path, number: int, path: Path, *, offset: int) -> None:
    """By way of an image without compression beside it: GDAL's driver takes finished images alone."""
    plain = path.with_suffix(".tif")
    try:
        with rasterio.open(tif) as image:
            known = {"height": image.height, "width": image.width, "crs": image.crs, "transform": image.transform}
            tiles = {"tiled": True, "blockxsize": SIDE, "blockysize": SIDE}
            with rasterio.open(plain, "w", driver="GTiff", count=1, dtype="uint16", **known, **tiles) as target:
                for top in range(0, image.height, SIDE):
                    window = Window(0, top, image.width, min(SIDE, image.height - top))
                    target.write(from_convention(image.read(number, window=window), offset=offset), 1, window=window)
        block = {"BLOCKXSIZE": min(_TILE, known["width"]), "BLOCKYSIZE": min(_TILE, known["height"])}
        rasterio.shutil.copy(plain, path, driver="JP2OpenJPEG", **_JPEG_2000, **block)
    finally:
        plain.unlink(missing_ok=True)
