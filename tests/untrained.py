"""Checkpoints of networks that nobody has trained, whose ensembles are said to be calibrated for some steps."""

from pathlib import Path

from cloudjob.benches import infer
from cloudjob.diffusion import checkpoint
from cloudjob.diffusion.recipe import Recipe
from cloudjob.pixels import BANDS


def untrained(
    folder: Path, preset: str = "tiny", process: str = "residual", *, steps: int = 4, bands=BANDS, **options
) -> Path:
    """The path of such a checkpoint; its weights are always the same. `options` are those of `Recipe.of`."""
    recipe = Recipe.of(preset, process, mean=[0.2] * 4, std=[0.1] * 4, **options)
    calibration = {"sampler": "euler", "steps": steps, "factors": [1.0, 2.0, 3.0, 0.5]}
    facts = {"seen": 8, "total": 8, "chosen": "0.10", "bands": list(bands), "cloudjob_version": "0.0.9"}
    return checkpoint.save(folder, infer.untrained(recipe, calibration=calibration, **facts))
