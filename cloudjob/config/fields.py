"""The types that the models of the configuration are made of: ranges of numbers, a day, texts, a path, a section."""

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    SerializationInfo,
    Tag,
    ValidationInfo,
)

from cloudjob.errors import ConfigError
from cloudjob.files import expanded
from cloudjob.names import ProductName

Number = TypeVar("Number", int, float)

Fraction = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Momentum = Annotated[float, Field(ge=0, lt=1)]  # decay of an optimizer's running mean
Count = Annotated[int, Field(ge=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Tile = Annotated[str, Field(pattern=r"^\d{2}[C-X][A-Z]{2}$")]
WRITTEN = {"written": True}  # the context in which values are dumped that are to be read as a configuration again


def _product(name: str) -> str:
    try:
        return ProductName.parse(name).name
    except ConfigError as error:
        raise ValueError(str(error)) from None


Product = Annotated[str, AfterValidator(_product)]  # a name, with or without .SAFE


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


class WrittenInt(int):
    """An integer of a YAML file, which is shown as it is written there: a folder may be called 007."""

    text: str

    def __str__(self) -> str:
        return self.text


class WrittenFloat(float):
    """The same of other numbers: 0.10."""

    text: str

    def __str__(self) -> str:
        return self.text


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("YAML reads this word as true or false: write it in quotes")
    return str(value) if isinstance(value, int | float) else value


def _absolute(value: Any, info: ValidationInfo) -> Any:
    """The context of the validation names the folders: `folder` for texts of the file, `overrides` for the others."""
    value, origin = _text(value), "overrides" if isinstance(value, Override) else "folder"
    if not isinstance(value, str):
        return value
    return (Path((info.context or {}).get(origin, "")) / expanded(value)).resolve()


def _as_written(path: Path, info: SerializationInfo) -> str:
    return str(path).replace("$", "$$") if info.context == WRITTEN else str(path)


def _dashed(value: Any) -> Any:
    """20240301 is a day, and no number of seconds."""
    text = str(_text(value))
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if text.isdecimal() else value


Day = Annotated[date, BeforeValidator(_dashed)]
Text = Annotated[str, BeforeValidator(_text)]
ConfiguredPath = Annotated[
    Path, BeforeValidator(_absolute), PlainSerializer(_as_written, return_type=str, when_used="json")
]


class Section(BaseModel):
    """A part of the configuration: it cannot be changed, and an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def ascending(pair: tuple[Number, Number], what: str) -> tuple[Number, Number]:
    """The pair; ValueError unless its lower end (`what`) is not above the upper one."""
    if pair[0] > pair[1]:
        raise ValueError(f"{what} must not be above the upper limit; write [low, high]")
    return pair
