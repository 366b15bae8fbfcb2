"""One image of one's own before it is decoded: a raster or a product, where it lies, and when it was taken."""

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cloudjob.errors import ConfigError, DiskFullError, ItemError, SystemTroubleError
from cloudjob.restoration import placing
from cloudjob.restoration.foreign import Image
from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.foreign_masks import Grid
from cloudjob.sentinel2.geometry import sun_position
from cloudjob.sentinel2.product import Product

_PRODUCT = "a folder or archive must be a Sentinel-2 Level-2A product: SAFE, or COGs with their STAC item"
_PASSES = timedelta(hours=10.5)  # local solar time of Sentinel-2's orbit, for an image of which the day alone is known
_OTHER = 1.5  # ratio of pixel sizes from which on the network meets ground that it has not learned


@dataclass(frozen=True)
class Options:
    """How own images are read: see `Image.open` and `masks.Settings`. `values` says what those of a mask mean;
    `grown` is a mask whose cloud, shadow and cirrus need not grow any more."""

    bands: str | None = None
    scale: float | None = None
    offset: float | None = None
    values: dict[str, list[int]] | str | None = None
    grown: bool = False
    mask_settings: masks.Settings = field(default_factory=masks.Settings)


@dataclass(frozen=True)
class Source:
    """An image of one's own before it is decoded: a raster, or a product."""

    path: Path
    image: Image | None
    product: Product | None

    @classmethod
    def open(cls, path: Path, options: Options) -> "Source":
        """Looks at a raster, or at a product (SAFE folder or .zip, COGs with their item). ConfigError where it is
        neither."""
        if not path.exists():
            distant = re.match("[a-z0-9]+:/", str(path))
            raise ConfigError(f"{path}: no such file or folder{'; fetch it first' if distant else ''}")
        if path.is_dir() or path.suffix.lower() == ".zip":
            try:
                return cls(path, None, Product.open(path))
            except (DiskFullError, SystemTroubleError):
                raise
            except ItemError as error:
                raise ConfigError(f"{error}; {_PRODUCT}") from None
        return cls(path, Image.open(path, bands=options.bands, scale=options.scale, offset=options.offset), None)

    @property
    def grid(self) -> Grid:
        return self.image.grid if self.image else Grid.of(self.safe, 1)

    @property
    def safe(self) -> Product:
        """The product; only of one."""
        assert self.product is not None  # one of the two, see `open`
        return self.product

    @property
    def raster(self) -> Image:
        """The raster; only of one."""
        assert self.image is not None  # one of the two, see `open`
        return self.image

    @property
    def acquired(self) -> datetime | None:
        """UTC; of a bare day at midnight."""
        return self.image.acquired if self.image else self.safe.sensing_time

    @property
    def sun_elevation(self) -> float | None:
        """Degrees, as the metadata say or as it follows from time and place; None where one of them is not known."""
        if self.product:
            return self.product.sun_elevation
        assert self.image is not None
        if self.image.sun_elevation is not None:
            return self.image.sun_elevation
        place, when = placing.middle(self.grid), self.image.acquired
        if place is None or when is None:
            return None
        if when == when.replace(hour=0, minute=0, second=0):
            when += _PASSES - timedelta(hours=place[0] / 15)
        return sun_position(when, *place)[0]

    @property
    def notes(self) -> list[str]:
        """What was guessed of it, for people."""
        found = list(self.image.notes) if self.image else []
        metres = placing.pixel_m(self.grid)
        if metres is None:
            return [*found, f"{self.path.name}: does not say where it lies: its pixels count as {placing.WANTED_M:g} m"]
        if not 1 / _OTHER <= metres / placing.WANTED_M <= _OTHER:
            found.append(
                f"WARNING: {self.path.name}: its pixels are {metres:.3g} m wide, and the networks have learned from "
                f"those of {placing.WANTED_M:g} m: bring it to {placing.WANTED_M:g} m for a result to rely on"
            )
        return found
