"""Public data sets as shards: their kinds, the parts that become one shard each, and how a part is written."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cloudjob.errors import ConfigError, InterruptedJob, RejectedError
from cloudjob.patches import shard_writer
from cloudjob.patches.public import allclear, sen2mtc, sen12mscr, sen12mscrts
from cloudjob.patches.public.samples import L1C, Found, Rules, Sample, Triplet, cloud_share
from cloudjob.patches.shards import EACH
from cloudjob.patches.splits import CLEAR_DATE
from cloudjob.pixels import EMPTY_DN, NO_DATA, REFERENCES
from cloudjob.sentinel2 import masks

_MOST = 500  # samples of a shard; 550 MB without references


class Kind(NamedTuple):
    """A data set: what its folder holds, and how a sample of it is found and read."""

    level: str
    tree: str
    masks: str  # in words
    grown: bool  # its masks need not grow
    references: int  # at most
    find: Callable[[Path], Found]
    load: Callable[[Sample, Rules], Triplet | None]


KINDS = {
    "sen12mscr": Kind(L1C, sen12mscr.TREE, sen12mscr.MASKS, False, 0, sen12mscr.find, sen12mscr.load),
    "sen12mscr-ts": Kind(L1C, sen12mscrts.TREE, sen12mscrts.MASKS, False, 3, sen12mscrts.find, sen12mscrts.load),
    "allclear": Kind(L1C, allclear.TREE, allclear.MASKS, True, 2, allclear.find, allclear.load),
    "sen2mtc": Kind("not known", sen2mtc.TREE, sen2mtc.MASKS, False, 2, sen2mtc.find, sen2mtc.load),
}


class Part(NamedTuple):
    """Samples of one region that become one shard."""

    name: str
    split: str
    region: str
    samples: list[Sample]


def parts(kind: str, folder: Path) -> tuple[list[Part], list[str]]:
    """The parts of a data set, and what there is to say of what is left; ConfigError where the folder holds none."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    everything = KINDS[kind].find(folder)
    samples, notes = everything.samples, everything.notes
    if not samples:
        said = f" ({'; '.join(notes)})" if notes else ""
        raise ConfigError(f"{folder}: no sample of {kind} is there{said}; expected {KINDS[kind].tree}")
    found = []
    for (split, region), group in groupby(samples, key=lambda each: (each.split, each.region)):
        own = list(group)
        for number, start in enumerate(range(0, len(own), _MOST)):
            name = region if len(own) <= _MOST else f"{region}_{number:03d}"
            found.append(Part(name, split, region, own[start : start + _MOST]))
    return found, notes


def write(
    path: Path,
    kind: str,
    part: Part,
    rules: Rules,
    growth: masks.Settings,
    *,
    compression: str,
    attributes: dict,
    stopped: Callable[[], bool],
) -> dict:
    """Writes the shard of a part, and returns what `normalisation` and `read_back` need. RejectedError where no sample
    gives a triplet; InterruptedJob when `stopped`."""
    count = min(KINDS[kind].references, rules.references)
    with shard_writer.Writer(
        path,
        len(part.samples),
        window=rules.window,
        compression=compression,
        pair=_facts(kind, part),
        reference_days=[np.nan] * count,
        attributes=attributes,
    ) as writer:
        for sample in part.samples:
            if stopped():
                raise InterruptedJob("shard: stopped; run the same command again")
            if (triplet := KINDS[kind].load(sample, rules)) is not None:
                _add(writer, sample, triplet, count, None if KINDS[kind].grown else growth)
    if not writer.result["count"]:
        raise RejectedError(f"none of {len(part.samples)} patches has a clear date and one with cloud in shard.cloud")
    shard_writer.read_back(path, writer.result)
    return {name: value for name, value in writer.result.items() if name != "checksums"}


def _add(
    writer: shard_writer.Writer, sample: Sample, triplet: Triplet, count: int, growth: masks.Settings | None
) -> None:
    mask = triplet.core if growth is None else masks.grow(triplet.core, growth, pixel_m=10)
    fraction = cloud_share(mask)
    mask[(triplet.cloudy == EMPTY_DN).any(0) | (triplet.clear == EMPTY_DN).any(0)] = NO_DATA
    none = np.full_like(triplet.clear, EMPTY_DN)
    references = [*triplet.references, *[none] * count][:count]
    images = {"cloudy": triplet.cloudy, "clear": triplet.clear, "mask": mask}
    images |= dict(zip(REFERENCES, references, strict=False))
    writer.add(triplet.days(), row=sample.number, col=0, cloud_fraction=fraction, **images)


def _facts(kind: str, part: Part) -> dict:
    """Facts of a shard: nothing is known of products, nothing was matched, and days are those of each triplet."""
    return {
        "pair": part.name,
        "target": CLEAR_DATE,
        "radiometry": "none",
        "products": {"cloudy": part.name},
        "days": EACH,
        "data_set": kind,
        "level": KINDS[kind].level,
        "masks": KINDS[kind].masks,
        "radiometric_match": {"clear": {"lines": []}},
        "shift": {"row": None, "col": None},
    }
