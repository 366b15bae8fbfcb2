"""Reads a configuration: YAML with the line of each key, `--set` overrides, and errors that name file, line and key."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from cloudjob.config import mistakes
from cloudjob.config.fields import WRITTEN, Override, Section, WrittenFloat, WrittenInt
from cloudjob.config.mistakes import Key
from cloudjob.config.models import Config
from cloudjob.errors import ConfigError

Kind = TypeVar("Kind", bound=Section)


_OTHERS = {  # files that are no configuration of a run, by keys of theirs
    frozenset({"base", "variants"}): "is a comparison, not the configuration of a run: cloudjob compare {}",
    frozenset({"every"}): "holds the faults of a served archive: cloudjob archive serve FOLDER --faults {}",
}
_YAML = "tag:yaml.org,2002:"


class _Loader(yaml.CSafeLoader):
    """YAML with dates left as text: pydantic says better what is wrong with 2024-02-30, and where. Numbers are those of
    YAML 1.2, 1e-4 too, but neither 12:30 nor an octal 010; they remember how they are written."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in the base class)
        first: [pair for pair in resolvers if pair[0].removeprefix(_YAML) not in ("timestamp", "int", "float")]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


def _number(loader: _Loader, node: yaml.ScalarNode) -> WrittenInt | WrittenFloat:
    kind = WrittenInt if node.tag == f"{_YAML}int" else WrittenFloat
    value = kind(node.value)
    value.text = node.value
    return value


_INT = r"[-+]?\d+(_\d{3})*"
_FLOAT = rf"({_INT}\.\d*|[-+]?\.\d+|{_INT}(?=[eE]))([eE][-+]?\d+)?"
for _kind, _pattern in (("int", _INT), ("float", _FLOAT)):
    _Loader.add_implicit_resolver(f"{_YAML}{_kind}", re.compile(f"{_pattern}$"), list("-+.0123456789"))
    _Loader.add_constructor(f"{_YAML}{_kind}", _number)


@dataclass(frozen=True)
class Source:
    """Where the values of a configuration came from: the file, the line of each key, the `--set` overrides."""

    path: Path
    lines: Mapping[Key, int]
    overrides: Mapping[Key, str]

    def where(self, key: Key) -> str:
        """`file:line` (of the key or of the nearest one above it that is written), or the `--set`."""
        for end in range(len(key), -1, -1):
            if key[:end] in self.overrides:
                return f"--set {self.overrides[key[:end]]}"
            if key[:end] in self.lines:
                return f"{self.path}:{self.lines[key[:end]]}"
        return str(self.path)


def read(path: Path) -> tuple[dict, dict[Key, int]]:
    """The mapping in a YAML file, and the line of each of its keys.

    ConfigError where the file holds no mapping, or gives a key twice.
    """
    try:
        text = _decoded(path)
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        tab = any("\t" in row for row in text.splitlines()[line - 1 : line])
        cure = "; indent by spaces in place of tabs" if tab else ""
        raise ConfigError(f"{path}:{line}  not YAML: {error.problem}{cure}") from None
    except yaml.YAMLError as error:  # of single characters: no line is told
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if node is None or not isinstance(data, dict):
        raise ConfigError(f"{path}:1  the file must hold keys and values; an example is configs/demo.yaml")
    lines: dict[Key, int] = {}
    repeated = _walk(node, (), lines)
    if repeated:
        raise ConfigError("\n".join(f"{path}:{line}  {mistakes.dotted(key)}: given twice" for key, line in repeated))
    return data, lines


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}  byte {content[error.start]:#04x} is not UTF-8; if the file is in Latin-1: "
            f"iconv -f LATIN1 -t UTF-8 {shlex.quote(str(path))} > new.yaml"
        ) from None


def load(path: Path, overrides: Sequence[str] = (), *, folder: Path | None = None) -> tuple[Config, Source]:
    """The configuration in a YAML file, with `section.key=value` overrides, and where its values came from.

    Paths in the file count from where the file lies. Paths in overrides count from `folder`, which is the working
    folder unless given. ConfigError lists every mistake at once.
    """
    data, lines = read(path)
    for keys, what in _OTHERS.items():
        if keys <= data.keys():
            raise ConfigError(f"{path}: {what.format(shlex.quote(str(path)))}")
    changed: dict[Key, str] = {}
    for text in overrides:
        key, _, value = text.partition("=")
        try:
            _set(data, key.split("."), _marked(yaml.load(value, Loader=_Loader)), text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {text}: the value is not YAML") from None
        changed[tuple(key.split("."))] = text
    source = Source(path, lines, changed)
    folders = {"folder": path.parent.resolve(), "overrides": folder or Path.cwd()}
    return _validated(Config, data, source, context=folders), source


def load_section(path: Path, kind: type[Kind]) -> Kind:
    """The section that a YAML file of its own holds; ConfigError lists every mistake at once."""
    data, lines = read(path)
    return _validated(kind, data, Source(path, lines, {}), context={"folder": path.parent.resolve()})


def _validated(kind: type[Kind], data: dict, source: Source, *, context: dict[str, Path]) -> Kind:
    try:
        return kind.model_validate(data, context=context)
    except ValidationError as error:
        found = [(tuple(detail["loc"]), mistakes.told(detail, kind)) for detail in error.errors()]
        raise ConfigError("\n".join(f"{source.where(key)}  {told}" for key, told in found)) from None


def dump(config: Config) -> str:
    """The resolved configuration as YAML. A null is left out where it is the default, and only there."""
    return yaml.safe_dump(_told(config, config.model_dump(mode="json", context=WRITTEN)), sort_keys=False, width=110)


def _told(section: Section, plain: dict) -> dict:
    """The plain values of a section without the nulls that are its defaults."""
    told = {}
    for name, field in type(section).model_fields.items():
        own = getattr(section, name)
        if own is not None or field.default is not None:
            told[name] = _told(own, plain[name]) if isinstance(own, Section) else plain[name]
    return told


def _walk(node: yaml.Node, key: Key, lines: dict[Key, int]) -> list[tuple[Key, int]]:
    """Notes the line of each key below `node`; returns the keys that are given twice, with the line of the second."""
    lines[key] = node.start_mark.line + 1
    repeated: list[tuple[Key, int]] = []
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            child = (*key, name.value)
            if child in lines:
                repeated.append((child, name.start_mark.line + 1))
            repeated += _walk(value, child, lines)
            lines[child] = name.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            repeated += _walk(value, (*key, number), lines)
    return repeated


def _set(data: dict, names: list[str], value: Any, text: str) -> None:
    """Puts a value into nested mappings; makes those that are missing."""
    if "=" not in text or not all(names):
        raise ConfigError(f"--set {text}: write --set section.key=value")
    for name in names[:-1]:
        if data.get(name) is None:
            data[name] = {}
        data = data[name]
        if not isinstance(data, dict):
            raise ConfigError(f"--set {text}: {name} is not a section")
    data[names[-1]] = value


def _marked(value: Any) -> Any:
    """The same value, each text in it marked as one of the command line."""
    if isinstance(value, dict):
        return {key: _marked(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_marked(each) for each in value]
    return Override(value) if isinstance(value, str) else value
