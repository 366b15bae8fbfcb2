from datetime import date
from itertools import combinations

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform_bounds
from shapely.geometry import box

from cloudjob.archive.make import make_synthetic
from cloudjob.archive.safe import tile_corner
from cloudjob.errors import ConfigError
from cloudjob.sentinel2.product import Product, read_bands, read_scl

ASKED = {
    "tiles": ["05WPS", "06WVC"],
    "size": 96,
    "clear": [date(2024, 3, 1), date(2024, 3, 11)],
    "cloudy": [date(2024, 3, 11), date(2024, 3, 16)],
    "seed": 2,
    "cloud": (0.2, 0.6),
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    return folder, make_synthetic(folder, **ASKED)


def test_every_tile_and_date_has_a_product_of_its_zone(archive):
    folder, names = archive
    assert len(set(names)) == 8
    products = [Product.open(folder / f"{name}.SAFE") for name in names]
    assert {(p.name.tile, p.crs) for p in products} == {("05WPS", "EPSG:32605"), ("06WVC", "EPSG:32606")}
    assert len({(p.name.tile, p.name.sensing) for p in products}) == 8
    assert all(p.shape == (96, 96) and p.sun_elevation > 5 for p in products)
    assert len({(p.name.tile, p.name.relative_orbit) for p in products}) == 2
    assert {date.fromisoformat(n[11:19]) for n in names} == {*ASKED["clear"], *ASKED["cloudy"]}


def test_cloud_is_asked_for_and_both_conventions_occur(archive):
    folder, names = archive
    products = [Product.open(folder / f"{name}.SAFE") for name in names]
    covers = [p.percentages["Cloud_Coverage_Assessment"] for p in products]
    cloudy = [cover for cover in covers if cover > 2]
    assert len(cloudy) == 4
    assert all(18 < cover < 62 for cover in cloudy)
    assert {p.baseline for p in products} == {"02.14", "05.10"}
    assert all((p.offsets["B04"] == 0) == (p.baseline == "02.14") for p in products)


def test_truth_is_the_ground_of_the_product(archive):
    folder, names = archive
    assert sorted(p.name for p in (folder / "truth").iterdir()) == sorted(f"{name}.tif" for name in names)
    for name in names:
        product = Product.open(folder / f"{name}.SAFE")
        with rasterio.open(folder / "truth" / f"{name}.tif") as image:
            assert (image.crs, image.transform, image.nodata) == (product.crs, product.transform, 0)
            truth = image.read()
        clear = ~np.isin(read_scl(product), (3, 8, 9, 10)).repeat(2, 0).repeat(2, 1)
        difference = (read_bands(product).astype(float) - truth)[:, clear]
        assert np.sqrt(np.mean(difference**2)) < 50  # 0.005 reflectance


def test_second_call_makes_nothing_and_more_dates_add_to_it(archive):
    folder, names = archive
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert make_synthetic(folder, **ASKED) == names
    more = make_synthetic(folder, **ASKED | {"clear": [date(2024, 2, 20), *ASKED["clear"]], "tiles": ["05WPS"]})
    assert {n for n in names if "05WPS" in n} < set(more)
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert {p: after[p] for p in before} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cloud": (20, 60)}, "fractions"),
        ({"size": 4}, "size = 4"),
        ({"seed": 9}, "choose another folder"),
        ({"tiles": ["05XXX"]}, "no such Sentinel-2 tile"),
    ],
)
def test_impossible_archives_are_refused(archive, change, message):
    with pytest.raises(ConfigError, match=message):
        make_synthetic(archive[0], **ASKED | change)


def test_small_scenes_of_different_tiles_share_no_ground():
    tiles = ["04WDD", "04WEE", "04WFD", "04WFE", "05WMT", "05WMU", "05WNT", "05WPS", "05WPT", "05WPU"]
    tiles += ["06WVB", "06WVC", "06WWC", "06WXC", "07WDT"]
    scenes = []
    for tile in tiles:  # 1024 pixels; neighbours across a zone's border come close in the far north
        crs, left, top = tile_corner(tile)
        scenes.append(box(*transform_bounds(crs, "EPSG:4326", left, top - 10_240, left + 10_240, top)))
    assert not any(a.intersects(b) for a, b in combinations(scenes, 2))
