"""A parser of command lines that names the nearest command, option or choice where somebody wrote one that is not."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any


class Parser(argparse.ArgumentParser):
    """argparse's, with better words for what it does not know."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"there is no {value}; {_hint(str(value), action.choices)}")

    def read(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """What the arguments say, as `parse_args` does."""
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            command = _called(self, found)
            name = unknown[0].partition("=")[0]
            options = [option for option in command._option_string_actions if option.startswith("--")]
            hint = _hint(name, options) if name.startswith("-") else f"see {command.prog} --help"
            command.error(f"it takes no {' '.join(unknown)}; {hint}")
        return found


def _called(parser: argparse.ArgumentParser, found: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser of the command that was called."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return _called(action.choices[getattr(found, action.dest)], found)
    return parser


def _hint(name: str, known: Iterable[Any]) -> str:
    import difflib  # slow, and few command lines need it

    names = [str(each) for each in known]
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
