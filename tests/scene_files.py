"""A small restored scene, and its files: for the tests of what writes and what reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from cloudjob.restoration import output

PRODUCT = "S2B_MSIL2A_20240310T222035_N0510_R122_T05WPS_20240311T012735"
REFERENCE = "S2A_MSIL2A_20240304T222541_N0510_R029_T05WPS_20240305T001122"
ATTRIBUTES: dict[str, Any] = {
    "source_products": f"{PRODUCT} {REFERENCE}",
    "checkpoint_sha256": "ab" * 32,
    "config_sha256": "cd" * 32,
    "seed": 3,
    "sampler": "euler",
    "steps": 2,
    "members": 2,
    "uncertainty_factors": "1.0000 1.5000",
    "cloudjob_version": "0.1.0",
}
WEST, NORTH = 600000.0, 7900020.0


@dataclass
class Pixels:
    """Reflectance (4, H, W) uint16, what was reconstructed (H, W) uint8, uncertainty (4, H, W) uint16 or None."""

    reflectance: np.ndarray
    reconstructed: np.ndarray
    uncertainty: np.ndarray | None

    @property
    def layers(self) -> np.ndarray:
        """All of them as the GeoTIFF has them."""
        parts = [self.reflectance, self.reconstructed[None]]
        return np.concatenate([*parts, self.uncertainty] if self.uncertainty is not None else parts).astype(np.uint16)


def pixels(height: int, width: int, *, uncertainty: bool = True, seed: int = 0) -> Pixels:
    """Noise, with no data in a corner."""
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 65536, (4, height, width)).astype(np.uint16)
    flags = rng.choice([0, 1, 2], (height, width)).astype(np.uint8)
    image[:, :2, :3], flags[:2, :3] = 0, 255
    spread = rng.integers(0, 900, image.shape).astype(np.uint16) if uncertainty else None
    return Pixels(image, flags, spread)


def header(scene: Pixels, **more: Any) -> output.Header:
    """That of a scene in UTM zone 5, unless `more` says otherwise."""
    known: dict[str, Any] = {
        "name": PRODUCT,
        "shape": scene.reconstructed.shape,
        "crs": "EPSG:32605",
        "transform": Affine(10, 0, WEST, 0, -10, NORTH),
        "sensing_time": "2024-03-10T22:20:35.024Z",
        "attributes": ATTRIBUTES,
        "uncertainty": scene.uncertainty is not None,
        "sources": {name: output.data_space(name) for name in (PRODUCT, REFERENCE)},
        "collection": "../collection.json",
    }
    return output.Header(**known | more)


def write(folder: Path, scene: Pixels, *, rows: int = 10**6, **more: Any) -> Path:
    """Writes the files, `rows` rows at a time: their common path without suffix."""
    known = header(scene, **more)
    stem = folder / known.name / known.name
    with output.Writer(stem, known) as writer:
        for top in range(0, known.shape[0], rows):
            here = np.s_[..., top : top + rows, :]
            spread = None if scene.uncertainty is None else scene.uncertainty[here]
            writer.rows(top, scene.reflectance[here], scene.reconstructed[here], spread)
    return stem


def file(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)
