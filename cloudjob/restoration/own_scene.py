"""The conditions of a scene of one's own: any raster or product, with a mask, and clear dates brought onto its pixels.

Products of one pixel grid, without a mask from elsewhere, are opened as the stage infer opens those of a pair: the same
pixels give the same bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from cloudjob.errors import ConfigError, DiskFullError, ItemError, SystemTroubleError
from cloudjob.patches.splits import REFERENCES
from cloudjob.pixels import CLEAR, EMPTY_DN, HIDDEN, NO_DATA
from cloudjob.restoration import cloud_test, own_mask, placing
from cloudjob.restoration.conditions import SceneConditions
from cloudjob.restoration.dates import Dates, make_conditions
from cloudjob.restoration.foreign import Image
from cloudjob.restoration.team import Team, Unit
from cloudjob.sentinel2 import decode, masks, radiometry
from cloudjob.sentinel2.foreign_masks import Grid
from cloudjob.sentinel2.geometry import sun_position
from cloudjob.sentinel2.product import Product, read_bands
from cloudjob.sentinel2.scene import Scene, open_masks, reduction

_PASSES = timedelta(hours=10.5)  # local solar time of Sentinel-2's orbit, for an image of which the day alone is known
_DOUBTFUL = 0.7  # share of cloud from which on the rough test is rather wrong
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
            raise ConfigError(f"{path}: no such file or folder")
        if path.is_dir() or path.suffix.lower() == ".zip":
            try:
                return cls(path, None, Product.open(path))
            except (DiskFullError, SystemTroubleError):
                raise
            except ItemError as error:
                raise ConfigError(str(error)) from None
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


@dataclass(frozen=True)
class OwnScene:
    """An image that is to be restored, its clear dates (the most wanted first; `open` takes no more than networks are
    shown), and the file of its mask, if any."""

    image: Source
    clear: Sequence[Source]
    mask: Path | None
    options: Options

    @classmethod
    def open(cls, image: Path, clear: Iterable[Path], mask: Path | None, options: Options) -> "OwnScene":
        """Looks at all files, and checks what can be told without decoding them."""
        shown = list(clear)[: len(REFERENCES)]
        found = cls(Source.open(image, options), [Source.open(path, options) for path in shown], mask, options)
        for other in found.clear:
            placing.part(other.grid, found.image.grid, name=other.path)
        if mask:
            own_mask.check(mask, found.image.grid, options.values)
        return found

    @property
    def products(self) -> list[Product]:
        """Those of its images that are Sentinel-2 products, the image first."""
        return [each.product for each in (self.image, *self.clear) if each.product]

    @property
    def days(self) -> tuple[float | None, ...]:
        """Signed days from the image to its clear dates; None where one of the two is not known."""
        begin, others = self.image.acquired, [other.acquired for other in self.clear]
        return tuple(
            None if begin is None or other is None else round((other - begin).total_seconds() / 86400, 3)  # as a pair's
            for other in others
        )

    @property
    def mask_source(self) -> str:
        """Where the mask comes from, in words."""
        if self.mask:
            grown = "as it is" if self.options.grown else "grown"
            return f"{self.mask.name}, {grown}"
        return "the scene classification of the product" if self.image.product else cloud_test.SAID

    def make(self, team: Team, *, processes: int = 1, say: Callable[[str], None] = lambda line: None) -> None:
        """Leaves the conditions of the scene in the team's folder; called on every rank."""
        if not self.mask and self.image.product and all(self._beside(other) for other in self.clear):
            make_conditions(team, self._dates)
            return

        def save() -> None:
            self._conditions(processes, say).save(team.folder)

        team.do("decoding", lambda: [Unit("scene", save)])

    def _beside(self, other: Source) -> bool:
        return other.product is not None and other.grid.equals(self.image.grid)

    def _dates(self) -> Dates:
        roles = ("clear", *REFERENCES)[: len(self.clear)]
        products = dict(zip(["cloudy", *roles], self.products, strict=True))
        return Dates(products, shown=roles, days=self.days, masks=self.options.mask_settings)

    def _conditions(self, processes: int, say: Callable[[str], None]) -> SceneConditions:
        bands, core, mask = self._cloudy(processes, say)
        share = float(np.isin(mask, HIDDEN).sum() / max((mask != NO_DATA).sum(), 1))
        if share > _DOUBTFUL and not self.mask and self.image.image:
            say(
                f"WARNING: {self.image.path.name}: the rough test takes {share:.0%} of it for cloud, as it does with "
                "snow and bright ground; give a mask of another tool with --mask"
            )
        references = self._references(bands, mask, processes, say)
        return SceneConditions(bands, mask, core, tuple(references), self.image.sun_elevation, self.days)

    def _cloudy(self, processes: int, say: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bands, and mask classes before and after their growth."""
        if not self.mask:
            bands, core, mask = _decoded(self.image, self.options, processes)
            return bands, core, mask
        bands = read_bands(self.image.safe, processes=processes) if self.image.product else _raster(self.image).read()
        core, note = own_mask.read(self.mask, self.image.grid, self.options.values, (bands != EMPTY_DN).all(0))
        if note:
            say(note)
        mask = core.copy() if self.options.grown else grown(core, self.image.grid, self.options.mask_settings)
        return bands, core, _with_holes(mask, bands)

    def _references(
        self, cloudy: np.ndarray, mask: np.ndarray, processes: int, say: Callable[[str], None]
    ) -> Iterator[np.ndarray]:
        for other in self.clear:
            bands = _clear_only(other, self.image.grid, self.options, processes)
            if not bands.any():
                say(f"{other.path.name}: not one clear pixel of it lies on {self.image.path.name}")
            yield matched(bands, cloudy, mask == CLEAR)


def matched(other: np.ndarray, cloudy: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Another date (4, H, W) uint16 DN, EMPTY_DN where it is not clear, normalised to the cloudy one, which is `clear`
    in these pixels (H, W)."""
    step = reduction(cloudy.shape[1:])
    source, target = (np.stack([decode.means(band, step) for band in image]) for image in (other, cloudy))
    usable = masks.pool(clear, step, np.logical_and)
    return radiometry.fit(source, target, usable).apply(other, height=cloudy.shape[1])


def grown(core: np.ndarray, grid: Grid, settings: masks.Settings) -> np.ndarray:
    """The mask classes with cloud, shadow and cirrus grown by the metres of the settings."""
    return masks.grow(core, settings, pixel_m=placing.pixel_m(grid) or placing.WANTED_M)


def _with_holes(mask: np.ndarray, bands: np.ndarray) -> np.ndarray:
    mask[(bands == EMPTY_DN).any(0)] = NO_DATA
    return mask


def _raster(source: Source) -> Image:
    assert source.image is not None
    return source.image


def _decoded(source: Source, options: Options, processes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bands of a whole date, and its mask classes before and after their growth, by its own masks or the rough test."""
    if source.product:
        found = open_masks({"cloudy": source.product}, options.mask_settings)["cloudy"]
        scene = Scene.open(source.product, found, processes=processes)
        return scene.bands, scene.core, scene.mask
    bands = _raster(source).read()
    core = cloud_test.classes(bands)
    return bands, core, _with_holes(grown(core, source.grid, options.mask_settings), bands)


def _clear_only(source: Source, target: Grid, options: Options, processes: int) -> np.ndarray:
    """(4, H, W) uint16 DN of a clear date on the pixels of `target`, EMPTY_DN where it is not clear or has no data."""
    window, grid = placing.part(source.grid, target, name=source.path), source.grid
    if source.product or window is None:
        bands, _, mask = _decoded(source, options, processes)
    else:
        bands, grid = _raster(source).read(window), placing.within(source.grid, window)
        mask = grown(cloud_test.classes(bands), grid, options.mask_settings)
    bands[:, mask != CLEAR] = EMPTY_DN
    return bands if window is None else placing.onto(bands, grid, target)
