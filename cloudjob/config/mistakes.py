"""What is wrong with a configuration, in words of the field: which key, what it may be, the nearest key there is."""

import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from cloudjob.config.fields import Section

Key = tuple[str | int, ...]  # names of sections and keys, and places in lists
_NEAR = 0.6  # of difflib: how alike a key must be
_FEW = 3  # keys that are named at most where several have the name
_WANTED = {  # by pydantic's kind of mistake; of what it says itself, "Input should be" becomes "must be"
    "model_type": "is a section; set its keys, as --set {key}.{first}=VALUE",
    "list_type": "must be a list: [{value}]",
    "tuple_type": "must be a list: [A, B]",
    "string_pattern_mismatch": "is no tile: two digits and three letters, as 05WPS",
    "float_parsing": "must be a number, as 0.1 or 2e-4",
    "int_parsing": "must be a whole number",
    "bool_parsing": "must be true or false",
}


def told(detail: ErrorDetails, kind: type[Section]) -> str:
    """One mistake that pydantic found in a configuration of this kind, in a line: which key, what is wrong with it."""
    key = tuple(detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{dotted(key)}: unknown key; {_nearest(key, kind)}"
    if detail["type"] == "missing":
        return f"{dotted(key)}: is missing and has no default"
    value = detail.get("input")
    shown = f" = {value}" if isinstance(value, str | int | float | bool) or value is None else ""
    return f"{dotted(key)}{shown}: {_wanted(detail, kind)}"


def dotted(key: Key) -> str:
    """A key as `--set` takes it: train.lr."""
    return ".".join(str(part) for part in key)


def _wanted(detail: ErrorDetails, kind: type[Section]) -> str:
    key, value = tuple(detail["loc"]), detail.get("input")
    if detail["type"].startswith("date") and re.fullmatch(r"\d{4}-\d\d-\d\d", str(value)):
        return f"there is no such day ({detail['ctx'].get('error', 'write YYYY-MM-DD')})"
    if detail["type"].startswith("date"):
        return "must be a day, as 2024-03-01"
    if text := _WANTED.get(detail["type"]):
        first = next(iter(_keys_of(kind, key)), "") if detail["type"] == "model_type" else ""
        return text.format(key=dotted(key), first=first, value=value)
    words = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if detail["type"] == "literal_error" and (near := _alike(str(value), re.findall(r"'([^']+)'", words))):
        return f"{words}; did you mean {near}?"
    return words


def _nearest(key: Key, kind: type[Section]) -> str:
    """The key that somebody meant who wrote one that there is not: of this name elsewhere, or much alike."""
    name, every = str(key[-1]), {found: found.rsplit(".", 1)[-1] for found in _all_keys(kind)}
    here = list(_keys_of(kind, key[:-1]))
    if same := [found for found, last in every.items() if last == name]:
        return f"did you mean {' or '.join(same[:_FEW])}?"
    if near := _alike(name, here):
        return f"did you mean {near}?"
    if near := _alike(name, every.values()):
        return f"did you mean {' or '.join([found for found, last in every.items() if last == near][:_FEW])}?"
    return f"known keys: {', '.join(here)}"


def _alike(name: str, known: Any) -> str:
    import difflib  # slow, and a good configuration does not need it

    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=_NEAR)), "")


def _all_keys(kind: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every key of the models, those of a list's members left out."""
    for name, field in kind.model_fields.items():
        yield f"{above}{name}"
        for part in _models(field.annotation, lists=False):
            yield from _all_keys(part, f"{above}{name}.")


def _keys_of(kind: type[BaseModel], key: Key) -> dict[str, Any]:
    """The keys allowed in the part of a section at `key`."""
    for part in key:
        if isinstance(part, str) and part in kind.model_fields:
            kind = next(_models(kind.model_fields[part].annotation), kind)
    return dict(kind.model_fields)


def _models(annotation: Any, *, lists: bool = True) -> Iterator[type[BaseModel]]:
    """The models that a value of this type may be of, or a member of it, if it is a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated) or (lists and get_origin(annotation) is list):
        for part in get_args(annotation):
            yield from _models(part, lists=lists)
