"""HDF5 shards of triplets: the one module that writes and reads them (layout: DESIGN, contracts of the files)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from cloudjob.errors import CorruptFileError
from cloudjob.sentinel2.radiometry import BANDS, OFFSET, SCALE, reflectance

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Triplet:
    """One window: cloudy, clear and reference (4, n, n) uint16 DN, mask (n, n) uint8 classes; where it was cut."""

    cloudy: np.ndarray
    clear: np.ndarray
    mask: np.ndarray
    reference: np.ndarray | None  # 0 where there is none
    row: int
    col: int
    cloud_fraction: float


def write(
    path: Path,
    triplets: Iterable[Triplet],
    *,
    count: int,
    window: int,
    pair: dict,
    reference_days,
    attributes: dict,
) -> dict:
    """Writes `count` triplets of one pair; returns the sums of the clear target's reflectance (for the normalisation).

    One chunk a triplet, no filter: a triplet is read by one `pread`. `pair` goes into the attribute `pairs`
    (products, baselines, offsets, radiometric gains); `reference_days` is None where there is no reference.
    """
    image, sums = (count, 4, window, window), np.zeros((2, 4))
    pixels = 0
    with h5py.File(path, "w", libver="latest") as file:
        data = {
            name: file.create_dataset(name, shape, dtype, chunks=(1, *shape[1:]))
            for name, shape, dtype in [
                ("cloudy", image, "u2"),
                ("clear", image, "u2"),
                ("mask", (count, window, window), "u1"),
                *([("reference", image, "u2")] if reference_days is not None else []),
            ]
        }
        place = np.zeros((3, count))
        for i, triplet in enumerate(triplets):
            for name, dataset in data.items():
                dataset[i] = getattr(triplet, name)
            place[:, i] = triplet.row, triplet.col, triplet.cloud_fraction
            values = reflectance(triplet.clear).astype(np.float64)
            sums += np.stack([np.nansum(values, axis=(1, 2)), np.nansum(values**2, axis=(1, 2))])
            pixels += int(np.isfinite(values[0]).sum())
        file["row"], file["col"] = place[0].astype("i4"), place[1].astype("i4")
        file["pair"] = np.zeros(count, "i4")
        file["cloud_fraction"] = place[2].astype("f4")
        if reference_days is not None:
            file["reference_days"] = np.full(count, reference_days, "f4")
        file.attrs.update(
            {
                "schema_version": SCHEMA_VERSION,
                "bands": ",".join(BANDS),
                "scale": SCALE,
                "offset": OFFSET,
                "pairs": json.dumps([pair]),
                **attributes,
            }
        )
    return {"count": count, "sum": sums[0].tolist(), "sum2": sums[1].tolist(), "pixels": pixels}


def normalisation(parts: list[dict]) -> dict:
    """Per-band mean and standard deviation of reflectance from the sums that `write` returned."""
    pixels = sum(part["pixels"] for part in parts)
    mean = np.sum([part["sum"] for part in parts], axis=0) / pixels
    spread = np.sqrt(np.maximum(np.sum([part["sum2"] for part in parts], axis=0) / pixels - mean**2, 1e-8))
    return {"mean": mean.round(6).tolist(), "std": spread.round(6).tolist()}


class ShardSet:
    """The triplets of one split, by position 0..len-1. Files are opened when first needed, once a process."""

    def __init__(self, folder: Path, index: dict, split: str):
        self.files = [(folder / entry["file"], entry["count"]) for entry in index["files"] if entry["split"] == split]
        self._ends = np.cumsum([count for _, count in self.files])
        self._open: dict[int, h5py.File] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.files else 0

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        """cloudy, clear, reference (4, n, n) uint16 (reference 0 where there is none), mask (n, n) uint8."""
        number = int(np.searchsorted(self._ends, position, side="right"))
        path, count = self.files[number]
        row = position - int(self._ends[number]) + count
        try:
            if number not in self._open:
                self._open[number] = h5py.File(path, "r")
            file = self._open[number]
            sample = {name: file[name][row] for name in ("cloudy", "clear", "mask")}
            sample["reference"] = file["reference"][row] if "reference" in file else np.zeros_like(sample["cloudy"])
        except (OSError, KeyError, ValueError) as error:
            raise CorruptFileError(path, f"triplet {row} cannot be read ({error})") from error
        return sample
