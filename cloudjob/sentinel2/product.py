"""Reader of Sentinel-2 Level-2A products in ESA's SAFE layout, every processing baseline since 02.04.

Elements and layout: Sentinel-2 Products Specification Document (S2-PDGS-TAS-DI-PSD), Level-2A user product.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Self
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from affine import Affine
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from cloudjob.errors import ConfigError, CorruptFileError, ItemError
from cloudjob.files import reading
from cloudjob.names import ProductName
from cloudjob.pixels import BANDS
from cloudjob.sentinel2 import decode
from cloudjob.sentinel2.geometry import lon_lat, sun_position

_BAND_ID = {"B04": "3", "B03": "2", "B02": "1", "B08": "7", "B11": "11"}  # B01 is 0, B8A is 8
_COARSE = (60, 20, 10)  # metres of the pixels that pictures are made from, the first of them that a product has
_PREVIEW = ("SCL_20m", "MSK_CLDPRB_20m", "MSK_SNWPRB_20m", "MSK_CLASSI_B00")
# Names before processing baseline 02.07 (PSD 14.2)
_OLD_ELEMENTS = {name: f"{name}_2A" for name in ("PRODUCT_URI", "IMAGE_FILE")}
_OLD_ELEMENTS |= {"BOA_QUANTIFICATION_VALUE": "L2A_BOA_QUANTIFICATION_VALUE"}
_OLD_MASKS = {"CLD_20m": "MSK_CLDPRB_20m", "SNW_20m": "MSK_SNWPRB_20m"}
_DIGESTS = {"SHA3-256": "sha3_256", "MD5": "md5"}  # MD5 before processing baseline 04.00
_STEPS = (1, 2, 4, 8, 16)  # ESA's files have five resolutions


@dataclass(frozen=True)
class Product:
    """What a product's two XML files say; `transform` and `shape` (rows, columns) are of the 10 m grid."""

    folder: Path
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
    def open(cls, folder: Path) -> Self:
        """Reads MTD_MSIL2A.xml and the granule's MTD_TL.xml; CorruptFileError names file and element."""
        folder = Path(folder)
        user = _Metadata(folder / "MTD_MSIL2A.xml")
        images = [f"{_inside(user.path, _text(e))}.jp2" for e in user.all("IMAGE_FILE")]
        if not images:
            baseline = next((_text(e) for e in user.all("PROCESSING_BASELINE")), "unknown")
            raise CorruptFileError(user.path, f"no element IMAGE_FILE; this layout (baseline {baseline}) is not known")
        granule = PurePosixPath(*PurePosixPath(images[0]).parts[:2])  # of GRANULE/<granule>/IMG_DATA/R10m/<file>
        tile = _Metadata(folder / granule / "MTD_TL.xml")
        masks = [_inside(tile.path, _text(e)) for e in tile.all("MASK_FILENAME")]
        x, y = (tile.get("Geoposition", axis, convert=_number, resolution="10") for axis in ("ULX", "ULY"))
        rows, columns = (tile.get("Size", n, convert=int, resolution="10") for n in ("NROWS", "NCOLS"))
        crs, transform = tile.get("HORIZONTAL_CS_CODE").upper(), Affine(10.0, 0.0, x, 0.0, -10.0, y)
        sensing_time = tile.get("SENSING_TIME", convert=_moment)
        return cls(
            folder=folder,
            name=user.get("PRODUCT_URI", convert=ProductName.parse),
            baseline=user.get("PROCESSING_BASELINE"),
            offsets=_offsets(user),
            quantification=user.get("BOA_QUANTIFICATION_VALUE", convert=_number),
            crs=crs,
            transform=transform,
            shape=(rows, columns),
            sun_elevation=_sun_elevation(tile, sensing_time, (crs, x + 5 * columns, y - 5 * rows)),
            percentages=_percentages(user),
            sensing_time=sensing_time,
            files={_key(path): path for path in images + masks},
        )


@dataclass(frozen=True)
class ManifestEntry:
    """One file of the product: path below the SAFE folder, size in bytes, digest in lower case."""

    path: str
    size: int
    algorithm: str  # "SHA3-256" or "MD5"
    digest: str


