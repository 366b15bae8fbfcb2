"""Where files come from: the Data Space's download service, its S3 storage, or a folder of the site."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cloudjob.copernicus.transfer import Body


@dataclass(frozen=True)
class Remote:
    """A product as the search found it: name without .SAFE, UUID, place in the S3 storage ("" where that is not known),
    bytes of the whole, and what STAC knows of its files (see `catalogue.Scene`)."""

    name: str
    id: str = ""
    s3: str = ""
    size: int | None = None
    checksums: dict[str, dict] = field(default_factory=dict)

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Remote":
        """Of a row of scenes.jsonl, which may be of an earlier version."""
        return cls(row["product"], row["id"], row.get("s3") or "", row.get("size"), row.get("checksums") or {})


class Source(Protocol):
    """Serves any number of threads. Sends nothing, and needs no credentials, before the first file."""

    def slot(self) -> AbstractContextManager:
        """The right to one connection, held while a file is fetched."""

    def whole(self, product: Remote) -> Path | None:
        """Where a product lies on a disk of this site that is to be read in place, as a whole; None where its files are
        had one by one. LeftOutError where it is not there."""

    def local(self, product: Remote, path: str) -> Path | None:
        """The file on a disk of this site, which needs a link alone; None where it is to be fetched."""

    def open(self, product: Remote, path: str, start: int) -> Body:
        """The bytes of a file from `start` on, or all of them where the source cannot continue there.

        Broken where another try may help, LeftOutError where the file is not there, ItemError, ConfigError.
        """
