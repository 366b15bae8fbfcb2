"""The pictures of real clouds: `python docs/figures/restored.py DATA CHECKPOINT` writes restored.png and gallery-*.png.

DATA holds S2_L2A_{10m,20m}_00002806639B424A*.nc, a Sentinel-2 series of WorldCereal's test data (MIT):
github.com/WorldCereal/worldcereal-classification. CHECKPOINT is a trained network, or a run folder.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray

import cloudjob
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, SHADOW
from cloudjob.sentinel2 import masks

HERE = Path(__file__).parent
PLACE = "00002806639B424A"
# Picture -> its cloudy date.
SHOWN = {
    "restored": "2018-08-14",
    "gallery-june": "2018-06-13",
    "gallery-september": "2018-09-18",
    "gallery-october": "2018-10-16",
}
SHOWN_DATES, GAIN = 3, 3.0  # clear dates that the network may see; picture = gain x reflectance


def series(data: Path) -> tuple[list[np.datetime64], np.ndarray, np.ndarray]:
    """(days, reflectance (n, 4, 64, 64) float32, mask classes (n, 64, 64) uint8, before their growth)."""
    fine, coarse = (next(data.glob(f"S2_L2A_{metres}m_{PLACE}*.nc")) for metres in (10, 20))
    with xarray.open_dataset(fine, mask_and_scale=False) as f, xarray.open_dataset(coarse, mask_and_scale=False) as c:
        bands = np.stack([f[band].values for band in ("B04", "B03", "B02", "B08")], 1)
        classes = masks.combine(c["SCL"].values.astype(np.uint8), masks.Settings())
        days = list(f["timestamp"].values.astype("datetime64[D]"))
    return days, (bands / 10_000).astype(np.float32), classes.repeat(2, 1).repeat(2, 2)


def restored(day: str, data: Path, checkpoint: Path) -> tuple[np.ndarray, cloudjob.Restored, np.ndarray]:
    """The cloudy image, what is restored of it, and its mask; the nearest clear dates are shown to the network."""
    days, bands, classes = series(data)
    here = days.index(np.datetime64(day))
    clear = [i for i in range(len(days)) if (classes[i] == CLEAR).mean() > 0.99 and days[i] != days[here]]
    clear = sorted(clear, key=lambda i: abs(days[i] - days[here]))[:SHOWN_DATES]
    found = cloudjob.restore(
        bands[here],
        classes[here],
        clear=[bands[i] for i in clear],
        checkpoint=checkpoint,
        members=8,
        days=float((days[clear[0]] - days[here]).astype(int)),
    )
    return bands[here], found, classes[here]


def picture(reflectance: np.ndarray) -> np.ndarray:
    """True colour, (rows, columns, 3)."""
    return np.clip(np.nan_to_num(reflectance[:3]).transpose(1, 2, 0) * GAIN, 0, 1)


def draw(day: str, data: Path, checkpoint: Path, out: Path) -> None:
    """Cloudy with the outline of what is made, restored, and the uncertainty in red."""
    cloudy, found, core = restored(day, data, checkpoint)
    hidden = np.isin(core, (CLOUD, SHADOW, CIRRUS)).mean()
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
    axes[0].imshow(picture(cloudy), interpolation="nearest")
    axes[0].contour(found.reconstructed > 0, levels=[0.5], colors="#ffb300", linewidths=1)
    axes[1].imshow(picture(found.reflectance), interpolation="nearest")
    shade = axes[2].imshow(found.uncertainty[0], cmap="magma", vmin=0, interpolation="nearest")
    figure.colorbar(shade, ax=axes[2], shrink=0.8, label="reflectance")
    titles = (f"cloudy, {day}: {hidden:.0%} hidden", "restored", "uncertainty (red band)")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.savefig(out, dpi=100, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    for name, day in SHOWN.items():
        draw(day, Path(sys.argv[1]), Path(sys.argv[2]), HERE / f"{name}.png")
