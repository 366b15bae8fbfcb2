"""Products of a run folder as they are read: first, each file that an item needs is held against what its record says.

Disks lose and change bytes and keep the size, and a band with some zeros in it is still decoded. So whoever reads a
product's files asks `check` before. A file that is not the recorded one is set aside, and its record no longer counts:
the stage that fetched it does so again. What is read where it lies (`copernicus.source: path`) is named, never moved.

A process reads a file once for this, at the speed of SHA-256. Where several share the work, each file of `kept` is a
unit of it: any process may ask what is `wrong` with it, and the one that has the item raises what `spoil` returns.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob.errors import CorruptFileError, DamagedProductError
from cloudjob.files import reading
from cloudjob.run import fetching, records
from cloudjob.run.folder import RunFolder

if TYPE_CHECKING:
    from cloudjob.sentinel2.product import Product

_hashed: dict[tuple, str] = {}  # of this process: a file as the system knows it -> its SHA-256, or fingerprint


@dataclass(frozen=True)
class Kept:
    """A file that an item put out, as its record has it; of an archive, that of the product's members."""

    stage: str
    item: str
    path: Path
    sha256: str  # of an archive, the fingerprint of all of its members (see `zipped`)
    members: tuple[Path, ...] = ()  # of an archive: those that are read

    @property
    def state(self) -> str:
        """Changes when the file does, as far as the system knows."""
        return "-".join(map(str, _as_it_is(self.path.stat()))) if self.path.exists() else "missing"

    def wrong(self) -> str | None:
        """What is wrong with the file; None where it is the recorded one. SystemTroubleError where the system refuses
        it."""
        try:
            found = _fingerprint(self.members) if self.members else _sha256(self.path)
        except CorruptFileError as error:
            return error.reason
        if found == self.sha256:
            return None
        return f"its SHA-256 is {found[:12]}..., it was {self.sha256[:12]}... when {self.stage} had it"


def open_product(folder: RunFolder, product: str, *, bands: bool = True) -> "Product":
    """The product, whose files are the recorded ones; without `bands` those of its preview alone. See `check`."""
    from cloudjob.sentinel2.product import Product

    check(folder, product, bands=bands)
    return Product.open(folder.safe(product))


def check(folder: RunFolder, product: str, *, bands: bool = True, truth: bool = False) -> None:
    """DamagedProductError unless the files of a product are the recorded ones: those of its preview, its `bands`, the
    `truth` that came beside them. What has no record is not looked at."""
    check_files(folder, kept(folder, product, bands=bands, truth=truth))


def check_output(folder: RunFolder, product: str) -> None:
    """The same for the restored product, as far as it is read again."""
    check_files(folder, [each for each in _recorded(folder, "infer", product) if each.path.suffix == ".h5"])


def check_files(folder: RunFolder, files: list[Kept]) -> None:
    """The same for these files."""
    for each in files:
        if why := each.wrong():
            raise spoil(folder, each, why)


def kept(folder: RunFolder, product: str, *, bands: bool = True, truth: bool = False) -> list[Kept]:
    """The files that `check` looks at."""
    found = _recorded(folder, "preview", product)
    for each in _recorded(folder, "download", product):
        beside = each.path.parent == folder.truth(product).parent
        if (truth if beside else bands) or each.path.parent == folder.drifting:
            found.append(each)
    fetched = records.record(folder, "preview", product) or {}
    if archive := (fetched.get("result") or {}).get("archive"):
        from cloudjob.sentinel2 import product as safe

        members = safe.members(safe.Product.open(folder.safe(product)), bands=bands)
        found.append(Kept("preview", product, folder.safe(product), archive, tuple(members)))
    return found


def spoil(folder: RunFolder, file: Kept, why: str) -> DamagedProductError:
    """Sets a damaged file aside, so that its item counts as failed and is made again; the error to raise."""
    error = CorruptFileError(file.path, why)
    if fetching.in_place(folder, file.item) and folder.safe(file.item) in (file.path, *file.path.parents):
        again = f"cloudjob {file.stage} {folder.quoted} --only {file.item} --force"
        return DamagedProductError(
            f"{error}. It is read where it lies: put back the file that was there, or take the one that is: {again}"
        )
    return DamagedProductError(records.spoil(folder, file.stage, file.item, error))


def _recorded(folder: RunFolder, stage: str, item: str) -> list[Kept]:
    outputs = (records.record(folder, stage, item) or {"outputs": {}})["outputs"]
    return [Kept(stage, item, folder.root / name, facts["sha256"]) for name, facts in outputs.items()]


def _sha256(path: Path) -> str:
    with reading(path), open(path, "rb", buffering=0) as file:
        key = _as_it_is(os.fstat(file.fileno()))
        if key not in _hashed:
            _hashed[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return _hashed[key]


def _fingerprint(members: tuple[Path, ...]) -> str:
    """Of the archive that these lie in, once each of them agrees with its own checksum."""
    from cloudjob.sentinel2 import zipped

    archive = zipped.archive_of(members[0])
    assert archive is not None, f"{members[0]}: lies in no archive"
    key = (*_as_it_is(archive.stat()), *members)
    if key not in _hashed:
        for member in members:
            zipped.check(member)
        _hashed[key] = zipped.fingerprint(members[0].parent) or ""
    return _hashed[key]


def _as_it_is(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
