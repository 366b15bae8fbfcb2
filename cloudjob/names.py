"""Names of Sentinel-2 Level-2A products: their fields, and which acquisition a product is of."""

import re
from collections.abc import Container
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Self

from cloudjob.errors import ConfigError

_NAME = re.compile(
    r"(?P<satellite>S2[A-D])_MSIL2A_(?P<sensing>\d{8}T\d{6})_N(?P<major>\d\d)(?P<minor>\d\d)"
    r"_R(?P<orbit>\d{3})_T(?P<tile>\d\d[A-Z]{3})_(?P<discriminator>\d{8}T\d{6})"
)
_TIME = "%Y%m%dT%H%M%S"


@dataclass(frozen=True)
class ProductName:
    """The fields of a product name; `name` is without .SAFE, `sensing` the start of the datatake in UTC."""

    name: str
    satellite: str
    sensing: datetime
    baseline: str
    relative_orbit: int
    tile: str
    discriminator: str

    @classmethod
    @lru_cache(maxsize=4096)  # the stages ask for the same few names again and again
    def parse(cls, name: str) -> Self:
        """Takes the name with or without .SAFE; ConfigError where it is not a Level-2A name."""
        name = name.removesuffix(".SAFE")
        match = _NAME.fullmatch(name)
        try:
            if match is None:
                raise ValueError
            sensing = datetime.fromisoformat(match["sensing"]).replace(tzinfo=UTC)
        except ValueError:  # no match, or not a date
            raise ConfigError(
                f"not the name of a Sentinel-2 Level-2A product: {name!r}; expected e.g. "
                "S2A_MSIL2A_20240301T222541_N0510_R029_T05WPS_20240302T001122"
            ) from None
        return cls(
            name=name,
            satellite=match["satellite"],
            sensing=sensing,
            baseline=f"{match['major']}.{match['minor']}",
            relative_orbit=int(match["orbit"]),
            tile=match["tile"],
            discriminator=match["discriminator"],
        )

    @cached_property
    def datatake(self) -> str:
        """Satellite and start of sensing: the same in copies, halves and all tiles of one acquisition."""
        return f"{self.satellite}_{stamp(self.sensing)}"

    @property
    def granule(self) -> str:
        """Datatake and tile: the same in copies and halves of one acquisition."""
        return f"{self.datatake}_T{self.tile}"

    @property
    def processed(self) -> datetime:
        """The time of processing (UTC), which the discriminator carries in nominal products."""
        return datetime.strptime(self.discriminator, _TIME).replace(tzinfo=UTC)


def stamp(moment: datetime) -> str:
    """A time in UTC as product names write it: 20240301T222541."""
    return f"{moment.astimezone(UTC):{_TIME}}"


def product_name(
    *, satellite: str, sensing: datetime, baseline: str, relative_orbit: int, tile: str, processed: datetime
) -> str:
    """The name (without .SAFE) that `ProductName.parse` takes apart; `baseline` as in "05.10"."""
    return (
        f"{satellite}_MSIL2A_{stamp(sensing)}_N{baseline.replace('.', '')}_R{relative_orbit:03d}_T{tile}"
        f"_{stamp(processed)}"
    )


def pair_name(cloudy: ProductName, clear: ProductName, halves: Container[str] = ()) -> str:
    """The name of a pair of products of one tile: tile, and both starts of sensing. Those of `halves`, granules of
    several products, are told apart by the discriminator."""
    dates = [stamp(name.sensing) + f"-{name.discriminator}" * (name.granule in halves) for name in (cloudy, clear)]
    return "_".join([cloudy.tile, *dates])


def tile_of_pair(pair: str) -> str:
    """The tile in the name of a pair."""
    return pair.partition("_")[0]


def days_between(product: str, other: str) -> float:
    """Signed days from one product's start of sensing to the other's."""
    return (ProductName.parse(other).sensing - ProductName.parse(product).sensing).total_seconds() / 86400
