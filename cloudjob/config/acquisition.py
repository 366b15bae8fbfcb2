"""What may be configured of where scenes come from: the Data Space's addresses, area, dates and cloud cover."""

from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cloudjob.config.fields import ConfiguredPath, Day, Percent, Product, Section, Tile, ascending
from cloudjob.copernicus.patience import Patience
from cloudjob.errors import ConfigError
from cloudjob.files import expanded


class CopernicusConfig(Section):
    """Where the Copernicus Data Space answers; credentials come from the environment."""

    stac: str = Field("https://stac.dataspace.copernicus.eu/v1", description="address of the STAC catalogue")
    catalogue: str = Field(
        "https://catalogue.dataspace.copernicus.eu/odata/v1", description="address of the OData catalogue"
    )
    download: str = Field(
        "https://download.dataspace.copernicus.eu/odata/v1", description="address of the files, with source https"
    )
    token: str = Field(
        "https://identity.dataspace.copernicus.eu/auth/realms/CDSE/protocol/openid-connect/token",
        description="address that signs the account in",
    )
    connections: Annotated[int, Field(ge=1, le=4)] = Field(4, description="transfers at a time; an account may have 4")
    account_folder: ConfiguredPath | None = Field(
        None, description="holds the account's token and leases, on a disk that all nodes share (default: ~/.cloudjob)"
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        Patience.retries, description="how often a request that fails by itself is tried again"
    )
    patience: Annotated[float, Field(gt=0)] = Field(
        Patience.seconds, description="seconds for which a service that answers nobody is waited for"
    )

    source: Literal["https", "path", "s3"] = Field(
        "https", description="the download service, a folder of this site, or the S3 storage (extra s3)"
    )
    folder: ConfiguredPath | None = Field(
        None, description="with source path: holds products at any depth, as SAFE, .zip or COGs"
    )
    s3: str = Field("https://eodata.dataspace.copernicus.eu", description="with source s3: its address")
    slowest: Annotated[float, Field(ge=0)] = Field(
        10_000, description="bytes per second below which, for a minute, a transfer is begun anew"
    )
    longest: Annotated[float, Field(gt=0)] = Field(3600, description="seconds after which it is too")

    def urls(self) -> dict[str, str]:
        """The addresses by name."""
        return self.model_dump(include={"stac", "catalogue", "download", "token"})

    def waiting(self) -> Patience:
        """How long the services are waited for."""
        return Patience(self.retries, self.patience)

    def account(self) -> Path:
        """The folder of the accounts. ConfigError where there is no home to put it in."""
        try:
            return self.account_folder or Path(expanded("~/.cloudjob"))
        except ValueError as error:
            raise ConfigError(f"copernicus.account_folder: {error}; name a folder on a shared disk") from None

    @model_validator(mode="after")
    def _folder(self) -> Self:
        if (self.source == "path") != (self.folder is not None):
            raise ValueError("source path and folder belong together: set both or neither")
        return self


class PublicConfig(Section):
    """A public data set whose triplets are the run's, in the place of the Data Space (docs/public-data.md)."""

    kind: Literal["sen12mscr", "sen12mscr-ts", "allclear", "sen2mtc"] = Field(description="which one")
    folder: ConfiguredPath = Field(description="where it lies, as it is published")


class Query(Section):
    """One catalogue query: first and last day (both inclusive) and the range of the catalogue's cloud cover."""

    start: Day = Field(description="first day, as 2024-03-01")
    end: Day = Field(description="last day; it counts too")
    cloud: tuple[Percent, Percent] = Field(description="lowest and highest cloud cover of the catalogue, in percent")

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


def _tile(name: str) -> str:
    return name.removeprefix("T")  # as product names write it; the catalogues know no tile of such a name


class SearchConfig(Section):
    """What the catalogue is asked for: where (an area, tiles, or both), and one query each for clear and for cloudy
    products."""

    polygon: list[tuple[float, float]] | None = Field(
        None,
        description="closed ring of (longitude, latitude), degrees; an edge over 180 degrees crosses the date line",
    )
    area: ConfiguredPath | None = Field(
        None, description="a GeoJSON file in place of polygon: polygons in WGS 84, with their holes"
    )
    tiles: list[Annotated[Tile, BeforeValidator(_tile)]] = Field([], description="tiles such as 05WPS, and no others")
    clear: Query = Field(description="which products may be the clear date of a pair")
    cloudy: Query = Field(description="which products are to be restored")
    catalogue: Literal["stac", "odata"] = Field("stac", description="which catalogue describes the products")
    exclude: list[Product] = Field([], description="products that are left out")

    @field_validator("polygon")
    @classmethod
    def _ring(cls, ring: list[tuple[float, float]] | None) -> list[tuple[float, float]] | None:
        if ring is None:
            return None
        if len(ring) < 4 or ring[0] != ring[-1]:
            first = list(ring[0]) if ring else []
            raise ValueError(
                f"the polygon is not closed: the last point must repeat the first one; add {first} at the end"
            )
        if any(not (abs(lon) <= 180 and abs(lat) <= 90) for lon, lat in ring):
            from cloudjob.copernicus.area import off_the_globe  # imports what no other command needs

            if mistake := off_the_globe(ring):
                raise ValueError(mistake)
        return ring

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.polygon and self.area:
            raise ValueError("polygon and area are both given: leave one out")
        if not (self.polygon or self.area or self.tiles):
            raise ValueError("where? Give polygon, area or tiles")
        return self
