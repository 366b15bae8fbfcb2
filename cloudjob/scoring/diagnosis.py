"""Tells early why a training is going to fail: nothing learned at a noise level, a condition that is not looked at."""

from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.conditions import CHANNELS, Channels
from cloudjob.diffusion.recipe import Recipe

_USED = {
    "cloudy": ("cloudy", "difference"),
    "mask": ("cloud", "shadow", "unknown"),
    "reference": ("reference", "present", "anchor"),
}
_NOTHING = 0.97  # of the loss of an output of zero; above, the network has learned nothing worth a name
_USELESS = 1.0  # in normalised units: an error no smaller than that of the mean of the training split
_SEEN = 0.03  # in normalised units: noise below is less than the sensor's


def _one_by_one(task: Callable, number: int) -> list:
    return [task(i) for i in range(number)]


@torch.no_grad()
def diagnose(
    recipe: Recipe, network: nn.Module, batch: Batch, *, seed: int, repeats: int = 4, each: Callable = _one_by_one
) -> dict:
    """{"against_zero": loss over that of an output of zero, by third of the noise levels, the least noise first, None
    where no sample fell; "x0_error": by the same thirds, RMSE of the estimate of x0 in normalised units;
    "against_shuffled": condition -> loss over that with the condition of another sample in its
    place}, on triplets as `Recipe.loss` takes them, each at `repeats` levels. 1 is bad in both.

    An output of zero is what an untrained network gives: with it, noise is never taken off (noise prediction), or the
    first guess is given back (residual). `each` (task, number) gives [task(0), ...]: ranks may share the repeats.
    """
    number, valid, conditions = len(batch), batch.target_valid, recipe.conditions(batch)

    def repeated(repeat: int) -> tuple[Tensor, dict[str, float]]:
        """What was measured of the network, and the sums of squared errors with each condition exchanged."""
        samples = [repeat * number + i for i in range(number)]

        def measured(run: Any) -> Tensor:
            """Squared errors, those of zero, those of x0, and noise levels (4, terms * N)."""
            rows = []
            for part in recipe.terms(run, batch, seed=seed, samples=samples, conditions=conditions):
                error = part.prediction.float() - part.target
                squares = (
                    part.trusted * error.square(),
                    part.trusted * part.target.square(),
                    (part.scale * error).square(),
                )
                means = [(valid * x).flatten(1).double().mean(1) for x in squares]
                rows.append(torch.stack([*means, part.level.double()]).cpu())
            return torch.cat(rows, 1)

        own, errors = measured(network), {}
        for name in _USED:
            exchanged = partial(_exchanged, table=CHANNELS[recipe.first_guess], name=name)
            error, *_ = measured(lambda x, level, told, exchanged=exchanged: network(x, level, exchanged(told)))
            errors[name] = float(error.sum())
        return own, errors

    found, sums = zip(*each(repeated, repeats), strict=True)
    shuffled = {name: sum(errors[name] for errors in sums) for name in _USED}
    error, zero, clean, levels = torch.cat(found, 1)
    thirds = [levels.mul(3).long().clamp(max=2) == i for i in range(3)]
    ratios = {name: float(error.sum()) / total if total else 1.0 for name, total in shuffled.items()}
    return {
        "against_zero": [float(error[third].sum() / zero[third].sum()) if third.any() else None for third in thirds],
        "x0_error": [float(clean[third].mean().sqrt()) if third.any() else None for third in thirds],
        "against_shuffled": ratios,
    }


def _exchanged(channels: Tensor, *, table: Channels, name: str) -> Tensor:
    """The channels with those of one condition taken from the next sample."""
    ends = accumulate((width for width, _ in table.values()), initial=0)
    places = dict(zip(table, pairwise(ends), strict=True))
    channels = channels.clone()
    for part in _USED[name]:
        channels[:, slice(*places[part])] = channels[:, slice(*places[part])].roll(1, 0)
    return channels


def warnings(found: dict, *, share: float) -> list[str]:
    """What a person should know of a `diagnose` after this share of the training; nothing is good news."""
    said = []
    levels = [value for value in found["against_zero"] if value is not None]
    errors = [value for value in found["x0_error"] if value is not None]
    # What starts from a good first guess may take a while to add to it.
    if share >= (0.05 if max(errors) >= _USELESS else 0.25) and all(value > _NOTHING for value in levels):
        said.append(
            f"after {share:.0%} of the training the loss still is that of an output of zero ({min(levels):.2f} of it): "
            "the images will be noise, or nothing but the first guess. Look at train.lr, at the values of the shards "
            "(cloudjob shard --stats), and at train.process: noise prediction learns last of all"
        )
    elif share >= 0.25 and levels[0] > _NOTHING and errors[0] > _SEEN:
        said.append(
            f"after {share:.0%} of the training nothing is learned at low noise ({levels[0]:.2f} of the loss of an "
            "output of zero): a layer of noise will stay on the images. Train longer, or take train.process=residual"
        )
    # Not the mask: the first guess tells where it lies.
    unused = [name for name in ("cloudy", "reference") if found["against_shuffled"][name] > 0.995]
    if share >= 0.25 and unused:
        said.append(
            f"after {share:.0%} of the training another sample's {' and '.join(unused)} does as well as its own: the "
            "network does not look at it"
        )
    return said
