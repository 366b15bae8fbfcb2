"""One batch of triplets: what the network is told, and what it is asked for. The one form in which they travel."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from cloudjob.diffusion import noise
from cloudjob.diffusion.device import answers
from cloudjob.diffusion.noise import Numbers
from cloudjob.pixels import EMPTY_DN, NO_DATA, OFFSET, REFERENCES, SCALE, UNKNOWN


@dataclass(frozen=True)
class Batch:
    """N samples of H x W pixels. Images are float32 reflectance in the order of `pixels.BANDS`, NaN without data.

    Numbers per sample are float32; NaN says that a number is not known.
    """

    cloudy: Tensor  # (N, 4, H, W) the date that is to be restored
    mask: Tensor  # (N, H, W) uint8 mask classes of the cloudy date
    references: Tensor  # (N, R, 4, H, W) other clear dates, the nearest first; R is 0 where no sample has any
    reference_days: Tensor  # (N, R) signed days from the target's date to that of each reference
    target_days: Tensor  # (N,) signed days from the cloudy date to the target's; 0 asks for the cloudy day's ground
    sun_elevation: Tensor  # (N,) degrees, on the cloudy date
    target: Tensor | None = None  # (N, 4, H, W) the ground that is learned; None where nobody knows it
    light: Tensor | None = None  # (N, 1, H, W) share of the ground's light that clouds let through; NaN: nobody knows
    donor: Tensor | None = None  # (N, H, W) uint8 mask classes of another triplet, for synthetic clouds; None without

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], device: torch.device | str = "cpu", *, scored: bool = False) -> Self:
        """From the arrays of shards or of a scene, uint16 DN and uint8 classes, moved to the device.

        cloudy, clear (may lack), those of REFERENCES that there are (N, 4, H, W); mask, donor (may lack) (N, H, W);
        sun_elevation, the references' days, clear_days (may lack) (N,), counted from the cloudy date. The clear image
        is the target. Without clear_days, or if the batch is to be `scored`, the ground of the cloudy day is asked for.

        On a CPU masks share the memory of their array; a GPU may still be reading the arrays when this returns.
        """
        tensors = {name: _tensor(array, device) for name, array in arrays.items()}
        cloudy = tensors["cloudy"]
        unknown = cloudy.new_full((len(cloudy),), torch.nan)
        names = [name for name in REFERENCES if name in tensors]
        days = [tensors.get(f"{name}_days", unknown) for name in names]
        target_days = tensors.get("clear_days")
        if target_days is None or scored:
            target_days = torch.zeros_like(unknown)
        else:
            days = [each - target_days for each in days]
        references = torch.stack([tensors[name] for name in names], 1) if names else cloudy[:, None][:, :0]
        return cls(
            cloudy=cloudy,
            mask=tensors["mask"],
            references=references,
            reference_days=torch.stack(days, 1) if days else unknown[:, None][:, :0],
            target_days=target_days,
            sun_elevation=tensors.get("sun_elevation", unknown),
            target=tensors.get("clear"),
            donor=tensors.get("donor"),
        )

    def __len__(self) -> int:
        return len(self.cloudy)

    def __getitem__(self, samples: slice | Tensor) -> Self:
        """The batch of these samples alone."""
        return self._map(lambda tensor: tensor[samples])

    def to(self, device: torch.device | str) -> Self:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Any) -> Self:
        return replace(self, **{name: change(tensor) for name, tensor in self._present().items()})

    def _present(self) -> dict[str, Tensor]:
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in every.items() if tensor is not None}

    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        return list(self._present().values())

    @property
    def classes(self) -> Tensor:
        """(N, 1, H, W) uint8 mask classes, NO_DATA also where the cloudy image has no data in some band."""
        return self.mask[:, None].masked_fill(self.cloudy.isnan().any(1, keepdim=True), NO_DATA)

    @property
    def known_target(self) -> Tensor:
        """The target; ValueError where there is none."""
        if self.target is None:
            raise ValueError("a batch without a target cannot be learned from")
        return self.target

    @property
    def target_valid(self) -> Tensor:
        """(N, 1, H, W) bool, where the target has data in all bands."""
        return self.known_target.isfinite().all(1, keepdim=True)

    def turned(self, *, seed: int, samples: Numbers) -> Self:
        """Each sample turned and flipped by one of the 8 symmetries of the square, all its images and masks alike."""
        images = ("cloudy", "mask", "references", "target", "donor")
        present = {name: getattr(self, name) for name in images if getattr(self, name) is not None}
        return replace(self, **{name: turn(image, seed=seed, samples=samples) for name, image in present.items()})

    def drop_references(self, share: float, *, seed: int, samples: Numbers) -> Self:
        """Without any reference for a random `share` of the samples, so that the model learns to do without; the others
        have one or more of the first ones, each number as often as another."""
        kept = self._kept(share, "drop reference", seed, samples)[:, None]
        if (most := self.references.shape[1]) > 1:
            number = (most * noise.uniforms(seed, samples, "how many references")).long().to(kept.device)
            kept = kept & (torch.arange(most, device=kept.device) <= number[:, None])
        return replace(
            self,
            references=self.references.masked_fill(~kept[:, :, None, None, None], torch.nan),
            reference_days=self.reference_days.masked_fill(~kept, torch.nan),
        )

    def without_references(self) -> Self:
        """The same samples, with no other date (R = 0)."""
        return replace(self, references=self.references[:, :0], reference_days=self.reference_days[:, :0])

    def drop_mask(self, share: float, *, seed: int, samples: Numbers) -> Self:
        """Without the mask for a random `share` of the samples: every pixel with data is unknown there."""
        kept = self._kept(share, "drop mask", seed, samples)[:, None, None]
        return replace(self, mask=torch.where(kept | (self.mask == NO_DATA), self.mask, UNKNOWN))

    def _kept(self, share: float, use: str, seed: int, samples: Numbers) -> Tensor:
        """(N,) bool, False for a random `share` of the samples."""
        return (noise.uniforms(seed, samples, use) >= share).to(self.mask.device)


def turn(image: Tensor, *, seed: int, samples: Numbers, use: str = "turn") -> Tensor:
    """Each sample of (N, ..., H, W), H = W, flipped and turned by one of the 8 symmetries that its number draws."""
    drawn = (noise.uniforms(seed, samples, use) * 8).long()
    if not answers(drawn):
        return _turned(image, drawn)
    draws = drawn.tolist()
    turned = [torch.rot90(one, draw % 4, (-2, -1)) for one, draw in zip(image, draws, strict=True)]
    return torch.stack([one.flip(-1) if draw >= 4 else one for one, draw in zip(turned, draws, strict=True)])


def _turned(image: Tensor, drawn: Tensor) -> Tensor:
    """The same without asking which symmetry (N,) it is: each is a transposition or none, then a flip of either axis or
    none."""
    quarters, mirrored = drawn % 4, drawn >= 4
    places = [-1, *[1] * (image.ndim - 1)]

    def where(chosen: Tensor, changed: Tensor, image: Tensor) -> Tensor:
        return torch.where(chosen.view(places), changed, image)

    image = where(quarters % 2 == 1, image.mT, image)
    image = where((quarters == 1) | (quarters == 2), image.flip(-2), image)
    return where((quarters >= 2) != mirrored, image.flip(-1), image)


def pinned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array in page-locked memory, which a GPU reads by itself."""
    return torch.empty(shape, dtype=getattr(torch, np.dtype(dtype).name), pin_memory=True).numpy()


def _tensor(array: np.ndarray, device: torch.device | str) -> Tensor:
    """On the device; uint16 DN become reflectance (torch's default type), NaN where there is no data."""
    tensor = torch.from_numpy(array).to(device, non_blocking=True)
    if tensor.dtype != torch.uint16:
        return tensor
    dn = tensor.to(torch.get_default_dtype())
    return (dn * SCALE + OFFSET).masked_fill(dn == EMPTY_DN, torch.nan)
