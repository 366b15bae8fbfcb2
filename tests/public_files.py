"""Small public data sets, with the names, folders and bands that their published loaders look for."""

import json
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from cloudjob.patches.public.samples import THIRTEEN, Rules

SIZE = 32
RULES = Rules(SIZE, cloud=(0.05, 0.95), target_cloud=0.01, clear_cloud=0.05, references=3, reference_days=60)
GROUND, CLOUD = 800, 6000  # DN of all thirteen bands, but for B10
CLOUDY_ROWS, SHADOWED_ROWS = 16, 8


def thirteen(seed: int, cloud: int = 0, dark: int = 0) -> np.ndarray:
    """(13, n, n) DN of bare ground, with cloud in so many rows of the north, and shadow in so many of the south."""
    image = np.random.default_rng(seed).integers(GROUND - 50, GROUND + 50, (13, SIZE, SIZE))
    image[THIRTEEN.index("B08")] += 2000
    image[:, SIZE - dark :] //= 4
    image[THIRTEEN.index("B10")] = 10
    image[:, :cloud] = CLOUD
    return image.astype(np.uint16)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"driver": "GTiff", "count": len(image), "height": image.shape[1], "width": image.shape[2]}
    with rasterio.open(path, "w", **facts, dtype=image.dtype, transform=Affine(10, 0, 0, 0, -10, 0)) as file:
        file.write(image)


def pair(folder: Path, season: str, region: str, patch: int, seed: int = 0) -> None:
    """A pair of SEN12MS-CR, its cloudy image with shadow in the south."""
    for kind, image in (("s2_cloudy", thirteen(seed, CLOUDY_ROWS, SHADOWED_ROWS)), ("s2", thirteen(seed + 1))):
        write(folder / f"{season}_{kind}" / f"{kind}_{region}" / f"{season}_{kind}_{region}_p{patch}.tif", image)


def series(folder: Path, season: str, region: str, patch: int, dates: dict[str, np.ndarray]) -> None:
    """Dates of a patch of SEN12MS-CR-TS."""
    for number, (day, image) in enumerate(dates.items()):
        name = f"s2_{season}_{region}_ImgNo_{number}_{day}_patch_{patch}.tif"
        write(folder / season / region / "S2" / str(number) / name, image)


def allclear(folder: Path, split: str, roi: str, days: list[str], target: str, *, share: str = "100") -> None:
    """A list of one sample of AllClear, and its files: floats, cloud in the north of the dates and in a column of the
    target. Images are larger than what is read of them, and have gaps around."""
    entry: dict = {"roi": [roi, [1.0, 2.0]], "s2_toa": [], "s1": []}
    for number, day in enumerate([*days, target]):
        year, month, date = (int(part) for part in day.split("-"))
        inside = f"{roi}/{year}_{month}/s2_toa/{roi}_s2_toa_{year}_{month}_{date}_median.tif"
        cloudy = day != target
        image = np.pad(thirteen(number, CLOUDY_ROWS * cloudy).astype(float), [(0, 0), (2, 2), (2, 2)])
        image[:, :2] = np.nan
        masks = np.zeros((5, SIZE + 4, SIZE + 4))
        masks[1, 2 : 2 + CLOUDY_ROWS * cloudy] = 1
        masks[4, -6:] = cloudy
        masks[1, :, 2] = 1
        write(folder / "data" / inside, image)
        write(folder / "data" / inside.replace("s2_toa", "cld_shdw"), masks)
        row = [f"{day} 10:00:00", f"/scratch/allclear/dataset_v3/{inside}"]
        entry["s2_toa" if cloudy else "target"] = [*entry["s2_toa"], row] if cloudy else [row]
    path = folder / "metadata" / "datasets" / f"{split}_tx3_s2-s1_{share}pct.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"0": entry}), encoding="utf-8")


def sen2mtc(folder: Path, split: str, tile: str, patch: int) -> None:
    """A patch of Sen2_MTC: cloud in the first date, shadow in the second, and none in the third."""
    four = [thirteen(0, cloud, dark)[[3, 2, 1, 7]] for cloud, dark in ((CLOUDY_ROWS, 0), (0, 8), (0, 0), (0, 0))]
    place = folder / "Sen2_MTC" / tile
    for number, image in enumerate(four[:3]):
        write(place / "cloud" / f"{tile}_{patch}_{number}.tif", image)
    write(place / "cloudless" / f"{tile}_{patch}.tif", four[3])
    with open(folder / f"{split}.txt", "a", encoding="utf-8") as file:
        file.write(f"{tile}\n")
