"""Writes Level-2A products in ESA's SAFE layout.

Layout and elements: Sentinel-2 Products Specification Document (S2-PDGS-TAS-DI-PSD) and products as delivered at
baselines 02.14 (no BOA_ADD_OFFSET, MD5, no MSK_CLASSI) and 04.00 to 05.10 (offset -1000, SHA3-256).
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from PIL import Image

from cloudjob.archive import metadata
from cloudjob.files import HOST, ask_guards, flush, rename
from cloudjob.names import ProductName, stamp
from cloudjob.pixels import BANDS, EMPTY_DN
from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.radiometry import from_convention, reflectance

_TCI_GAIN = 1020  # measured: ESA's true-colour pictures reach 255 at reflectance 0.25, so snow is white in them
_QUICKLOOK_PIXELS = 343


def write_product(
    archive: Path,
    *,
    name: str,
    bands: np.ndarray,
    scl: np.ndarray,
    cloud_probability: np.ndarray,
    snow_probability: np.ndarray,
    crs: str,
    transform: Affine,
    offset: int,
    sun_elevation: float,
    sun_azimuth: float,
    b11: np.ndarray | None = None,
    b11_20m: np.ndarray | None = None,
) -> Path:
    """Writes `<archive>/<name>.SAFE` whole or not at all and returns it; the same arguments give the same bytes.

    `bands` (4, H, W) uint16 in our DN convention; `scl`, `cloud_probability`, `snow_probability` (ceil(H/2),
    ceil(W/2)) uint8; `b11` (ceil(H/6), ceil(W/6)) and `b11_20m` (ceil(H/2), ceil(W/2)) uint16 in our DN convention, or
    None for a product without it; `transform` of the 10 m grid. `offset` 0 or -1000 becomes BOA_ADD_OFFSET (no element
    for 0).
    Below baseline 04.00, which the name gives, digests are MD5 and MSK_CLASSI is absent, as in ESA's products.
    """
    parsed = ProductName.parse(name)
    target = Path(archive) / f"{parsed.name}.SAFE"
    folder = target.with_name(f".tmp-{os.getpid()}-{parsed.name}@{HOST}.SAFE")
    shutil.rmtree(folder, ignore_errors=True)
    swir = {metres: pixels for metres, pixels in ((20, b11_20m), (60, b11)) if pixels is not None}
    images, mask_files = _write_images(
        folder, parsed, bands, scl, cloud_probability, snow_probability, swir, crs, transform, offset
    )
    shape, sun = (bands.shape[1], bands.shape[2]), (sun_elevation, sun_azimuth)
    footprint = metadata.footprint_of(crs, transform, shape)
    percentages = metadata.percentages_of(scl)
    granule = folder / metadata.granule(parsed)
    for path, text in (
        (granule / "MTD_TL.xml", metadata.tile_metadata(parsed, crs, transform, shape, percentages, mask_files, sun)),
        (folder / "MTD_MSIL2A.xml", metadata.product_metadata(parsed, images, offset, footprint, percentages)),
    ):
        path.write_text(text, encoding="utf-8")
    (folder / "manifest.safe").write_text(metadata.manifest(folder, parsed, footprint), encoding="utf-8")
    _flush(folder)
    ask_guards()
    shutil.rmtree(target, ignore_errors=True)
    rename(folder, target)
    return target


def _write_images(
    folder: Path,
    name: ProductName,
    bands: np.ndarray,
    scl: np.ndarray,
    cloud: np.ndarray,
    snow: np.ndarray,
    swir: dict[int, np.ndarray],
    crs: str,
    transform: Affine,
    offset: int,
) -> tuple[list[str], list[str]]:
    """Writes all JPEG 2000 files (`swir` is B11 by metres) and the quicklook; the paths of the images and the masks."""
    granule, stem = metadata.granule(name), f"T{name.tile}_{stamp(name.sensing)}"
    images: list[str] = []
    mask_files: list[str] = []

    def image(resolution: int, key: str, pixels: np.ndarray, *, block: int, bits: int = 8) -> None:
        path = f"{granule}/IMG_DATA/R{resolution}m/{stem}_{key}_{resolution}m.jp2"
        images.append(path)
        _write_jp2(folder / path, pixels, crs, transform, resolution=resolution, block=block, bits=bits)

    def mask(file: str, pixels: np.ndarray, *, resolution: int, block: int) -> None:
        mask_files.append(f"{granule}/QI_DATA/{file}.jp2")
        _write_jp2(folder / mask_files[-1], pixels, crs, transform, resolution=resolution, block=block, bits=8)

    coarse = {band: _mean_60m(pixels) for band, pixels in zip(BANDS[:3], bands[:3], strict=True)}
    picture = _true_colour(np.stack([coarse[band] for band in ("B04", "B03", "B02")]))
    for band in sorted(BANDS):
        image(10, band, _as_esa(bands[BANDS.index(band)], offset), block=1024, bits=15)
    image(20, "SCL", scl, block=640)
    for band in ("B02", "B03", "B04"):
        image(60, band, _as_esa(coarse[band], offset), block=192, bits=15)
    for metres, pixels in swir.items():
        image(metres, "B11", _as_esa(pixels, offset), block={20: 640, 60: 192}[metres], bits=15)
    image(60, "TCI", picture, block=192)
    mask("MSK_CLDPRB_20m", cloud, resolution=20, block=640)
    mask("MSK_SNWPRB_20m", snow, resolution=20, block=640)
    if metadata.is_baseline_4(name):
        classes = ((masks.SCL_MEDIUM, masks.SCL_HIGH), (masks.SCL_CIRRUS,), (masks.SCL_SNOW,))
        opaque_cirrus_snow = np.stack([_majority_60m(masks.any_of(scl, *values)) for values in classes])
        mask("MSK_CLASSI_B00", opaque_cirrus_snow, resolution=60, block=256)
    quicklook = Image.fromarray(np.moveaxis(picture, 0, -1))
    quicklook.thumbnail((_QUICKLOOK_PIXELS, _QUICKLOOK_PIXELS))
    quicklook.save(folder / f"{name.name}-ql.jpg", quality=85)
    return images, mask_files


def _as_esa(dn: np.ndarray, offset: int) -> np.ndarray:
    """from_convention in stripes, to save memory: it works in 32 bits, and a whole band has 120 million pixels."""
    out = np.empty_like(dn)
    for rows in (slice(top, top + 1024) for top in range(0, len(dn), 1024)):
        out[rows] = from_convention(dn[rows], offset=offset)
    return out


def _write_jp2(
    path: Path, pixels: np.ndarray, crs: str, transform: Affine, *, resolution: int, block: int, bits: int
) -> None:
    """Lossless JPEG 2000 with ESA's tile size, progression and number of resolutions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    count, height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="JP2OpenJPEG",
        dtype=pixels.dtype,
        count=count,
        height=height,
        width=width,
        crs=crs,
        transform=Affine(resolution, 0, transform.c, 0, -resolution, transform.f),
        QUALITY=100,
        REVERSIBLE="YES",
        YCC="NO",
        NBITS=bits,
        BLOCKXSIZE=block,
        BLOCKYSIZE=block,
        RESOLUTIONS=5,
        PROGRESSION="LRCP",
    ) as image:
        image.write(pixels)


