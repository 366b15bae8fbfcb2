"""Real clear pixels as places of an archive: `python -m tests.real_places DATA OUT` writes OUT/places.yaml, a list for
`archive.places`, and OUT/benchmark.yaml, which is configs/benchmark.yaml with these places to test on and nothing else.

The GeoTIFFs are made from `DATA`, the shared folder of real pixels. The dates were chosen
by eye: no cloud, shadow or haze; what changes between them is season, light and people's work. The pixels are real,
but 33TUG and 33TVF are top-of-atmosphere reflectance, the others surface reflectance; 33TUG came on a grid of degrees,
which is taken for one of 10 m; and nobody knows the days of 33TVF, two of one summer.
"""

import sys
from datetime import date
from pathlib import Path

import numpy as np
import rasterio
import yaml
from affine import Affine
from rasterio.warp import transform as warp_points

BANDS = ("B04", "B03", "B02", "B08")
LAZIO = ("0210", "0426", "0531", "0610", "0625", "0720", "0730", "0809", "0824", "0928", "1008", "1023")
LAZIO_CLOUDY = ("0531", "0625", "0730", "0824", "1008")  # each with a clear date within 15 days
FLANDERS = (
    *("20170827", "20170926", "20171102", "20171122", "20180116", "20180119", "20180126", "20180208", "20180218"),
    *("20180225", "20180228", "20180325", "20180419", "20180426", "20180504", "20180506", "20180509", "20180511"),
    *("20180526", "20180623", "20180628", "20180630", "20180705", "20180708", "20180715", "20180723", "20180802"),
    *("20180807", "20180901", "20180921", "20180926", "20181006", "20181008", "20181013", "20181021", "20181028"),
)
FLANDERS_CLOUDY = FLANDERS[1::3]


def lazio(data: Path) -> dict:
    """33TUG, 256 x 256: fields and villages north-east of Rome, 2018."""
    images = {}
    for path in (data / "sen12mscrts_ROI146_p0").glob("*.tif"):
        day = path.name.split("_")[5].replace("-", "")
        if day[4:] in LAZIO:
            with rasterio.open(path) as source:
                images[day] = source.read([source.descriptions.index(band) + 1 for band in BANDS]) + np.uint16(1000)
                corner = source.transform.c, source.transform.f
    (x,), (y,) = warp_points("EPSG:4326", "EPSG:32633", *([value] for value in corner))
    place = {"crs": "EPSG:32633", "corner": (round(x, -1), round(y, -1))}
    return place | {"tile": "33TUG", "images": images, "cloudy": [f"2018{day}" for day in LAZIO_CLOUDY]}


def flanders(data: Path) -> dict:
    """31UDS, 64 x 64: a village and its fields, 2017 and 2018."""
    import xarray

    (path,) = (data / "worldcereal_L2A").glob("S2_L2A_10m_00002806639B424A*.nc")
    with xarray.open_dataset(path, mask_and_scale=False) as source:
        pixels = np.stack([source[band].values for band in BANDS], 1)
        days = [f"{moment:%Y%m%d}" for moment in source["timestamp"].values.astype("datetime64[s]").tolist()]
    images = {day: np.where(dn > 0, dn + 1000, 0).astype(np.uint16) for day, dn in zip(days, pixels, strict=True)}
    place = {"crs": "EPSG:32631", "corner": (501360, 5629680)}
    return place | {"tile": "31UDS", "images": {day: images[day] for day in FLANDERS}, "cloudy": FLANDERS_CLOUDY}


def parana(data: Path) -> dict:
    """21JUK, 218 x 219: a river in two colours, a bridge and towns."""
    paths = {day: data / "turb_L2A_218px" / f"{day}_B04B03B02B08.tif" for day in ("20231217", "20240101")}
    return _of_files("21JUK", paths)


def campania(data: Path) -> dict:
    """33TVF, 256 x 256: the one pair of sen12mscr_pairs over land whose cloudy image is clear as well."""
    name, folder = "ROIs1868_summer_s2_{}102_p840.tif", data / "sen12mscr_pairs"
    paths = {"20180710": folder / "cloudy" / name.format("cloudy_"), "20180720": folder / "clear" / name.format("")}
    return _of_files("33TVF", paths, add=1000)


def _of_files(tile: str, paths: dict[str, Path], add: int = 0) -> dict:
    """The first day gets the clouds."""
    images = {}
    for day, path in paths.items():
        with rasterio.open(path) as source:
            images[day] = source.read() + np.uint16(add)
            crs, corner = str(source.crs), (source.transform.c, source.transform.f)
    return {"tile": tile, "images": images, "cloudy": list(paths)[:1], "crs": crs, "corner": corner}


def write(place: dict, out: Path) -> dict:
    """The GeoTIFFs of a place, in DN = reflectance * 10000 + 1000, and its entry of `archive.places`."""
    facts = {"driver": "GTiff", "count": 4, "dtype": "uint16", "compress": "deflate", "crs": place["crs"]}
    facts["transform"] = Affine(10, 0, place["corner"][0], 0, -10, place["corner"][1])
    dates = {}
    for day, pixels in sorted(place["images"].items()):
        path = out / f"{place['tile']}_{day}.tif"
        with rasterio.open(path, "w", **facts, height=pixels.shape[1], width=pixels.shape[2]) as image:
            image.write(pixels)
        dates[_iso(day)] = str(path.resolve())
    return {"tile": place["tile"], "dates": dates, "cloudy": [_iso(day) for day in place["cloudy"]], "offset": -1000}


def _iso(day: str) -> str:
    return str(date.fromisoformat(day))


def benchmark(places: list[dict]) -> dict:
    """The benchmark's configuration, of these places alone."""
    config = yaml.safe_load((Path(__file__).parents[1] / "configs" / "benchmark.yaml").read_text())
    whole = {"start": "2017-08-01", "end": "2024-03-31"}
    config["archive"] = {"places": places}
    config["search"] = {
        "polygon": [[-179, -80], [-179, 80], [179, 80], [179, -80], [-179, -80]],
        "clear": {**whole, "cloud": [0, 1]},
        "cloudy": {**whole, "cloud": [5, 100]},
    }
    config["shard"]["split"] = {"test_tiles": [place["tile"] for place in places]}
    return config


def main(data: Path, out: Path) -> list[dict]:
    out.mkdir(parents=True, exist_ok=True)
    places = [write(place(data), out) for place in (lazio, flanders, parana, campania)]
    (out / "places.yaml").write_text(yaml.safe_dump(places, sort_keys=False))
    (out / "benchmark.yaml").write_text(yaml.safe_dump(benchmark(places), sort_keys=False))
    return places


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
