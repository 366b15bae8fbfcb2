"""The types that the models of the configuration are made of: ranges of numbers, a tile, a path, a section."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationInfo

Number = TypeVar("Number", int, float)

Fraction = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Momentum = Annotated[float, Field(ge=0, lt=1)]  # decay of an optimizer's running mean
Count = Annotated[int, Field(ge=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Tile = Annotated[str, Field(pattern=r"^\d{2}[C-X][A-Z]{2}$")]


MaskClass = Literal["clear", "cloud", "shadow", "cirrus", "unknown", "no_data"]
MaskNames = Literal["cloudsen12", "omnicloudmask", "s2cloudless", "fmask", "python-fmask", "maja", "binary"]


def _once(table: object) -> object:
    if isinstance(table, dict):
        named: dict[int, str] = {}
        for name, values in table.items():
            for value in values:
                if named.setdefault(value, name) != name:
                    raise ValueError(f"{value} is both {named[value]} and {name}")
    return table


MaskValues = Annotated[
    Annotated[dict[MaskClass, list[Byte]], Tag("table")] | Annotated[MaskNames, Tag("name")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "table"),  # so that one mistake is one
    AfterValidator(_once),
]


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
