import math

import numpy as np
import pytest

from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, EMPTY_DN, NO_DATA, SHADOW, UNKNOWN
from cloudjob.scoring import metrics, scenes
from cloudjob.scoring.tables import finite
from cloudjob.sentinel2.radiometry import digital_number, reflectance

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
SHAPE = 4, 20, 24


class Date:
    """A scene of one number, whose normalisation to another adds 7 to it."""

    def __init__(self, dn: int, *, clouds: tuple[slice, slice] = (slice(0), slice(0))):
        self.bands = np.full(SHAPE, dn, np.uint16)
        self.mask = np.full(SHAPE[1:], CLEAR, np.uint8)
        self.mask[clouds] = CLOUD

    def matched(self, other: "Date") -> np.ndarray:
        return other.bands + np.uint16(7)

    def clear_only(self, bands: np.ndarray) -> np.ndarray:
        return np.where(self.mask == CLEAR, bands, EMPTY_DN)


# --- what is held against what -----------------------------------------------------------------------------------
CLOUDS, OTHER_CLOUDS = (slice(0, 5), slice(0, 6)), (slice(15, 20), slice(20, 24))
CLOUDY, CLEAR_DATE, REFERENCE = Date(8000, clouds=CLOUDS), Date(3000, clouds=OTHER_CLOUDS), Date(2000)
RESTORED, GROUND = np.full(SHAPE, 3100, np.uint16), np.full(SHAPE, 3200, np.uint16)


def values(images: dict) -> dict[str, int]:
    return {name: int(image[0, 10, 10]) for name, image in images.items()}


ALWAYS = {"ours": 3100, "cloudy": 8000, "mean_fill": 8000}
FILLS = {"first_guess": 8000, "poisson": 8000}


@pytest.mark.parametrize(
    ("reference", "ground", "expected"),
    [
        (None, None, {}),
        (REFERENCE, None, FILLS | {"nearest_clear": 2000, "nearest_matched": 2007}),
        (None, GROUND, FILLS | {"nearest_clear": 3000, "nearest_matched": 3007}),
        (REFERENCE, GROUND, FILLS | {"nearest_clear": 3000, "nearest_matched": 3007, "other_matched": 2007}),
    ],
)
def test_the_ground_is_the_truth_where_it_is_known_else_the_clear_date(reference, ground, expected):
    """The reference is judged by the clear date, and never by itself; where the ground of the day is known, the clear
    date is a method too."""
    images, truth = scenes.images_of(CLOUDY, CLEAR_DATE, reference, RESTORED, ground)
    assert values(images) == ALWAYS | expected
    if ground is None:
        clouds = np.zeros(SHAPE[1:], bool)
        clouds[OTHER_CLOUDS] = True
        assert np.array_equal(truth, np.where(clouds, EMPTY_DN, np.full(SHAPE, 3007)))
    else:
        assert truth is ground


def test_the_ground_as_sensed_is_an_image_too():
    images, truth = scenes.images_of(CLOUDY, CLEAR_DATE, None, RESTORED, GROUND, GROUND + np.uint16(3))
    assert values(images) == ALWAYS | FILLS | {"nearest_clear": 3000, "nearest_matched": 3007, "sensor_noise": 3203}
    assert truth is GROUND


def test_the_mean_of_clear_pixels_fills_the_others():
    cloudy = Date(0, clouds=CLOUDS)
    cloudy.bands = np.random.default_rng(0).integers(1000, 9000, SHAPE, np.uint16)
    cloudy.mask[10, 10] = UNKNOWN
    images, _ = scenes.images_of(cloudy, CLEAR_DATE, None, RESTORED, None)
    clear = cloudy.mask == CLEAR
    for band in range(4):
        assert np.array_equal(images["mean_fill"][band, clear], cloudy.bands[band, clear])
        expected = reflectance(cloudy.bands)[band, clear].mean(dtype=float)
        assert set(images["mean_fill"][band, ~clear]) == {digital_number(np.array(expected)).item()}


