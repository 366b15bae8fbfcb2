"""Reader of Sentinel-2 Level-2A products, of every layout that `layouts` knows."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Self
from xml.etree.ElementTree import Element

import numpy as np
from affine import Affine

from cloudjob.errors import CorruptFileError, ItemError, LeftOutError
from cloudjob.files import reading
from cloudjob.names import ProductName
from cloudjob.pixels import BANDS
from cloudjob.sentinel2 import decode, layouts, zipped
from cloudjob.sentinel2.geometry import lon_lat
from cloudjob.sentinel2.safe_xml import Metadata, inside, key_of, tag_of, text_of

_COARSE = (60, 20, 10)  # metres of the pixels that pictures are made from, the first of them that a product has
_PREVIEW = ("SCL_20m", "MSK_CLDPRB_20m", "MSK_SNWPRB_20m", "MSK_CLASSI_B00")
_DIGESTS = {"SHA3-256": "sha3_256", "MD5": "md5"}  # MD5 before processing baseline 04.00
_STEPS = (1, 2, 4, 8, 16)  # ESA's files have five resolutions


@dataclass(frozen=True)
class Product:
    """What a product's metadata say; `transform` and `shape` (rows, columns) are of the 10 m grid."""

    folder: Path  # within an archive, of a product that lies in one (see `zipped`)
    name: ProductName
    baseline: str
    offsets: dict[str, int]  # BOA_ADD_OFFSET of BANDS and of B11, 0 where the product has none (before 04.00)
    quantification: float
    crs: str
    transform: Affine
    shape: tuple[int, int]
    sun_elevation: float | None  # degrees, mean over the tile; None where it is not known
    percentages: dict[str, float]  # ESA's own, where known, by XML element name; all but no data are of valid pixels
    sensing_time: datetime
    files: dict[str, str]  # "B04_10m", "SCL_20m", "MSK_CLDPRB_20m" ... -> path below the folder

    @property
    def middle(self) -> tuple[float, float] | None:
        """Longitude and latitude in degrees, None where its CRS tells none."""
        (rows, columns), corner = self.shape, self.transform
        return lon_lat(self.crs, corner.c + 5 * columns, corner.f - 5 * rows)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads the metadata of a folder or an archive (see `layouts`). ItemError where the layout is not known, naming
        it; CorruptFileError names file and element."""
        folder, fields = layouts.read(Path(path))
        return cls(folder=folder, **fields)


@dataclass(frozen=True)
class ManifestEntry:
    """One file of the product: path below the SAFE folder, size in bytes, digest in lower case. A checksum that is
    missing, or of another kind, leaves algorithm and digest empty."""

    path: str
    size: int
    algorithm: str  # "SHA3-256" or "MD5", ""
    digest: str

    @property
    def optional(self) -> bool:
        """Whether the product can be read without it, as without a quality mask."""
        return key_of(self.path).startswith("MSK_")


def read_manifest(path: Path) -> list[ManifestEntry]:
    """The files that manifest.safe lists, in its order; CorruptFileError where an entry is incomplete."""
    manifest = Metadata(path)
    entries: list[ManifestEntry] = []
    for stream in manifest.all("byteStream"):
        fields = {tag_of(child): child for child in stream}
        try:
            file = inside(manifest.path, fields["fileLocation"].attrib["href"])
            size = int(stream.attrib["size"])
        except (KeyError, ValueError) as error:
            raise CorruptFileError(path, f"byteStream number {len(entries) + 1}: {error!r}") from None
        entries.append(ManifestEntry(file, size, *_checksum(fields.get("checksum"))))
    if not entries:
        raise CorruptFileError(path, "no element byteStream")
    return entries


def _checksum(element: Element | None) -> tuple[str, str]:
    """Algorithm and digest; both empty where the element is missing, or its value or algorithm unknown."""
    if element is None:
        return "", ""
    algorithm, digest = element.get("checksumName", ""), text_of(element).lower()
    whole = algorithm in _DIGESTS and re.fullmatch(
        rf"[0-9a-f]{{{2 * hashlib.new(_DIGESTS[algorithm]).digest_size}}}", digest
    )
    return (algorithm, digest) if whole and digest.strip("0") else ("", "")


def check_file(folder: Path, entry: ManifestEntry) -> None:
    """CorruptFileError unless the file is there with the size and the digest, if it gives one, of the manifest."""
    path = Path(folder) / entry.path
    if not path.is_file():
        raise CorruptFileError(path, "missing")
    size = path.stat().st_size
    if size != entry.size:
        raise CorruptFileError(path, f"{size} bytes, the manifest says {entry.size}")
    if not entry.digest:
        return
    with reading(path), path.open("rb") as file:
        digest = hashlib.file_digest(file, _DIGESTS[entry.algorithm]).hexdigest()
    if digest != entry.digest:
        raise CorruptFileError(path, f"{entry.algorithm} is {digest}, the manifest says {entry.digest}")


def preview_files(entries: list[ManifestEntry], *, b11: int = 60) -> list[ManifestEntry]:
    """Metadata, scene classification, probabilities, and red, green, blue and B11 at 60 m: 1 to 3 % of the bytes; with
    B11 at 20 m (`b11` 20) twice as many. A product without 60 m has these bands at 20 m, or at 10 m."""
    keys = {key_of(entry.path) for entry in entries}
    wanted = {*_PREVIEW}
    for band, first in (*((band, 60) for band in BANDS[:3]), ("B11", b11)):
        wanted |= {next((key for metres in (first, *_COARSE) if (key := f"{band}_{metres}m") in keys), "")}
    metadata = ("MTD_MSIL2A.xml", "MTD_TL.xml")
    return [e for e in entries if PurePosixPath(e.path).name in metadata or key_of(e.path) in wanted]


def band_files(entries: list[ManifestEntry]) -> list[ManifestEntry]:
    """The four 10 m bands in the order of BANDS; ItemError where one is not listed."""
    found = {key_of(entry.path): entry for entry in entries}
    missing = [band for band in BANDS if f"{band}_10m" not in found]
    if missing:
        granule = next((e.path.split("/")[1] for e in entries if e.path.startswith("GRANULE/")), "no granule")
        raise ItemError(f"{granule}: the manifest lists no 10 m band {', '.join(missing)}")
    return [found[f"{band}_10m"] for band in BANDS]


def preview_in_place(product: Product) -> list[Path]:
    """The masks of a product that is read where it lies; none of one in an archive, whose members are no files.
    LeftOutError where the scene classification is not there."""
    scl, *masks = _PREVIEW
    return _in_place(product, [scl, *(key for key in masks if _fetched(product, key))])


def bands_in_place(product: Product) -> list[Path]:
    """The four 10 m bands as `preview_in_place` has the masks. CorruptFileError where the archive has a broken one."""
    keys = [f"{band}_10m" for band in BANDS]
    found = _in_place(product, keys)
    for key in keys:
        zipped.check(product.folder / product.files[key])
    return found


def members(product: Product, *, bands: bool) -> list[Path]:
    """The files that are read of a product in an archive: masks and pictures, and the 10 m `bands`."""
    read = {*_PREVIEW, *(f"{band}_{metres}m" for band in (*BANDS[:3], "B11") for metres in _COARSE[:2])}
    read |= {f"{band}_10m" for band in BANDS} if bands else set()
    return [product.folder / product.files[key] for key in sorted(read) if _fetched(product, key)]


def _in_place(product: Product, keys: list[str]) -> list[Path]:
    for key in keys:
        if not _fetched(product, key):
            raise LeftOutError(f"{product.folder}: has no {key}")
    return [path for key in keys if (path := product.folder / product.files[key]).is_file()]


def stripes(products: list[Product], *, rows: int = 1024, processes: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, pixels (len(products), 4, r, W) uint16 in our DN convention) of full rows, from north to south.

    Each tile (1024 rows) of each band is decoded once, by one of `processes` processes, which go on with the next
    stripe while the caller has this one: the pixels are valid until the next are asked for. A stripe of a full scene
    takes 90 MB per product. CorruptFileError where a band cannot be decoded.
    """
    shapes = {product.shape for product in products}
    if len(shapes) > 1:
        names = ", ".join(f"{product.name.name} {product.shape}" for product in products)
        raise ItemError(f"products of different size cannot be read side by side: {names}")
    bands = [band for product in products for band in bands_of(product)]
    for top, pixels in decode.stripes(bands, rows=rows, processes=processes):
        yield top, pixels.reshape(len(products), len(BANDS), *pixels.shape[1:])


