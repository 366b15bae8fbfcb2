"""What may be configured of the embedded archive: scenes that it makes up, or makes from given rasters."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from cloudjob.config.fields import ConfiguredPath, Count, Day, Fraction, MaskValues, Section, Tile, ascending
from cloudjob.files import expanded


class OtherWeather(Section):
    """Tiles under other weather than training's, on dates of their own: every one of them has every one of these.

    Clouds, their shadows and the errors of the scene classification follow another law; the sun is low over hills, and
    the sea ice drifts. List these tiles in shard.split.test_tiles.
    """

    tiles: list[Tile] = Field(min_length=1, description="names of the tiles, such as 05WPS")
    clear: list[Day] = Field(min_length=1, description="days without cloud")
    cloudy: list[Day] = Field(min_length=1, description="days with cloud")
    cloud: tuple[Fraction, Fraction] = Field((0.10, 0.35), description="range of cloud fractions of the cloudy dates")

    _cloud = field_validator("cloud")(lambda pair: ascending(pair, "the lower cloud fraction"))


class SyntheticScenes(Section):
    """Scenes that the embedded archive makes up: every tile has every date."""

    tiles: list[Tile] = Field(min_length=1, description="names of the tiles, such as 05WPS")
    size: Annotated[int, Field(ge=64, le=10980)] = Field(512, description="rows and columns at 10 m")
    clear: list[Day] = Field(min_length=1, description="days without cloud")
    cloudy: list[Day] = Field(min_length=1, description="days with cloud")
    cloud: tuple[Fraction, Fraction] = Field((0.10, 0.35), description="range of cloud fractions of the cloudy dates")
    seed: int = Field(0, description="of the ground and its weather")
    other_weather: OtherWeather | None = Field(None, description="more tiles, unlike those that train: to test on")

    _cloud = field_validator("cloud")(lambda pair: ascending(pair, "the lower cloud fraction"))

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.other_weather and (both := sorted(set(self.tiles) & set(self.other_weather.tiles))):
            raise ValueError(f"tiles and other_weather.tiles both name {', '.join(both)}: a tile has one weather")
        return self


class RasterPair(Section):
    """Two GeoTIFFs (bands B04, B03, B02, B08, uint16) of one place that become two products."""

    tile: Tile = Field(description="name that the place gets, such as 05WPS")
    cloudy: ConfiguredPath = Field(description="the GeoTIFF with cloud")
    cloudy_date: Day = Field(description="its day")
    clear: ConfiguredPath = Field(description="the GeoTIFF without cloud, of the same pixels")
    clear_date: Day = Field(description="its day")
    mask: ConfiguredPath | None = Field(
        None, description="where the cloud is; default: by comparison with the other GeoTIFF"
    )
    values: MaskValues | None = Field(
        None,
        description="what the mask's values mean, as masks.values; default: cloud where it is 1, 100 or 255 and else 0,"
        " otherwise 1 cloud, 2 shadow, 3 cirrus, 4 unknown, 255 no data",
    )
    offset: Literal[0, -1000] = Field(0, description="BOA_ADD_OFFSET that still has to be added to the pixels")


class Place(Section):
    """Clear GeoTIFFs (bands B04, B03, B02, B08, uint16) of the same pixels on several days.

    Those in `cloudy` become products with synthetic clouds over the real ground, so that the truth is known. The others
    become clear products.
    """

    tile: Tile = Field(description="name that the place gets, such as 05WPS")
    dates: dict[Day, ConfiguredPath] = Field(min_length=1, description="the GeoTIFF of each day")
    cloudy: list[Day] = Field(min_length=1, description="days that get synthetic clouds")
    cloud: tuple[Fraction, Fraction] = Field((0.15, 0.4), description="range of cloud fractions of the cloudy dates")
    offset: Literal[0, -1000] = Field(0, description="BOA_ADD_OFFSET that still has to be added to the pixels")
    seed: int = Field(0, description="of the clouds")

    _cloud = field_validator("cloud")(lambda pair: ascending(pair, "the lower cloud fraction"))

    @model_validator(mode="after")
    def _known(self) -> Self:
        if unknown := sorted(set(self.cloudy) - set(self.dates)):
            raise ValueError(f"cloudy names {', '.join(map(str, unknown))}, for which dates has no file")
        return self


class Series(Section):
    """Dates of one place with their scene classification: clouds of the cloudy dates are laid over the clear ones.

    The folder holds <YYYY-MM-DD>.tif (bands B04, B03, B02, B08, uint16, 10 or 20 m) and <YYYY-MM-DD>_scl.tif (20 m).
    """

    tile: Tile = Field(description="name that the place gets, such as 31UDS")
    folder: ConfiguredPath = Field(description="holds the files named above")
    clouds: Count = Field(6, description="cloudy dates laid over each clear one")
    haze: Fraction = Field(0.15, description="median reflectance in B02 from which on a date is hazy, and not clear")
    offset: Literal[0, -1000] = Field(0, description="BOA_ADD_OFFSET that still has to be added to the pixels")
    seed: int = Field(0, description="of which cloudy date is laid over which clear one")

    @field_validator("folder", mode="before")
    @classmethod
    def _at_hand(cls, folder: object) -> object:
        try:
            expanded(str(folder))
        except ValueError as error:
            raise ValueError(
                f"{error}: it names the folder of your series of real dates. Public ones: the test data of WorldCereal "
                "(github.com/WorldCereal/worldcereal-classification), L2A of the Data Space itself"
            ) from None
        return folder


class ArchiveConfig(Section):
    """The embedded archive. With it, the Data Space is a server on this machine."""

    path: ConfiguredPath | None = Field(
        None, description="folder of the archive, or of Level-2A products (*.SAFE); default: archive/ in the run folder"
    )
    synthetic: SyntheticScenes | None = None
    rasters: list[RasterPair] = Field([])
    places: list[Place] = Field([])
    series: list[Series] = Field([])
