"""What type checkers are told of `import cloudjob`, which loads these when they are asked for."""

from cloudjob.api import Restored as Restored
from cloudjob.api import Run as Run
from cloudjob.api import load_checkpoint as load_checkpoint
from cloudjob.api import open_run as open_run
from cloudjob.api import restore as restore

__version__: str
