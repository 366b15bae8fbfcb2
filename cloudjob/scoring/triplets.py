"""Scores of the triplets of a held-out split: by method, by cloud fraction and sun, with intervals over pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudjob.diffusion.batch import Batch
from cloudjob.pixels import EMPTY_DN, HIDDEN
from cloudjob.restoration.restorer import Restorer
from cloudjob.scoring import methods, metrics
from cloudjob.scoring.tables import best_first, finite
from cloudjob.sentinel2.radiometry import digital_number, reflectance

_SHOWN = ("cloudy", "ours", "ours_member", "ours_without_reference")  # in a picture, before the truth


@dataclass(frozen=True)
class PairScores:
    """The scores of some triplets of a pair."""

    rows: list[list[dict]]  # of each triplet one per method and region
    changed_clear_pixels: int
    ensemble: list[dict] | None  # of each triplet that has anything hidden; None where there is one member
    shown: list[tuple[NDArray, ...]]  # lines of a picture, images (4, n, n) uint16 DN beside each other

    def result(self) -> dict[str, Any]:
        """As plain JSON; `pool` takes it."""
        plain: dict[str, Any] = {"rows": self.rows, "changed_clear_pixels": self.changed_clear_pixels}
        return plain if self.ensemble is None else plain | {"ensemble": finite(self.ensemble)}


def score_pair(
    restorer: Restorer,
    arrays: dict[str, NDArray],
    *,
    places: Sequence[int],
    noise_key: int,
    pair: dict[str, Any],
    members: int,
    more_steps: list[int],
    factors: list[float],
    known: dict[str, Any],
) -> PairScores:
    """Restores triplets of a pair by all methods, and scores these against the clear image.

    `arrays` are those of ShardSet.evenly, and `places` the positions of its triplets in the pair: the noise of a
    triplet is that of `noise_key` + its place. `pair` are the facts of the shard, for the reference as it is; `known`
    goes into each row.
    """
    images = {name: reflectance(arrays[name]) for name in ("cloudy", "clear", "reference") if name in arrays}
    truth, mask = images.pop("clear"), arrays["mask"]
    batch = Batch.of(arrays, restorer.device, scored=True)
    numbers = [noise_key + place for place in places]
    members = 1 if restorer.single else members
    found, every = methods.ours(restorer, batch, numbers, members=members, more_steps=more_steps)
    found |= methods.one_date(images["cloudy"], mask)
    if "reference" in images:
        found["nearest_matched"] = images["reference"]
        found["nearest_clear"] = as_it_is(arrays["reference"], pair)
    hidden = np.isin(mask, HIDDEN)
    rows = []
    for i, triplet in enumerate(methods.score(found, truth, mask)):
        facts = known | {"triplet": places[i], "cloud": hidden[i].mean()}
        facts |= {name: arrays[name][i] for name in ("sun_elevation", "reference_days")}
        rows.append([finite(facts | row) for row in triplet])
    changed = (digital_number(found["ours"]) != arrays["cloudy"]).any(1)[~hidden].sum()
    ensemble = None if every is None else methods.score_members(every, truth, hidden, factors)
    shown = [digital_number(each[:4]) for each in (*(found[name] for name in _SHOWN if name in found), truth)]
    return PairScores(rows, int(changed), ensemble, list(zip(*shown, strict=True)))


def as_it_is(dn: NDArray, pair: dict[str, Any]) -> NDArray:
    """Reflectance of the reference (N, 4, H, W) uint16 DN before it was normalised to the cloudy date.

    `pair` are the facts of its shard: where the target is the ground of the day, the reference is the clear date.
    """
    if pair["radiometry"] == "none":
        return reflectance(dn)
    match = pair["radiometric_match"]["clear" if pair["target"] == "ground" else "reference"]
    gain, offset = (np.array([line[key] for line in match["lines"]])[:, None, None] for key in ("gain", "offset"))
    before = np.rint((dn - offset) / gain).clip(EMPTY_DN + 1, 65535)
    return reflectance(np.where(dn > EMPTY_DN, before, EMPTY_DN).astype(np.uint16))


_SHARES = {"below 10 %": (0, 0.1), "10 to 30 %": (0.1, 0.3), "30 to 60 %": (0.3, 0.6), "above 60 %": (0.6, math.inf)}
_ELEVATIONS = {"sun below 15": (-math.inf, 15), "15 to 25": (15, 25), "above 25 degrees": (25, math.inf)}


def pool(results: list[dict]) -> dict:
    """Scores of all triplets together, with bootstrap intervals over pairs; by cloud fraction and by elevation of the
    sun; differences to ours; and the scores of the ensemble."""
    rows = [row for result in results for triplet in result["rows"] for row in triplet]
    scores: dict[str, dict] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        for on in dict.fromkeys(row["on"] for row in rows):
            chosen = [row for row in rows if (row["method"], row["on"]) == (method, on)]
            if chosen:
                low, high = metrics.bootstrap(_sums(results, on, method), metrics.pooled_psnr)
                pooled = {"triplets": len(chosen)} | metrics.pool(chosen) | {"psnr_interval": [low, high]}
                scores.setdefault(method, {})[on] = finite(pooled)
    scores = best_first(scores)
    strata: dict[str, dict] = {}
    for key, bins in (("cloud", _SHARES), ("sun_elevation", _ELEVATIONS)):
        for name, (low, high) in bins.items():
            inside = [row for row in rows if row["on"] == "cloud" and low <= (row[key] or 0) < high]
            for method in dict.fromkeys(row["method"] for row in inside):
                chosen = [row for row in inside if row["method"] == method]
                pooled = {"triplets": len(chosen)} | metrics.pool(chosen)
                kept = ("triplets", "pixels", "psnr", "ssim", "mae", "high_pass_ratio")
                strata.setdefault(name, {})[method] = finite({measure: pooled[measure] for measure in kept})
    return {"scores": scores, "strata": strata, "differences": _differences(results, scores), **_ensemble(results)}


def _sums(results: list[dict], on: str, *methods: str) -> NDArray:
    """For each pair pixels and squared error of each of these methods, of the triplets that all of them have."""
    sums = []
    for result in results:
        total = [0.0] * (2 * len(methods))
        for triplet in result["rows"]:
            found = {row["method"]: row for row in triplet if row["on"] == on}
            if all(method in found for method in methods):
                for i, method in enumerate(methods):
                    total[2 * i] += found[method]["pixels"]
                    total[2 * i + 1] += found[method]["pixels"] * found[method]["rmse"] ** 2
        if total[0]:
            sums.append(total)
    return np.array(sums)


def _differences(results: list[dict], scores: dict) -> dict:
    """Method -> PSNR of ours on cloud pixels over that of the method, same triplets, with its bootstrap interval."""

    def gain(sums: NDArray) -> NDArray:
        return metrics.pooled_psnr(sums[..., :2]) - metrics.pooled_psnr(sums[..., 2:])

    found = {}
    for method in scores:
        sums = _sums(results, "cloud", "ours", method)
        if method != "ours" and len(sums):
            low, high = metrics.bootstrap(sums, gain)
            found[method] = finite({"psnr": float(gain(np.sum(sums, 0))), "interval": [low, high]})
    return found


def _ensemble(results: list[dict]) -> dict:
    """Means over pixels; spread and skill are pooled before their ratio."""
    parts = [part for result in results for part in result.get("ensemble", [])]
    if not parts:
        return {}
    weight = sum(part["pixels"] for part in parts)

    def mean(key: str, power: int = 1) -> float:
        return (sum(part["pixels"] * part[key] ** power for part in parts) / weight) ** (1 / power)

    pooled = {key: mean(key) for key in ("crps", "coverage_50", "coverage_90")}
    pooled |= {key: mean(key, 2) for key in ("spread", "skill")}
    return {"ensemble": finite(pooled)}
