"""Scores of the triplets of a held-out split: by method, by cloud fraction and sun, with intervals over pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudjob.diffusion.batch import Batch
from cloudjob.patches.shards import DAYS
from cloudjob.pixels import EMPTY_DN, HIDDEN, REFERENCES
from cloudjob.restoration.restorer import Restorer
from cloudjob.scoring import methods, metrics, protocols, strata
from cloudjob.scoring.tables import NOISE, best_first, finite
from cloudjob.sentinel2.radiometry import digital_number, reflectance

_SHOWN = ("cloudy", "ours", "ours_member", "ours_without_reference")  # in a picture, before the truth


@dataclass(frozen=True)
class PairScores:
    """The scores of some triplets of a pair."""

    rows: list[list[dict]]  # of each triplet one per method and region
    changed_clear_pixels: int
    # Of each triplet by stratum; None where not two members are independent, or no regression tells its deviation.
    ensemble: list[dict] | None
    gaussian: list[dict] | None  # of as many members of the regression
    published: (
        list[dict] | None
    )  # of each triplet by method, in the protocol of published tables; None if not asked for
    shown: list[tuple[NDArray, ...]]  # lines of a picture, images (4, n, n) uint16 DN beside each other

    def result(self) -> dict[str, Any]:
        """As plain JSON; `pool` takes it."""
        plain: dict[str, Any] = {"rows": self.rows, "changed_clear_pixels": self.changed_clear_pixels}
        plain |= {} if self.published is None else {"published": finite(self.published)}
        ensembles = {"ensemble": self.ensemble, "gaussian": self.gaussian}
        return plain | {name: finite(scores) for name, scores in ensembles.items() if scores is not None}


def score_pair(
    restorer: Restorer | None,
    arrays: dict[str, NDArray],
    core: NDArray,
    *,
    places: Sequence[int],
    noise_key: int,
    pair: dict[str, Any],
    members: int,
    more_steps: list[int],
    factors: list[float],
    known: dict[str, Any],
    sensed: NDArray | None = None,
    protocol: str = "own",
) -> PairScores:
    """Restores triplets of a pair by all methods, and scores these against the clear image.

    Without a restorer, only by those that learn nothing.

    `arrays` are those of ShardSet.evenly, `core` (N, H, W) uint8 classes of what lies above, and `places` the positions
    of its triplets in the pair: the noise of a triplet is that of `noise_key` + its place. `pair` are the facts of the
    shard, for the reference as it is; `known` goes into each row, with the `place` that intervals are drawn over.
    `sensed` (N, 4, H, W) uint16 DN is the clear image with the sensor's
    noise, where that is known. `protocol` asks for scores as published ones too, see `protocols`.
    """
    images = {name: reflectance(arrays[name]) for name in ("cloudy", "clear", *REFERENCES) if name in arrays}
    truth, mask = images.pop("clear"), arrays["mask"]
    numbers = [noise_key + place for place in places]
    found: dict[str, NDArray] = {}
    drawn, gaussian = None, None
    if restorer is not None:
        batch = Batch.of(arrays, restorer.device, scored=True)
        members = 1 if restorer.single else members
        found, every = methods.ours(restorer, batch, numbers, members=members, more_steps=more_steps)
        drawn = None if every is None else every[::2]  # the others are their antithetic twins
        alone, gaussian = methods.regression(restorer, batch, numbers, members=0 if drawn is None else len(drawn))
        found |= alone
    found |= methods.one_date(images["cloudy"], mask)
    if "reference" in images:
        found |= {"nearest_matched": images["reference"], "nearest_clear": as_it_is(arrays["reference"], pair)}
        references = np.stack([images[name] for name in REFERENCES if name in images], 1)
        found |= methods.from_other_dates(images["cloudy"], references, mask, numbers)
    if sensed is not None:
        found[NOISE] = reflectance(sensed)
    hidden = np.isin(mask, HIDDEN)
    rows = []
    device = "cpu" if restorer is None else restorer.device
    for i, triplet in enumerate(methods.score(found, truth, mask, core, device=device)):
        facts = known | {"triplet": places[i], "cloud": hidden[i].mean()}
        facts |= {name: arrays[name][i] for name in ("sun_elevation", *DAYS) if name in arrays}
        rows.append([finite(facts | row) for row in triplet])
    published = None if protocol == "own" else protocols.scores(found, truth)
    changed = 0 if restorer is None else (digital_number(found["ours"]) != arrays["cloudy"]).any(1)[~hidden].sum()
    ensemble = methods.score_members(drawn, truth, mask, core, factors)
    told = methods.score_members(gaussian, truth, mask, core, [1.0] * len(factors))
    shown = [digital_number(each[:4]) for each in (*(found[name] for name in _SHOWN if name in found), truth)]
    return PairScores(rows, int(changed), ensemble, told, published, list(zip(*shown, strict=True)))


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
    """Scores of all triplets together, with bootstrap intervals over places; by cloud fraction and by elevation of the
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
    groups: dict[str, dict] = {}
    for key, bins in (("cloud", _SHARES), ("sun_elevation", _ELEVATIONS)):
        for name, (low, high) in bins.items():
            inside = [row for row in rows if row["on"] == "cloud" and row[key] is not None and low <= row[key] < high]
            for method in dict.fromkeys(row["method"] for row in inside):
                chosen = [row for row in inside if row["method"] == method]
                pooled = {"triplets": len(chosen)} | metrics.pool(chosen)
                kept = ("triplets", "pixels", "psnr", "ssim", "mae", "high_pass_ratio")
                groups.setdefault(name, {})[method] = finite({measure: pooled[measure] for measure in kept})
    return {
        "scores": scores,
        "groups": groups,
        "differences": _differences(results, scores),
        **_ensemble(results),
    } | _published(results)


