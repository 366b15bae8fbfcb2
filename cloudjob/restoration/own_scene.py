"""A scene of one's own before it is decoded: an image, clear dates of the same ground, and the image's mask, if any.

Products of one pixel grid, without a mask from elsewhere, are opened as the stage infer opens those of a pair: the same
pixels give the same bytes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloudjob.pixels import REFERENCES
from cloudjob.restoration import cloud_test, own_dates, own_mask, placing
from cloudjob.restoration.dates import Dates, make_conditions
from cloudjob.restoration.own_source import Options, Source
from cloudjob.restoration.team import Team
from cloudjob.sentinel2.product import Product


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

    def make(self, team: Team, *, say: Callable[[str], object] = lambda line: None) -> None:
        """Leaves the conditions of the scene in the team's folder; called on every rank. Rank 0 has something to `say`
        of what was found in the files."""
        if not self.mask and self.image.product and all(self._beside(other) for other in self.clear):
            make_conditions(team, self._dates)
            return
        sources = [self.image, *self.clear]
        own_dates.make_conditions(team, sources, mask=self.mask, options=self.options, days=self.days, say=say)

    def _beside(self, other: Source) -> bool:
        return other.product is not None and other.grid.equals(self.image.grid)

    def _dates(self) -> Dates:
        roles = ("clear", *REFERENCES)[: len(self.clear)]
        products = dict(zip(["cloudy", *roles], self.products, strict=True))
        return Dates(products, shown=roles, days=self.days, masks=self.options.mask_settings)
