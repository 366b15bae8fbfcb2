"""The metadata of ESA's SAFE layout: MTD_MSIL2A.xml and the granule's MTD_TL.xml, of every baseline since 02.04.

Elements and layout: Sentinel-2 Products Specification Document (S2-PDGS-TAS-DI-PSD), Level-2A user product. The trees
of Microsoft's Planetary Computer are the same with .tif in place of .jp2, whatever the metadata say.
"""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from affine import Affine
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from cloudjob.errors import ConfigError, CorruptFileError
from cloudjob.files import reading
from cloudjob.names import ProductName
from cloudjob.sentinel2 import zipped
from cloudjob.sentinel2.geometry import lon_lat, sun_position

_BAND_ID = {"B04": "3", "B03": "2", "B02": "1", "B08": "7", "B11": "11"}  # B01 is 0, B8A is 8
# Names before processing baseline 02.07 (PSD 14.2)
_OLD_ELEMENTS = {name: f"{name}_2A" for name in ("PRODUCT_URI", "IMAGE_FILE")}
_OLD_ELEMENTS |= {"BOA_QUANTIFICATION_VALUE": "L2A_BOA_QUANTIFICATION_VALUE"}
_OLD_MASKS = {"CLD_20m": "MSK_CLDPRB_20m", "SNW_20m": "MSK_SNWPRB_20m"}


def read(folder: Path) -> dict[str, Any]:
    """The fields of a product; CorruptFileError names file and element."""
    user = Metadata(folder / "MTD_MSIL2A.xml")
    granule = "/".join(PurePosixPath(inside(user.path, user.get("IMAGE_FILE"))).parts[:2])  # GRANULE/<granule>/IMG_DATA
    tile = Metadata(folder / granule / "MTD_TL.xml", baseline=user.baseline)
    images = [f"{inside(user.path, text_of(e))}.jp2" for e in user.all("IMAGE_FILE")]
    masks = [inside(tile.path, text_of(e)) for e in tile.all("MASK_FILENAME")]
    x, y = (tile.get("Geoposition", axis, convert=_number, resolution="10") for axis in ("ULX", "ULY"))
    rows, columns = (tile.get("Size", n, convert=int, resolution="10") for n in ("NROWS", "NCOLS"))
    crs, sensing_time = tile.get("HORIZONTAL_CS_CODE").upper(), tile.get("SENSING_TIME", convert=moment)
    return {
        "name": user.get("PRODUCT_URI", convert=ProductName.parse),
        "baseline": user.get("PROCESSING_BASELINE"),
        "offsets": _offsets(user),
        "quantification": user.get("BOA_QUANTIFICATION_VALUE", convert=_number),
        "crs": crs,
        "transform": Affine(10.0, 0.0, x, 0.0, -10.0, y),
        "shape": (rows, columns),
        "sun_elevation": _sun_elevation(tile, sensing_time, (crs, x + 5 * columns, y - 5 * rows)),
        "percentages": _percentages(user),
        "sensing_time": sensing_time,
        "files": {key_of(path): path for path in _as_there(folder, granule, images + masks)},
    }


def _as_there(folder: Path, granule: str, paths: list[str]) -> list[str]:
    """The paths, with .tif where a file is there so and not as named."""
    there = {f"{granule}/{path}" for path in zipped.below(folder / granule)}
    others = {path: str(PurePosixPath(path).with_suffix(".tif")) for path in paths}
    return [other if other in there and path not in there else path for path, other in others.items()]


class Metadata:
    """An XML file read by the local names of its elements: prefixes differ between baselines."""

    def __init__(self, path: Path, *, baseline: str = "unknown"):
        self.path = Path(path)
        with reading(self.path, ParseError, DefusedXmlException, ValueError, LookupError, reason="not readable as XML"):
            self.root: Element = fromstring(zipped.read_bytes(self.path))
        self.baseline = next((text_of(e) for e in self.all("PROCESSING_BASELINE")), baseline)

    def all(self, name: str, **attributes: str) -> list[Element]:
        wanted = attributes.items()
        names = (name, _OLD_ELEMENTS.get(name))
        return [e for e in self.root.iter() if tag_of(e) in names and wanted <= e.attrib.items()]

    def get(self, name: str, child: str = "", *, convert: Callable = str, **attributes: str) -> Any:
        """The text of the first element `name` with these attributes, or of its child."""
        found = self.all(name, **attributes)
        if found and child:
            found = [e for e in found[0] if tag_of(e) == child]
        if not found:
            what = f"{name} {child}".rstrip()
            raise CorruptFileError(self.path, f"no element {what}; this layout (baseline {self.baseline}) is not known")
        try:
            return convert(text_of(found[0]))
        except (ValueError, ConfigError) as error:
            raise CorruptFileError(self.path, f"element {name} {child}: {error}") from None


def tag_of(element: Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def text_of(element: Element) -> str:
    return (element.text or "").strip()


def inside(source: Path, path: str) -> str:
    """The relative path without "./"; it must not lead out of the product, whoever wrote the file."""
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/"):
        raise CorruptFileError(source, f"not a path inside the product: {path!r}")
    return "/".join(parts)


def key_of(path: str) -> str:
    """T05WPS_20240301T222541_B04_10m.jp2 -> B04_10m; masks keep their whole stem, MSK_CLDPRB_20m."""
    stem = PurePosixPath(path).stem
    key = stem if stem.startswith("MSK_") else "_".join(stem.split("_")[-2:])
    return _OLD_MASKS.get(key, key)


def _offsets(user: Metadata) -> dict[str, int]:
    if not user.all("BOA_ADD_OFFSET"):
        return dict.fromkeys(_BAND_ID, 0)
    return {band: user.get("BOA_ADD_OFFSET", convert=int, band_id=band_id) for band, band_id in _BAND_ID.items()}


def _percentages(user: Metadata) -> dict[str, float]:
    names = {tag_of(e) for e in user.root.iter()}
    wanted = [*sorted(n for n in names if n.endswith("_PERCENTAGE")), "Cloud_Coverage_Assessment"]
    found = {name: user.get(name, convert=float) for name in wanted}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number")
    return value


def moment(text: str) -> datetime:
    """The time, in UTC where the text names no other zone."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _sun_elevation(tile: Metadata, when: datetime, middle: tuple[str, float, float]) -> float | None:
    """Degrees: as the metadata say, or where they do not know it (NaN in some of baseline 05.09) from the time and the
    `middle` of the tile, a CRS and a place in it; None where that has no longitude."""
    if tile.all("Mean_Sun_Angle"):
        zenith = tile.get("Mean_Sun_Angle", "ZENITH_ANGLE", convert=float)
        if math.isfinite(zenith):
            return 90.0 - zenith
    place = lon_lat(*middle)
    return place and sun_position(when, *place)[0]
