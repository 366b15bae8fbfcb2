"""What a set of shards holds: triplets and cloud of each pair, histograms, and pictures of some triplets."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cloudjob.patches.shards import ShardSet, columns
from cloudjob.pixels import BANDS, CLASSES, EMPTY_DN
from cloudjob.sentinel2.radiometry import reflectance
from cloudjob.sentinel2.render import encode_png, outlines, side_by_side, true_colour

CLOUD_EDGES = np.linspace(0, 1, 21)  # of the cloud fraction
LIGHT_EDGES = np.linspace(-0.1, 1.5, 33)  # of the reflectance
_SAMPLED = 200  # triplets whose pixels are counted, evenly spread over all


def collect(folder: Path, index: dict) -> dict:
    """Plain values: `pairs` (one row per shard), `cloud_fraction` (counts in CLOUD_EDGES by split), and, of a sample of
    triplets, `reflectance` (shares in LIGHT_EDGES by band, of the clear images) and `classes` (shares of the masks)."""
    pairs: list[dict] = []
    fractions: dict[str, np.ndarray] = {}
    for entry in index["files"]:
        found = columns(folder / entry["file"])
        facts = json.loads(found["attributes"]["pairs"])[0]
        match = facts["radiometric_match"]["clear"]
        pairs.append(
            {
                "pair": entry["pair"],
                "split": entry["split"],
                "triplets": entry["count"],
                "cloud": round(float(found["cloud_fraction"].mean()), 4),
                "reference_days": float(found["reference_days"][0]) if "reference_days" in found else None,
                "r2": [line["r2"] for line in match["lines"]],
                "shift": [facts["shift"]["row"], facts["shift"]["col"]],
            }
        )
        counts, _ = np.histogram(found["cloud_fraction"], CLOUD_EDGES)
        fractions[entry["split"]] = fractions.get(entry["split"], 0) + counts
    light, classes = _pixels(folder, index)
    by_split = {split: counts.tolist() for split, counts in fractions.items()}
    return {"pairs": pairs, "cloud_fraction": by_split, "reflectance": light, "classes": classes}


def _pixels(folder: Path, index: dict) -> tuple[dict, dict]:
    light, classes = np.zeros((len(BANDS), len(LIGHT_EDGES) - 1)), np.zeros(256)
    for sample in spread(folder, index, _SAMPLED):
        classes += np.bincount(sample["mask"].ravel(), minlength=256)
        for counts, band in zip(light, sample["clear"], strict=True):
            counts += np.histogram(reflectance(band[band != EMPTY_DN]), LIGHT_EDGES)[0]
    light /= np.maximum(light.sum(1, keepdims=True), 1)
    total = max(classes.sum(), 1)
    shares = {name.replace("_", " "): round(float(classes[value] / total), 5) for name, value in CLASSES.items()}
    return {band: values.round(5).tolist() for band, values in zip(BANDS, light, strict=True)}, shares


def spread(folder: Path, index: dict, number: int) -> Iterator[dict[str, np.ndarray]]:
    """About `number` triplets, evenly spread over all shards; at least one of each split."""
    for split in dict.fromkeys(entry["split"] for entry in index["files"]):
        shards = ShardSet(folder, index, split)
        wanted = max(1, round(number * len(shards) / sum(index["counts"].values())))
        for place in range(min(wanted, len(shards))):
            yield shards[place * len(shards) // min(wanted, len(shards))]


def picture(folder: Path, index: dict, *, number: int, gain: float) -> bytes:
    """A PNG of about `number` triplets, one per row: cloudy, the same with its mask, clear, reference."""
    rows = []
    for sample in spread(folder, index, number):
        cloudy = true_colour(sample["cloudy"], gain=gain)
        marks = outlines(sample["mask"])
        weight = marks[..., 3:] / 255
        marked = np.rint(cloudy * (1 - weight) + marks[..., :3] * weight).astype(np.uint8)
        others = [true_colour(sample[name], gain=gain) for name in ("clear", "reference") if name in sample]
        rows.append(side_by_side([cloudy, marked, *others]))
        rows.append(np.full((8, rows[-1].shape[1], 3), 255, np.uint8))
    widest = max(row.shape[1] for row in rows)  # a split without any reference has narrower ones
    return encode_png(np.concatenate([np.pad(row, [(0, 0), (0, widest - row.shape[1]), (0, 0)]) for row in rows]))


def text(found: dict) -> str:
    """What `collect` found, as lines for a terminal."""
    lines = [f"{'pair':<40}{'split':<7}{'triplets':>9}{'cloud':>8}{'reference':>11}{'R2':>7}{'shift':>14}"]
    for row in found["pairs"]:
        days = "none" if row["reference_days"] is None else f"{row['reference_days']:+.1f} d"
        known = [value for value in row["r2"] if value is not None]
        r2 = f"{min(known):.3f}" if known else "-"
        shift = "not measured" if row["shift"][0] is None else "{:+.2f} {:+.2f}".format(*row["shift"])
        lines.append(
            f"{row['pair']:<40}{row['split']:<7}{row['triplets']:>9}{row['cloud']:>8.3f}{days:>11}{r2:>7}{shift:>14}"
        )
    for split, counts in found["cloud_fraction"].items():
        lines += ["", f"cloud fraction, {split} ({sum(counts)} triplets)"]
        for low, count in zip(CLOUD_EDGES, counts, strict=False):
            if count:
                lines.append(f"  {low:4.2f}  {'#' * max(1, round(50 * count / max(counts)))} {count}")
    shares = ", ".join(f"{name} {share:.2%}" for name, share in found["classes"].items() if share)
    lines += ["", f"pixels of the mask: {shares}", "reflectance of the clear images, 5 %, median, 95 %:"]
    for band, values in found["reflectance"].items():
        places = np.searchsorted(np.cumsum(values), (0.05, 0.5, 0.95))
        lines.append(f"  {band}  " + "  ".join(f"{LIGHT_EDGES[min(place, 31)]:.2f}" for place in places))
    return "\n".join(lines)
