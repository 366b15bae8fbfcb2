"""The run folder: the one owner of file names. Every stage finds here where its files lie, and whom it talks to."""

import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

from cloudjob import files
from cloudjob.errors import InputError


class RunFolder:
    """A run folder, and what a command wants of it.

    What people see goes through `say` (a line) and `progress` (share done, a line), which the command line sets;
    `stop_requested` tells that this process should end in good order; `begin` is called before the first item is made.
    `only` names the items to work on (all when empty); `force` makes items again that are done.
    """

    def __init__(self, root: Path, *, only: Iterable[str] = (), force: bool = False):
        self.root = Path(root)
        self.only = list(only)
        self.force = force
        self.say: Callable[[str], None] = lambda line: None
        self.progress: Callable[[float, str], None] = lambda share, line: None
        self.stop_requested: Callable[[], bool] = lambda: False
        self.begin: Callable[[], None] = lambda: None
        self.config = self.root / "config.yaml"
        self.records = self.root / "records"
        self.archive = self.root / "archive"
        self.jobs = self.root / "jobs" / "log.tsv"  # written by slurm/*.sh
        self.history = self.root / "jobs" / "history.jsonl"
        self.drifting = self.root / "drifting"  # <tile>.tif: not 0 where the ground moves from date to date, as sea ice
        self.scenes = self.root / "scenes.jsonl"
        self.pairs = self.root / "pairs.jsonl"
        self.review_page = self.root / "review" / "index.html"
        self.review_images = self.root / "review" / "images"
        self.decisions = self.root / "review" / "decisions.csv"
        self.shards = self.root / "shards"
        self.shard_index = self.shards / "index.json"
        self.training = self.root / "train"
        self.checkpoints = self.training / "checkpoints"
        self.metrics = self.training / "metrics.jsonl"
        self.validation = self.training / "validation.jsonl"
        self.checks = self.training / "checks.jsonl"
        self.validation = self.training / "validation.jsonl"
        self.checks = self.training / "checks.jsonl"
        self.job_cards = self.training / "jobs.jsonl"
        self.samples = self.training / "samples"
        self.tensorboard = self.training / "tensorboard"
        self.evaluation_folder = self.root / "evaluation"
        self.scores = self.evaluation_folder / "scores.jsonl"
        self.evaluation = self.evaluation_folder / "summary.json"
        self.report = self.root / "report" / "index.html"

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
        return self.root / "outputs" / product / f"{product}{suffix}"

    def evaluation_picture(self, item: str) -> Path:
        """The picture of a scored product, or of the triplets of a scored pair."""
        return self.evaluation_folder / f"{item}.png"

    def rows(self, path: Path, *, stage: str) -> list[dict]:
        """The rows of a .jsonl file that `stage` writes; InputError while there is none."""
        return files.read_jsonl(self.made_by(path, stage))

    def index(self) -> dict:
        """What shards/index.json holds; InputError while there is none."""
        return files.read_json(self.made_by(self.shard_index, "shard"))

    def made_by(self, path: Path, stage: str) -> Path:
        """The path of a file that `stage` writes; InputError while there is none."""
        if not path.exists():
            raise InputError(f"{path} is not there yet. Run: cloudjob {stage} {self.quoted}")
        return path

    def set_aside(self, path: Path) -> bool:
        """Renames a broken file of this run to `<name>.corrupt`: kept for a look, missing for the stage that makes it.
        False for a file that is not there, or not the run's own."""
        path = Path(path)
        if not path.is_file() or self.root.resolve() not in path.resolve().parents:
            return False
        os.replace(path, f"{path}.corrupt")
        return True