def read_manifest(path: Path) -> list[ManifestEntry]:
    """The files that manifest.safe lists, in its order; CorruptFileError where an entry is incomplete."""
    manifest = _Metadata(path)
    entries: list[ManifestEntry] = []
    for stream in manifest.all("byteStream"):
        fields = {_local(child): child for child in stream}
        try:
            entry = ManifestEntry(
                path=_inside(manifest.path, fields["fileLocation"].attrib["href"]),
                size=int(stream.attrib["size"]),
                algorithm=fields["checksum"].attrib["checksumName"],
                digest=_text(fields["checksum"]).lower(),
            )
        except (KeyError, ValueError) as error:
            raise CorruptFileError(path, f"byteStream number {len(entries) + 1}: {error!r}") from None
        if entry.algorithm not in _DIGESTS:
            raise CorruptFileError(path, f"{entry.path}: unknown checksumName {entry.algorithm!r}")
        entries.append(entry)
    if not entries:
        raise CorruptFileError(path, "no element byteStream")
    return entries


def check_file(folder: Path, entry: ManifestEntry) -> None:
    """CorruptFileError unless the file is there with the size and the digest of the manifest."""
    path = Path(folder) / entry.path
    if not path.is_file():
        raise CorruptFileError(path, "missing")
    size = path.stat().st_size
    if size != entry.size:
        raise CorruptFileError(path, f"{size} bytes, the manifest says {entry.size}")
    with reading(path), path.open("rb") as file:
        digest = hashlib.file_digest(file, _DIGESTS[entry.algorithm]).hexdigest()
    if digest != entry.digest:
        raise CorruptFileError(path, f"{entry.algorithm} is {digest}, the manifest says {entry.digest}")


def preview_files(entries: list[ManifestEntry]) -> list[ManifestEntry]:
    """Metadata, scene classification, probabilities, and red, green, blue and B11 at 60 m: 1 to 3 % of the bytes. A
    product without 60 m has these bands at 20 m, or at 10 m."""
    keys = {_key(entry.path) for entry in entries}
    wanted = {*_PREVIEW}
    for band in (*BANDS[:3], "B11"):
        wanted |= {next((key for metres in _COARSE if (key := f"{band}_{metres}m") in keys), "")}
    metadata = ("MTD_MSIL2A.xml", "MTD_TL.xml")
    return [e for e in entries if PurePosixPath(e.path).name in metadata or _key(e.path) in wanted]


def band_files(entries: list[ManifestEntry]) -> list[ManifestEntry]:
    """The four 10 m bands in the order of BANDS; ItemError where one is not listed."""
    found = {_key(entry.path): entry for entry in entries}
    missing = [band for band in BANDS if f"{band}_10m" not in found]
    if missing:
        granule = next((e.path.split("/")[1] for e in entries if e.path.startswith("GRANULE/")), "no granule")
        raise ItemError(f"{granule}: the manifest lists no 10 m band {', '.join(missing)}")
    return [found[f"{band}_10m"] for band in BANDS]


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
    bands = [_band(product, band) for product in products for band in BANDS]
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
    return np.stack([_band(product, band).reduced(step) for band in BANDS])


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
    """MSK_CLASSI, (3, ceil(H/6), ceil(W/6)) uint8: opaque cloud, cirrus, snow; None before baseline 04.00."""
    if "MSK_CLASSI_B00" not in product.files:
        return None
    return _mask(product, "MSK_CLASSI_B00", factor=6, bands=3)


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


