"""Sen2_MTC (Huang & Wu 2022, CTGAN): three cloudy images and a clear one of each patch, four bands, without dates.

FOLDER/{train,val,test}.txt name the tiles; FOLDER/Sen2_MTC/<tile>/cloud/<patch>_{0,1,2}.tif and
FOLDER/Sen2_MTC/<tile>/cloudless/<patch>.tif hold red, green, blue and near infrared. Nobody says which level they are.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudjob.errors import CorruptFileError
from cloudjob.patches.public.samples import Found, Rules, Sample, Triplet, numbered, read, without
from cloudjob.pixels import BANDS, CLEAR, CLOUD, NO_DATA, SHADOW
from cloudjob.sentinel2.masks import Settings
from cloudjob.sentinel2.radiometry import digital_number

TREE = "{train,val,test}.txt and Sen2_MTC/<tile>/{cloud,cloudless}/*.tif"
MASKS = "what is brighter than the clear image in B02, or darker in B08: it knows the answer, which flatters scores"
_DOUBT = Settings()  # `brighter` and `darker`


def find(folder: Path) -> Found:
    """The patches of the tiles in the published lists that have all four images."""
    samples, notes = [], []
    for split in ("train", "val", "test"):
        path = folder / f"{split}.txt"
        if not path.exists():
            notes.append(f"no {path.name}, which names the tiles of this split")
            continue
        for tile in sorted({Path(line).name for line in path.read_text(encoding="utf-8").split()}):
            place = folder / "Sen2_MTC" / tile
            there = {file.name for file in (place / "cloud").glob("*.tif")}
            for clear in (place / "cloudless").glob("*.tif"):
                cloudy = [f"{clear.stem}_{number}.tif" for number in range(3)]
                patch = numbered(clear.name, r".*_(\d+)\.tif")
                if patch is not None and there.issuperset(cloudy):
                    files = (*(place / "cloud" / name for name in cloudy), clear)
                    samples.append(Sample(tile, split, patch, files))
    return Found(sorted(samples, key=lambda each: (each.split, each.region, each.number)), notes)


def load(sample: Sample, rules: Rules) -> Triplet:
    """The first of the cloudy images, and the others as references where they agree with the clear one."""
    *dates, clear = (read(path, range(1, len(BANDS) + 1), rules.window) for path in sample.files)
    if np.nanmax(clear) <= 1:
        raise CorruptFileError(sample.files[-1], "holds reflectance; expected reflectance times 10000")
    cores = [_core(each, clear) for each in dates]
    images = [digital_number(_known(each) / 10000) for each in (*dates, clear)]
    references = [without(image, core) for image, core in zip(images[1:3], cores[1:], strict=True)]
    return Triplet(images[0], images[-1], cores[0], references[: rules.references])


def _known(values: NDArray) -> NDArray:
    return np.where((values == 0).all(0), np.nan, values)


def _core(cloudy: NDArray, clear: NDArray) -> NDArray:
    blue, infrared = BANDS.index("B02"), BANDS.index("B08")
    bright = cloudy[blue] - clear[blue] > _DOUBT.brighter * 10000
    dark = (cloudy[infrared] < _DOUBT.darker * clear[infrared]) & (cloudy[blue] < clear[blue])
    kinds = [np.isnan(_known(cloudy)).any(0), bright, dark]
    return np.select(kinds, [NO_DATA, CLOUD, SHADOW], default=CLEAR).astype(np.uint8)
