"""Which bands of an image are red, green, blue and near infrared: as asked for, by their names, or by their colours."""

import re
from collections.abc import Sequence

from cloudjob.errors import ConfigError
from cloudjob.pixels import BANDS

_WORDS = {  # between characters that are no letters or digits: nir08 is B8A, and "red edge" is not red
    "B04": r"b0?4|band[ _-]?0?4|(?<!infra[ _-])red(?![ _-]?edge)",
    "B03": r"b0?3|band[ _-]?0?3|green",
    "B02": r"b0?2|band[ _-]?0?2|blue",
    "B08": r"b0?8|band[ _-]?0?8|(?<!narrow[ _-])nir(?![ _-]narrow)|near[ _-]?infra[ _-]?red",
}
_PATTERNS = {band: re.compile(rf"(?<![a-z0-9])(?:{words})(?![a-z0-9])") for band, words in _WORDS.items()}
_COLOURS = {"B04": "red", "B03": "green", "B02": "blue", "B08": "nir"}
_UNNAMED = ("undefined", "gray")  # colours of the fourth band of a picture of red, green, blue and near infrared
_TOLD = 24  # bands of an image at most that a message lists; of a series in one file there are many


def asked(text: str, names: Sequence[str], *, source: object) -> list[int]:
    """The places, from 0 on, of the four bands that `--bands` asks for, by their numbers from 1 on or their names.

    ConfigError where the image has no such band.
    """
    words = [word.strip() for word in text.split(",")]
    if len(words) != len(BANDS):
        raise ConfigError(f"--bands {text}: {len(words)} bands, four are needed; {_ask(names)}")
    found = [_place(word, names) for word in words]
    for word, place in zip(words, found, strict=True):
        if place is None:
            raise ConfigError(f"--bands {text}: {source} has no band {word}; it has {listed(names)}")
    if len(set(found)) < len(found):
        raise ConfigError(f"--bands {text}: one of them twice; {_ask(names)}")
    return [place for place in found if place is not None]


def _place(word: str, names: Sequence[str]) -> int | None:
    same = [place for place, name in enumerate(names) if name.lower() == word.lower()]
    if same or not word.isdecimal():
        return same[0] if len(same) == 1 else None
    return int(word) - 1 if 1 <= int(word) <= len(names) else None


def by_names(names: Sequence[str]) -> list[int] | None:
    """The places of the four bands, where each has one name alone that says so (B04, B4, red, "Band 4" ...)."""
    found = [[place for place, name in enumerate(names) if _PATTERNS[band].search(name.lower())] for band in BANDS]
    return [places[0] for places in found] if all(len(places) == 1 for places in found) else None


def by_colours(colours: Sequence[str]) -> list[int] | None:
    """The same by GDAL's names of colours. A single band without a colour, beside red, green and blue, is infrared."""
    left = [place for place, colour in enumerate(colours) if colour in _UNNAMED]
    found = [[place for place, colour in enumerate(colours) if colour == _COLOURS[band]] for band in BANDS]
    if not found[-1] and len(colours) - colours.count("alpha") == len(BANDS):
        found[-1] = left
    return [places[0] for places in found] if all(len(places) == 1 for places in found) else None


def unknown(source: object, names: Sequence[str]) -> ConfigError:
    """The error for an image that does not tell which of its bands are which, or has too few."""
    if len(names) < len(BANDS):
        return ConfigError(
            f"{source} has {len(names)} bands ({listed(names)}), and four are needed: red, green, blue and near "
            "infrared. Where each lies in a file of its own: rio stack red.tif green.tif blue.tif nir.tif -o all.tif"
        )
    return ConfigError(f"{source} does not tell which of its bands are which: it has {listed(names)}; {_ask(names)}")


def _ask(names: Sequence[str]) -> str:
    """What to do, with an example that fits the image."""
    example = "1,2,3,4, where they lie in this order" if len(names) == len(BANDS) else "4,3,2,8"
    return f"say which are red, green, blue and near infrared, by number or name: --bands {example}"


def listed(names: Sequence[str]) -> str:
    """The bands of an image for a message: its names with their numbers."""
    told = [f"{place + 1}{f' ({name})' if name else ''}" for place, name in enumerate(names)]
    more = [f"and {len(told) - _TOLD} more"] if len(told) > _TOLD else []
    return ", ".join([*told[:_TOLD], *more]) or "none"
