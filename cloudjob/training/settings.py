"""The settings of a training, as plain values: see the configuration's section `train` for what each of them means."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One field per key of the configuration that a training looks at, with the configuration's default."""

    seed: int = 0
    preset: str = "small"
    process: str = "corrective"
    options: dict[str, Any]  # fields of the process that Recipe.of takes
    epochs: float = 50
    samples: int | None = None
    batch_size: int = 32
    micro_batch: int | None = None
    init_from: Path | None = None
    lr: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup: int = 1000
    decay: bool = True
    clear_weight: float = 0.2
    drop_reference: float = 0.3
    drop_mask: float = 0.1
    synthetic_clouds: float = 0.0
    other_ground: float = 0.25
    average: str = "auto"
    clip_norm: float = 1.0
    max_skipped: int = 10
    precision: str = "auto"
    compile: bool | str = "auto"
    threads: int | None = None
    loader_threads: int = 2
    local_dir: str | None = None
    checkpoint_s: float | None = None
    failure_h: float = 24.0
    log_s: float = 10
    tensorboard: bool = False
    grid_co2: float = 445.0
    sampler: str = "auto"  # these four of the looks at held-out triplets
    steps: int = 4
    members: int = 8
    preview_gain: float = 1.0

    def total(self, triplets: int) -> int:
        """Samples of the whole training on so many triplets: whole batches, at least one."""
        return max(1, round((self.samples or self.epochs * triplets) / self.batch_size)) * self.batch_size


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What tells this training from another one: settings that its result depends on, and digests of its inputs."""

    config: dict[str, Any]
    inputs: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where a training writes."""

    checkpoints: Path
    metrics: Path
    validation: Path
    checks: Path
    job_cards: Path
    samples: Path
    tensorboard: Path
    forced: Path


@dataclass(frozen=True, kw_only=True)
class Talk:
    """How a training talks to people, and hears their wish to stop."""

    say: Callable[[str], None] = lambda line: None
    progress: Callable[[float, str], None] = lambda share, line: None
    stop_requested: Callable[[], bool] = lambda: False
