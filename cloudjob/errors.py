"""What can go wrong, each with the exit code that a batch script sees.

0 done (or nothing to do) - 1 a bug - 2 usage or configuration - 3 an input stage has nothing for this -
4 finished with failed items - 75 interrupted in good order, 76 a rank was lost: run the same command again.
Items that a rule rejected, or that are left out, change no exit code.
"""

from pathlib import Path
from typing import Any


class CloudjobError(Exception):
    """Base of all errors that are not bugs: the message alone is shown, without a traceback."""

    exit_code = 1
    said = False  # by another rank, on behalf of all
    on_all_ranks = False  # every rank raises it at the same place


class ConfigError(CloudjobError):
    """The configuration, the command line or what they ask for is wrong."""

    exit_code = 2


class InputError(CloudjobError):
    """An earlier stage has not made what this one reads."""

    exit_code = 3


class DamagedInputError(InputError):
    """What an earlier stage has made cannot be read any more; that stage makes it again."""


class ItemError(CloudjobError):
    """One item cannot be made: a refused download, a truncated file, a broken product. Others go on."""

    exit_code = 4


class CorruptFileError(ItemError):
    """A file is truncated or does not hold what it should; `path` names it, so that it can be set aside."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple:  # it crosses processes
        return type(self), (self.path, self.reason)


class DamagedProductError(ItemError):
    """A file of a product is not the one that was fetched. It is set aside, or named where it is read where it lies."""


class OwnFileError(ConfigError, ItemError):
    """A user's own raster for one product or tile is missing or does not fit. Others go on."""


class SystemTroubleError(ItemError):
    """The system refused a file: no locks, a stale handle, no permission, too many open files. That is no damage, and
    the file is left alone."""


class DiskFullError(ItemError):
    """No space left; going on with other items would fail in the same way."""


class LeftOutError(ItemError):
    """This item is gone for good, or excluded: it is named with the reason, and nobody waits for it."""


class LostRankError(CloudjobError):
    """A rank of a job was killed or hangs, or never came. What was finished is whole: run the command again."""

    exit_code = 76


class RejectedError(CloudjobError):
    """A rule said no to this item. Not an error: rejected items are counted apart from failed ones.

    `result` is kept in the item's record (the measures that the rule looked at).
    """

    def __init__(self, reason: str, result: Any = None):
        super().__init__(reason)
        self.result = result


class InterruptedJob(CloudjobError):
    """Stopped in good order; the same command goes on from here."""

    exit_code = 75