def read_bands(product: Product, *, processes: int = 1) -> np.ndarray:
    """The 10 m bands whole, (4, H, W) uint16 in our DN convention: 0.96 GB for a full scene. See `stripes`."""
    out = np.empty((len(BANDS), *product.shape), np.uint16)
    for top, pixels in stripes([product], processes=processes):
        out[:, top : top + pixels.shape[2]] = pixels[0]
    return out


def read_reduced(product: Product, step: int) -> np.ndarray:
    """The 10 m bands at 1/step of the resolution (step 1, 2, 4, 8 or 16), (4, ceil(H/step), ceil(W/step)) uint16 DN.

    Pixel (i, j) is a weighted mean around pixel (i * step, j * step), as the wavelet of JPEG 2000 has it: 8 costs a
    fortieth of the decoding, though all of the bytes are read. Pixels beside no data, which the wavelet mixes with
    it, are no data too; single pixels without data are not seen.
    """
    if step not in _STEPS:
        raise ValueError(f"step {step}, expected one of {_STEPS}")
    return np.stack([band.reduced(step) for band in bands_of(product)])


def read_scl(product: Product) -> np.ndarray:
    """Scene classification, (ceil(H/2), ceil(W/2)) uint8, classes 0 to 11."""
    scl = _mask(product, "SCL_20m", factor=2)[0]
    if scl.max(initial=0) > 11:
        raise CorruptFileError(product.folder / product.files["SCL_20m"], f"class {scl.max()}, expected 0 to 11")
    return scl


