"""The trained network that restores, as a checkpoint has it: the same for scenes of a run and one's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from cloudjob.diffusion import checkpoint
from cloudjob.files import file_sha256
from cloudjob.hpc import launch
from cloudjob.restoration.restorer import Restorer


@dataclass(frozen=True)
class Model:
    """A restorer, the SHA-256 of its checkpoint, and the factors on its members' deviation, one a band."""

    restorer: Restorer
    sha256: str
    factors: list[float]
    calibrated: bool  # whether the factors hold for these steps; else they are 1

    @classmethod
    def open(cls, path: Path, *, local_rank: int, seed: int, sampler: str, steps: int) -> Self:
        """On the GPU of this rank among those of its node, or on the CPU. CorruptFileError for a damaged checkpoint."""
        # One thread, and always as many tiles at a time: bytes must not depend on how many ranks share the tiles.
        torch.set_num_threads(1)
        torch.backends.cudnn.deterministic = True
        gpus = torch.cuda.device_count()
        launch.check_gpu(bool(gpus))
        device = torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")
        recipe, network, calibration = checkpoint.open_network(path, device)
        restorer = Restorer(recipe, network, seed=seed, sampler=sampler, steps=steps)
        if gpus:
            torch.cuda.set_device(device)
            restorer.quicken()
        factors = _factors(calibration, restorer.sampling)
        return cls(restorer, file_sha256(path), factors or [1.0] * 4, factors is not None)

    @property
    def warning(self) -> str:
        """What to say of an uncertainty that is not calibrated; "" of one that is."""
        if self.calibrated:
            return ""
        return (
            "WARNING: /uncertainty is the members' bare deviation: the checkpoint was calibrated for "
            "other steps than {steps} of {sampler}".format(**self.restorer.sampling)
        )


def _factors(calibration: dict, sampling: dict) -> list[float] | None:
    """The factors of a checkpoint's calibration, or None where it does not hold for this sampler and these steps."""
    return calibration["factors"] if calibration.items() >= sampling.items() else None