def _sums(results: list[dict], on: str, *methods: str) -> NDArray:
    """For each place pixels and squared error of each of these methods, of the triplets that all of them have."""
    sums: dict[str, NDArray] = {}
    for triplet in (triplet for result in results for triplet in result["rows"]):
        found = {row["method"]: row for row in triplet if row["on"] == on}
        if all(method in found and found[method]["pixels"] for method in methods):
            parts = [(found[method]["pixels"], found[method]["rmse"]) for method in methods]
            added = np.array([part for pixels, rmse in parts for part in (pixels, pixels * rmse**2)])
            place = found[methods[0]]["place"]
            sums[place] = sums.get(place, 0) + added
    return np.array(list(sums.values()))


def _differences(results: list[dict], scores: dict) -> dict:
    """Stratum -> method -> PSNR of ours over that of the method, same triplets, with its bootstrap interval."""

    def gain(sums: NDArray) -> NDArray:
        with np.errstate(invalid="ignore"):  # of two that make no error there is no difference
            return metrics.pooled_psnr(sums[..., :2]) - metrics.pooled_psnr(sums[..., 2:])

    found: dict[str, dict] = {}
    for on in strata.STRATA:
        for method in scores:
            sums = _sums(results, on, "ours", method)
            if method != "ours" and len(sums):
                low, high = metrics.bootstrap(sums, gain)
                found.setdefault(on, {})[method] = finite(
                    {"psnr": float(gain(np.sum(sums, 0))), "interval": [low, high]}
                )
    return found


def _ensemble(results: list[dict]) -> dict:
    """Of ours, and of the regression: stratum -> means over pixels; spread and skill are pooled before their ratio."""
    found: dict[str, dict] = {}
    for name in ("ensemble", "gaussian"):
        triplets = [triplet for result in results for triplet in result.get(name, [])]
        for on in strata.STRATA:
            if parts := [triplet[on] for triplet in triplets if on in triplet]:
                found.setdefault(name, {})[on] = finite(_pooled_ensemble(parts))
    return found


def _published(results: list[dict]) -> dict:
    """Method -> mean scores in the protocol of published tables, where that was asked for."""
    images = [image for result in results for image in result.get("published", [])]
    return {"published": finite(protocols.mean(images))} if images else {}


def _pooled_ensemble(parts: list[dict]) -> dict:
    weights = np.array([part["pixels"] for part in parts], float)

    def mean(key: str, power: int = 1) -> Any:
        values = np.array([part[key] for part in parts], float)  # None, where there is no pair of pixels, becomes NaN
        known = np.isfinite(values) if values.ndim == 1 else np.ones(len(values), bool)
        if not known.any():
            return np.nan
        return (np.average(values[known] ** power, axis=0, weights=weights[known]) ** (1 / power)).tolist()

    pooled = {key: mean(key) for key in ("crps", "coverage_50", "coverage_90", "ranks", "variogram")}
    pooled |= {key: mean(key, 2) for key in ("spread", "skill")}
    members = len(pooled["ranks"]) - 1
    ratio = math.sqrt((members + 1) / members) * pooled["spread"] / pooled["skill"] if pooled["skill"] else np.nan
    return pooled | {"members": members, "spread_skill": ratio}
