"""An accepted pair on its way to triplets: dates normalised and compared, windows selected, images put together."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from shapely.geometry.base import BaseGeometry

from cloudjob.errors import ItemError, RejectedError
from cloudjob.files import reading
from cloudjob.patches import windows
from cloudjob.patches.windows import Windows
from cloudjob.pixels import BANDS, CLEAR, EMPTY_DN, NO_DATA, REFERENCES, UNKNOWN
from cloudjob.sentinel2 import masks, product, scene
from cloudjob.sentinel2.product import Product
from cloudjob.sentinel2.radiometry import Match
from cloudjob.sentinel2.scene import ReducedScene, ShiftEstimator
from cloudjob.sentinel2.scene_masks import SceneMasks

_LARGE = 1024  # rows and columns from which on a scene has room for the places at which a shift is measured


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a pair becomes triplets; the configuration explains each."""

    preset: str | None = None
    window: int = 256
    stride: int = 64
    cloud: tuple[float, float] = (0.05, 0.30)
    target_max_cloud: float = 0.01
    max_no_data: float = 0.0
    min_correlation: float | None = 0.5
    balance: int = 0
    max_per_pair: int | None = None
    radiometry: str = "line"
    min_r2: float | None = 0.5
    max_shift: float = 1.0
    unmeasured: str = "reject"


@dataclass(frozen=True)
class PreparedPair:
    """A pair whose dates are compared and whose windows are selected, before its bands are decoded.

    The keys are the roles of its dates: cloudy, clear and those of REFERENCES that it has. With `truth`, a file with
    the ground of the cloudy day, that ground is the target and the clear date the first reference: `reference` is no
    key then.
    """

    products: dict[str, Product]
    masks: dict[str, SceneMasks]
    matches: dict[str, Match]  # of all but the cloudy date, which the others are normalised to
    windows: Windows
    shift: ShiftEstimator  # between the cloudy and the clear date
    measures: dict  # plain values
    truth: Path | None


def prepare(
    products: dict[str, Product],
    settings: masks.Settings,
    rules: Rules,
    *,
    excluded: list[BaseGeometry],
    seed: int,
    truth: Path | None = None,
    labels: Path | None = None,
    drifting: Path | None = None,
) -> PreparedPair:
    """Compares the dates of a pair by their small files and reduced bands, and selects its windows.

    `excluded` is ground of other splits, in the products' map coordinates; `seed` decides which windows are drawn;
    `labels` and `drifting` are folders, see `scene.open_masks`.
    RejectedError where the clear date does not fit the cloudy one or no window is left.
    """
    height, width = products["cloudy"].shape
    if min(height, width) < rules.window:
        raise RejectedError(f"the scene has {height} x {width} pixels, less than a window of {rules.window}")
    found = scene.open_masks(products, settings, labels=labels, drifting=drifting)
    step = scene.reduction((height, width), window=rules.window)
    reduced = {role: ReducedScene.open(each, found[role], step) for role, each in products.items()}
    matches = {
        role: scene.fit(date, reduced["cloudy"], grid=rules.radiometry == "grid")
        for role, date in reduced.items()
        if role != "cloudy"
    }
    measures: dict = {"radiometric_match": {role: match.facts() for role, match in matches.items()}}
    if rules.min_r2 is not None and (poor := matches["clear"].poor(rules.min_r2)):
        raise RejectedError(f"the clear date does not fit the cloudy one: {', '.join(poor)}", {"measures": measures})
    if rules.min_r2 is not None and rules.unmeasured == "reject" and (unknown := matches["clear"].unknown()):
        reason = f"nobody can tell whether the clear date fits the cloudy one: {', '.join(unknown)}"
        raise RejectedError(reason, {"measures": measures})
    core, target_core, factor = _cores(found, (height, width), still_target=truth is None)
    if rules.preset:  # it selects by the scene classification itself, and takes its masks from there
        core, target_core, factor = (scl := product.read_scl(products["cloudy"])), scl, 2
        found["cloudy"] = SceneMasks(masks.classes(scl), masks.classes(scl), factor)
    selected = windows.select(core, target_core, factor=factor, shape=(height, width), **_limits(rules))
    kept, measures["windows"] = _narrowed(selected, reduced, matches["clear"], rules, excluded, seed)
    if not len(kept):
        counts = [f"{count} {name}" for name, count in measures["windows"].items() if name != "kept"]
        raise RejectedError(f"no window is usable: {', '.join(counts)}", {"measures": measures})
    shift = ShiftEstimator(reduced["cloudy"], reduced["clear"])
    return PreparedPair(products, found, matches, kept, shift, measures, truth)


def _cores(
    found: dict[str, SceneMasks], shape: tuple[int, int], *, still_target: bool = False
) -> tuple[np.ndarray, np.ndarray, int]:
    """The mask classes, not grown, of the cloudy and of the clear date, and their factor: users' own masks may differ
    in it. What drifts is unknown of a clear date that is the target."""
    cloudy, clear = found["cloudy"], found["clear"]
    if still_target:
        drifts = (clear.core == CLEAR) & (clear.mask == UNKNOWN)
        clear = replace(clear, core=np.where(drifts, np.uint8(UNKNOWN), clear.core))
    if cloudy.factor == clear.factor:
        return cloudy.core, clear.core, cloudy.factor
    return cloudy.at_10m("core", shape), clear.at_10m("core", shape), 1


