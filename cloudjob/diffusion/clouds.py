"""Clouds and shadows laid over a clear image: training samples whose ground is known exactly, whatever the cloud.

Light is mixed as in the Satellite Cloud Generator (Czerkawski et al. 2023, doi:10.3390/rs15174138): a cloud of opacity
a and reflectance c makes (1 - a) ground + a c, a shadow takes a share of the ground. Their clouds have the shapes of
noise, these the shape of a real mask. That is grown beyond the cloud one sees: so nothing lies above the pixels at its
edge, up to a distance that is drawn, and from there on a cloud fades in. What is drawn varies more than any weather
does: a network that has learned one law of clouds alone is lost under another (domain randomisation, Tobin et al. 2017,
arXiv 1703.06907).
"""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cloudjob.diffusion import noise
from cloudjob.diffusion.batch import Batch, turn
from cloudjob.diffusion.device import answers, constant
from cloudjob.diffusion.noise import Numbers
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN

_REACH = 16  # pixels from which on a distance no longer matters
_GROWN, _MOST_COVERED = 10, 0.4  # pixels that a mask is grown by at most, and the share of its depth that they may be
_OCTAVES = (64, 32, 16, 8, 4, 2)  # wavelengths of a cloud's texture in pixels
_ROUGHNESS = 0.85  # their amplitude goes with wavelength ** 0.85
_SHADOW_BANDS = (1.0, 0.95, 0.85, 1.09)  # light lost in B04, B03, B02, B08: the sky still lights the ground in blue


@torch.compiler.disable  # torch 2.13 takes minutes for it, and what it then makes for a processor crashes
def lay(batch: Batch, *, share: float, other_ground: float, seed: int, samples: Numbers) -> Batch:
    """For a random `share` of the samples the cloudy image becomes the target below other clouds.

    For the share `other_ground` of these, target and references are darkened alike first, each band by a factor of its
    own, so that a model that has seen snow alone is not lost over soil, plants and water. The target then is the ground
    of the cloudy day itself: its `target_days` become 0, and the `light` that its clouds let through is known.

    The donor, another triplet's mask, is turned and says what lies where; its unknown pixels and those without data
    count as clear, and one without cloud changes nothing. Outside of the mask the image is the target bit for bit. What
    is random about a sample is a function of (seed, its number) alone.
    """
    taken = noise.uniforms(seed, samples, "synthetic clouds") < share
    # Of a GPU nobody asks which samples these are: it lays clouds over all, and takes those.
    chosen = taken.nonzero().flatten() if answers(taken) else torch.arange(len(taken), device=taken.device)
    if not len(chosen):
        return batch
    batch = replace(batch, light=torch.full_like(batch.cloudy[:, :1], torch.nan))
    numbers, chosen = noise.some(samples, chosen), chosen.to(batch.cloudy.device)
    before = batch[chosen]
    if before.donor is None:
        raise ValueError("synthetic clouds need the masks of other triplets: the batch has no donor")
    donor = turn(before.donor, seed=seed, samples=numbers, use="turn donor")
    donor = donor.masked_fill((donor == UNKNOWN) | (donor == NO_DATA), CLEAR)
    cloud = ((donor == CLOUD) | (donor == CIRRUS)).flatten(1).any(1) & taken.to(donor.device)[chosen]
    gains = _gains(other_ground, seed=seed, samples=numbers, like=before.known_target)
    target = before.known_target * gains
    mask = donor.masked_fill(target.isnan().any(1), NO_DATA)
    cloudy, light = _seen(target, mask[:, None], seed=seed, samples=numbers)
    after = {
        "target": target,
        "references": before.references * gains[:, None],
        "mask": mask,
        "cloudy": cloudy,
        "light": light,
        "target_days": torch.zeros_like(before.target_days),
    }

    def laid(name: str) -> Tensor:
        whole, old = getattr(batch, name), getattr(before, name)
        return whole.index_copy(0, chosen, torch.where(cloud.view(-1, *[1] * (old.ndim - 1)), after[name], old))

    return replace(batch, **{name: laid(name) for name in after})


def _gains(share: float, *, seed: int, samples: Numbers, like: Tensor) -> Tensor:
    """(N, 4, 1, 1): what a random `share` of the grounds keeps of its light in each band, 1 for the others."""
    darker = noise.uniforms(seed, samples, "other ground") < share
    level = noise.uniforms(seed, samples, "ground level").mul(math.log(0.08)).exp().float()
    colour = noise.normals(seed, samples, "ground colour", like=like[..., :1, :1])
    gains = level.to(like.device)[:, None, None, None] * (0.4 * colour).exp()
    return torch.where(darker.to(like.device)[:, None, None, None], gains.clamp(max=1), 1.0)


