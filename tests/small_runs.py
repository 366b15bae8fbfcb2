"""Run folders with a few small shards, and trainings on them by real ranks: for the tests of training."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
from forked import Forked

from cloudjob.config import source
from cloudjob.config.models import Config
from cloudjob.diffusion import checkpoint
from cloudjob.files import file_sha256, write_json
from cloudjob.patches import shard_writer
from cloudjob.run import records
from cloudjob.run.folder import RunFolder
from cloudjob.run.records import Item
from cloudjob.training import logs

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "test.yaml"
WINDOW = 32
PAIRS = {"pair-a": "train", "pair-b": "train", "pair-c": "val"}
COUNTS = {"train": 8, "val": 4}  # triplets of a pair
CLOUDJOB = (sys.executable, "-m", "cloudjob")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python")


def write_shard(path: Path, seed: int, count: int, *, reference: bool) -> dict:
    """`count` triplets of smooth ground below a round cloud with a shadow beside it."""
    rng = np.random.default_rng(seed)
    grid = row, col = np.mgrid[:WINDOW, :WINDOW]
    with shard_writer.Writer(
        path,
        count,
        window=WINDOW,
        compression="none",
        pair={"pair": path.stem},
        attributes={},
        reference_days=[9.0] if reference else [],
    ) as writer:
        for number in range(count):
            waves = rng.uniform(0.05, 0.3, (4, 2, 1, 1))
            clear = (3000 + 800 * np.sin(waves[:, 0] * row + waves[:, 1] * col)).astype(np.uint16)
            mask = np.zeros((WINDOW, WINDOW), np.uint8)
            for value in (2, 1):
                mask[np.hypot(*(grid - rng.uniform(0.15, 0.8, (2, 1, 1)) * WINDOW)) < WINDOW / 4] = value
            cloudy = np.where(mask == 1, 8000, np.where(mask == 2, clear // 2, clear)).astype(np.uint16)
            images = {"cloudy": cloudy, "clear": clear, "mask": mask}
            images |= {"reference": (clear + 100).astype(np.uint16)} if reference else {}
            place = {"row": number, "col": 0, "cloud_fraction": float((mask == 1).mean())}
            writer.add(**images, **place)
    return writer.result


def workspace(root: Path, *, reference: bool = True) -> RunFolder:
    """A run folder as the stage shard leaves it."""
    space, results = RunFolder(root), {}
    space.shard_index.parent.mkdir(parents=True)
    paths = {pair: space.shard(split, number) for number, (pair, split) in enumerate(PAIRS.items())}

    def make(item: Item):
        count = COUNTS[PAIRS[item.name]]
        results[item.name] = write_shard(paths[item.name], len(results), count, reference=reference)
        return [paths[item.name]], None

    records.work(space, "shard", [Item("shard", pair, {}, {}) for pair in PAIRS], make)
    files = [
        {"file": path.name, "count": COUNTS[PAIRS[pair]], "pair": pair, "split": PAIRS[pair]}
        | {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for pair, path in paths.items()
    ]
    parts = [results[pair] for pair, split in PAIRS.items() if split == "train"]
    write_json(
        space.shard_index, {"files": files, "window": WINDOW, "normalisation": shard_writer.normalisation(parts)}
    )
    return space


def settings(*overrides: str) -> Config:
    return source.load(CONFIG, ["train.synthetic_clouds=0.5", "train.epochs=3", *overrides])[0]


def configure(space: RunFolder, *overrides: str) -> None:
    """Leaves the settings in the run folder, for a process to find."""
    space.config.write_text(source.dump(settings(*overrides)))


def weights(space: RunFolder) -> bytes:
    return checkpoint.newest(space.checkpoints).read_bytes()


class Ranks:
    """A training by several processes, as a launcher would start them but without one that looks after them."""

    def __init__(
        self, space: RunFolder, size: int, *overrides: str, own: dict[int, dict] | None = None, program=CLOUDJOB
    ):
        """`own`: environment variables of single ranks."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        configure(space, *overrides)
        self.said = space.root.parent / f"said-{port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
        self.processes = []
        for rank in range(size):
            launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
            launched |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1} | (own or {}).get(rank, {})
            environment = kept | {name: str(value) for name, value in launched.items()}
            with open(self.said, "a") as file:
                command = [*program, "train", str(space.root)]
                self.processes.append(Forked(command, env=environment, stdout=file, stderr=file))

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def signal(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)

    def wait(self, seconds: float = 300) -> list[int]:
        end = time.monotonic() + seconds
        return [process.wait(max(end - time.monotonic(), 0.01)) for process in self.processes]

    def text(self) -> str:
        return self.said.read_text()

    def until(self, condition, seconds: float = 300) -> None:
        """Waits for something to happen while all ranks are alive."""
        end = time.monotonic() + seconds
        while not condition():
            assert all(process.poll() is None for process in self.processes), self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.002)


def last_seen(space: RunFolder) -> int:
    """How far the metrics have come."""
    found = logs.rows(space.metrics)
    return found[-1]["seen"] if found else 0
