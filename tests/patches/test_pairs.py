"""Roles of a pair are never confused on the way to triplets, and its rules hold up to their limits."""

import functools
from dataclasses import asdict, replace
from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from affine import Affine
from shapely.geometry import box

from cloudjob.archive.make import make_synthetic
from cloudjob.config.models import ShardConfig
from cloudjob.errors import CorruptFileError, ItemError, RejectedError
from cloudjob.patches import pairs
from cloudjob.patches.windows import NOTEBOOK_2025, Windows
from cloudjob.pixels import CLEAR, CLOUD, EMPTY_DN, NO_DATA, UNKNOWN
from cloudjob.sentinel2 import decode, masks, radiometry, scene
from cloudjob.sentinel2.product import Product, read_scl
from cloudjob.sentinel2.radiometry import Match
from cloudjob.sentinel2.scene import ReducedScene
from cloudjob.sentinel2.scene_masks import Preview, SceneMasks

SIDE, ROWS = 24, 10  # pixels of the scene, rows of a stripe
RULES = pairs.Rules(window=64, stride=16, cloud=(0.05, 0.6))
SETTINGS = masks.Settings(cloud_m=50, shadow_m=50, cirrus_m=20)
ADDED = {"clear": 100, "reference": 300, "reference2": 500, "reference3": 700}  # DN, by the normalisation of each date


def test_the_rules_are_those_of_the_configuration():
    configured = dict(ShardConfig())
    assert asdict(pairs.Rules()) == {name: configured[name] for name in asdict(pairs.Rules())}


# --- roles of the images -------------------------------------------------------------------------------------
class Shift:
    """Notes what it is given, and answers with a known shift."""

    def __init__(self, row=0.0, col=0.0):
        self.given, self.found = [], {"row": row, "col": col, "chips": 9}

    def add(self, top, first, second):
        self.given.append((top, first.copy(), second.copy()))

    def shift(self):
        return self.found