def _seen(ground: Tensor, mask: Tensor, *, seed: int, samples: Numbers) -> tuple[Tensor, Tensor]:
    """What a sensor sees of `ground` (N, 4, n, n), in reflectance, through the clouds of `mask` (N, 1, n, n); and the
    share of its light that they let through (N, 1, n, n)."""

    def draw(use: str, low: float, high: float) -> Tensor:
        value = low + (high - low) * noise.uniforms(seed, samples, use)
        return value.float().to(ground.device)[:, None, None, None]

    cloud, cirrus, shadow = (mask == kind for kind in (CLOUD, CIRRUS, SHADOW))
    hidden = cloud | cirrus | shadow
    inside, edge, to_cirrus, to_shadow = _distance(torch.cat([~cloud, ~hidden, cirrus, shadow], 1)).split(1, 1)
    grown = draw("grown", 0, 1) * (_MOST_COVERED * edge.amax((2, 3), keepdim=True)).clamp(max=_GROWN)
    edge = (edge - grown).clamp(min=0) * (_REACH / (_REACH - grown))  # what is out of reach stays so
    billows, streaks, tops = _texture(seed, samples, like=ground).split(1, 1)

    # The optical depth of a thick cloud grows with the cube of the distance to clear ground, up to about 2.5 to 12;
    # towards cirrus and shadow, where a mask does not grow, it fades within 6 pixels.
    near = torch.minimum(edge / draw("cloud edge", 3, _REACH), inside / 6)
    deep = (near * (0.5 * billows).exp()).clamp(max=1)
    depth = draw("cloud depth", 0.9, 2.5).exp() * deep**3 * (0.4 * billows).exp()
    # Cirrus and shadow go on a little below what they border on: no seam between classes.
    soft = (edge / 4).clamp(max=1)
    veil = (draw("cirrus", 0.05, 0.5) * (0.4 * streaks).exp()).clamp(max=0.5) * soft * (1 - to_cirrus / 8).clamp(min=0)
    lost = draw("shadow", 0.15, 0.75) * soft * (1 - to_shadow / 8).clamp(min=0)
    bands = constant(_SHADOW_BANDS, ground.device) ** draw("shadow colour", -1, 3)
    lost = (lost * bands).clamp(max=0.95)

    opacity = 1 - (1 - veil) * (-depth).exp()
    white = draw("cloud top", 0.3, 1.0) * (1 + 0.03 * noise.normals(seed, samples, "tint", like=ground[..., :1, :1]))
    below = ground.flatten(2).nanmean(2).clamp(0, 0.9)[..., None, None]
    white = white + (1 - white) ** 2 * below / (1 - white * below)  # to and fro between cloud and snow: adding method
    seen = (1 - opacity) * (1 - lost) * ground + opacity * white * (0.1 * tops).exp()
    return torch.where(hidden, seen, ground), torch.where(hidden, 1 - opacity, 1.0)


def _distance(to: Tensor) -> Tensor:
    """Pixels from each pixel to the nearest of `to` (N, C, n, n), at most _REACH; none lies beyond the image.

    Exact: the least over rows of the least over columns, squared (Felzenszwalb & Huttenlocher 2012).
    """
    square = torch.where(to, 0.0, float(_REACH**2))
    for axis in (-1, -2):
        size, least = square.shape[axis], square.clone()
        for step in range(1, min(_REACH, size)):
            for here, there in ((0, step), (step, 0)):
                target, source = (x.narrow(axis, start, size - step) for x, start in ((least, here), (square, there)))
                torch.minimum(target, source + step**2, out=target)
        square = least
    return square.sqrt()


def _texture(seed: int, samples: Numbers, *, like: Tensor) -> Tensor:
    """Three independent fields (N, 3, n, n) of smooth noise, mean 0 and standard deviation about 1."""
    size, device = like.shape[-1], like.device
    total = torch.zeros(len(samples), 3, size, size, device=device)
    for cell in _OCTAVES:
        coarse = torch.empty(len(samples), 3, *[max(size // cell, 2)] * 2, device=device)
        coarse = noise.normals(seed, samples, f"clouds of {cell} pixels", like=coarse)
        total += cell**_ROUGHNESS * F.interpolate(coarse, size=(size, size), mode="bicubic")
    return total / (0.9 * sum(cell ** (2 * _ROUGHNESS) for cell in _OCTAVES) ** 0.5)
