"""Real Sentinel-2 pixels through every stage: GeoTIFFs become products, are served, trained on and restored."""

import json
import shutil

import h5py
import numpy as np
import pytest
import rasterio
import yaml
from front_door import good

pytestmark = pytest.mark.slow

# Tile ids are free here: places of one grid square that do not share a pixel grid each get their own.
SINGLES = {
    "39UWB": "ROIs1970_fall_s2_136_p139",
    "39UXB": "ROIs1970_fall_s2_136_p100",
    "39UYB": "ROIs1970_fall_s2_136_p316",
    "39UWC": "ROIs1970_fall_s2_136_p500",
    "39UXC": "ROIs1970_fall_s2_136_p840",
}


@pytest.fixture(scope="module")
def run(shared_data, tmp_path_factory):
    pairs = shared_data / "sen12mscr_pairs"
    dates = {"cloudy_date": "2018-10-02", "clear_date": "2018-10-10"}
    mosaic = {role: str(pairs / f"mosaic_fall136_{role}_B04B03B02B08.tif") for role in ("cloudy", "clear")}
    rasters = [{"tile": "39UWA", **mosaic, **dates}]
    for tile, name in SINGLES.items():
        cloudy = pairs / "cloudy" / f"{name.replace('_s2_', '_s2_cloudy_')}.tif"
        rasters.append({"tile": tile, "cloudy": str(cloudy), "clear": str(pairs / "clear" / f"{name}.tif"), **dates})
    turb = shared_data / "turb_L2A_218px"
    rasters.append(
        {
            "tile": "21JUN",
            "cloudy": str(turb / "20240101_B04B03B02B08.tif"),
            "cloudy_date": "2018-10-02",
            "clear": str(turb / "20231217_B04B03B02B08.tif"),
            "clear_date": "2018-10-17",
            "offset": -1000,
        }
    )
    everything = {"start": "2018-10-01", "end": "2018-10-31"}
    config = {
        "seed": 2,
        "archive": {"rasters": rasters},
        "search": {
            "polygon": [[-179, -80], [-179, 80], [179, 80], [179, -80], [-179, -80]],
            "clear": {**everything, "cloud": [0, 1]},
            "cloudy": {**everything, "cloud": [1, 100]},
        },
        # the masks are made by comparing the dates: no second opinion is to be had from the same comparison
        "pair": {"cloudy_range": [0.01, 0.97], "clear_max_unknown": 1},
        "review": {"gain": 2.5},
        "shard": {"window": 32, "stride": 32, "cloud": [0.02, 0.8], "unmeasured": "accept"},  # the scenes are small
        "train": {"preset": "tiny", "epochs": 24, "batch_size": 8, "lr": 1e-3, "warmup": 200, "threads": 1},
        "infer": {"tile": 256, "overlap": 64, "steps": 2, "preview_gain": 2.5},
    }
    folder = tmp_path_factory.mktemp("real")
    (folder / "real.yaml").write_text(yaml.safe_dump(config))
    good("run", folder / "real.yaml", "--run-dir", folder / "run", timeout=900)
    return folder / "run"


def outputs(run):
    return sorted((run / "outputs").glob("*/*.tif"))


def test_every_place_is_restored_with_its_own_grid(run, shared_data):
    sources = {
        "39UWA": shared_data / "sen12mscr_pairs" / "mosaic_fall136_cloudy_B04B03B02B08.tif",
        "21JUN": shared_data / "turb_L2A_218px" / "20240101_B04B03B02B08.tif",
    }
    tiles = {path.stem.split("_")[5][1:]: path for path in outputs(run)}
    assert {"39UWA", "21JUN", "39UWB"} <= set(tiles)
    for tile, source in sources.items():
        with rasterio.open(source) as given, rasterio.open(tiles[tile]) as made:
            assert made.crs == given.crs
            assert made.transform.almost_equals(given.transform, precision=1e-6)
            assert made.shape == given.shape
            pixels = given.read()
            flags = h5py.File(tiles[tile].with_suffix(".h5"))["reconstructed"][:]
            kept = np.isin(flags, (0, 255)) & (pixels > 0).all(0)
            shift = 0 if tile == "21JUN" else 1000  # from the source's convention to ours
            np.testing.assert_array_equal(made.read([1, 2, 3, 4])[:, kept], pixels[:, kept] + shift)


def test_what_is_restored_is_no_noise(run):
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    ours, cloudy = (summary["scores"]["all"][method]["cloud"] for method in ("ours", "cloudy"))
    assert summary["changed_clear_pixels"] == 0
    assert ours["psnr"] > cloudy["psnr"]
    assert 0.05 < ours["high_pass_ratio"] < cloudy["high_pass_ratio"] / 2  # 2.1 on one machine, of 6.0


def test_no_data_stays_no_data(run):
    (mosaic,) = [path for path in outputs(run) if "_T39UWA_" in path.name]
    with rasterio.open(mosaic) as made:
        assert (made.read([1, 2, 3, 4])[:, :128, :128] == 0).all()
        assert (made.read(5)[:128, :128] == 255).all()
        assert made.nodata == 0


def test_the_nearest_date_is_shown_but_not_scored_against(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "nearest")
    for stage in ("infer", "evaluate", "report"):
        good(stage, copy, "--set", "infer.reference=nearest")
    summary = json.loads((copy / "evaluation" / "summary.json").read_text())
    assert summary["scores"]["all"] == {}
    assert summary["changed_clear_pixels"] == 0
    report = (copy / "report" / "index.html").read_text()
    assert report.count("data:image/webp;base64,") >= len(outputs(run))
