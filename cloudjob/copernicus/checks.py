"""What is known of a product's file before it is fetched, and whether bytes agree with it."""

import hashlib
import string
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

HEAD = 64  # bytes that tell what kind of file it is
_DIGESTS = {"SHA3-256": "sha3_256", "MD5": "md5"}
_DIGITS = {"SHA3-256": 64, "MD5": 32}
_JPEG_2000 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"  # signature box, ISO/IEC 15444-1, I.5.1
_BLOCK = 1 << 20


class Entry(Protocol):
    """A file as the manifest of a product lists it; algorithm and digest are empty where it gives none."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def optional(self) -> bool: ...


@dataclass(frozen=True)
class Wanted:
    """A file to fetch: its path in the SAFE folder; size in bytes, and algorithm and hexadecimal digest, if known. An
    optional one that is gone costs that file alone."""

    path: str
    size: int | None = None
    digest: tuple[str, str] | None = None
    optional: bool = False

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def wanted(entries: Iterable[Entry], checksums: dict[str, dict]) -> list[Wanted]:
    """The files of manifest entries. What STAC knows of a file (`checksums`, see `catalogue.Scene`) comes first."""
    found = []
    for entry in entries:
        file = known(entry.path, checksums)
        if file.digest is None:
            file = replace(file, size=None, digest=_usable((entry.algorithm, entry.digest)))
        found.append(replace(file, size=file.size or entry.size, optional=entry.optional))
    return found


def known(path: str, checksums: dict[str, dict]) -> Wanted:
    """A file of which STAC alone can tell, as the manifest."""
    of_stac = checksums.get(path)
    return Wanted(path, (of_stac or {}).get("size"), _usable(_multihash(of_stac)))


def _multihash(of_stac: dict | None) -> tuple[str, str] | None:
    """Algorithm and digest of a STAC `file:checksum`. The length decides: the Data Space labels the SHA3-256 of XML
    files with the code of MD5."""
    text = str((of_stac or {}).get("multihash") or "")
    for algorithm, digits in _DIGITS.items():
        if text[:-digits] in (f"16{digits // 2:02x}", f"d501{digits // 2:02x}"):
            return algorithm, text[-digits:]
    return None


def _usable(digest: tuple[str, str] | None) -> tuple[str, str] | None:
    """The digest; None for an unknown algorithm, and for zeros or other text that stands where a digest is missing."""
    algorithm, digits = digest or ("", "")
    usable = len(digits) == _DIGITS.get(algorithm) and set(digits) <= set(string.hexdigits) and digits.strip("0")
    return (algorithm, digits) if usable else None


class Check:
    """Takes the bytes of a file as they come, and says at the end what is wrong with them."""

    def __init__(self, file: Wanted):
        self._file, self.length, self._head = file, 0, b""
        self._hash = hashlib.new(_DIGESTS[file.digest[0]]) if file.digest else None

    def add(self, block: bytes) -> None:
        if self.length < HEAD:
            self._head = (self._head + block)[:HEAD]
        self.length += len(block)
        if self._hash:
            self._hash.update(block)  # without Python's lock

    @property
    def excess(self) -> bool:
        """Whether there are more bytes than the file has."""
        return self._file.size is not None and self.length > self._file.size

    @property
    def short(self) -> bool:
        return self._file.size is not None and self.length < self._file.size

    def alien(self) -> str | None:
        """What it is instead, where the first bytes are of another kind of file."""
        head, name = self._head.lstrip(b"\xef\xbb\xbf \t\r\n"), self._file.name.lower()
        if name.endswith(".jp2") and self._head[: len(_JPEG_2000)] != _JPEG_2000[: len(self._head)]:
            return f"is no JPEG 2000 but begins with {self._head[:12]!r}"
        if name.endswith((".xml", ".safe")) and (head[:1] not in (b"<", b"") or head[:9].lower().startswith(_PAGES)):
            return f"is no XML but begins with {self._head[:12]!r}"
        return None

    def wrong(self) -> str | None:
        """What is wrong with the whole; None where all that is known of it is right."""
        if self._file.size is not None and self.length != self._file.size:
            return f"{self.length} bytes instead of {self._file.size}"
        if other := self.alien():
            return other
        if self._hash and self._file.digest and self._hash.hexdigest() != (digest := self._file.digest[1].lower()):
            return f"{self._file.digest[0]} is {self._hash.hexdigest()} instead of {digest}"
        return None


_PAGES = (b"<html", b"<!doctype")


def wrong(path: Path, file: Wanted) -> str | None:
    """What is wrong with a file on the disk, which is read whole."""
    if file.size is not None and (found := path.stat().st_size) != file.size:
        return f"{found} bytes instead of {file.size}"
    check = Check(file)
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            check.add(block)
    return check.wrong()
