"""Batches for tests: what a test does not name is not known."""

from typing import Any

import torch
from torch import Tensor

from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.recipe import Recipe


def batch(
    cloudy: Tensor,
    mask: Tensor,
    *,
    reference: Tensor | None = None,
    reference_days: Tensor | None = None,
    target_days: Tensor | None = None,
    sun_elevation: Tensor | None = None,
    **images: Tensor,
) -> Batch:
    """Images (N, 4, H, W) reflectance, mask (N, H, W) classes; `images` may be target and donor."""
    unknown = torch.full((len(cloudy),), torch.nan)
    references = cloudy[:, None][:, :0] if reference is None else reference[:, None]
    days = unknown if reference_days is None else reference_days
    return Batch(
        cloudy=cloudy,
        mask=mask,
        references=references,
        reference_days=days[:, None][:, : references.shape[1]],
        target_days=unknown if target_days is None else target_days,
        sun_elevation=unknown if sun_elevation is None else sun_elevation,
        **images,
    )


def restored(recipe: Recipe, network: Any, given: Batch, **options: Any) -> Tensor:
    """A sample of the ground's reflectance (N, 4, H, W), given what the batch tells."""
    return recipe.draw(network, recipe.told(network, given), **options)