def textured() -> tuple[Date, Date]:
    """A cloudy date, and a clear one that is 400 darker and has clouds of its own."""
    cloudy, clear = Date(0, clouds=CLOUDS), Date(0, clouds=OTHER_CLOUDS)
    clear.bands = np.random.default_rng(1).integers(2000, 3000, SHAPE, np.uint16)
    cloudy.bands = np.where(cloudy.mask == CLEAR, clear.bands + 400, 9000).astype(np.uint16)
    return cloudy, clear


@pytest.mark.parametrize("square", [512, 12])
def test_the_fills_give_the_nearest_date_as_bright_as_the_cloudy_one(square, monkeypatch):
    """They see it matched; in each square they agree with what is clear around the cloud."""
    monkeypatch.setattr(scenes, "_SQUARE", square)
    cloudy, clear = textured()
    images, _ = scenes.images_of(cloudy, clear, REFERENCE, RESTORED, GROUND)
    for name in ("first_guess", "poisson"):
        assert images[name].dtype == np.uint16
        assert np.array_equal(images[name][:, 5:], cloudy.bands[:, 5:])
        assert images[name].astype(int) == pytest.approx(clear.bands + 400.0, abs=1), name
    assert (images["cloudy"][:, :5, :6] == 9000).all()


def test_the_fills_see_the_date_as_it_is_matched(monkeypatch):
    cloudy, clear = textured()
    monkeypatch.setattr(cloudy, "matched", lambda other: 2 * other.bands)
    cloudy.bands[:, cloudy.mask == CLEAR] = 2 * clear.bands[:, cloudy.mask == CLEAR] + 400
    images, _ = scenes.images_of(cloudy, clear, None, RESTORED, GROUND)
    for name in ("first_guess", "poisson"):
        assert images[name].astype(int) == pytest.approx(2 * clear.bands + 400.0, abs=1), name


def test_poisson_blends_from_one_side_to_the_other_and_trusts_what_is_clear_alone():
    """A hidden column between 400 and 800 brighter; what is of unknown state beside it is not looked at."""
    cloudy, clear = textured()
    cloudy.bands = clear.bands + np.where(np.arange(24) < 8, 400, 800).astype(np.uint16)
    cloudy.mask[:] = CLEAR
    cloudy.mask[:, 8], cloudy.bands[:, :, 8] = CLOUD, 9000
    cloudy.mask[5, 7], cloudy.bands[:, 5, 7] = UNKNOWN, 9000
    images, _ = scenes.images_of(cloudy, clear, None, RESTORED, GROUND)
    added = images["poisson"][:, :15, 8].astype(int) - clear.bands[:, :15, 8]
    assert added[:, 14] == pytest.approx(600, abs=10)
    assert ((added > 590) & (added < 710)).all()
    assert (images["first_guess"][:, :15, 8] != images["poisson"][:, :15, 8]).any()


def test_the_fills_are_of_the_reference_where_the_clear_date_is_the_truth():
    cloudy, clear = textured()
    images, _ = scenes.images_of(cloudy, Date(2000), clear, RESTORED, None)
    assert images["poisson"].astype(int) == pytest.approx(clear.bands + 400.0, abs=1)
    assert "poisson" not in scenes.images_of(cloudy, clear, None, RESTORED, None)[0]


def test_a_fill_has_no_data_where_the_nearest_date_is_cloudy_too():
    cloudy, clear = textured()
    clear.mask[:2, :3] = CLOUD
    clear.mask[2, 0], cloudy.mask[10, 10], clear.mask[10, 10] = UNKNOWN, UNKNOWN, CLOUD
    images, _ = scenes.images_of(cloudy, clear, None, RESTORED, GROUND)
    for name in ("first_guess", "poisson"):
        missing = (images[name] == EMPTY_DN).all(0)
        assert np.argwhere(missing).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0]]
        assert np.array_equal(images[name][:, 10, 10], cloudy.bands[:, 10, 10]), "of unknown state"


