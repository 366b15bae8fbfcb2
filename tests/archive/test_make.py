from datetime import date
from itertools import combinations

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.warp import transform_bounds
from shapely.geometry import box

from cloudjob.archive.make import make_from_places, make_synthetic
from cloudjob.errors import ConfigError
from cloudjob.sentinel2.geometry import tile_corner
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


@pytest.mark.slow
def test_every_tile_and_date_has_a_product_of_its_zone(archive):
    folder, names = archive
    assert len(set(names)) == 8
    products = [Product.open(folder / f"{name}.SAFE") for name in names]
    assert {(p.name.tile, p.crs) for p in products} == {("05WPS", "EPSG:32605"), ("06WVC", "EPSG:32606")}
    assert len({(p.name.tile, p.name.sensing) for p in products}) == 8
    assert all(p.shape == (96, 96) and p.sun_elevation > 5 for p in products)
    assert len({(p.name.tile, p.name.relative_orbit) for p in products}) == 2
    assert {date.fromisoformat(n[11:19]) for n in names} == {*ASKED["clear"], *ASKED["cloudy"]}


@pytest.mark.slow
def test_cloud_is_asked_for_and_both_conventions_occur(archive):
    folder, names = archive
    products = [Product.open(folder / f"{name}.SAFE") for name in names]
    covers = [p.percentages["Cloud_Coverage_Assessment"] for p in products]
    cloudy = [cover for cover in covers if cover > 2]
    assert len(cloudy) == 4
    assert all(18 < cover < 62 for cover in cloudy)
    assert {p.baseline for p in products} == {"02.14", "05.10"}
    assert all((p.offsets["B04"] == 0) == (p.baseline == "02.14") for p in products)


@pytest.mark.slow
def test_truth_is_the_ground_of_the_product(archive):
    folder, names = archive
    files = [f"{name}{end}.tif" for name in names for end in ("", "_seen")]
    assert sorted(p.name for p in (folder / "truth").iterdir()) == sorted(files)
    for name in names:
        product = Product.open(folder / f"{name}.SAFE")
        with rasterio.open(folder / "truth" / f"{name}.tif") as image:
            assert (image.crs, image.transform, image.nodata) == (product.crs, product.transform, 0)
            truth = image.read()
        clear = ~np.isin(read_scl(product), (3, 8, 9, 10)).repeat(2, 0).repeat(2, 1)
        difference = (read_bands(product).astype(float) - truth)[:, clear]
        assert np.sqrt(np.mean(difference**2)) < 50  # 0.005 reflectance


def test_how_much_is_seen_lies_beside_the_ground(archive):
    folder, names = archive
    for name in names:
        product = Product.open(folder / f"{name}.SAFE")
        with rasterio.open(folder / "truth" / f"{name}_seen.tif") as image:
            assert (image.crs, image.transform, image.nodata) == (product.crs, product.transform, None)
            assert (image.count, image.shape, set(image.dtypes)) == (2, (96, 96), {"uint8"})
            opacity, shadow = image.read()
        scl = read_scl(product).repeat(2, 0).repeat(2, 1)
        assert opacity.max() <= 100
        assert shadow.max() <= 100
        assert (opacity[~np.isin(scl, (8, 9, 10))] == 0).mean() > 0.98
        assert (shadow[~np.isin(scl, (3, 8, 9, 10))] == 0).mean() > 0.98
        if product.percentages["Cloud_Coverage_Assessment"] > 2:
            assert (opacity[scl == 9] > 50).mean() > 0.8
            assert (opacity[np.isin(scl, (8, 9, 10))] > 0).mean() > 0.6
        else:
            assert (opacity > 0).mean() < 0.02


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


# --- tiles under other weather ---------------------------------------------------------------------------------
OTHER = {"tiles": ["05WMT"], "clear": [date(2024, 3, 3)], "cloudy": [date(2024, 3, 12)], "cloud": (0.3, 0.3)}


