"""Clouds over real places, through the front door: what is tested on is the ground of the day, real pixel by pixel."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import real_places
import yaml
from front_door import CONFIG, good

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def places(shared_data, tmp_path_factory) -> list[dict]:
    return real_places.main(shared_data, tmp_path_factory.mktemp("places"))


@pytest.fixture(scope="module")
def run(places, tmp_path_factory) -> Path:
    """The real places are kept for testing, and synthetic tiles train."""
    folder = tmp_path_factory.mktemp("run")
    config = yaml.safe_load(CONFIG.read_text())
    config["archive"]["places"] = places
    config["search"] = real_places.benchmark(places)["search"]
    config["shard"] |= {"stride": 32, "cloud": [0.05, 0.9]}
    config["shard"]["split"] = {"test_tiles": [place["tile"] for place in places], "test_share": 0, "val_share": 0.3}
    (folder / "a.yaml").write_text(yaml.safe_dump(config))
    good("run", folder / "a.yaml", "--run-dir", folder / "run", "--until", "shard", timeout=600)
    return folder / "run"


def test_the_target_is_the_real_ground_and_the_reference_another_real_day(run, places):
    files = {f"{place['tile']} {day}": path for place in places for day, path in place["dates"].items()}
    index = json.loads((run / "shards" / "index.json").read_text())
    seen = set()
    for entry in index["files"]:
        tile = entry["pair"].split("_")[0]
        if tile not in {place["tile"] for place in places}:
            assert entry["split"] != "test"
            continue
        assert (entry["split"], entry["target"]) == ("test", "ground")
        with h5py.File(run / "shards" / entry["file"]) as file:
            (pair,) = json.loads(file.attrs["pairs"])
            days = {role: f"{name[11:15]}-{name[15:17]}-{name[17:19]}" for role, name in pair["products"].items()}
            ground, other = (_pixels(files[f"{tile} {days[role]}"]) for role in ("cloudy", "clear"))
            window, corners = file["mask"].shape[1], zip(file["row"][:], file["col"][:], strict=True)
            cuts = [np.s_[:, row : row + window, col : col + window] for row, col in corners]
            np.testing.assert_array_equal(file["clear"][:], [ground[cut] for cut in cuts])
            _check(file["cloudy"][:], file["mask"][:], file["clear"][:])
            for matched, cut in zip(file["reference"][:], cuts, strict=True):
                line = [np.corrcoef(a[a > 0], b[a > 0])[0, 1] for a, b in zip(matched, other[cut], strict=True)]
                assert min(line) > 0.99  # a gain and an offset a band, of the pixels of that day
            assert set(np.sign(file["reference_days"][:])) == {1 if days["clear"] > days["cloudy"] else -1}
        seen.add(tile)
    assert seen >= {"33TUG", "31UDS"}


def _pixels(path: str) -> np.ndarray:
    with rasterio.open(path) as image:
        return image.read()


def _check(cloudy: np.ndarray, mask: np.ndarray, ground: np.ndarray) -> None:
    """Clear pixels are those of the ground, but for the edge of what counts as cloud; cloud hides it."""
    difference = np.abs(cloudy.astype(int) - ground).max(1)
    clear = difference[mask == 0]
    assert clear.max() < 300
    assert np.mean(clear == 0) > 0.9
    assert difference[mask == 1].mean() > 300
