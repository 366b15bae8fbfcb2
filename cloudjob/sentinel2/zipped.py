"""Files of a folder and of a zip archive alike: a path goes on within the archive, x.SAFE.zip/x.SAFE/manifest.safe."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudjob.errors import CorruptFileError
from cloudjob.files import digest, reading

_BLOCK = 1 << 20
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)  # what zipfile raises


def archive_of(path: Path) -> Path | None:
    """The archive that a file lies in; None for one of the file system."""
    nearest = next((above for above in path.parents if above.exists()), None)
    return nearest if nearest and nearest.is_file() else None


def is_file(path: Path) -> bool:
    """Whether there is such a file."""
    if path.is_file():
        return True
    archive = archive_of(path)
    return archive is not None and path.relative_to(archive).as_posix() in names(archive)


def names(archive: Path) -> list[str]:
    """The names of an archive's members; CorruptFileError where it is none, or not whole."""
    with _opened(archive) as members:
        return members.namelist()


def below(folder: Path) -> set[str]:
    """The files below a folder, by their paths from it."""
    archive = archive_of(folder / "x")
    if archive is None:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    inside = folder.relative_to(archive).as_posix() + "/"
    return {name.removeprefix(inside) for name in names(archive) if name.startswith(inside)}


def read_bytes(path: Path) -> bytes:
    """The content of a file; CorruptFileError where an archive does not hold it."""
    archive = None if path.is_file() else archive_of(path)
    if archive is None:
        return path.read_bytes()
    member = path.relative_to(archive).as_posix()
    if member not in names(archive):
        raise CorruptFileError(path, "missing")
    with _opened(archive) as members:
        return members.read(member)


def check(path: Path) -> None:
    """CorruptFileError where a member of an archive does not agree with its CRC; a file is not looked at."""
    archive = None if path.is_file() else archive_of(path)
    if archive:
        with _opened(archive) as members, members.open(path.relative_to(archive).as_posix()) as member:
            while member.read(_BLOCK):
                pass


def fingerprint(folder: Path) -> str | None:
    """A digest of the names, sizes and CRCs of the archive that a folder lies in; None for one of the file system."""
    archive = archive_of(folder / "x")
    if archive is None:
        return None
    with _opened(archive) as members:
        return digest([(member.filename, member.file_size, member.CRC) for member in members.infolist()])


def for_gdal(path: Path) -> Path:
    """The name by which GDAL reads the file."""
    archive = None if path.is_file() else archive_of(path)
    return path if archive is None else Path(f"/vsizip/{{{archive.resolve()}}}") / path.relative_to(archive)


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    with reading(archive, *_DAMAGE, reason="not a whole zip archive"), zipfile.ZipFile(archive) as members:
        yield members
