"""The pictures of a page: in it while they are few, beside it when they are many, never more bytes than it bears."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cloudjob.files import reading, write_bytes
from cloudjob.sentinel2.render import encode_webp

WITHIN = 24  # scenes whose pictures the page itself holds
_BYTES = 20 << 20  # of all pictures of scenes
_MOST = 500_000  # of those of one scene
_QUALITIES = (75, 40, 10)
_SHARES = {"mask": 1, "uncertainty": 1}  # of the bytes of a scene; of other pictures 3


class Gallery:
    """Takes the pictures of so many scenes; those beside the page lie in `folder`. Threads may share it."""

    def __init__(self, folder: Path, scenes: int):
        self.folder = folder
        self.within = scenes <= WITHIN
        self.side = 768 if self.within else 384  # pixels of a picture at most
        self._budget = min(_MOST, _BYTES // max(scenes, 1))
        self.paths: list[Path] = []

    def add(self, scene: str, pictures: Mapping[str, NDArray]) -> dict[str, str]:
        """By kind what the page calls each of these pictures of a scene, (H, W, 3 or 4) uint8."""
        found = {}
        shares = {kind: _SHARES.get(kind, 3) for kind in pictures}
        for kind, picture in pictures.items():
            data = fitted(picture, self._budget * shares[kind] // sum(shares.values()))
            if self.within:
                found[kind] = source(data)
            else:
                path = self.folder / f"{scene}-{kind}.webp"
                write_bytes(path, data)
                self.paths.append(path)
                found[kind] = f"{quote(self.folder.name)}/{quote(path.name)}"
        return found

    def sweep(self) -> None:
        """Removes the pictures of an earlier page that this one does not show."""
        for path in set(self.folder.glob("*.webp")) - set(self.paths):
            path.unlink()


def source(webp: bytes) -> str:
    """The picture as an <img> of a page that needs no other file takes it."""
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def opened(path: Path) -> NDArray:
    """The picture (H, W, 3) uint8 of a PNG file; CorruptFileError where it is none."""
    with reading(path, UnidentifiedImageError, OSError):
        return decoded(path.read_bytes())


def decoded(png: bytes) -> NDArray:
    """The picture (H, W, 3) uint8 of a PNG."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def fitted(picture: NDArray, limit: int) -> bytes:
    """The picture as WebP of at most `limit` bytes: with more loss, then smaller, where it has to be."""
    while True:
        for quality in _QUALITIES:
            if len(data := encode_webp(picture, quality=quality)) <= limit or max(picture.shape[:2]) < 16:
                return data
        picture = np.ascontiguousarray(picture[::2, ::2])