def test_squares_without_cloud_are_left_as_they_are(monkeypatch):
    """The other square of the scene does not reach what is around the cloud of the first one."""
    monkeypatch.setattr(scenes, "_SQUARE", 12)
    cloudy, clear = textured()
    cloudy.bands[:, :, 12:] += 500
    images, _ = scenes.images_of(cloudy, clear, None, RESTORED, GROUND)
    for name in ("first_guess", "poisson"):
        assert images[name][:, :, :12].astype(int) == pytest.approx(clear.bands[:, :, :12] + 400.0, abs=1)
        assert np.array_equal(images[name][:, :, 12:], cloudy.bands[:, :, 12:])


# --- scores of a scene -------------------------------------------------------------------------------------------
STRATA = ("thick", "veil", "shadow", "rim", "cloud", "clear", "all")


@pytest.fixture(scope="module")
def scene() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """(images, truth, mask, core)"""
    rng = np.random.default_rng(1)
    truth = rng.integers(2000, 4000, SHAPE, np.uint16)
    mask, core = np.full((2, *SHAPE[1:]), CLEAR, np.uint8)
    mask[:14, :16], mask[14, :16], mask[15, :16], mask[18], mask[19] = CLOUD, SHADOW, CIRRUS, UNKNOWN, NO_DATA
    core[:6], core[6:9], core[9:11] = CLOUD, CIRRUS, SHADOW
    cloudy = np.where(np.isin(mask, (CLOUD, SHADOW, CIRRUS)), 9000, truth).astype(np.uint16)
    cloudy[:, 19] = EMPTY_DN
    ours = np.where(np.isin(mask, (CLOUD, SHADOW, CIRRUS)), truth + 100, cloudy).astype(np.uint16)
    return {"ours": ours, "cloudy": cloudy}, truth, mask, core


def told(rows: list[dict]) -> dict:
    """What is told of the scene beside its scores."""
    return next(row for row in rows if "changed_clear_pixels" in row)


def test_rows_of_each_method_and_stratum(scene):
    images, *given = scene
    rows = scenes.score(images, *given, kind="ground", tile=12, overlap=4)
    assert [(row["method"], row["on"]) for row in rows] == [(method, on) for method in images for on in STRATA]
    by = {(row["method"], row["on"]): row for row in rows}
    height = {"thick": 6, "veil": 3, "shadow": 2, "rim": 5, "cloud": 16}
    pixels = {on: 16 * rows for on, rows in height.items()} | {"clear": 2 * 24 + 16 * 8, "all": 19 * 24}
    assert {on: by["cloudy", on]["pixels"] for on in STRATA} == pixels
    for on in height:
        assert by["ours", on]["mae"] == pytest.approx(0.01, abs=1e-6)
        assert by["ours", on]["psnr"] == pytest.approx(40, abs=1e-3)
        assert by["cloudy", on]["mae"] > 0.5
    assert by["ours", "clear"]["mae"] == by["cloudy", "clear"]["mae"] == 0
    assert not any(row["missing"] for row in rows)
    assert [row["changed_clear_pixels"] for row in rows if "changed_clear_pixels" in row] == [0], "one row tells"
    assert [row["method"] for row in rows if "seam_index" in row] == ["ours"]
    assert told(rows)["truth"] == "ground"


