"""Checkpoints of networks that nobody has trained, whose ensembles are said to be calibrated for some steps."""

from pathlib import Path

import torch

from cloudjob.diffusion import checkpoint
from cloudjob.diffusion.average import GAMMAS
from cloudjob.diffusion.checkpoint import Checkpoint
from cloudjob.diffusion.recipe import Recipe
from cloudjob.pixels import BANDS


def untrained(folder: Path, preset: str = "tiny", *, steps: int = 4, bands=BANDS) -> Path:
    """The path of such a checkpoint; its weights are always the same."""
    recipe = Recipe.of(preset, "residual", mean=[0.2] * 4, std=[0.1] * 4)
    torch.manual_seed(0)
    weights = recipe.network().state_dict()
    kept = Checkpoint(
        seen=8,
        total=8,
        skipped=[0, 0],
        model=weights,
        averages=dict.fromkeys(GAMMAS, weights),
        chosen="0.10",
        calibration={"sampler": "euler", "steps": steps, "factors": [1.0, 2.0, 3.0, 0.5]},
        optimizer={},
        config={},
        recipe=recipe.facts(),
        bands=list(bands),
        cloudjob_version="0.0.9",
        key="",
    )
    return checkpoint.save(folder, kept)