def mask_with(value, rows, cols):
    """(SIDE / 2) ** 2 mask classes at 20 m, clear but for a block."""
    mask = np.zeros((SIDE // 2, SIDE // 2), np.uint8)
    mask[rows, cols] = value
    return mask


@pytest.fixture
def dates(monkeypatch):
    """(4, SIDE, SIDE) DN by role, all different; read in stripes of ROWS rows."""
    rng = np.random.default_rng(0)
    found = {role: rng.integers(1000, 9000, (4, SIDE, SIDE)).astype(np.uint16) for role in pairs_of(5)}
    found["cloudy"][2, 3, 5] = EMPTY_DN
    found["clear"][1, 20, 7] = EMPTY_DN
    found["reference"][0, 0, 0] = EMPTY_DN

    def stripes(products, *, processes):
        assert processes == 2
        for top in range(0, SIDE, ROWS):
            yield top, np.stack([found[product.role][:, top : top + ROWS] for product in products])

    monkeypatch.setattr(pairs.product, "stripes", stripes)
    return found


def pairs_of(number):
    return ("cloudy", "clear", "reference", "reference2", "reference3")[:number]


def prepared(number=3, *, roles=None, truth=None, shift=None):
    """A pair of so many dates, or of these roles, whose masks differ: the cores are not the masks, and no two masks are
    the same."""
    grown = {
        "cloudy": mask_with(CLOUD, slice(0, 4), slice(0, 4)),
        "clear": mask_with(CLOUD, slice(4, 6), slice(4, 6)),
        "reference": mask_with(UNKNOWN, slice(8, 10), slice(8, 10)),
        "reference2": mask_with(CLOUD, slice(0, 3), slice(9, 11)),
        "reference3": mask_with(NO_DATA, slice(2, 5), slice(2, 5)),
    }
    roles = roles or pairs_of(number)
    core = mask_with(CLOUD, slice(11, 12), slice(11, 12))
    line = {"gain": 1.0, "r2": 1.0, "rmse": 0.0, "pixels": 1}
    return pairs.PreparedPair(
        products={role: SimpleNamespace(role=role, shape=(SIDE, SIDE)) for role in roles},
        masks={role: SceneMasks(core, grown[role], 2) for role in roles},
        matches={role: Match([line | {"offset": ADDED[role]}] * 4) for role in roles[1:]},
        windows=Windows(np.zeros(1, "i4"), np.zeros(1, "i4"), np.zeros(1, "f4"), 8),
        shift=shift or Shift(),
        measures={"radiometric_match": {}, "windows": {"kept": 1}},
        truth=truth,
    )


def whole(pair, radiometry="line"):
    parts = list(pairs.stripes(pair, radiometry=radiometry, processes=2))
    assert [top for top, _ in parts] == [0, 10, 20]
    return {role: np.concatenate([images[role] for _, images in parts], axis=-2) for role in parts[0][1]}


def normalised(dates, role):
    return np.where(dates[role] == EMPTY_DN, EMPTY_DN, dates[role] + np.uint16(ADDED[role]))


def only_clear(image, block):
    """The image without data in a block of 20 m pixels."""
    rows, cols = (slice(2 * part.start, 2 * part.stop) for part in block)
    out = image.copy()
    out[:, rows, cols] = EMPTY_DN
    return out


def test_each_date_gets_its_own_normalisation_and_masks(dates):
    found = whole(prepared())
    assert list(found) == ["cloudy", "clear", "reference", "mask"]
    assert {image.dtype.name for image in found.values()} == {"uint16", "uint8"}
    np.testing.assert_array_equal(found["cloudy"], dates["cloudy"])
    np.testing.assert_array_equal(found["clear"], normalised(dates, "clear"))
    expected = only_clear(normalised(dates, "reference"), (slice(8, 10), slice(8, 10)))
    np.testing.assert_array_equal(found["reference"], expected)


BLOCKS = {"reference2": (slice(0, 3), slice(9, 11)), "reference3": (slice(2, 5), slice(2, 5))}


def test_further_references_are_treated_as_the_first(dates, tmp_path):
    found, fewer = whole(prepared(5)), whole(prepared())
    assert list(found) == ["cloudy", "clear", "reference", "reference2", "reference3", "mask"]
    for role, image in fewer.items():
        np.testing.assert_array_equal(found[role], image)
    ground = np.full((4, SIDE, SIDE), 7, np.uint16)
    roles = ("cloudy", "clear", "reference2", "reference3")
    on_the_day = whole(prepared(roles=roles, truth=write_truth(tmp_path / "truth.tif", ground)))
    assert list(on_the_day) == list(found)
    for role, block in BLOCKS.items():
        np.testing.assert_array_equal(found[role], only_clear(normalised(dates, role), block))
        np.testing.assert_array_equal(on_the_day[role], found[role])
    clear = only_clear(normalised(dates, "clear"), (slice(4, 6), slice(4, 6)))
    np.testing.assert_array_equal(on_the_day["reference"], clear)


def test_the_mask_is_the_cloudy_dates_and_no_data_where_it_or_the_target_has_none(dates):
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[:8, :8] = CLOUD
    expected[3, 5] = expected[20, 7] = NO_DATA  # not at (0, 0), where the reference has none
    np.testing.assert_array_equal(whole(prepared())["mask"], expected)


def test_without_a_reference_there_are_two_images(dates):
    found = whole(prepared(2))
    assert list(found) == ["cloudy", "clear", "mask"]
    np.testing.assert_array_equal(found["clear"], normalised(dates, "clear"))


def test_without_normalisation_the_dates_are_as_they_are_and_stay_so(dates):
    before = {role: image.copy() for role, image in dates.items()}
    found = whole(prepared(), radiometry="none")
    np.testing.assert_array_equal(found["clear"], dates["clear"])
    np.testing.assert_array_equal(found["reference"], only_clear(dates["reference"], (slice(8, 10), slice(8, 10))))
    np.testing.assert_equal(dates, before)  # they lie in the reader's memory


def test_a_normalisation_is_told_the_row_and_the_height_of_the_scene(dates):
    class Noted:
        def apply(self, image, *, top, height):
            asked.append((top, height))
            return image

    asked, width = [], SIDE - 4
    for role in dates:
        dates[role] = dates[role][..., :width]
    wide = {role: SimpleNamespace(role=role, shape=(SIDE, width)) for role in pairs_of(2)}
    whole(replace(prepared(2), products=wide, matches={"clear": Noted()}))
    assert asked == [(0, SIDE), (10, SIDE), (20, SIDE)]


def write_truth(path, pixels):
    count, height, width = pixels.shape
    facts = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", transform=Affine(10, 0, 0, 0, -10, 0), **facts) as image:
        image.write(pixels)
    return path


@pytest.mark.parametrize("radiometry", ["line", "none"])
def test_the_ground_of_the_day_is_the_target_as_it_is_and_the_clear_date_the_reference(dates, tmp_path, radiometry):
    ground = np.random.default_rng(1).integers(1000, 9000, (4, SIDE, SIDE)).astype(np.uint16)
    ground[3, 22, 1] = EMPTY_DN
    found = whole(prepared(2, truth=write_truth(tmp_path / "truth.tif", ground)), radiometry)
    assert list(found) == ["cloudy", "clear", "reference", "mask"]
    np.testing.assert_array_equal(found["clear"], ground)
    clear = normalised(dates, "clear") if radiometry == "line" else dates["clear"]
    np.testing.assert_array_equal(found["reference"], only_clear(clear, (slice(4, 6), slice(4, 6))))
    assert found["mask"][22, 1] == found["mask"][3, 5] == NO_DATA
    assert found["mask"][20, 7] == CLEAR  # the clear date has no data there, but it is not the target


def test_a_ground_of_another_size_or_kind_is_named(dates, tmp_path):
    pixels = np.ones((4, SIDE, SIDE), np.uint16)
    for wrong in (pixels[:3], pixels[:, 1:], pixels.astype(np.int16)):
        truth = write_truth(tmp_path / "truth.tif", wrong)
        with pytest.raises(ItemError, match=r"truth\.tif.*the scene has \(4, 24, 24\) uint16"):
            whole(prepared(2, truth=truth))
    truth.write_bytes(b"no raster")
    with pytest.raises(CorruptFileError, match=r"truth\.tif"):
        whole(prepared(2, truth=truth))


def test_the_shift_is_measured_from_the_cloudy_to_the_clear_date_before_any_normalisation(dates):
    shift = Shift()
    whole(prepared(shift=shift))
    assert [top for top, *_ in shift.given] == [0, 10, 20]
    for number, role in ((1, "cloudy"), (2, "clear")):
        image = np.concatenate([given[number] for given in shift.given], axis=1)
        np.testing.assert_array_equal(image, dates[role])


@pytest.mark.parametrize(("row", "col"), [(1.0, -1.0), (-1.0, 0.0), (0.0, 1.0), (None, None)])
def test_a_shift_up_to_the_limit_is_kept(row, col):
    pair = prepared(shift=Shift(row, col))
    assert pairs.measured_shift(pair, 1.0, "reject") == {"row": row, "col": col, "chips": 9}


def test_a_shift_that_cannot_be_measured_is_no_silent_pass():
    shift = Shift(None, None)
    shift.found["why"] = "2 of 9 places are clear and alike, 3 are needed"
    small, large = prepared(shift=shift), prepared(shift=shift)
    large.products["cloudy"].shape = (1024, 1024)
    with pytest.raises(RejectedError, match=r"how far the dates are shifted: 2 of 9 places") as caught:
        pairs.measured_shift(large, 1.0, "reject")
    assert caught.value.result["measures"]["shift"] == shift.found
    for pair, rule in ((small, "reject"), (large, "accept")):
        assert pairs.measured_shift(pair, 1.0, rule) == shift.found


@pytest.mark.parametrize(("row", "col"), [(1.01, 0.0), (-1.01, 0.0), (0.0, 1.01), (0.0, -1.01)])
def test_a_shift_above_the_limit_is_rejected_with_all_measures(row, col):
    with pytest.raises(RejectedError, match="the dates are shifted by") as caught:
        pairs.measured_shift(prepared(shift=Shift(row, col)), 1.0, "accept")
    assert f"{row:+.2f} rows, {col:+.2f} columns, at most 1.0 pixels" in str(caught.value)
    assert caught.value.result["measures"] == {
        "radiometric_match": {},
        "windows": {"kept": 1},
        "shift": {"row": row, "col": col, "chips": 9},
    }


# --- a pair of an archive ------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def few_pixels_to_begin_with(monkeypatch):
    """A normalisation takes a tenth of its time."""
    monkeypatch.setattr(radiometry, "_START_PIXELS", 200)


def kept(function):
    """`function`, which gives copies of what it has given for the same arguments."""
    remembered = functools.cache(function)

    def read(*arguments, **into):
        return function(*arguments, **into) if into else remembered(*arguments).copy()

    return read


READS = {decode.Band: ("read", "reduced"), decode: ("read_image",)}
KEPT = [(owner, name, kept(getattr(owner, name))) for owner, names in READS.items() for name in names]


@pytest.fixture(autouse=True)
def each_file_is_decoded_once(monkeypatch):
    """No test changes a product."""
    for owner, name, function in KEPT:
        monkeypatch.setattr(owner, name, function)


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Role -> product of 192 x 192 pixels of one place."""
    archive = tmp_path_factory.mktemp("archive")
    days = {"clear": [date(2024, 3, 4), date(2024, 3, 20)], "cloudy": [date(2024, 3, 10)]}
    names = make_synthetic(archive, tiles=["05WPS"], size=192, seed=5, cloud=(0.25, 0.25), **days)
    return {
        role: Product.open(archive / f"{name}.SAFE")
        for role, name in zip(("clear", "reference", "cloudy"), names, strict=True)
    }


def prepare(products, rules=RULES, roles=("cloudy", "clear", "reference"), **options):
    chosen = {role: products[role] for role in roles}
    return pairs.prepare(chosen, SETTINGS, rules, **{"excluded": [], "seed": 0} | options)


def test_every_clear_date_is_normalised_to_the_cloudy_one(products):
    found = prepare(products)
    previews = {role: Preview.open(product, SETTINGS) for role, product in products.items()}
    revised = scene.masks_of_pair(previews, SETTINGS)
    reduced = {role: ReducedScene.open(product, revised[role], 1) for role, product in products.items()}
    assert set(found.matches) == {"clear", "reference"}
    for role, match in found.matches.items():
        assert match == scene.fit(reduced[role], reduced["cloudy"])
        assert found.measures["radiometric_match"][role] == match.facts()
    np.testing.assert_array_equal(found.shift.clear, reduced["cloudy"].clear & reduced["clear"].clear)
    assert found.matches["reference"] != scene.fit(reduced["reference"], reduced["clear"])
    for role, expected in revised.items():
        np.testing.assert_array_equal(found.masks[role].mask, expected.mask)
        np.testing.assert_array_equal(found.masks[role].core, expected.core)


def test_windows_have_the_clouds_of_the_cloudy_date_and_counts_say_what_each_rule_left(products):
    found = prepare(products)
    core = found.masks["cloudy"].at_10m("core", (192, 192))
    for row, col, share in zip(found.windows.row, found.windows.col, found.windows.cloud_fraction, strict=True):
        here = core[row : row + 64, col : col + 64]
        assert share == pytest.approx(np.isin(here, (1, 3)).mean())
    counts = found.measures["windows"]
    assert list(counts) == ["selected by mask", "correlated", "on ground of no other split", "kept"]
    assert counts["kept"] == len(found.windows) > 10
    assert prepare(products, replace(RULES, max_per_pair=5)).measures["windows"]["kept"] == 5


def test_masks_on_two_grids_are_compared_at_10_m():
    coarse, fine = np.eye(2, dtype=np.uint8), np.eye(4, dtype=np.uint8)
    found = {"cloudy": SceneMasks(coarse, coarse, 2), "clear": SceneMasks(fine, fine, 1)}
    cloudy, clear, factor = pairs._cores(found, (4, 4))
    np.testing.assert_array_equal(cloudy, coarse.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(clear, fine)
    assert factor == 1


def drifts(products, folder) -> np.ndarray:
    """Writes that the eastern half of the tile drifts; (192, 192) bool."""
    found = np.zeros((192, 192), np.uint8)
    found[:, 97:] = 3
    place = products["cloudy"].transform
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": products["cloudy"].crs, "transform": place}
    with rasterio.open(folder / "05WPS.tif", "w", height=192, width=192, **profile) as image:
        image.write(found, 1)
    return found > 0


@pytest.mark.slow
def test_a_reference_has_no_data_where_the_ground_drifts(products, tmp_path):
    """Known ground stays the target there; a clear date is none, and such windows are left out."""
    there = drifts(products, tmp_path)
    truth = tmp_path / "truth.tif"
    profile = {"driver": "GTiff", "count": 4, "dtype": "uint16", "height": 192, "width": 192}
    with rasterio.open(truth, "w", **profile) as image:
        image.write(np.full((4, 192, 192), 5000, np.uint16))
    before, after = (
        prepare(products, roles=("cloudy", "clear"), truth=truth, drifting=folder) for folder in (None, tmp_path)
    )
    images = [dict(next(pairs.stripes(each, radiometry="none", processes=1))[1]) for each in (before, after)]
    free, marked = ((each["reference"] != 0).all(0) for each in images)
    assert free[there].mean() > 0.5
    grown = masks.upsampled(masks.pool(there, 2, np.logical_or), 2, (192, 192))
    np.testing.assert_array_equal(marked, free & ~grown)
    for name in ("cloudy", "clear", "mask"):
        np.testing.assert_array_equal(images[0][name], images[1][name])
    assert after.windows.col.max() > 97
    assert prepare(products, drifting=None).windows.col.max() > 97
    assert prepare(products, drifting=tmp_path).windows.col.max() + 64 <= 97


def test_dates_are_reduced_as_the_windows_allow(products, monkeypatch):
    asked = []
    monkeypatch.setattr(pairs.scene, "reduction", lambda shape, *, window: asked.append((shape, window)) or 1)
    prepare(products)
    assert asked == [((192, 192), RULES.window)]


@pytest.mark.slow
def test_a_grid_of_offsets_is_fitted_only_where_it_is_asked_for(products):
    for way in ("line", "grid", "none"):
        match = prepare(products, replace(RULES, radiometry=way)).matches["clear"]
        assert (match.grid is not None) == (way == "grid")


@pytest.mark.slow
def test_ground_of_another_split_is_left_to_it(products):
    place = products["cloudy"].transform
    west = box(place.c - 5000, place.f - 5000, place.c + 640, place.f + 5000)
    found = prepare(products, excluded=[west])
    assert len(found.windows)
    assert found.windows.col.min() * 10 > 640
    assert prepare(products).windows.col.min() == 0
    with pytest.raises(RejectedError, match=r"no window is usable: \d+ selected by mask, \d+ corr.*, 0 on") as caught:
        prepare(products, excluded=[west.buffer(5000)])
    assert caught.value.result["measures"]["windows"]["kept"] == 0


def test_the_notebooks_preset_takes_the_classification_for_selection_and_mask(products):
    found = prepare(products, replace(RULES, preset="notebook-2025"), excluded=[])
    scl = read_scl(products["cloudy"])
    np.testing.assert_array_equal(found.masks["cloudy"].mask, masks.classes(scl))
    for row, col in zip(found.windows.row // 2, found.windows.col // 2, strict=True):
        low, high = NOTEBOOK_2025["cloud"]
        assert low <= np.isin(scl[row : row + 32, col : col + 32], masks.SCL_CLOUDS).mean() <= high
    assert len(found.windows)
    assert (found.windows.col % 64 == 0).all()


def test_a_scene_of_exactly_a_window_is_enough(products):
    assert prepare(products, replace(RULES, window=192, cloud=(0, 1), target_max_cloud=1)).windows.window == 192
    with pytest.raises(RejectedError, match="192 x 192 pixels, less than a window of 200"):
        prepare(products, replace(RULES, window=200))


def test_a_clear_date_that_does_not_fit_is_rejected_by_its_own_match(products, monkeypatch):
    def fit(source, target, *, grid):
        r2 = 0.4 if source.product is products["clear"] else 0.9
        return Match([{"gain": 1.0, "offset": 0.0, "r2": r2, "rmse": 500.0, "pixels": 999}] * 4)

    monkeypatch.setattr(pairs.scene, "fit", fit)
    with pytest.raises(RejectedError, match=r"does not fit the cloudy one: B04 R2 0\.40") as caught:
        prepare(products)
    assert set(caught.value.result["measures"]["radiometric_match"]) == {"clear", "reference"}
    for limit in (0.4, None):  # the limit itself will do
        assert prepare(products, replace(RULES, min_r2=limit)).matches["clear"].r2 == 0.4


def test_a_clear_date_whose_fit_cannot_be_measured_is_no_silent_pass(products, monkeypatch):
    line = {"gain": 1.0, "offset": 0.0, "r2": None, "rmse": None, "pixels": 99}
    monkeypatch.setattr(pairs.scene, "fit", lambda source, target, *, grid: Match([line] * 4))
    with pytest.raises(RejectedError, match="fits the cloudy one: B04 has 99 jointly clear pixels, 500 are") as caught:
        prepare(products)
    assert set(caught.value.result["measures"]["radiometric_match"]) == {"clear", "reference"}
    for rules in (replace(RULES, min_r2=None), replace(RULES, unmeasured="accept")):
        assert prepare(products, rules).matches["clear"].r2 is None


@pytest.mark.parametrize(("limit", "kept"), [(0.5, [0, 2, 3]), (None, [0, 1, 2, 3])])
def test_windows_at_the_limit_of_correlation_and_unmeasured_ones_stay(products, monkeypatch, limit, kept):
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    values = np.array([0.5, below, np.nan, 0.9], np.float32)
    four = Windows(np.arange(4, dtype="i4"), np.zeros(4, "i4"), np.full(4, 0.2, "f4"), 64)
    monkeypatch.setattr(pairs.windows, "select", lambda *_, **__: four)
    monkeypatch.setattr(pairs.windows, "correlation", lambda *_, **__: values)
    assert prepare(products, replace(RULES, min_correlation=limit)).windows.row.tolist() == kept


def test_the_clear_date_is_normalised_before_it_is_correlated(products, monkeypatch):
    asked = {}
    plainly = pairs.windows.correlation

    def correlation(cloudy, clear, usable, found, *, step):
        asked.update(cloudy=cloudy, clear=clear, usable=usable)
        return plainly(cloudy, clear, usable, found, step=step)

    monkeypatch.setattr(pairs.windows, "correlation", correlation)
    found = prepare(products)
    reduced = {role: ReducedScene.open(products[role], found.masks[role], 1) for role in ("cloudy", "clear")}
    np.testing.assert_array_equal(asked["cloudy"], reduced["cloudy"].bands)
    np.testing.assert_array_equal(asked["clear"], found.matches["clear"].apply(reduced["clear"].bands, height=192))
    np.testing.assert_array_equal(asked["usable"], reduced["cloudy"].clear & reduced["clear"].clear)
