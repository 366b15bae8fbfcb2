"""The 2025 notebook's way from a scene to a batch, kept as it was: what the benches compare with."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cloudjob.sentinel2.masks import SCL_CLOUDS

if TYPE_CHECKING:
    import torch

_NAMES = ("cloudy", "clear", "mask")


def select(scl10m: np.ndarray, *, window: int = 256, stride: int = 64) -> list[tuple[int, int]]:
    """(row, column) of the windows of an (H, W) scene classification at 10 m with 5 to 30 % of cloud and cirrus."""
    found = []
    for r in range(0, scl10m.shape[0] - window + 1, stride):
        for c in range(0, scl10m.shape[1] - window + 1, stride):
            fraction = np.isin(scl10m[r : r + window, c : c + window], SCL_CLOUDS).mean()
            if 0.05 <= fraction <= 0.30:
                found.append((r, c))
    return found


def write(
    folder: Path,
    places: Iterable[tuple[int, int]],
    cloudy: np.ndarray,
    clear: np.ndarray,
    mask: np.ndarray,
    *,
    window: int = 256,
) -> None:
    """Three files per window: images (window, window, bands) of the scenes (bands, H, W), mask (window, window)."""
    for number, (r, c) in enumerate(places):
        here = np.s_[..., r : r + window, c : c + window]
        write_one(folder, number, cloudy[here], clear[here], mask[here])


def write_one(folder: Path, number: int, cloudy: np.ndarray, clear: np.ndarray, mask: np.ndarray) -> None:
    """The three files of one window, from its images (bands, n, n) and mask (n, n)."""
    layers = np.moveaxis(cloudy, 0, -1), np.moveaxis(clear, 0, -1), mask
    for name, layer in zip(_NAMES, layers, strict=True):
        np.save(folder / f"{name}_{number:05d}.npy", layer)


class Loader:
    """Batches from the files that `write` left in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.count = len(list(folder.glob("mask_*.npy")))

    def __len__(self) -> int:
        return self.count

    def triplet(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """cloudy, clear (bands, n, n) and mask (1, n, n) float32; images as (DN / 255 - 0.5) / 0.5."""
        cloudy, clear, mask = (np.load(self.folder / f"{name}_{number:05d}.npy").astype("f4") for name in _NAMES)
        images = (((image / 255 - 0.5) / 0.5).transpose(2, 0, 1) for image in (cloudy, clear))
        cloudy, clear = images
        return cloudy, clear, mask[None]

    def batch(self, numbers: Iterable[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The triplets of these numbers, stacked: (batch, channels, n, n) each."""
        cloudy, clear, mask = (np.stack(parts) for parts in zip(*map(self.triplet, numbers), strict=True))
        return cloudy, clear, mask


class Trainer:
    """The notebook's training loop around a network that maps (x, level, conditions) to noise: float32 as it comes,
    no averages, no clipping."""

    def __init__(self, network: "torch.nn.Module", loader: Loader, *, channels: int):
        import torch

        self.network, self.loader, self.channels = network, loader, channels
        self.device = next(network.parameters()).device
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        self.signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, device=self.device), 0)

    def step(self, numbers: Iterable[int]) -> float:
        """The loss of one step on the triplets of these numbers, which are read from their files."""
        import torch

        cloudy, clear, _ = (torch.from_numpy(part).to(self.device) for part in self.loader.batch(numbers))
        conditions = torch.zeros(len(cloudy), self.channels, *cloudy.shape[2:], device=self.device)
        conditions[:, : cloudy.shape[1]] = cloudy
        t = torch.randint(0, len(self.signal), (len(clear),), device=self.device)
        signal, noise = self.signal[t][:, None, None, None], torch.randn_like(clear)
        found = self.network(signal.sqrt() * clear + (1 - signal).sqrt() * noise, t / len(self.signal), conditions)
        loss = torch.nn.functional.mse_loss(found, noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()
