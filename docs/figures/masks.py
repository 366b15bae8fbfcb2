"""The README's picture of masks: `python docs/figures/masks.py DATA` writes masks.png beside itself.

DATA holds S2_L2A_{10m,20m}_00002806639B424A*.nc, a Sentinel-2 series of WorldCereal's test data (MIT):
github.com/WorldCereal/worldcereal-classification.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import xarray
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from cloudjob.pixels import CIRRUS, CLASSES, CLEAR, CLOUD, SHADOW, UNKNOWN
from cloudjob.sentinel2 import masks
from cloudjob.sentinel2.render import true_colour
from cloudjob.sentinel2.scene import masks_of_pair
from cloudjob.sentinel2.scene_masks import Preview

# Of each row the cloudy date, the clear one, and another that is asked for its opinion.
ROWS = (("2018-08-14", "2018-08-17", "2018-08-07"), ("2018-10-16", "2018-10-13", "2018-10-21"))
_GREYS_AND_CLOUDS = ("#818181", "#c0c0c0", "white", "#64c8ff", "#ff96ff")  # 7 unclassified to 11 snow
SCL = ("black", "red", "#2f2f2f", "#643200", "#00a000", "#ffe65a", "blue", *_GREYS_AND_CLOUDS)  # ESA's own
OURS = {CLEAR: "#3c8c3c", CLOUD: "white", SHADOW: "#3c2882", CIRRUS: "#78c8ff", UNKNOWN: "#f0961e"}


def dates(data: Path) -> dict[str, tuple[np.ndarray, Preview]]:
    """Day -> (3, 64, 64) uint16 DN of red, green and blue, and its preview."""
    found = {}
    fine, coarse = (next(data.glob(f"S2_L2A_{metres}m_00002806639B424A*.nc")) for metres in (10, 20))
    with xarray.open_dataset(fine, mask_and_scale=False) as f, xarray.open_dataset(coarse, mask_and_scale=False) as c:
        for moment in f["timestamp"].values:
            of_10m, of_20m = f.sel(timestamp=moment), c.sel(timestamp=moment)
            rgb = np.stack([of_10m[band].values for band in ("B04", "B03", "B02")]).astype(np.uint16) + np.uint16(1000)
            b11, scl = of_20m["B11"].values.repeat(2, 0).repeat(2, 1) + 1000, of_20m["SCL"].values.astype(np.uint8)
            product = cast(Any, SimpleNamespace(sensing_time=moment))
            core = masks.combine(scl, masks.Settings())
            small = Preview(product, core, 2, scl == masks.SCL_SNOW, at_60m(rgb), scl, at_60m(b11[None])[0])
            found[str(moment)[:10]] = rgb, small
    return found


def at_60m(image: np.ndarray) -> np.ndarray:
    """(bands, 11, 11) uint16: means of 6 x 6 pixels of 64 x 64."""
    padded = np.pad(image, [(0, 0), (0, 2), (0, 2)], mode="edge")
    return np.rint(padded.reshape(-1, 11, 6, 11, 6).mean((2, 4))).astype(np.uint16)


def draw(data: Path, out: Path) -> None:
    """The cloudy date, its classification, its mask and the clear date, for each of ROWS."""
    days = dates(data)
    figure, axes = plt.subplots(2, 4, figsize=(8, 4.5), layout="constrained")
    for row, (cloudy, clear, another) in zip(axes, ROWS, strict=True):
        previews = [days[day][1] for day in (cloudy, clear, another)]
        roles = dict(zip(("cloudy", "clear", "reference"), previews, strict=True))
        mask = masks_of_pair(roles, masks.Settings())["cloudy"].mask
        row[0].imshow(true_colour(days[cloudy][0], gain=4), interpolation="nearest")
        row[1].imshow(roles["cloudy"].scl, ListedColormap(SCL), vmin=0, vmax=11, interpolation="nearest")
        row[2].imshow(mask, ListedColormap(list(OURS.values())), vmin=0, vmax=4, interpolation="nearest")
        row[3].imshow(true_colour(days[clear][0], gain=4), interpolation="nearest")
        titles = (cloudy, "ESA's classification", "our mask", clear)
        for axis, title in zip(row, titles, strict=True):
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    names = {value: name for name, value in CLASSES.items()}
    patches = [Patch(facecolor=colour, edgecolor="black", label=names[value]) for value, colour in OURS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=9, frameon=False)
    figure.savefig(out, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(__file__).with_suffix(".png"))
