"""cloudjob completion: a shell's script that completes commands, options, stages and paths."""

import argparse

from cloudjob.cli.parser import Parser
from cloudjob.errors import ConfigError


def command(arguments: argparse.Namespace) -> int:
    """Prints the script. To have it in each shell: `cloudjob completion bash >> ~/.bash_completion`."""
    try:
        import shtab
    except ImportError:
        raise ConfigError("the package shtab is missing: pip install 'shtab>=1.7,<2'") from None
    root = Parser().root
    _complete_paths(root, shtab.FILE)
    print(shtab.complete(root, shell=arguments.shell))
    return 0


def _complete_paths(parser: argparse.ArgumentParser, files: dict) -> None:
    """Says of all arguments that are paths that a shell may complete them by what lies there."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _complete_paths(below, files)
        elif getattr(action.type, "__name__", "") == "_path":
            action.complete = files  # type: ignore[attr-defined]  # what shtab reads
