"""Level-1C pixels, top of atmosphere, as data of a benchmark of their own: `python tests/real_l1c.py DATA OUT`.

Writes OUT/l1c/33TUG, a series for configs/real-l1c.yaml, and OUT/l1c/pairs.yaml, a configuration of 31 pairs that have
no other clear date (`cloudjob run OUT/l1c/pairs.yaml --until shard`, then `cloudjob evaluate` of its run folder).
"""

import sys
from pathlib import Path

import numpy as np
import rasterio
import yaml
from affine import Affine
from rasterio.warp import transform as warp_points

from cloudjob.pixels import BANDS
from cloudjob.sentinel2.masks import SCL_BARE, SCL_CIRRUS, SCL_HIGH, SCL_SHADOW

LETTERS = "ABCDEFGHJKLMNPQRSTUV"
# Top-of-atmosphere reflectance: from which on B02 is cloud (clear ground here is below 0.17), and B10 cirrus.
BRIGHT, CIRRUS = 0.22, 0.01
DARK = 0.5  # of what it mostly is: below, in B08 and B11, a pixel lies in shadow


def main(data: Path, out: Path) -> Path:
    """The folder `out`/l1c; files that exist are kept."""
    folder = out / "l1c"
    series(data, folder / "33TUG")
    config = yaml.safe_load((Path(__file__).parents[1] / "configs" / "series.yaml").read_text())
    config["archive"] = {"rasters": pairs(data, folder / "pairs")}
    for query in (config["search"]["clear"], config["search"]["cloudy"]):
        query |= {"start": "2018-06-01", "end": "2018-10-31"}
    config["pair"] |= {"min_days": 0, "clear_max_cloud": 1}
    config["shard"]["split"]["test_tiles"] = sorted({row["tile"] for row in config["archive"]["rasters"]})
    config["evaluate"]["members"] = 0
    (folder / "pairs.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def series(data: Path, folder: Path) -> None:
    """33TUG, 256 x 256 pixels on 30 dates of 2018, on a grid of degrees that is taken for one of 10 m."""
    folder.mkdir(parents=True, exist_ok=True)
    dates = {}
    for path in sorted((data / "sen12mscrts_ROI146_p0").glob("*.tif")):
        with rasterio.open(path) as source:
            dates[path.name.split("_")[5]] = dict(zip(source.descriptions, source.read(), strict=True))
            corner = source.transform.c, source.transform.f
    (x,), (y,) = warp_points("EPSG:4326", "EPSG:32633", *([value] for value in corner))
    mostly = {band: np.median([image[band] for image in dates.values()], 0) for band in ("B08", "B11")}
    for day, image in dates.items():
        pixels = np.stack([image[band] for band in BANDS])
        for name, array, metres in ((f"{day}.tif", pixels, 10), (f"{day}_scl.tif", classes(image, mostly)[None], 20)):
            facts = {"driver": "GTiff", "count": len(array), "dtype": array.dtype, "crs": "EPSG:32633"}
            facts["transform"] = Affine(metres, 0, round(x, -1), 0, -metres, round(y, -1))
            if not (folder / name).exists():
                with rasterio.open(folder / name, "w", **facts, height=array.shape[1], width=array.shape[2]) as file:
                    file.write(array)


def classes(image: dict[str, np.ndarray], mostly: dict[str, np.ndarray]) -> np.ndarray:
    """(H/2, W/2) uint8 scene classification, by thresholds. Level-1C has none of its own."""
    halved = {band: dn.reshape(len(dn) // 2, 2, -1, 2).mean((1, 3)) for band, dn in image.items()}
    usual = {band: dn.reshape(len(dn) // 2, 2, -1, 2).mean((1, 3)) for band, dn in mostly.items()}
    dark = np.logical_and.reduce([halved[band] < DARK * usual[band] for band in usual])
    conditions = [halved["B02"] > BRIGHT * 1e4, halved["B10"] > CIRRUS * 1e4, dark]
    return np.select(conditions, [SCL_HIGH, SCL_CIRRUS, SCL_SHADOW], SCL_BARE).astype(np.uint8)


def pairs(data: Path, folder: Path) -> list[dict]:
    """Rows of `archive.rasters`: ten triplets with masks, each in a tile of its own, as they have no place; and 21
    pairs without."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, source_folder in enumerate(sorted((data / "sen12mscr_triplets").glob("[0-9]*"))):
        letter, place = LETTERS[number], Affine(10, 0, 500000 + 10000 * number, 0, -10, 5000000)
        row = {"tile": f"31TA{letter}", "cloudy_date": "2018-06-10", "clear_date": "2018-06-16"}
        for role in ("cloudy", "clear", "mask"):
            row[role] = str(folder / f"{source_folder.name}_{role}.tif")
            with rasterio.open(source_folder / f"{role}.tif") as source:
                facts = source.profile | {"crs": "EPSG:32631", "transform": place}
                with rasterio.open(row[role], "w", **facts) as target:
                    target.write(source.read())
        found.append(row)
    places: dict[tuple, str] = {}
    for cloudy in sorted((data / "sen12mscr_pairs" / "cloudy").glob("*.tif")):
        clear = data / "sen12mscr_pairs" / "clear" / cloudy.name.replace("_s2_cloudy_", "_s2_")
        with rasterio.open(clear) as image:
            place = (image.crs.to_epsg() % 100, tuple(image.transform))
        tile = places.setdefault(place, f"{place[0]:02d}TB{LETTERS[len(places) % 20]}")
        days = {"cloudy_date": "2018-10-02", "clear_date": "2018-10-10"}
        found.append({"tile": tile, "cloudy": str(cloudy), "clear": str(clear), **days})
    return found


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))
