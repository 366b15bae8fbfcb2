"""Scores of restored scenes: of each method by kind of pixel, the seams between tiles, and all scenes together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cloudjob.pixels import CLEAR, EMPTY_DN, HIDDEN
from cloudjob.restoration.tiles import tiles
from cloudjob.scoring import baselines, metrics, strata
from cloudjob.scoring.tables import METHODS, NOISE, best_first, finite
from cloudjob.sentinel2 import radiometry
from cloudjob.sentinel2.scene import Scene

_SQUARE = 512  # pixels: a hole across the border is filled from both sides alike
NO_TRUTH = "none, the clear date was shown to the model"


def images_of(
    cloudy: Scene,
    clear: Scene,
    reference: Scene | None,
    restored: NDArray,
    ground: NDArray | None,
    sensed: NDArray | None = None,
) -> tuple[dict[str, NDArray], NDArray]:
    """(method -> image, truth), each (4, H, W) uint16 DN, of a restored scene.

    The truth is the `ground` of the cloudy day where it is known; else the clear date, normalised to the cloudy one
    and without its own clouds, and then the nearest date that the model may be compared with is the reference. `sensed`
    is the ground with the sensor's noise.
    """
    filled = baselines.mean_fill(radiometry.reflectance(cloudy.bands), cloudy.mask == CLEAR)
    images = {"ours": restored, "cloudy": cloudy.bands, "mean_fill": radiometry.digital_number(filled)}
    if sensed is not None:
        images[NOISE] = sensed
    truth = ground if ground is not None else clear.clear_only(cloudy.matched(clear))
    if ground is not None and reference is not None:
        images["other_matched"] = cloudy.matched(reference)
    nearest = clear if ground is not None else reference
    if nearest is not None:
        matched = cloudy.matched(nearest)
        images |= {"nearest_clear": nearest.bands, "nearest_matched": matched}
        images |= _fills(cloudy, nearest.clear_only(matched))
    return images, truth


def _fills(cloudy: Scene, reference: NDArray) -> dict[str, NDArray]:
    """The quick ones of the fills from another date, by method, in squares of _SQUARE pixels; EMPTY_DN without one."""
    found = {name: cloudy.bands.copy() for name in ("first_guess", "poisson")}
    for tile in tiles(cloudy.mask.shape, size=_SQUARE, overlap=0):
        mask = cloudy.mask[tile.slices]
        if not (hidden := np.isin(mask, HIDDEN)).any():
            continue
        image, other = (radiometry.reflectance(each[:, *tile.slices]) for each in (cloudy.bands, reference))
        guess = np.where(np.isfinite(other).all(0), baselines.first_guess(image, other, mask), np.nan)
        for name, fill in (("first_guess", guess), ("poisson", baselines.poisson_fill(image, other, mask == CLEAR))):
            part = found[name][:, *tile.slices]
            part[:, hidden] = radiometry.digital_number(fill)[:, hidden]
    return found


def score(
    images: dict[str, NDArray],
    truth: NDArray,
    mask: NDArray,
    core: NDArray,
    *,
    kind: str,
    tile: int,
    overlap: int,
) -> list[dict]:
    """Rows {"method", "on", "truth", scores...} of a scene; the first also tells what was changed, and of the seams.

    images and truth (4, H, W) uint16 DN, mask and core (H, W) uint8 classes (see `strata.regions`). `kind` says in
    words what the truth is; with NO_TRUTH nothing is scored against it. `tile` and `overlap` are those that the scene
    was restored with.
    """
    ground = radiometry.reflectance(truth)
    if kind == NO_TRUTH:
        ground[:] = np.nan  # what the model was shown is no judge of it
    where = strata.regions(mask, core)
    common = np.logical_and.reduce([(image != EMPTY_DN).all(0) for image in images.values()])
    rows = []
    for method, image in images.items():
        found = metrics.scores(radiometry.reflectance(image), ground, where, common=common)
        rows += [{"method": method, "on": on, "truth": kind} | finite(values) for on, values in found.items()]
    changed = int((images["ours"] != images["cloudy"]).any(0)[~where["cloud"]].sum())
    seen = {"ours": radiometry.reflectance(images["ours"]), "truth": ground}
    seams = {name: seam_index(image, where["cloud"], tile=tile, overlap=overlap) for name, image in seen.items()}
    rows[0] |= {"changed_clear_pixels": changed, "seam_index": finite(seams)}
    return rows


def seam_index(image: NDArray, pixels: NDArray, *, tile: int, overlap: int) -> float:
    """`metrics.seam_index` at the edges of the tiles that a scene was restored with."""
    every = tiles(pixels.shape, size=tile, overlap=overlap)
    rows = {edge for each in every for edge in (each.row, each.row + each.height)}
    cols = {edge for each in every for edge in (each.col, each.col + each.width)}
    return metrics.seam_index(image, pixels, rows, cols)


def mean_seams(seams: Sequence[dict]) -> dict:
    """Over the scenes where it can be measured: of the restored image, and of the truth at the same edges."""
    known = [seam for seam in seams if None not in seam.values()]
    return {key: round(sum(seam[key] for seam in known) / len(known), 4) for key in ("ours", "truth")} if known else {}


def pool(rows: Sequence[dict]) -> dict:
    """method -> pixels -> scores over all pixels of these scenes (without those where a method could not be had)."""
    pooled: dict = {}
    for method in METHODS:
        for on in strata.STRATA:
            chosen = [row for row in rows if row["method"] == method and row["on"] == on and row["pixels"]]
            if chosen:
                pooled.setdefault(method, {})[on] = finite({"scenes": len(chosen)} | metrics.pool(chosen))
    return best_first(pooled)


def differences(rows: Sequence[dict]) -> dict[str, dict]:
    """Stratum -> method -> {"psnr"}: that of ours over that of the method, on the scenes that have both."""
    found: dict[str, dict] = {}
    for on in strata.STRATA:
        known = {(row["product"], row["method"]): row for row in rows if row["on"] == on and row["pixels"]}
        for method in dict.fromkeys(method for _, method in known if method != "ours"):
            both = [(known[product, "ours"], row) for (product, name), row in known.items() if name == method]
            sums = [
                [part for row in pair for part in (row["pixels"], row["pixels"] * row["rmse"] ** 2)] for pair in both
            ]
            total = np.sum(sums, 0)
            gain = metrics.pooled_psnr(total[:2]) - metrics.pooled_psnr(total[2:])
            found.setdefault(on, {})[method] = finite({"psnr": float(gain)})
    return found


def thumbnail(images: Sequence[NDArray], *, side: int = 512) -> list[NDArray]:
    """The images (4, H, W) thinned to at most `side` pixels a side."""
    step = -(-max(images[0].shape[-2:]) // side)
    return [image[:, ::step, ::step] for image in images]
