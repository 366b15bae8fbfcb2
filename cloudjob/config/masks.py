"""The section masks of a configuration."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cloudjob.config.fields import ConfiguredPath, Fraction, MaskValues, Percent, Section


class MasksConfig(Section):
    """How pixels become clear, cloud, cloud shadow, thin cirrus, unknown or no data. Radii are metres."""

    source: Literal["scl", "raster"] = Field(
        "scl", description="ESA's scene classification, or a raster of your own for each product"
    )
    folder: ConfiguredPath | None = Field(None, description="with source raster: holds <product>.tif")
    values: MaskValues = Field(
        {"cloud": [1], "shadow": [2], "cirrus": [3], "unknown": [4], "no_data": [255]},
        description="with source raster: which of its values mean what, or who made it; 0 is clear unless it is named, "
        "any other value that is not named is an error; binary: all but 0 is cloud",
    )
    cloud_probability: Percent = Field(
        20, description="percent from which on what the classification calls clear is unknown"
    )
    snow_probability: Percent = Field(
        80, description="percent from which on medium cloud and cirrus may be snow: unknown"
    )
    b11: Literal[60, 20] = Field(
        60, description="metres of the B11 that is fetched and looked at; a product's is 4 MB at 60 m, 30 MB at 20 m"
    )
    snow_ndsi: float = Field(0.5, description="snow index of B03 and B11 above which bright ground is snow")
    snow_b11: Fraction = Field(0.15, description="reflectance in B11 below which bright ground is snow")
    cloud_b11: Fraction = Field(0.20, description="reflectance in B11 above which bright snow is cloud")
    brighter: Fraction = Field(
        0.04, description="reflectance in B02 by which a clear pixel may exceed the other date; 1: no second opinion"
    )
    darker: Fraction = Field(
        0.7, description="share of other dates' light below which a clear pixel is unknown; 0: not asked"
    )
    cloud_m: Annotated[float, Field(ge=0, le=2000)] = Field(100, description="growth of cloud")
    shadow_m: Annotated[float, Field(ge=0, le=2000)] = Field(50, description="growth of cloud shadow")
    cirrus_m: Annotated[float, Field(ge=0, le=2000)] = Field(20, description="growth of thin cirrus")

    @model_validator(mode="after")
    def _folder(self) -> Self:
        if (self.source == "raster") != (self.folder is not None):
            raise ValueError("source raster and folder belong together: set both or neither")
        return self
