"""Products that lie on a disk of this site, in whatever layout."""

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

from cloudjob.copernicus.sources import Remote
from cloudjob.errors import ConfigError, LeftOutError
from cloudjob.names import ProductName

_ENDINGS = (".SAFE", ".SAFE.zip", ".zip")


class Folder:
    """Products below `root`, at any depth. Those beside each other, or by date as the Data Space keeps them, are found
    at once; for others the tree is walked, once."""

    def __init__(self, root: Path, *, products: Callable[[Path], dict[str, Path]], by_manifest: Callable[[Path], bool]):
        """`products` finds those below a folder, by their names; `by_manifest` tells whether the files of one are those
        of its manifest, so that links to single ones can be made."""
        self._root, self._products, self._by_manifest = root, products, by_manifest
        self._found: dict[str, Path] | None = None
        self._lock = threading.Lock()
        if not root.is_dir():
            raise ConfigError(f"copernicus.folder: {root} is no folder")

    def slot(self) -> AbstractContextManager:
        """A disk has no limit of connections."""
        return contextlib.nullcontext()

    def whole(self, product: Remote) -> Path | None:
        """See `Source`."""
        place = self._place(product.name)
        return None if self._by_manifest(place) else place.resolve()

    def local(self, product: Remote, path: str) -> Path:
        """The file; LeftOutError where it is not there: on a disk, nobody looks again."""
        place = self._place(product.name) / path
        if not place.is_file():
            raise LeftOutError(f"{place}: not there")
        return place.resolve()

    def open(self, product: Remote, path: str, start: int) -> NoReturn:
        """Nobody asks: `local` has all files."""
        raise AssertionError(path)

    def _place(self, name: str) -> Path:
        day = ProductName.parse(name).sensing
        by_date = (f"{day:%Y/%m/%d}", f"Sentinel-2/MSI/L2A/{day:%Y/%m/%d}", f"Sentinel-2/MSI/L2A_N0500/{day:%Y/%m/%d}")
        for below in ("", *by_date):
            for ending in _ENDINGS:
                if (place := self._root / below / (name + ending)).exists():
                    return place
        with self._lock:
            if self._found is None:
                self._found = self._products(self._root)
        if name not in self._found:
            raise LeftOutError(f"{self._root}: holds no {name}")
        return self._found[name]
