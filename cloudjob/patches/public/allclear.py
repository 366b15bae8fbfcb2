"""AllClear (Zhou et al. 2024, arXiv 2410.23891): three dates and a target of each sample, as its lists name them.

FOLDER/metadata/datasets/<split>_tx3_*.json, and FOLDER/data/roi<n>/<month>/{s2_toa,cld_shdw}/*.tif. Paths in the lists
are those of its authors' machine: what follows roi<n>/ counts.
"""

import re
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudjob.errors import CorruptFileError
from cloudjob.files import read_json
from cloudjob.patches.public.samples import Found, Rules, Sample, Triplet, by_name, image, read, without
from cloudjob.pixels import BANDS, CLEAR, CLOUD, HIDDEN, NO_DATA, SHADOW

TREE = "metadata/datasets/<split>_tx3_*.json and data/roi<n>/<month>/{s2_toa,cld_shdw}/*.tif"
MASKS = "its own: clouds_30 and shadows_thres_30, grown already"
_CLOUDS, _SHADOWS = 2, 5  # bands of its masks, as its loader takes them
_TOGETHER = 100  # regions in a part: they have few samples each


def find(folder: Path) -> Found:
    """The samples of the largest list of each split that have a target and all of their files."""
    samples, notes = [], []
    for split in ("train", "val", "test"):
        lists = sorted((folder / "metadata" / "datasets").glob(f"{split}_tx3_*.json"), key=_size)
        if not lists:
            continue
        own, lacking = _of_list(folder, lists[0], split)
        samples += own
        notes.append(f"{split}: {lists[0].name}, {len(own)} samples" + (f", {lacking} without" if lacking else ""))
    return Found(sorted(samples, key=lambda each: (each.split, each.region, each.number)), notes)


def _size(path: Path) -> tuple:
    """The list with the largest share of the samples first, then the one that asks for fewer sensors."""
    share = re.search(r"_([\d.]+)pct", path.stem)
    return -float(share[1] if share else 0), "1proi" in path.stem, len(path.name), path.name


def _of_list(folder: Path, path: Path, split: str) -> tuple[list[Sample], int]:
    """Samples, and how many entries have no target or lack files."""
    entries = read_json(path)
    try:
        rois = sorted({entry["roi"][0] for entry in entries.values()})
        place = {roi: f"{split}_rois_{number // _TOGETHER:04d}" for number, roi in enumerate(rois)}
        found, there = [], {roi: _names(folder / "data" / roi) for roi in rois}
        for number, entry in enumerate(entries.values()):
            roi = entry["roi"][0]
            dated = sorted((_time(time), file) for time, file in entry["s2_toa"])
            dated += [(_time(time), file) for time, file in entry.get("target", [])[:1]]
            inside = [file.partition(f"/{roi}/")[2] for _, file in dated]
            masks = [each.replace("s2_toa", "cld_shdw") for each in inside]
            if "target" in entry and len(dated) > 1 and there[roi].issuperset([*inside, *masks]):
                files = tuple(folder / "data" / roi / each for each in inside)
                found.append(Sample(place[roi], split, number, files, tuple(time.date() for time, _ in dated)))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFileError(path, f"is no list of samples ({error!r})") from None
    return found, len(entries) - len(found)


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S")


def _names(folder: Path) -> set[str]:
    """The rasters of a region, by their paths below its folder."""
    return {path.relative_to(folder).as_posix() for path in folder.glob("*/*/*.tif")}


def load(sample: Sample, rules: Rules) -> Triplet:
    """Cloudy is the input nearest in time to the target, and the others are references where they are clear. What is
    hidden in the target is no data, as in its benchmark."""
    images = [image(by_name(path, BANDS, rules.window)) for path in sample.files]
    cores = [_core(path, rules.window) for path in sample.files]
    target = len(images) - 1

    def away(one: int, other: int) -> int:
        return (sample.days[other] - sample.days[one]).days

    chosen = min(range(target), key=lambda n: abs(away(target, n)))
    others = sorted((n for n in range(target) if n != chosen), key=lambda n: abs(away(chosen, n)))[: rules.references]
    core = cores[chosen]
    core[np.isin(cores[target], HIDDEN)] = NO_DATA
    return Triplet(
        images[chosen],
        images[target],
        core,
        [without(images[n], cores[n]) for n in others],
        away(chosen, target),
        [away(chosen, n) for n in others],
    )


def _core(path: Path, size: int) -> NDArray:
    """Classes (size, size); what its masks do not tell is cloud, as its loader takes it."""
    mask = Path(*(part.replace("s2_toa", "cld_shdw") for part in path.parts[-2:]))
    clouds, shadows = np.nan_to_num(read(path.parents[1] / mask, (_CLOUDS, _SHADOWS), size), nan=1)
    return np.select([clouds > 0, shadows > 0], [CLOUD, SHADOW], default=CLEAR).astype(np.uint8)
