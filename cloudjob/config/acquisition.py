"""What may be configured of where scenes come from: the Data Space's addresses, area, dates and cloud cover."""

from datetime import date, timedelta
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from cloudjob.config.fields import Day, Percent, Product, Section, ascending


class CopernicusConfig(Section):
    """Where the Copernicus Data Space answers; credentials come from the environment."""

    stac: str = "https://stac.dataspace.copernicus.eu/v1"
    catalogue: str = "https://catalogue.dataspace.copernicus.eu/odata/v1"
    download: str = "https://download.dataspace.copernicus.eu/odata/v1"
    token: str = "https://identity.dataspace.copernicus.eu/auth/realms/CDSE/protocol/openid-connect/token"
    connections: Annotated[int, Field(ge=1, le=4)] = Field(4, description="the account's limit is 4 at a time")

    def urls(self) -> dict[str, str]:
        """The addresses by name."""
        return self.model_dump(exclude={"connections"})


class Query(Section):
    """One catalogue query: first and last day (both inclusive) and the range of the catalogue's cloud cover."""

    start: Day
    end: Day
    cloud: tuple[Percent, Percent] = Field(description="percent")

    _cloud = field_validator("cloud")(lambda pair: ascending(pair, "the lower cloud cover"))

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start > self.end:
            raise ValueError(f"start {self.start} is after end {self.end}")
        return self

    def months(self) -> list[tuple[date, date]]:
        """The query cut into calendar months: (first, last) day of each."""
        parts, first = [], self.start
        while first <= self.end:
            following = (first.replace(day=28) + timedelta(days=4)).replace(day=1)
            parts.append((first, min(self.end, following - timedelta(days=1))))
            first = following
        return parts


class SearchConfig(Section):
    """What the catalogue is asked for: the area, and one query each for clear and for cloudy products."""

    polygon: list[tuple[float, float]] = Field(
        description="closed ring of (longitude, latitude), degrees; across 180 degrees it goes on, as 179, 181"
    )
    clear: Query
    cloudy: Query
    catalogue: Literal["stac", "odata"] = "stac"
    exclude: list[Product] = Field([], description="products that are left out")

    @field_validator("polygon")
    @classmethod
    def _ring(cls, ring: list[tuple[float, float]]) -> list[tuple[float, float]]:
        if len(ring) < 4 or ring[0] != ring[-1]:
            first = list(ring[0]) if ring else []
            raise ValueError(
                f"the polygon is not closed: the last point must repeat the first one; add {first} at the end"
            )
        lons = [lon for lon, _ in ring]
        if max(map(abs, lons)) > 360 or max(lons) - min(lons) > 360 or any(abs(lat) > 90 for _, lat in ring):
            raise ValueError(
                "a point lies outside longitude -180..180 (across 180 degrees -360..360), latitude -90..90; write "
                "(longitude, latitude)"
            )
        if any(180 < abs(b - a) < 360 for a, b in pairwise(lons)):
            raise ValueError(
                "a side is more than 180 degrees long: across 180 degrees write 181 for -179; the long way round needs "
                "a point between"
            )
        return ring
