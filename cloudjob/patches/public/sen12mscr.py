"""SEN12MS-CR (Ebel et al. 2020, doi 10.14459/2020mp1554803): pairs of one cloudy and one clear image, without dates.

FOLDER/<season>_s2_cloudy/s2_cloudy_<region>/<season>_s2_cloudy_<region>_p<patch>.tif, and the same with s2.
"""

from pathlib import Path

from cloudjob.patches.public import l1c_masks
from cloudjob.patches.public.regions import PAIRS, SEASONS, split_of
from cloudjob.patches.public.samples import Found, Rules, Sample, Triplet, by_name, image, numbered

TREE = "<season>_s2_cloudy/s2_cloudy_<region>/*.tif and <season>_s2/s2_<region>/*.tif"
MASKS = "thresholds on seven bands, of DSen2-CR; shadow also against the clear image"


def find(folder: Path) -> Found:
    """The patches that have both images, of regions in a published list."""
    samples, unlisted, alone = [], set(), 0
    for short, season in SEASONS.items():
        for place in sorted((folder / f"{season}_s2_cloudy").glob("s2_cloudy_*")):
            number = place.name.removeprefix("s2_cloudy_")
            if (split := split_of(f"{short}_{number}", PAIRS)) is None:
                unlisted.add(f"{short}_{number}")
                continue
            clear = folder / f"{season}_s2" / f"s2_{number}"
            there = {path.name for path in clear.glob("*.tif")}
            for cloudy in place.glob("*.tif"):
                patch = numbered(cloudy.name, rf"{season}_s2_cloudy_{number}_p(\d+)\.tif")
                other = f"{season}_s2_{number}_p{patch}.tif"
                if patch is None or other not in there:
                    alone += 1
                else:
                    samples.append(Sample(f"{short}_{number}", split, patch, (cloudy, clear / other)))
    notes = [f"{len(unlisted)} regions in no published split: {', '.join(sorted(unlisted)[:5])}"] if unlisted else []
    notes += [f"{alone} cloudy images without a clear one"] if alone else []
    return Found(sorted(samples, key=lambda each: (each.split, each.region, each.number)), notes)


def load(sample: Sample, rules: Rules) -> Triplet:
    """The pair as it is published."""
    cloudy, clear = (by_name(path, l1c_masks.BANDS_NEEDED, rules.window) for path in sample.files)
    return Triplet(image(cloudy), image(clear), l1c_masks.classes(cloudy, l1c_masks.infrared(clear)))