def read_cloud_probability(product: Product) -> np.ndarray | None:
    """MSK_CLDPRB, (ceil(H/2), ceil(W/2)) uint8 percent; None where the metadata name none, or it was not fetched."""
    return _mask(product, "MSK_CLDPRB_20m", factor=2)[0] if _fetched(product, "MSK_CLDPRB_20m") else None


def read_snow_probability(product: Product) -> np.ndarray | None:
    """MSK_SNWPRB, (ceil(H/2), ceil(W/2)) uint8 percent; None where the metadata name none, or it was not fetched."""
    return _mask(product, "MSK_SNWPRB_20m", factor=2)[0] if _fetched(product, "MSK_SNWPRB_20m") else None


def read_classi(product: Product) -> np.ndarray | None:
    """MSK_CLASSI, (3, ceil(H/6), ceil(W/6)) uint8: opaque cloud, cirrus, snow; None before baseline 04.00, or
    where it was not fetched."""
    return _mask(product, "MSK_CLASSI_B00", factor=6, bands=3) if _fetched(product, "MSK_CLASSI_B00") else None


def read_overview(product: Product) -> np.ndarray:
    """Red, green and blue at 60 m, (3, ceil(H/6), ceil(W/6)) uint16 in our DN convention; where the product has no
    60 m, the means of what it has.

    Not ESA's true-colour image: that is white from reflectance 0.25 on, so a snow scene shows nothing in it.
    """
    bands = [_at_60m(product, band) for band in BANDS[:3]]
    for band, found in zip(BANDS, bands, strict=False):
        if found is None:
            _image(product, f"{band}_60m", factor=6)  # says what is missing
    return np.stack([band for band in bands if band is not None])


def read_b11(product: Product) -> np.ndarray | None:
    """Short-wave infrared at 60 m, in which snow is dark and cloud is not, (ceil(H/6), ceil(W/6)) uint16 in our DN
    convention; None where the metadata name none, or it was not fetched."""
    return _at_60m(product, "B11")


def read_b11_20m(product: Product) -> np.ndarray | None:
    """The same at 20 m, (ceil(H/2), ceil(W/2)) uint16; None also where the product has it at 60 m alone."""
    return _band(product, "B11", resolution=20).read() if _fetched(product, "B11_20m") else None


def _at_60m(product: Product, band: str) -> np.ndarray | None:
    for metres in _COARSE:
        if _fetched(product, f"{band}_{metres}m"):
            return _band(product, band, resolution=metres).reduced(60 // metres)
    return None


def bands_of(product: Product) -> list[decode.Band]:
    """The files of the 10 m bands, in the order of BANDS."""
    return [_band(product, band) for band in BANDS]


def _band(product: Product, band: str, *, resolution: int = 10) -> decode.Band:
    path, (_, rows, columns) = _image(product, f"{band}_{resolution}m", factor=resolution // 10)
    return decode.Band(path, (rows, columns), product.offsets[band], product.quantification)


def _mask(product: Product, key: str, *, factor: int, bands: int = 1) -> np.ndarray:
    """The whole image, (bands, rows, columns) uint8."""
    return decode.read_image(*_image(product, key, factor=factor, bands=bands), "uint8")


def _image(product: Product, key: str, *, factor: int, bands: int = 1) -> tuple[Path, tuple[int, int, int]]:
    """Path and expected (bands, rows, columns) of an image whose pixels are `factor` times as wide as those of 10 m."""
    if key not in product.files:
        raise CorruptFileError(product.folder, f"its metadata (baseline {product.baseline}) name no {key}")
    path = product.folder / product.files[key]
    if not zipped.is_file(path):
        raise CorruptFileError(path, "missing")
    rows, columns = (-(-length // factor) for length in product.shape)
    return path, (bands, rows, columns)


def _fetched(product: Product, key: str) -> bool:
    return key in product.files and zipped.is_file(product.folder / product.files[key])