@pytest.mark.slow
def test_tiles_of_other_weather_have_dates_of_their_own_and_the_ground_as_sensed(archive, tmp_path):
    usual = {"tiles": ["05WPS"], "clear": ASKED["clear"][:1], "cloudy": ASKED["cloudy"][:1]}
    names = make_synthetic(tmp_path, **ASKED | usual, other_weather=OTHER)
    before, others = names[:2], names[2:]
    assert [(name[39:44], name[11:19]) for name in others] == [("05WMT", "20240303"), ("05WMT", "20240312")]
    alone = make_synthetic(tmp_path / "alone", **ASKED | usual)
    assert before == alone
    for path in (path for path in (tmp_path / "alone").rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / path.relative_to(tmp_path / "alone")).read_bytes()
    sensed = sorted((tmp_path / "truth").glob("*_sensed.tif"))
    assert [path.name for path in sensed] == sorted(f"{name}_sensed.tif" for name in others)
    with rasterio.open(tmp_path / "drifting" / "05WMT.tif") as image:
        assert (image.transform, image.shape) == (Product.open(tmp_path / f"{others[0]}.SAFE").transform, (96, 96))
        assert 0.03 < image.read(1).mean() < 0.5
    assert len(list((tmp_path / "drifting").iterdir())) == 1
    for name in others:
        with (
            rasterio.open(tmp_path / "truth" / f"{name}.tif") as truth,
            rasterio.open(tmp_path / "truth" / f"{name}_sensed.tif") as noisy,
        ):
            assert (noisy.crs, noisy.transform, noisy.nodata) == (truth.crs, truth.transform, 0)
            assert 10 < (noisy.read().astype(float) - truth.read()).std() < 80  # 0.001 to 0.008 of reflectance


@pytest.mark.slow
@pytest.mark.parametrize("first", ["usual", "other"])
def test_a_tile_keeps_its_weather(tmp_path, first):
    tile = {"tiles": ["05WMT"], "clear": [date(2024, 3, 1)], "cloudy": [date(2024, 3, 11)]}
    elsewhere = tile | {"tiles": ["05WPS"]}
    calls = {"usual": ASKED | tile, "other": ASKED | elsewhere | {"other_weather": OTHER}}
    make_synthetic(tmp_path, **calls.pop(first))
    held = "with" if first == "other" else "without"
    with pytest.raises(ConfigError, match=rf"T05WMT_\S+, made {held} other_weather: choose another folder"):
        make_synthetic(tmp_path, **calls.popitem()[1])


def test_small_scenes_of_different_tiles_share_no_ground():
    tiles = ["04WDD", "04WEE", "04WFD", "04WFE", "05WMT", "05WMU", "05WNT", "05WPS", "05WPT", "05WPU"]
    tiles += ["06WVB", "06WVC", "06WWC", "06WXC", "07WDT"]
    scenes = []
    for tile in tiles:  # 1024 pixels; neighbours across a zone's border come close in the far north
        crs, left, top = tile_corner(tile)
        scenes.append(box(*transform_bounds(crs, "EPSG:4326", left, top - 10_240, left + 10_240, top)))
    assert not any(a.intersects(b) for a, b in combinations(scenes, 2))


# --- real places -----------------------------------------------------------------------------------------------
DAYS = [date(2018, 3, 7), date(2018, 3, 22), date(2018, 4, 26)]


def write(path, pixels, corner=(500_000, 4_650_000), crs="EPSG:32633"):
    facts = {
        "driver": "GTiff",
        "count": 4,
        "dtype": "uint16",
        "crs": crs,
        "transform": Affine(10, 0, corner[0], 0, -10, corner[1]),
    }
    with rasterio.open(path, "w", **facts, height=pixels.shape[1], width=pixels.shape[2]) as image:
        image.write(pixels)
    return path


