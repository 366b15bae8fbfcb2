"""Masks that a person has corrected, as inputs of items."""

from collections.abc import Iterable, Mapping

from cloudjob.run.folder import RunFolder
from cloudjob.sentinel2.corrected import corrected

_INPUT = "review/masks/{}.tif"


def digests(folder: RunFolder, products: Iterable[str]) -> dict[str, str]:
    """The digests of those of these products' masks that a person has corrected, by their names as inputs."""
    return {_INPUT.format(name): found for name in products if (found := _digest(folder, name))}


def among(inputs: Mapping[str, str], products: Iterable[str]) -> dict[str, str]:
    """Those of these products whose corrected masks are among the inputs, with the digests."""
    return {name: found for name in products if name and (found := inputs.get(_INPUT.format(name)))}


def _digest(folder: RunFolder, product: str) -> str:
    def of() -> str:
        return found[1] if (found := corrected(folder.labels, product)) else ""

    return folder.once(("label", product), of)
