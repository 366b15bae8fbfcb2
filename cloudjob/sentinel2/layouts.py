"""In which layouts Level-2A products are read, and where they lie.

ESA's SAFE since baseline 02.04, as a folder or within a zip archive; the Planetary Computer's, with .tif in it; folders
of Cloud-Optimized GeoTIFFs with their STAC item, as those of Earth Search.
"""

import fnmatch
import os
from pathlib import Path, PurePosixPath
from typing import Any

from cloudjob.errors import ConfigError, CorruptFileError, ItemError, SystemTroubleError
from cloudjob.names import ProductName
from cloudjob.sentinel2 import cog_item, safe_xml, zipped

_METADATA = "MTD_MSIL2A.xml"
_BY_NAME = {"S2?_MSIL1C_*": "a Level-1C product", "S2?_MSI*.zarr": "a product of EOPF (Zarr)"}
_BY_CONTENT = {  # what lies at its top
    "MTD_MSIL1C.xml": "a Level-1C product",
    "S2*USER_MTD_SAFL*.xml": "a product of before baseline 02.04 (PSD 13)",
    "SENTINEL2*_MTD_ALL.xml": "a product of MAJA (THEIA)",
    "*_LEVEL2_SEN2?_BOA.tif": "products of FORCE",
}
_READ = "Level-2A is read as SAFE since baseline 02.04 (folder or .zip, .jp2 or .tif), or as COGs with their STAC item"


def read(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder that the files of a product are below, and its fields; see `Product.open`."""
    if path.is_file():
        return _read_archive(path)
    if zipped.is_file(path / _METADATA):
        return path, safe_xml.read(path)
    if item := cog_item.find(path):
        return path, cog_item.read(item)
    names = os.listdir(path) if path.is_dir() else []
    if other := _other([path.name], names):
        raise ItemError(f"{path}: {other}; {_READ}")
    raise CorruptFileError(path / _METADATA, "missing")


def _read_archive(path: Path) -> tuple[Path, dict[str, Any]]:
    names = zipped.names(path)
    found = [PurePosixPath(name) for name in names if PurePosixPath(name).name == _METADATA]
    if not found:
        top, second = ([part for name in names for part in PurePosixPath(name).parts[i : i + 1]] for i in (0, 1))
        raise ItemError(f"{path}: {_other([path.name, *top], top + second) or 'no product of Level-2A'}; {_READ}")
    if len(found) > 1:
        raise ItemError(f"{path}: holds {len(found)} products; unpack it")
    folder = path / found[0].parent
    return folder, safe_xml.read(folder)


def below(folder: Path) -> list[Path]:
    """All that looks like a product at or below a folder, whatever its layout and level, for `Product.open` to read or
    to refuse. Nothing within a product is looked at, nor hidden folders."""
    found: list[Path] = []
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        place, real = Path(here), os.path.realpath(here)
        back = real in seen  # a link leads back
        seen.add(real)
        if back or _is_product(place, [*folders, *files]):
            found += [] if back else [place]
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [place / name for name in sorted(files) if name.endswith(".zip") and _holds_product(place / name)]
    return found


def named(folder: Path) -> dict[str, Path]:
    """The products of Level-2A at or below a folder by their names, as far as they can be read. One is opened only
    where its folder or archive has another name."""
    found: dict[str, Path] = {}
    for place in below(folder):
        try:
            name = ProductName.parse(place.name.removesuffix(".zip")).name
        except ConfigError:
            try:
                name = read(place)[1]["name"].name
            except SystemTroubleError:
                raise
            except ItemError:
                continue
        found.setdefault(name, place)
    return found


def by_manifest(place: Path) -> bool:
    """Whether the files of a product are those of its manifest: not in an archive, nor with .tif in place of .jp2."""
    return (place / "manifest.safe").is_file() and not any(place.glob("GRANULE/*/IMG_DATA/**/*.tif"))


def _is_product(folder: Path, names: list[str]) -> bool:
    known = folder.suffix == ".SAFE" or _METADATA in names or _other([folder.name], names) is not None
    return known or cog_item.find(folder) is not None


def _holds_product(archive: Path) -> bool:
    """By its name, or by what it holds, as one that a browser called download.zip."""
    if archive.name.startswith("S2"):
        return True
    try:
        return any(PurePosixPath(name).name in (_METADATA, "MTD_MSIL1C.xml") for name in zipped.names(archive))
    except ItemError:
        return False


def _other(own: list[str], inside: list[str]) -> str | None:
    """Which layout that is not read a product has, by its own names and those of what lies in it."""
    told = [(own, _BY_NAME), (inside, _BY_CONTENT)]
    return next((w for names, known in told for pattern, w in known.items() if fnmatch.filter(names, pattern)), None)
