"""Triplets in memory, and the product's own training step on them."""

import numpy as np
import torch

from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.recipe import Recipe
from cloudjob.pixels import BANDS, CIRRUS, CLOUD, EMPTY_DN, SHADOW
from cloudjob.training.settings import Settings
from cloudjob.training.step import Step


def triplets(count: int, window: int, *, donor: bool = True) -> dict[str, np.ndarray]:
    """Arrays as the loader gives them: smooth ground, round clouds with a shadow, another date, some without data."""
    rng, (row, col) = np.random.default_rng(5), np.mgrid[:window, :window]
    waves = rng.uniform(0.03, 0.3, (2, count, len(BANDS), 1, 1))
    clear = (3000 + 800 * np.sin(waves[0] * row + waves[1] * col)).astype(np.uint16)
    mask = np.zeros((count, window, window), np.uint8)
    for kind in (SHADOW, CIRRUS, CLOUD):
        centre = rng.uniform(0, window, (2, count, 1, 1))
        mask[np.hypot(row - centre[0], col - centre[1]) < window / 4] = kind
    kinds = mask[:, None]
    cloudy = np.where(kinds == CLOUD, 8000, np.where(kinds == SHADOW, clear // 2, clear)).astype(np.uint16)
    clear[:, :, :3], cloudy[:, :, :, -2:] = EMPTY_DN, EMPTY_DN
    found = {
        "cloudy": cloudy,
        "clear": clear,
        "mask": mask,
        "reference": (clear + 90 * (clear != EMPTY_DN)).astype(np.uint16),
        "sun_elevation": np.full(count, 14.0, np.float32),
        "reference_days": np.full(count, 8.0, np.float32),
        "clear_days": np.full(count, 3.0, np.float32),
    }
    return found | ({"donor": mask[::-1].copy()} if donor else {})


def make_step(
    preset: str,
    arrays: dict,
    device: torch.device | str,
    *,
    process: str = "corrective",
    first_guess: str = "similar",
    **settings,
) -> Step:
    """The product's own step on this device, the same weights each time, none of them zero. Its first guess and its
    regression are those of the configuration's defaults."""
    torch.manual_seed(0)
    chosen = Settings(preset=preset, process=process, options={}, **settings)
    some = Batch.of({name: array[:8] for name, array in arrays.items()})
    options: dict = {"first_guess": first_guess}
    if process in ("corrective", "regression"):
        options["deviation"] = True
    recipe = Recipe.of(preset, process, mean=[0.2] * len(BANDS), std=[0.08] * len(BANDS), **options).measure(some)
    network = recipe.network()
    with torch.no_grad():  # weights that begin as zero hide wrong gradients, and cost less than those that have learned
        for weight in network.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    network = network.to(device, memory_format=torch.channels_last)
    made = Step(recipe, network, chosen)
    made.connect(Batch.of({name: array[: made.rehearsed] for name, array in arrays.items()}, device))
    return made
