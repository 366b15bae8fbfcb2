"""The run folder: the one owner of file names. Every stage finds here where its files lie, and whom it talks to."""

import os
import shlex
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cloudjob import files, leases
from cloudjob.errors import CorruptFileError, DamagedInputError, InputError
from cloudjob.leases import PATIENCE, Lease

T = TypeVar("T")


class RunFolder:
    """A run folder, and what a command wants of it.

    What people see goes through `say` (a line) and `progress` (share done, a line), which the command line sets;
    `stop_requested` tells that this process should end in good order; `begin` is called before the first item is made.
    `only` names the items to work on (all when empty); `force` makes items again that are done. `patience` and `job`
    are those of its leases. `kept` holds what was read, of a command that only looks.
    """

    def __init__(self, root: Path, *, only: Iterable[str] = (), force: bool = False):
        self.root = Path(root)
        self.only = list(only)
        self.force = force
        self.kept: dict[Hashable, Any] | None = None
        self.say: Callable[[str], None] = lambda line: None
        self.progress: Callable[[float, str], None] = lambda share, line: None
        self.stop_requested: Callable[[], bool] = lambda: False
        self.begin: Callable[[], None] = lambda: None
        self.patience = PATIENCE
        self.job: str | None = None
        self.config = self.root / "config.yaml"
        self.leases = self.root / "leases"  # while something is being made: see `lease`
        self.records = self.root / "records"
        self.archive = self.root / "archive"
        self.jobs = self.root / "jobs" / "log.tsv"  # written by slurm/*.sh
        self.history = self.root / "jobs" / "history.jsonl"
        self.log = self.root / "jobs" / "log.txt"
        self.drifting = self.root / "drifting"  # <tile>.tif: not 0 where the ground moves from date to date, as sea ice
        self.scenes = self.root / "scenes.jsonl"
        self.pairs = self.root / "pairs.jsonl"
        self.review_page = self.root / "review" / "index.html"
        self.review_images = self.root / "review" / "images"
        self.decisions = self.root / "review" / "decisions.csv"
        self.labels = self.root / "review" / "masks"  # <product>.tif: counts where a person has changed it
        self.shards = self.root / "shards"
        self.shard_index = self.shards / "index.json"
        self.trained_on = self.shards / "trained-on.json"  # the index of a training that began without some pairs
        self.outputs = self.root / "outputs"  # a folder for each restored product, and the STAC collection of all
        self.training = self.root / "train"
        self.checkpoints = self.training / "checkpoints"
        self.metrics = self.training / "metrics.jsonl"
        self.validation = self.training / "validation.jsonl"
        self.checks = self.training / "checks.jsonl"
        self.job_cards = self.training / "jobs.jsonl"
        self.samples = self.training / "samples"
        self.tensorboard = self.training / "tensorboard"
        self.forced = self.training / "forced.json"  # --force began this training
        self.evaluation_folder = self.root / "evaluation"
        self.scores = self.evaluation_folder / "scores.jsonl"
        self.evaluation = self.evaluation_folder / "summary.json"
        self.report = self.root / "report" / "index.html"

    def lease(self, stage: str, item: str) -> Lease:
        """The right to make an item, not yet taken."""
        return Lease(self.leases, stage, item, patience=self.patience, job=self.job)

    def wait(
        self, wanted: Iterable[Lease], *, share: float = 0.0, meanwhile: Callable[[], object] = lambda: None
    ) -> Iterator[Lease]:
        """Gives each of these leases as soon as it is ours, see `leases.wait`; `share` of the work is done."""
        return leases.wait(
            wanted,
            stopped=lambda: self.stop_requested(),
            say=self.say,
            progress=lambda line: self.progress(share, line),
            meanwhile=meanwhile,
        )

    @property
    def quoted(self) -> str:
        """The root as a shell takes it, for commands that are told."""
        return shlex.quote(str(self.root))

    def safe(self, product: str) -> Path:
        """The folder of a product."""
        return self.root / "scenes" / f"{product}.SAFE"

    def truth(self, product: str) -> Path:
        """The ground of a cloudy day, where it is known."""
        return self.root / "truth" / f"{product}.tif"

    def seen(self, product: str) -> Path:
        """How much of the ground is seen, where that is known: opacity of clouds and depth of shadows in percent."""
        return self.root / "truth" / f"{product}_seen.tif"

    def sensed(self, product: str) -> Path:
        """The ground of a cloudy day with the sensor's noise, where that is known."""
        return self.root / "truth" / f"{product}_sensed.tif"

    def shard(self, split: str, number: int) -> Path:
        """The triplets of one pair; `number` is the pair's place among those that are shown."""
        return self.shards / f"{split}-{number:05d}.h5"

    def output(self, product: str, suffix: str) -> Path:
        """A file of a restored product; the suffix begins with a dot."""
        return self.outputs / product / f"{product}{suffix}"

    def evaluation_picture(self, item: str) -> Path:
        """The picture of a scored product, or of the triplets of a scored pair."""
        return self.evaluation_folder / f"{item}.png"

    def rows(self, path: Path, *, stage: str) -> list[dict]:
        """The rows of a .jsonl file that `stage` writes; InputError while there is none, or it is damaged."""
        return self.once(path, lambda: self._read(files.read_jsonl, path, stage))

    def once(self, key: Hashable, read: Callable[[], T]) -> T:
        """What `read` returns; of a command that only looks (`kept` is not None), what it returned the first time."""
        if self.kept is None:
            return read()
        if key not in self.kept:
            self.kept[key] = read()
        return self.kept[key]

    def index(self) -> dict:
        """What shards/index.json holds; InputError while there is none, or it is damaged."""
        return self.document(self.shard_index, stage="shard")

    def document(self, path: Path, *, stage: str) -> dict:
        """What a .json file that `stage` writes holds; InputError while there is none, or it is damaged."""
        return self.once(path, lambda: self._read(files.read_json, path, stage))

    def _read(self, reader: Callable[[Path], Any], path: Path, stage: str) -> Any:
        try:
            return reader(self.made_by(path, stage))
        except CorruptFileError as error:
            raise DamagedInputError(f"{error}. To make it again: cloudjob {stage} {self.quoted}") from None

    def whole_rows(self, path: Path, *, stage: str) -> list[dict]:
        """The rows of a .jsonl file for people to look at: none while there is no file, and lines that cannot be read
        are left out, and said, with the stage that writes them again."""
        if not path.exists():
            return []
        rows, bad = files.split_jsonl(path)
        if bad:
            lines = ", ".join(map(str, bad))
            self.say(
                f"{path}:{bad[0]}  cannot be read and is left out (lines: {lines}); cloudjob {stage} {self.quoted}"
            )
        return rows

    def made_by(self, path: Path, stage: str) -> Path:
        """The path of a file that `stage` writes; InputError while there is none."""
        if not path.exists():
            raise InputError(f"{path} is not there yet. Run: cloudjob {stage} {self.quoted}")
        return path

    def set_aside(self, path: Path) -> bool:
        """Renames a broken file of this run to `<name>.corrupt`: kept for a look, missing for the stage that makes it.
        False for a file that is not there, or not the run's own, or where the system refuses. The run folder and the
        folders in it may be links; a file behind any other link is another's."""
        path, root = Path(path), Path(os.path.abspath(self.root))
        place = Path(os.path.abspath(path))
        if not path.is_file() or root not in place.parents:
            return False
        top = root / place.relative_to(root).parts[0]
        if top != place and top.resolve() not in path.resolve().parents:
            return False
        files.ask_guards()
        try:
            os.replace(path, f"{path}.corrupt")
        except OSError:
            return False
        return True


class ResultsFolder(RunFolder):
    """The folder of results of one's own images: what a run folder keeps beside its results is hidden in it."""

    def __init__(self, root: Path):
        super().__init__(root)
        hidden = self.root / ".cloudjob"
        self.leases, self.records = hidden / "leases", hidden / "records"
        self.history, self.log = hidden / "history.jsonl", hidden / "log.txt"
        self.tiles = hidden / "tiles"  # <image>@<digest>: what is decoded and restored of an image that is not done

    def output(self, product: str, suffix: str) -> Path:
        return self.root / product / f"{product}{suffix}"