def pool(image: np.ndarray, factor: int, how: Callable[..., np.ndarray]) -> np.ndarray:
    """`how` (np.mean, np.max, np.any) over `factor` x `factor` pixels; incomplete blocks repeat their edge pixels."""
    missing = [(0, -length % factor) for length in image.shape]
    padded = np.pad(image, missing, mode="edge") if np.any(missing) else image
    rows, columns = padded.shape
    return how(padded.reshape(rows // factor, factor, columns // factor, factor), axis=(1, 3))


def _blocks(image: np.ndarray, factor: int) -> np.ndarray:
    """(rows, factor, columns, factor) view of an image, padded with zeros in the south and east."""
    padded = np.pad(image, [(0, -length % factor) for length in image.shape])
    rows, columns = padded.shape
    return padded.reshape(rows // factor, factor, columns // factor, factor)


def _mean_60m(dn: np.ndarray) -> np.ndarray:
    """Mean of the valid pixels of each 6 x 6 block, EMPTY_DN if it has none."""
    blocks = _blocks(dn, 6)
    total, valid = blocks.sum((1, 3), dtype=np.uint32), (blocks != EMPTY_DN).sum((1, 3))
    return np.rint(total / np.maximum(valid, 1)).astype(np.uint16)


def _majority_60m(mask: np.ndarray) -> np.ndarray:
    """20 m to 60 m: 1 where at least 5 of the 9 pixels are set."""
    return (_blocks(mask, 3).sum((1, 3)) >= 5).astype(np.uint8)


def _true_colour(dn: np.ndarray) -> np.ndarray:
    """ESA's stretch: 8 bits, linear, 255 from reflectance 0.25 on; no data stays EMPTY_DN."""
    stretched = np.clip(np.rint(_TCI_GAIN * np.nan_to_num(reflectance(dn))), 1, 255)
    return np.where(dn == EMPTY_DN, EMPTY_DN, stretched).astype(np.uint8)


def _flush(folder: Path) -> None:
    """Syncs all files and folders to disk, before the rename to the final name."""
    for path in [folder, *folder.rglob("*")]:
        flush(path)
