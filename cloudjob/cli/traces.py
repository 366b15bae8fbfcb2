"""What a command leaves in the run folder beside its results: config.yaml, and a line in the history."""

import argparse
import json
from contextlib import suppress
from decimal import Decimal
from types import TracebackType
from typing import Any

import yaml

from cloudjob.api import Run
from cloudjob.cli.context import overrides
from cloudjob.errors import ConfigError, ItemError
from cloudjob.files import changes, write_bytes
from cloudjob.run.history import REFUSED, Entry

_LONGEST = 60  # characters of a value that is told


class Traces(Entry):
    """`with Traces(...) as traces:` around the work of a command.

    config.yaml is written when the first item is about to be made, or at the end where there was none to make. It
    becomes what it was where the command is refused all the same (exit code 2 or 3), before a stage that made something
    has ended well.
    """

    def __init__(self, context: Run, arguments: argparse.Namespace, *, silent: bool = False):
        super().__init__(context.folder, arguments.command, overrides(arguments), silent=silent)
        self._context, self._arguments = context, arguments
        self._undo: tuple[bytes | None, bytes] | None = None  # config.yaml before, and as it was written

    def begin(self) -> None:
        """Writes config.yaml, and says what is changed in it."""
        if not self.begun:
            super().begin()
            self._write()

    def ended(self, *, failed: bool) -> None:
        """A stage has ended: what it made was made with this configuration."""
        if failed:
            self.code = ItemError.exit_code
        if self.begun:
            self._undo = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._silent:
            return
        if error is None:
            self.begin()
        super().__exit__(kind, error, traceback)
        if self.code in REFUSED and self._undo is not None:
            self._restore(*self._undo)

    def _write(self) -> None:
        from cloudjob.config import source

        path, config = self.folder.config, self._context.config
        before = path.read_bytes() if path.exists() else None
        if self._arguments.config.is_dir():  # another command may have changed other keys of it in the meantime
            config, _ = source.load(path, self.overrides)
        text = source.dump(config).encode()
        if text == before:
            return
        for line in self._changes(text):
            self.folder.say(line)
        write_bytes(path, text)
        self._undo = before, text

    def _changes(self, text: bytes) -> list[str]:
        """What differs from the configuration of the run folder; from the file, where the folder has none yet."""
        from cloudjob.config import source

        there = self.folder.config.exists()
        try:
            old = yaml.safe_load(source.dump(source.load(self.folder.config if there else self._arguments.config)[0]))
        except ConfigError as error:  # of an older version, or whole with the overrides alone
            return [f"{self.folder.config} is written anew: {error}"] if there else []
        new = yaml.safe_load(text)
        return [f"{key}: {_shown(_at(old, key))} -> {_shown(_at(new, key))}" for key in changes(old, new, values=False)]

    def _restore(self, before: bytes | None, written: bytes) -> None:
        path = self.folder.config
        with suppress(FileNotFoundError):
            if path.read_bytes() != written:
                return  # by now it is another command's
            if before is None:
                path.unlink()
            else:
                write_bytes(path, before)
            self.folder.say(f"{path} is as it was before")


def _at(values: dict, key: str) -> Any:
    value: Any = values
    for name in key.split("."):
        value = value.get(name)
    return value


def _shown(value: Any) -> str:
    """A value in one line; a number in the shorter of its two forms, 4e-4 or 0.05."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if isinstance(value, float):
        text = min(text, f"{Decimal(repr(value)).normalize():e}", key=len)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
