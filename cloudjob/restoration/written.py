"""The files of a restored scene, and what they say of how it was made: the same for a run's products and own images."""

from collections.abc import Iterable
from pathlib import Path

from numpy.typing import NDArray

from cloudjob import __version__
from cloudjob.hpc import machine
from cloudjob.restoration import output
from cloudjob.restoration.network import Model

Stripe = tuple[int, NDArray, NDArray, NDArray | None]  # see `scene.stripes`


def attributes(
    sources: Iterable[str], model: Model, *, config_sha256: str, seed: int, members: int
) -> dict[str, str | int | float]:
    """What is written into each file: the products that were read, the network, and how it was sampled."""
    return {
        "source_products": " ".join(sources),
        "checkpoint_sha256": model.sha256,
        "config_sha256": config_sha256,
        "seed": seed,
        **model.restorer.sampling,
        "members": members,
        "uncertainty_factors": " ".join(f"{factor:.4f}" for factor in model.factors),
        "cloudjob_version": __version__,
    }


def write(stem: Path, header: output.Header, stripes: Iterable[Stripe], *, gain: float) -> dict[Path, str]:
    """Writes the files named `stem` and a suffix: their paths, and their SHA-256. `gain` is that of the picture."""
    with output.Writer(stem, header, gain=gain, threads=machine.cores()) as writer:
        for stripe in stripes:
            writer.rows(*stripe)
    return writer.files
