"""Files that lie on a disk of this site: folders <NAME>.SAFE, or archives <NAME>.SAFE.zip or <NAME>.zip."""

import contextlib
import os
import threading
import zipfile
import zlib
from contextlib import AbstractContextManager
from pathlib import Path

from cloudjob.copernicus.sources import Remote
from cloudjob.errors import ConfigError, LeftOutError
from cloudjob.files import reading
from cloudjob.names import ProductName

_BLOCK = 1 << 20
_ENDINGS = (".SAFE", ".SAFE.zip", ".zip")


class Folder:
    """Products below `root`, at any depth. Those beside each other, or by date as the Data Space keeps them, are found
    at once; for others the tree is walked, once."""

    def __init__(self, root: Path):
        self._root, self._lock = root, threading.Lock()
        self._found: dict[str, Path] | None = None
        self._zips = threading.local()
        if not root.is_dir():
            raise ConfigError(f"copernicus.folder: {root} is no folder")

    def slot(self) -> AbstractContextManager:
        """A disk has no limit of connections."""
        return contextlib.nullcontext()

    def local(self, product: Remote, path: str) -> Path | None:
        """The file in a SAFE folder; None for a product in an archive."""
        place = self._place(product.name)
        if place.suffix == ".zip":
            return None
        if not (place / path).is_file():
            raise LeftOutError(f"{place / path}: not there")
        return (place / path).resolve()

    def open(self, product: Remote, path: str, start: int) -> "_Member":
        """A member of the product's archive, from a byte on."""
        archive = self._archive(self._place(product.name))
        for name in (f"{product.name}.SAFE/{path}", path):
            with contextlib.suppress(KeyError):
                member = archive.getinfo(name)
                return _Member(archive, member, start)
        raise LeftOutError(f"{archive.filename}: holds no {path}")

    def _archive(self, place: Path) -> zipfile.ZipFile:
        """One per thread, which is kept open: its directory is read once for all files of a product."""
        if getattr(self._zips, "place", None) != place:
            with reading(place, zipfile.BadZipFile, reason="no zip archive"):
                self._zips.archive, self._zips.place = zipfile.ZipFile(place), place
        return self._zips.archive

    def _place(self, name: str) -> Path:
        day = ProductName.parse(name).sensing
        by_date = (f"{day:%Y/%m/%d}", f"Sentinel-2/MSI/L2A/{day:%Y/%m/%d}", f"Sentinel-2/MSI/L2A_N0500/{day:%Y/%m/%d}")
        for below in ("", *by_date):
            for ending in _ENDINGS:
                if (place := self._root / below / (name + ending)).exists():
                    return place
        with self._lock:
            if self._found is None:
                self._found = _walk(self._root)
        if name not in self._found:
            raise LeftOutError(f"{self._root}: holds no {name}.SAFE, nor a zip of it")
        return self._found[name]


def _walk(root: Path) -> dict[str, Path]:
    """The products below a folder by their names. Nothing inside a product is looked at."""
    found: dict[str, Path] = {}
    for above, folders, files in os.walk(root, followlinks=True):
        for entry in (*folders, *files):
            for ending in _ENDINGS:
                if entry.endswith(ending):
                    found.setdefault(entry.removesuffix(ending), Path(above, entry))
                    break
        folders[:] = [name for name in folders if not name.endswith(".SAFE")]
    return found


class _Member:
    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, start: int):
        self._path, self._name = Path(str(archive.filename)), member.filename
        with self._reading():
            self._stream = archive.open(member)
            self.start = self._stream.seek(start)

    def _reading(self) -> AbstractContextManager:
        reason = f"{self._name} cannot be read"
        return reading(self._path, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, reason=reason)

    def read(self) -> bytes:
        """What comes next."""
        with self._reading():
            return self._stream.read(_BLOCK)

    def stop(self) -> None:
        """A disk answers by itself."""

    def close(self) -> None:
        """The archive stays open."""
        self._stream.close()