def test_what_one_method_lacks_is_taken_from_all(scene):
    """Nine pixels, in one band alone; ours is spoilt there, which nobody sees."""
    images, truth, mask, core = scene
    spoilt, partial = images["ours"].copy(), images["cloudy"].copy()
    spoilt[:, :3, :3] = 60000
    partial[3, :3, :3] = EMPTY_DN
    given = images | {"ours": spoilt, "poisson": partial}
    rows = scenes.score(given, truth, mask, core, kind="ground", tile=12, overlap=4)
    by = {(row["method"], row["on"]): row for row in rows}
    for on, pixels in (("thick", 6 * 16), ("cloud", 16 * 16), ("all", 19 * 24)):
        assert by["ours", on]["pixels"] == by["poisson", on]["pixels"] == pixels - 9
        assert (by["ours", on]["missing"], by["poisson", on]["missing"]) == (0, 9)
    assert by["ours", "thick"]["mae"] == pytest.approx(0.01, abs=1e-6)
    assert by["poisson", "veil"]["missing"] == 0


def test_what_changed_outside_of_the_clouds_is_counted_by_pixels(scene):
    images, *given = scene
    spoilt = images["ours"].copy()
    spoilt[0, 17, 3] += 1
    spoilt[:, 17, 20] += 1
    spoilt[2, 18, 0] += 1  # of unknown state
    spoilt[:, 0, 0] += 1  # below cloud
    rows = scenes.score(images | {"ours": spoilt}, *given, kind="ground", tile=12, overlap=4)
    assert told(rows)["changed_clear_pixels"] == 3


def test_seams_of_the_restored_image_and_of_the_truth(scene):
    images, truth, mask, core = scene
    rows = scenes.score(images, truth, mask, core, kind="clear date", tile=12, overlap=4)
    hidden = np.isin(mask, (CLOUD, SHADOW, CIRRUS))
    for name, image in (("ours", images["ours"]), ("truth", truth)):
        expected = scenes.seam_index(reflectance(image), hidden, tile=12, overlap=4)
        assert told(rows)["seam_index"][name] == pytest.approx(expected, abs=1e-6)
    assert told(rows)["truth"] == "clear date"


def test_nothing_is_scored_against_a_date_that_the_model_was_shown(scene):
    images, truth, mask, core = scene
    before = truth.copy()
    rows = scenes.score(images, truth, mask, core, kind=scenes.NO_TRUTH, tile=12, overlap=4)
    assert len(rows) == 2 * len(STRATA)
    assert all(row["pixels"] == 0 and row["psnr"] is None and row["mae"] is None for row in rows)
    assert told(rows)["truth"] == scenes.NO_TRUTH == "none, the clear date was shown to the model"
    assert told(rows)["changed_clear_pixels"] == 0
    assert told(rows)["seam_index"]["truth"] is None
    assert told(rows)["seam_index"]["ours"] > 0
    assert np.array_equal(truth, before)


# --- seams -------------------------------------------------------------------------------------------------------
def test_the_edges_of_tiles_are_where_each_begins_and_ends():
    """Of 20 x 28 pixels in tiles of 12 that overlap by 4: rows 0-12 and 8-20, columns 0-12, 8-20 and 16-28."""
    everywhere = np.ones((20, 28), bool)
    rng = np.random.default_rng(2)
    for axis, length, edges in ((1, 20, {8, 12}), (2, 28, {8, 12, 16, 20})):
        for place in range(1, length):
            image = rng.normal(0, 0.01, (4, 20, 28))
            image += np.expand_dims(np.arange(length) >= place, tuple({0, 1, 2} - {axis}))
            index = scenes.seam_index(image, everywhere, tile=12, overlap=4)
            assert (index > 2) == (place in edges), place
    assert scenes.seam_index(image, everywhere, tile=12, overlap=4) == metrics.seam_index(
        image, everywhere, {8, 12}, {8, 12, 16, 20}
    )


def test_the_mean_of_seams_is_over_the_scenes_where_both_can_be_measured():
    seams = [{"ours": 1.23456, "truth": 1.0}, {"ours": None, "truth": 5.0}, {"ours": 1.5, "truth": 2.0}]
    assert scenes.mean_seams(seams) == {"ours": 1.3673, "truth": 1.5}
    assert scenes.mean_seams(seams[1:2]) == {}
    assert scenes.mean_seams([]) == {}


