"""The types that the models of the configuration are made of: ranges of numbers, a tile, a path, a section."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from cloudjob.errors import ConfigError
from cloudjob.names import ProductName

Number = TypeVar("Number", int, float)

Fraction = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Momentum = Annotated[float, Field(ge=0, lt=1)]  # decay of an optimizer's running mean
Count = Annotated[int, Field(ge=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Tile = Annotated[str, Field(pattern=r"^\d{2}[C-X][A-Z]{2}$")]


def _product(name: str) -> str:
    try:
        return ProductName.parse(name).name
    except ConfigError as error:
        raise ValueError(str(error)) from None


Product = Annotated[str, AfterValidator(_product)]  # a name, with or without .SAFE


class Override(str):
    """A text from the command line. A path in it counts from the working folder, not from that of the file."""


def _absolute(value: Any, info: ValidationInfo) -> Any:
    """The context of the validation names the folders: `folder` for texts of the file, `overrides` for the others."""
    if not isinstance(value, str):
        return value
    origin = "overrides" if isinstance(value, Override) else "folder"
    return (Path((info.context or {}).get(origin, "")) / value).resolve()


ConfiguredPath = Annotated[Path, BeforeValidator(_absolute)]


class Section(BaseModel):
    """A part of the configuration: it cannot be changed, and an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def ascending(pair: tuple[Number, Number], what: str) -> tuple[Number, Number]:
    """The pair; ValueError unless its lower end (`what`) is not above the upper one."""
    if pair[0] > pair[1]:
        raise ValueError(f"{what} must not be above the upper limit; write [low, high]")
    return pair
