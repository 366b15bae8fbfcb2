"""Which of the exported masks a person has corrected."""

from pathlib import Path

from cloudjob.files import file_sha256


def exported(folder: Path, product: str) -> Path:
    """The copy of a mask as it was exported, which tells what a person changed."""
    return folder / "exported" / f"{product}.tif"


def corrected(folder: Path, product: str) -> tuple[Path, str] | None:
    """`<folder>/<product>.tif` and its SHA-256 where somebody changed it or brought it from elsewhere; None where there
    is none, or it is as it was exported."""
    path, copy = folder / f"{product}.tif", exported(folder, product)
    if not path.is_file() or (copy.is_file() and _same(path, copy)):
        return None
    return path, file_sha256(path)


def _same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()