def _at_60m(product: Product, band: str) -> np.ndarray | None:
    for metres in _COARSE:
        if _fetched(product, f"{band}_{metres}m"):
            return _band(product, band, resolution=metres).reduced(60 // metres)
    return None


def _band(product: Product, band: str, *, resolution: int = 10) -> decode.Band:
    path, (_, rows, columns) = _image(product, f"{band}_{resolution}m", factor=resolution // 10)
    return decode.Band(path, (rows, columns), product.offsets[band], product.quantification)


def _mask(product: Product, key: str, *, factor: int, bands: int = 1) -> np.ndarray:
    """The whole image, (bands, rows, columns) uint8."""
    return decode.read_image(*_image(product, key, factor=factor, bands=bands), "uint8")


def _image(product: Product, key: str, *, factor: int, bands: int = 1) -> tuple[Path, tuple[int, int, int]]:
    """Path and expected (bands, rows, columns) of an image whose pixels are `factor` times as wide as those of 10 m."""
    if key not in product.files:
        raise CorruptFileError(product.folder / "MTD_MSIL2A.xml", f"no IMAGE_FILE or MASK_FILENAME is a {key}")
    path = product.folder / product.files[key]
    if not path.is_file():
        raise CorruptFileError(path, "missing")
    rows, columns = (-(-length // factor) for length in product.shape)
    return path, (bands, rows, columns)


def _fetched(product: Product, key: str) -> bool:
    return key in product.files and (product.folder / product.files[key]).is_file()


class _Metadata:
    """An XML file read by the local names of its elements: prefixes differ between baselines."""

    def __init__(self, path: Path):
        self.path = Path(path)
        with reading(self.path, ParseError, DefusedXmlException, ValueError, LookupError, reason="not readable as XML"):
            self.root: Element = fromstring(self.path.read_bytes())

    def all(self, name: str, **attributes: str) -> list[Element]:
        wanted = attributes.items()
        names = (name, _OLD_ELEMENTS.get(name))
        return [e for e in self.root.iter() if _local(e) in names and wanted <= e.attrib.items()]

    def get(self, name: str, child: str = "", *, convert: Callable = str, **attributes: str) -> Any:
        """The text of the first element `name` with these attributes, or of its child."""
        found = self.all(name, **attributes)
        if found and child:
            found = [e for e in found[0] if _local(e) == child]
        if not found:
            raise CorruptFileError(self.path, f"no element {name} {child}".rstrip())
        try:
            return convert(_text(found[0]))
        except (ValueError, ConfigError) as error:
            raise CorruptFileError(self.path, f"element {name} {child}: {error}") from None


def _local(element: Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _text(element: Element) -> str:
    return (element.text or "").strip()


def _inside(source: Path, path: str) -> str:
    """The relative path without "./"; it must not lead out of the product, whoever wrote the file."""
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/"):
        raise CorruptFileError(source, f"not a path inside the product: {path!r}")
    return "/".join(parts)


def _key(path: str) -> str:
    """T05WPS_20240301T222541_B04_10m.jp2 -> B04_10m; masks keep their whole stem, MSK_CLDPRB_20m."""
    stem = PurePosixPath(path).stem
    key = stem if stem.startswith("MSK_") else "_".join(stem.split("_")[-2:])
    return _OLD_MASKS.get(key, key)


def _offsets(user: _Metadata) -> dict[str, int]:
    if not user.all("BOA_ADD_OFFSET"):
        return dict.fromkeys(_BAND_ID, 0)
    return {band: user.get("BOA_ADD_OFFSET", convert=int, band_id=band_id) for band, band_id in _BAND_ID.items()}


def _percentages(user: _Metadata) -> dict[str, float]:
    names = {_local(e) for e in user.root.iter()}
    wanted = [*sorted(n for n in names if n.endswith("_PERCENTAGE")), "Cloud_Coverage_Assessment"]
    found = {name: user.get(name, convert=float) for name in wanted}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number")
    return value


def _moment(text: str) -> datetime:
    """The time, in UTC where the text names no other zone."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _sun_elevation(tile: _Metadata, when: datetime, middle: tuple[str, float, float]) -> float | None:
    """Degrees: as the metadata say, or where they do not know it (NaN in some of baseline 05.09) from the time and the
    `middle` of the tile, a CRS and a place in it; None where that has no longitude."""
    if tile.all("Mean_Sun_Angle"):
        zenith = tile.get("Mean_Sun_Angle", "ZENITH_ANGLE", convert=float)
        if math.isfinite(zenith):
            return 90.0 - zenith
    place = lon_lat(*middle)
    return place and sun_position(when, *place)[0]
