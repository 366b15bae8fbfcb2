"""SEN12MS-CR-TS (Ebel et al. 2022, doi 10.1109/TGRS.2022.3146246): thirty dates of 2018 of each patch.

FOLDER/<season>/<region>/S2/<date>/s2_<season>_<region>_ImgNo_<date>_<day>_patch_<patch>.tif.
"""

import re
from datetime import date
from pathlib import Path

import numpy as np

from cloudjob.patches.public import l1c_masks
from cloudjob.patches.public.regions import SEASONS, SERIES, split_of
from cloudjob.patches.public.samples import (
    Found,
    Rules,
    Sample,
    Triplet,
    by_name,
    cloud_share,
    hidden_share,
    image,
    without,
)

TREE = "<season>/<region>/S2/<date>/*.tif"
MASKS = "thresholds on seven bands, of DSen2-CR; shadow also against the median of the dates"
_NAME = re.compile(r"s2_(ROIs\d+)_(\d+)_ImgNo_\d+_(\d{4}-\d\d-\d\d)_patch_(\d+)\.tif")


def find(folder: Path) -> Found:
    """The patches of the listed regions, with all of their dates."""
    samples, unlisted = [], set()
    for place in sorted(place for season in SEASONS for place in (folder / season).glob("*/S2")):
        region = f"{place.parents[1].name}_{place.parent.name}"
        if (split := split_of(region, SERIES)) is None:
            unlisted.add(region)
            continue
        dates: dict[int, list[tuple[date, Path]]] = {}
        for path in place.glob("*/*.tif"):
            if (match := _NAME.fullmatch(path.name)) and f"{match[1]}_{match[2]}" == region:
                dates.setdefault(int(match[4]), []).append((date.fromisoformat(match[3]), path))
        for patch, found in sorted(dates.items()):
            days, files = zip(*sorted(found), strict=True)
            samples.append(Sample(region, split, patch, files, days))
    notes = [f"{len(unlisted)} regions in no published split: {', '.join(sorted(unlisted)[:5])}"] if unlisted else []
    return Found(sorted(samples, key=lambda each: (each.split, each.region, each.number)), notes)


def load(sample: Sample, rules: Rules) -> Triplet | None:
    """Of the dates with as much cloud as the rules want and those with as little hidden as a target may have, the two
    nearest in time; the references are the dates nearest to the cloudy one with little hidden. None without such two.
    """
    dates = [by_name(path, l1c_masks.BANDS_NEEDED, rules.window) for path in sample.files]
    usual = np.nanmedian([np.nan_to_num(l1c_masks.infrared(each)) for each in dates], axis=0)
    cores = [l1c_masks.classes(each, usual) for each in dates]
    hidden = [hidden_share(core) if not (core == l1c_masks.NO_DATA).any() else 1.0 for core in cores]
    low, high = rules.cloud
    cloudy = [n for n, core in enumerate(cores) if low <= cloud_share(core) <= high]
    targets = [n for n, share in enumerate(hidden) if share <= rules.target_cloud]

    def away(one: int, other: int) -> int:
        return (sample.days[other] - sample.days[one]).days

    couples = [
        (abs(away(one, other)), hidden[other], one, other) for one in cloudy for other in targets if one != other
    ]
    if not couples:
        return None
    *_, chosen, target = min(couples)
    others = [n for n, share in enumerate(hidden) if n not in (chosen, target) and share <= rules.clear_cloud]
    near = [n for n in others if abs(away(chosen, n)) <= rules.reference_days]
    near = sorted(near, key=lambda n: abs(away(chosen, n)))[: rules.references]
    return Triplet(
        image(dates[chosen]),
        image(dates[target]),
        cores[chosen],
        [without(image(dates[n]), cores[n]) for n in near],
        away(chosen, target),
        [away(chosen, n) for n in near],
    )
