"""Which checkpoint a path means."""

from pathlib import Path

from cloudjob.errors import ConfigError

_WITHIN = ("train/checkpoints", "checkpoints", ".")  # of a run folder, of its training, of the checkpoints themselves


def checkpoint_at(path: Path) -> Path:
    """A checkpoint, or the newest one of a run folder or a folder of checkpoints; ConfigError where there is none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"checkpoint {path}: no such file or folder")
    from cloudjob.diffusion import checkpoint  # torch

    found = [newest for place in _WITHIN for newest in checkpoint.saved(path / place)[:1]]
    if not found:
        raise ConfigError(
            f"checkpoint {path}: the folder holds no checkpoint (step-NNNNNNNN.pt), nor train/checkpoints"
        )
    return found[0]
