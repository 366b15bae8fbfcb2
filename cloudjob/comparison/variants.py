"""The comparison file: a base configuration and the named variants of it."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cloudjob.config import source
from cloudjob.config.models import Config
from cloudjob.config.source import Source
from cloudjob.errors import ConfigError

BASE = "base"  # the run folder of the data that all variants share
KEYS = ("base", "samples", "common", "variants")
_SHARED = set(Config.model_fields) - {"seed", "masks", "shard", "train", "infer", "evaluate"}
_TRAINED = {"seed", "masks", "shard", "train"}  # a network that is taken over was made with these


@dataclass(frozen=True)
class Variant:
    """One variant: its overrides as --set takes them, what comes of them, and the variant whose network it takes."""

    name: str
    overrides: list[str]
    config: Config
    source: str | None


@dataclass(frozen=True)
class Comparison:
    """The file, the path of its base, what it overrides of that for all, what comes of it, and the variants in the
    order of the file."""

    file: Path
    base: Path
    common: list[str]
    config: Config
    variants: dict[str, Variant]

    def choose(self, only: list[str], index: int | None) -> list[str]:
        """The names that `--only` or `--index` ask for; ConfigError for one that there is not."""
        names = list(self.variants)
        if index is not None:
            if not 0 <= index < len(names):
                raise ConfigError(f"--index {index}: there are {len(names)} variants, 0 to {len(names) - 1}")
            return [names[index]]
        unknown = [f"--only {name}: {_unknown(name, [*names, BASE])}" for name in only if name not in [*names, BASE]]
        if unknown:
            raise ConfigError("\n".join(unknown))
        return only


def load(path: Path) -> Comparison:
    """The comparison in a YAML file. ConfigError names every mistake of the file, then every one of the variants."""
    data, lines = source.read(path)
    source = Source(path, lines, {})
    mistakes = [f"{source.where(key)}  {'.'.join(key)}: {text}" for key, text in _mistakes(data)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    base = path.parent / data["base"]
    common = [f"train.samples={data['samples']}"] if "samples" in data else []
    common += _as_set(data.get("common") or {})
    loaded, _ = source.load(base, common)
    given = {str(name): overrides or {} for name, overrides in data["variants"].items()}
    variants = {}
    for name in given:
        chain = _chain(name, given)
        overrides = common + [text for link in reversed(chain) for text in _as_set(given[link])]
        try:
            variant, _ = source.load(base, overrides)
        except ConfigError as error:
            mistakes += [
                f"{source.where(('variants', name))}  variants.{name}: {line}" for line in str(error).split("\n")
            ]
            continue
        variants[name] = Variant(name, overrides, variant, chain[-1] if len(chain) > 1 else None)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return Comparison(path, base, common, loaded, variants)


def _mistakes(data: dict) -> Iterator[tuple[tuple[str, ...], str]]:
    """(key, what is wrong with it) of all that can be told without the base."""
    for key in data:
        if key not in KEYS:
            yield (str(key),), _unknown(str(key), KEYS, "key")
    if not isinstance(data.get("base"), str):
        yield ("base",), "name the configuration that the variants are of, a path from where this file lies"
    if "samples" in data and (type(data["samples"]) is not int or data["samples"] < 1):
        yield ("samples",), "must be a positive integer"
    if not isinstance(data.get("common") or {}, dict):
        yield ("common",), "write keys and values of the base, e.g. common: {train.preset: base}"
    variants = data.get("variants")
    if not isinstance(variants, dict) or not variants:
        yield ("variants",), "name at least one, e.g. variants: {ours: {}}"
        return
    variants = {str(name): overrides or {} for name, overrides in variants.items()}
    for name, overrides in variants.items():
        for text in _mistakes_of(name, overrides, variants):
            yield ("variants", name), text


def _mistakes_of(name: str, overrides, variants: dict) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in (BASE, "records"):
        yield f"is also the name of a folder: letters, digits, . _ and -, and neither {BASE} nor records"
    if not isinstance(overrides, dict):
        yield "write keys and values, e.g. {infer.steps: 1}"
        return
    source = overrides.get("from")
    if source is not None and str(source) not in variants:
        yield f"from = {source}: {_unknown(str(source), variants)}"
    elif _chain(name, variants) is None:
        yield f"from = {source}: the variants take their network from each other; one must train it"
    for key, _ in _flat(overrides):
        section = key.split(".")[0]
        if section in _SHARED:
            yield f"{key}: all variants share what {section} makes; change it in the base"
        elif section in _TRAINED and source is not None:
            yield f"{key}: the network of {source} is taken as it is, so only infer and evaluate can differ"


def _chain(name: str, variants: dict) -> list[str] | None:
    """The variant, the one that it is `from`, and so on to the one that trains; None for a circle."""
    chain = [name]
    while isinstance(variants.get(name), dict) and variants[name].get("from") is not None:
        name = str(variants[name]["from"])
        if name in chain:
            return None
        chain.append(name)
    return chain


def _flat(overrides: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of overrides that may be nested; `from` is none of them."""
    for key, value in overrides.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif prefix or key != "from":
            yield f"{prefix}{key}", value


def _as_set(overrides: dict) -> list[str]:
    """As --set takes them: JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in _flat(overrides)]


def _unknown(name: str, known: Iterable[str], what: str = "variant") -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"no such {what}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}")