def _limits(rules: Rules) -> dict:
    """What `windows.select` asks of a window."""
    limits = {key: getattr(rules, key) for key in ("window", "stride", "cloud", "target_max_cloud", "max_no_data")}
    return limits | (windows.NOTEBOOK_2025 if rules.preset else {})


def _narrowed(
    selected: Windows,
    reduced: dict[str, ReducedScene],
    match: Match,
    rules: Rules,
    excluded: list[BaseGeometry],
    seed: int,
) -> tuple[Windows, dict[str, int]]:
    """The windows that become triplets, and how many each rule left."""
    cloudy, clear = reduced["cloudy"], reduced["clear"]
    found, left = selected, {"selected by mask": len(selected)}
    if rules.min_correlation is not None and not rules.preset:
        matched = match.apply(clear.bands, height=clear.bands.shape[1])
        value = windows.correlation(cloudy.bands, matched, cloudy.clear & clear.clear, found, step=cloudy.step)
        found = found.take(~(value < rules.min_correlation))  # NaN stays: not measurable is no reason
        left["correlated"] = len(found)
    found = windows.off_ground(found, transform=cloudy.product.transform, excluded=excluded)
    left["on ground of no other split"] = len(found)
    if not rules.preset:
        found = windows.balance(found, bins=rules.balance, cloud=rules.cloud, limit=rules.max_per_pair, seed=seed)
    return found, left | {"kept": len(found)}


def stripes(pair: PreparedPair, *, radiometry: str, processes: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(first row, images by role) of full rows, from north to south: cloudy, clear (the target) and the references that
    there are (4, r, W) uint16 DN, and mask (r, W) uint8.

    The clear dates are radiometrically normalised to the cloudy one; references have data only where they are clear.
    Each JPEG 2000 tile is decoded once; the pair's `shift` takes its chips in passing.
    """
    height = pair.products["cloudy"].shape[0]
    for top, pixels in product.stripes(list(pair.products.values()), processes=processes):
        dates = dict(zip(pair.products, pixels, strict=True))
        pair.shift.add(top, dates["cloudy"], dates["clear"])
        if radiometry != "none":
            dates |= {role: match.apply(dates[role], top=top, height=height) for role, match in pair.matches.items()}
        yield top, _images(pair, dates, slice(top, top + pixels.shape[-2]))


def _images(pair: PreparedPair, dates: dict[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    """The images of triplets, by role, from the bands of the dates in these rows."""
    shape = pair.products["cloudy"].shape
    target = dates["clear"] if pair.truth is None else _ground(pair.truth, shape, rows)
    images = {"cloudy": dates["cloudy"], "clear": target}
    for role in REFERENCES:
        source = "clear" if role == "reference" and pair.truth is not None else role
        if source in dates:
            clear = pair.masks[source].at_10m("mask", shape, rows) == CLEAR
            images[role] = np.where(clear, dates[source], EMPTY_DN)
    mask = pair.masks["cloudy"].at_10m("mask", shape, rows)
    mask[(images["cloudy"] == EMPTY_DN).any(0) | (images["clear"] == EMPTY_DN).any(0)] = NO_DATA
    return images | {"mask": mask}


def _ground(path: Path, shape: tuple[int, int], rows: slice) -> np.ndarray:
    """(4, r, W) uint16 DN: these rows of the ground of a cloudy day, of a scene of `shape` (rows, columns)."""
    with reading(path, RasterioError, reason="cannot be read as a raster"), rasterio.open(path) as image:
        found, expected = (image.count, *image.shape), (len(BANDS), *shape)
        if found != expected or set(image.dtypes) != {"uint16"}:
            raise ItemError(f"{path}: {found} {image.dtypes[0]}, the scene has {expected} uint16")
        return image.read(window=((rows.start, rows.stop), (0, shape[1])))


def measured_shift(pair: PreparedPair, max_shift: float, unmeasured: str) -> dict:
    """How far the clear date lies off the cloudy one, after all `stripes`: only the bands at full resolution tell.
    RejectedError above `max_shift` pixels, and where `unmeasured` is "reject" and the shift cannot be measured, but in
    scenes that are too small for enough places to measure at."""
    shift = pair.shift.shift()
    if shift["row"] is None and unmeasured == "reject" and min(pair.products["cloudy"].shape) >= _LARGE:
        reason = f"nobody can tell how far the dates are shifted: {shift['why']}"
        raise RejectedError(reason, {"measures": pair.measures | {"shift": shift}})
    if shift["row"] is not None and max(abs(shift["row"]), abs(shift["col"])) > max_shift:
        moved = f"{shift['row']:+.2f} rows, {shift['col']:+.2f} columns"
        reason = f"the dates are shifted by {moved}, at most {max_shift} pixels"
        raise RejectedError(reason, {"measures": pair.measures | {"shift": shift}})
    return shift
