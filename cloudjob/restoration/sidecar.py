"""What a STAC item beside an image (IMAGE.json beside IMAGE.tif) says of it: bands, units, time, height of the sun."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any


@dataclass(frozen=True)
class Sidecar:
    """What is known; all of it may be missing."""

    bands: list[str] = field(default_factory=list)  # names and common names of all bands of the image, in order
    units: list[tuple[float, float]] = field(default_factory=list)  # scale and offset of each
    acquired: datetime | None = None  # UTC
    sun_elevation: float | None = None  # degrees


def path_of(image: Path) -> Path:
    """Where the item lies."""
    return image.with_suffix(".json")


def read(image: Path) -> Sidecar:
    """What the item says; nothing where there is none, or it is no item of this image."""
    try:
        item = json.loads(path_of(image).read_text(encoding="utf-8"))
        assets, properties = item["assets"].values(), item["properties"]
        (asset,) = [each for each in assets if PurePosixPath(each["href"]).name == image.name]
        return _read(asset, properties)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return Sidecar()


def _read(asset: dict[str, Any], properties: dict[str, Any]) -> Sidecar:
    bands = asset.get("bands") or asset.get("eo:bands") or []
    names = [f"{band.get('name', '')} {band.get('eo:common_name') or band.get('common_name', '')}" for band in bands]
    raster = asset.get("raster:bands") or bands
    units = [_unit(band, asset) for band in raster]
    acquired = None
    with suppress(TypeError, ValueError):
        acquired = datetime.fromisoformat(str(properties.get("datetime"))).astimezone(UTC)
    sun = properties.get("view:sun_elevation")
    return Sidecar(names, units, acquired, float(sun) if isinstance(sun, int | float) else None)


def _unit(band: dict[str, Any], asset: dict[str, Any]) -> tuple[float, float]:
    """As STAC 1.1 and 1.0 write them, of the band or of all bands of the file."""
    found = {
        key: next((each[name] for each in (band, asset) for name in (f"raster:{key}", key) if name in each), default)
        for key, default in (("scale", 1.0), ("offset", 0.0))
    }
    return float(found["scale"]), float(found["offset"])