# --- all scenes --------------------------------------------------------------------------------------------------
def test_pooled_scores_are_of_all_pixels_of_the_scenes_that_have_a_method():
    rng = np.random.default_rng(3)
    truth = rng.uniform(0, 1, (4, 24, 24)).astype("f4")
    few, many = np.zeros((2, 24, 24), bool)
    few[6:9, 6:9], many[6:18, 6:18] = True, True
    good, bad = (truth + rng.normal(0, spread, truth.shape).astype("f4") for spread in (0.01, 0.1))
    rows = [
        {"method": method, "on": on} | finite(metrics.score(image, truth, pixels))
        for method, on, image, pixels in [
            ("cloudy", "cloud", bad, few),
            ("ours", "cloud", good, few),
            ("ours", "cloud", bad, many),
            ("ours", "clear", good, ~few),
            ("ours", "all", good, few & ~few),  # no pixel
            ("ours", "thick", good, few),
            ("mean_fill", "thick", bad, few),
            ("mean_fill", "cloud", good, few),
            ("of tomorrow", "cloud", good, few),
        ]
    ]
    found = scenes.pool(rows)
    assert list(found) == ["ours", "mean_fill", "cloudy"], "the best on thick cloud first"
    assert list(found["ours"]) == ["thick", "cloud", "clear"]
    assert found["ours"]["cloud"] == finite({"scenes": 2} | metrics.pool(rows[1:3]))
    assert found["cloudy"]["cloud"]["scenes"] == 1
    error = (9 * rows[1]["rmse"] ** 2 + 144 * rows[2]["rmse"] ** 2) / 153
    assert found["ours"]["cloud"]["psnr"] == pytest.approx(-10 * math.log10(error), abs=1e-4)


@pytest.mark.parametrize(
    ("width", "side", "step"), [(512, 512, 1), (513, 512, 2), (1024, 512, 2), (1025, 512, 3), (7, 3, 3)]
)
def test_pictures_are_thinned_to_a_side(width, side, step):
    image = np.arange(2 * 4 * 6 * width, dtype=np.uint32).reshape(2, 4, 6, width)
    found = scenes.thumbnail(list(image), side=side)
    assert [part.shape for part in found] == [(4, -(-6 // step), -(-width // step))] * 2
    assert np.array_equal(found[1], image[1, :, ::step, ::step])
    tall = scenes.thumbnail([image[0].swapaxes(1, 2)], side=side)
    assert max(tall[0].shape[-2:]) <= side
    assert scenes.thumbnail([np.zeros((4, 3, 3))], side=3)[0].shape == (4, 3, 3), "the bands are no side"
    if side == 512:
        assert [part.shape for part in scenes.thumbnail(list(image))] == [part.shape for part in found]


# --- differences -------------------------------------------------------------------------------------------------
def test_differences_are_on_the_scenes_that_have_both():
    def row(product: str, method: str, rmse: float | None, pixels: int = 10) -> dict:
        return {"product": product, "method": method, "on": "thick", "rmse": rmse, "pixels": pixels}

    rows = [row("A", "ours", 0.1), row("A", "poisson", 0.2), row("B", "ours", 0.4), row("B", "poisson", None, 0)]
    rows += [row("B", "cloudy", 0.4), row("A", "cloudy", 0.5, 30)]
    found = scenes.differences(rows)
    assert set(found) == {"thick"}
    assert found["thick"]["poisson"]["psnr"] == pytest.approx(20 * math.log10(0.2 / 0.1), abs=1e-5)
    ours, cloudy = (10 * 0.1**2 + 10 * 0.4**2) / 20, (10 * 0.4**2 + 30 * 0.5**2) / 40
    assert found["thick"]["cloudy"]["psnr"] == pytest.approx(10 * math.log10(cloudy / ours), abs=1e-5)
    assert scenes.differences([]) == {}