@pytest.fixture
def place(tmp_path):
    """Three dates of 70 x 131 pixels of vegetation, a corner of them without data; clouds on the second one."""
    pixels = np.random.default_rng(4).integers(1300, 2500, (3, 4, 70, 131)).astype(np.uint16)
    pixels[:, 3] += 2000
    pixels[..., :9, :6] = 0
    dates = {day: write(tmp_path / f"{day}.tif", image) for day, image in zip(DAYS, pixels, strict=True)}
    return {
        "tile": "33TUG",
        "dates": dates,
        "cloudy": [DAYS[1]],
        "cloud": (0.3, 0.3),
        "offset": -1000,
        "seed": 2,
    }, pixels


@pytest.mark.slow
def test_clouds_over_a_real_place_leave_its_pixels_as_the_truth(tmp_path, place):
    place, pixels = place
    names = make_from_places(tmp_path / "archive", places=[place])
    products = [Product.open(tmp_path / "archive" / f"{name}.SAFE") for name in names]
    assert [product.name.sensing.date() for product in products] == DAYS
    for number in (0, 2):
        assert np.array_equal(read_bands(products[number]), pixels[number])
        assert products[number].percentages["Cloud_Coverage_Assessment"] == 0
    truth, above = sorted((tmp_path / "archive" / "truth").iterdir())
    assert (truth.stem, above.stem) == (names[1], f"{names[1]}_seen")
    with rasterio.open(truth) as image:
        assert np.array_equal(image.read(), pixels[1])
    with rasterio.open(above) as image:
        above = image.read()
    scl, seen = read_scl(products[1]), read_bands(products[1])
    assert np.isin(scl, (8, 9, 10)).mean() == pytest.approx(0.3, abs=0.03)
    assert (scl[:4, :3] == 0).all()
    difference = np.abs(seen.astype(int) - pixels[1]).max(0)
    assert not difference[:9, :6].any()
    covered, clear = (np.isin(scl, which).repeat(2, 0).repeat(2, 1)[:70, :131] for which in ((3, 8, 9, 10), (4, 5)))
    assert (difference[covered] > 0).mean() > 0.9
    assert (difference[clear] == 0).mean() > 0.8
    assert difference[clear].max() < 100  # 0.01 of reflectance, at the edge of what counts as cloud
    nothing = ~above.any(0)
    assert nothing.mean() > 0.2
    assert difference[nothing].max() < 60  # half a percent of cloud, which rounds to none
    assert (above[0][scl.repeat(2, 0).repeat(2, 1)[:70, :131] == 9] > 50).mean() > 0.8


@pytest.mark.slow
def test_a_place_is_made_once_and_another_seed_has_other_clouds(tmp_path, place):
    place, _ = place
    folder = tmp_path / "archive"
    names = make_from_places(folder, places=[place])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert make_from_places(folder, places=[place]) == names
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    others = make_from_places(tmp_path / "other", places=[place | {"seed": 3}])
    skies = [read_scl(Product.open(f / f"{n[1]}.SAFE")) for f, n in ((folder, names), (tmp_path / "other", others))]
    assert not np.array_equal(*skies)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path, pixels: path.unlink(), "does not exist"),
        (lambda path, pixels: write(path, pixels[:, 1:]), "not of the same size, CRS and corner as .*2018-03-07.tif"),
        (lambda path, pixels: write(path, pixels, crs="EPSG:32632"), "not of the same size, CRS and corner"),
        (lambda path, pixels: write(path, pixels, corner=(500_010, 4_650_000)), "not of the same size, CRS and corner"),
    ],
)
def test_unusable_places_name_the_file(tmp_path, place, change, message):
    place, pixels = place
    change(place["dates"][DAYS[2]], pixels[2])
    with pytest.raises(ConfigError, match=rf"archive\.places: .*2018-04-26\.tif.* {message}"):
        make_from_places(tmp_path / "archive", places=[place])
