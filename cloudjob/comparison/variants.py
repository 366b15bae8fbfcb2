"""The comparison file: a base configuration and the named variants of it."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cloudjob.config import source
from cloudjob.config.fields import WRITTEN, WrittenFloat, WrittenInt
from cloudjob.config.models import Config
from cloudjob.config.source import Source
from cloudjob.errors import ConfigError

BASE = "base"  # the run folder of the data that all variants share
KEYS = ("base", "samples", "common", "variants")
LINKS = ("from", "like", "as_long_as")  # keys of a variant that name another one
_SHARED = set(Config.model_fields) - {"seed", "masks", "shard", "train", "infer", "evaluate"}
_TRAINED = {"seed", "masks", "shard", "train"}  # a network that is taken over was made with these


@dataclass(frozen=True)
class Variant:
    """One variant: its overrides as --set takes them, its configuration, and the variant whose network it takes.

    With `like` and `as_long_as`, two other variants, it is trained on as many samples as the first would see in the
    time of the second.
    """

    name: str
    overrides: list[str]
    config: Config
    source: str | None
    like: str | None = None
    as_long_as: str | None = None

    @property
    def needs(self) -> list[str]:
        """The variants that must be finished before."""
        return [name for name in (self.source, self.like, self.as_long_as) if name]


@dataclass(frozen=True)
class Comparison:
    """A comparison file: the path of its base, the overrides of it that all variants share, the base's configuration
    with these, and the variants in the order of the file."""

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
    origin = Source(path, lines, {})
    mistakes = [f"{origin.where(key)}  {'.'.join(key)}: {text}" for key, text in _mistakes(data)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    base = path.parent / data["base"]
    common = [f"train.samples={data['samples']}"] if "samples" in data else []
    common += _as_set(data.get("common") or {})
    config, common = _resolved(base, common, path.parent)
    if config.public:
        raise ConfigError(f"{base}: the triplets of a public data set are not compared; run and evaluate each variant")
    given = {str(name): overrides or {} for name, overrides in data["variants"].items()}
    variants = {}
    for name in given:
        chain, _ = _chain(name, given)
        overrides = common + [text for link in reversed(chain) for text in _as_set(given[link])]
        try:
            own, overrides = _resolved(base, overrides, path.parent)
        except ConfigError as error:
            where = f"{origin.where(('variants', name))}  variants.{name}"
            mistakes += [f"{where}: {line}" for line in str(error).split("\n")]
            continue
        links = _links(given[name])
        trained = _trained(name, given)
        variants[name] = Variant(
            name, overrides, own, trained if trained != name else None, links.get("like"), links.get("as_long_as")
        )
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return Comparison(path, base, common, config, variants)


def _resolved(base: Path, overrides: list[str], folder: Path) -> tuple[Config, list[str]]:
    """The base with these overrides, and the overrides once more, each with the value that it came to.

    The child processes that get them would count a path from their own working folder; it is meant from `folder`.
    """
    config, _ = source.load(base, overrides, folder=folder.resolve())
    plain = config.model_dump(mode="json", context=WRITTEN)
    found = {}
    for key in (text.partition("=")[0] for text in overrides):
        value = plain
        for name in key.split("."):
            value = value[name]
        found[key] = f"{key}={json.dumps(value)}"
    return config, list(found.values())


def _mistakes(data: dict) -> Iterator[tuple[tuple[str, ...], str]]:
    """(key, what is wrong with it) of all that can be told without the base."""
    for key in data:
        if key not in KEYS:
            yield (str(key),), _unknown(str(key), KEYS, "key")
    if not isinstance(data.get("base"), str):
        yield ("base",), "name the configuration that the variants are of, a path from where this file lies"
    if "samples" in data and (not isinstance(data["samples"], WrittenInt) or data["samples"] < 1):
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


def _mistakes_of(name: str, overrides: object, variants: dict) -> Iterator[str]:
    """What is wrong with one variant."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in (BASE, "records"):
        yield f"is also the name of a folder: letters, digits, . _ and -, and neither {BASE} nor records"
    if not isinstance(overrides, dict):
        yield "write keys and values, e.g. {infer.steps: 1}"
        return
    links = _links(overrides)
    origin = links.get("from")
    unknown = [key for key, other in links.items() if other not in variants]
    for key in unknown:
        yield f"{key} = {links[key]}: {_unknown(links[key], variants)}"
    if not unknown and _chain(name, variants)[1]:
        if origin is not None:
            yield f"from = {origin}: the variants take their network from each other; one must train it"
        else:
            yield f"like = {links['like']}: the variants are like each other; one must say what they are"
    if not unknown and ("like" in links or "as_long_as" in links):
        yield from _mistakes_of_time(overrides, variants)
    for key, _ in _flat(overrides):
        section = key.split(".")[0]
        if section in _SHARED:
            yield f"{key}: all variants share what {section} makes; change it in the base"
        elif section in _TRAINED and origin is not None:
            yield f"{key}: the network of {origin} is taken as it is, so only infer and evaluate can differ"


def _mistakes_of_time(overrides: dict, variants: dict) -> Iterator[str]:
    """What is wrong with a variant that is like another one, trained as long as a third."""
    links = _links(overrides)
    if set(links) != {"like", "as_long_as"}:
        yield "like and as_long_as belong together, without from: trained as the one, in the time of the other"
        return
    for key, other in links.items():
        if _links(variants[other]):
            yield f"{key} = {other}: name a variant that trains on the samples of this file"
    if "train.samples" in dict(_flat(overrides)):
        yield "train.samples: follows from as_long_as"


def _chain(name: str, variants: dict) -> tuple[list[str], bool]:
    """The variant, the one that it is `from` or `like`, and so on to the one that is neither; and whether they go in a
    circle."""
    chain = [name]
    while origin := (links := _links(variants.get(name))).get("from") or links.get("like"):
        name = origin
        if name in chain:
            return chain, True
        chain.append(name)
    return chain, False


def _trained(name: str, variants: dict) -> str:
    """The variant whose network this one takes: its own, where it is `from` none."""
    while origin := _links(variants[name]).get("from"):
        name = origin
    return name


def _links(overrides: object) -> dict[str, str]:
    """Those of LINKS that a variant has, and the variants that they name."""
    if not isinstance(overrides, dict):
        return {}
    return {key: str(overrides[key]) for key in LINKS if overrides.get(key) is not None}


def _flat(overrides: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of overrides that may be nested; LINKS are none of them."""
    for key, value in overrides.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif prefix or key not in LINKS:
            yield f"{prefix}{key}", value


def _as_set(overrides: dict) -> list[str]:
    """As --set takes them: JSON is YAML."""
    numbers = WrittenInt | WrittenFloat  # as they are written: 0.10 may be a text
    return [f"{key}={value if isinstance(value, numbers) else json.dumps(value)}" for key, value in _flat(overrides)]


def _unknown(name: str, known: Iterable[str], what: str = "variant") -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"no such {what}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}")
