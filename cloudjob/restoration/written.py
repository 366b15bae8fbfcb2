"""The files of a restored scene, and what they say of how it was made: the same for a run's products and own images."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from affine import Affine
from numpy.typing import NDArray

from cloudjob import __version__
from cloudjob.files import atomic
from cloudjob.restoration import output
from cloudjob.restoration.network import Model

Arrays = tuple[NDArray, NDArray, NDArray | None]  # reflectance, reconstructed, uncertainty: see `scene.put_together`


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


def write(
    folder: Path,
    name: str,
    made: Arrays,
    *,
    crs: str | None,
    transform: Affine,
    sensing_time: str | None,
    attributes: dict[str, str | int | float],
    gain: float,
) -> list[Path]:
    """Writes <folder>/<name>.h5, .tif, .png and .json; see `output.Restored` for what is not known of a scene."""
    scene = output.Restored(name, *made, crs, transform, sensing_time, attributes)
    files = {}
    for key, make in (
        ("h5", output.write_h5),
        ("tif", output.write_cog),
        ("png", partial(output.write_png, gain=gain)),
    ):
        files[key] = folder / f"{name}.{key}"
        with atomic(files[key]) as temporary:
            make(temporary, scene)
    with atomic(folder / f"{name}.json") as temporary:
        output.write_item(temporary, scene, files)
    return [*files.values(), folder / f"{name}.json"]
