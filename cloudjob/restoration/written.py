"""The files of a restored scene, and what they say of how it was made: the same for a run's products and own images."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from cloudjob import __version__
from cloudjob.files import atomic
from cloudjob.restoration import output
from cloudjob.restoration.network import Model


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


def write(restored: output.Restored, place: Callable[[str], Path], *, gain: float) -> list[Path]:
    """Writes .h5, .tif, .png and the .json of a scene; `place` gives the path for a suffix."""
    files = {}
    for key, make in (
        ("h5", output.write_h5),
        ("tif", output.write_cog),
        ("png", partial(output.write_png, gain=gain)),
    ):
        files[key] = place(f".{key}")
        with atomic(files[key]) as temporary:
            make(temporary, restored)
    with atomic(place(".json")) as temporary:
        output.write_item(temporary, restored, files)
    return [*files.values(), place(".json")]
