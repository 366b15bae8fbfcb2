"""What each method makes of triplets, and the scores of each."""

import batches
import numpy as np
import pytest
import torch
from restored import Known

from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.similarity import similar
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN
from cloudjob.scoring import baselines, methods

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
SIZE, COUNT = 16, 3
NUMBERS = [40, 41, 42]


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    mask = np.zeros((COUNT, SIZE, SIZE), np.uint8)
    mask[:, :6], mask[:, 6:8], mask[:, 8:10], mask[:, 14], mask[:, 15] = CLOUD, SHADOW, CIRRUS, UNKNOWN, NO_DATA
    mask[2, 6:8] = CLEAR  # the last has no shadow
    return mask


@pytest.fixture(scope="module")
def core() -> np.ndarray:
    """Of the 10 rows that the mask hides 2 below thick cloud, 3 below thin, 1 in shadow; nothing above 4 of them."""
    core = np.zeros((COUNT, SIZE, SIZE), np.uint8)
    core[:, :2], core[:, 2:5], core[:, 5], core[:, 13] = CLOUD, CIRRUS, SHADOW, CLOUD  # row 13 is clear by the mask
    core[2, :2] = CIRRUS  # the last has no thick cloud
    return core


@pytest.fixture(scope="module")
def batch(mask) -> Batch:
    torch.manual_seed(0)
    clear = 0.5 + 0.1 * torch.randn(COUNT, 4, SIZE, SIZE)
    cloudy = torch.where(torch.from_numpy(mask)[:, None] > 0, 0.9, clear)
    return batches.batch(cloudy, torch.from_numpy(mask), target=clear, reference=clear + 0.02)


# --- ours --------------------------------------------------------------------------------------------------------
def test_ours_with_members_and_a_reference(batch):
    restorer = Known()
    found, every = methods.ours(restorer, batch, NUMBERS, members=3, more_steps=[1, 7])
    hidden = {name: image[0, 0, 0, 0] for name, image in found.items()}
    assert hidden == {
        "ours": pytest.approx(0.31),
        "ours_member": pytest.approx(0.3),
        "ours_without_reference": pytest.approx(0.41),
        "ours_member_without_reference": pytest.approx(0.4),
        "ours_1_step": pytest.approx(0.31),
        "ours_7_steps": pytest.approx(0.37),
    }
    assert every.shape == (3, COUNT, 4, SIZE, SIZE)
    assert every[:, 0, 0, 0, 0].tolist() == pytest.approx([0.3, 0.31, 0.32])
    assert {image.shape for image in found.values()} == {(COUNT, 4, SIZE, SIZE)}
    asked = [(given.references.shape[1], numbers, member, steps) for given, numbers, member, steps in restorer.asked]
    expected = [(there, NUMBERS, member, None) for there in (1, 0) for member in range(3)]
    assert asked == [*expected, (1, NUMBERS, 0, 1), (1, NUMBERS, 0, 7)]


def test_ours_with_one_member_or_two_and_without_references(batch):
    found, every = methods.ours(Known(), batch, NUMBERS, members=1, more_steps=[])
    assert list(found) == ["ours", "ours_without_reference"]
    assert every is None
    found, _ = methods.ours(Known(), batch, NUMBERS, members=2, more_steps=[])
    assert list(found) == ["ours", "ours_member", "ours_without_reference", "ours_member_without_reference"]
    found, every = methods.ours(Known(), batch.without_references(), NUMBERS, members=2, more_steps=[])
    assert list(found) == ["ours", "ours_member"]
    assert len(every) == 2


# --- what one date gives -----------------------------------------------------------------------------------------
def test_what_one_date_gives_is_filled_where_something_is_hidden_alone(batch, mask):
    cloudy = batch.cloudy.numpy()
    found = methods.one_date(cloudy, mask)
    assert list(found) == ["cloudy", "mean_fill", "smooth_fill"]
    assert found["cloudy"] is cloudy
    for name in ("mean_fill", "smooth_fill"):
        fill = getattr(baselines, name)
        for number, classes in enumerate(mask):
            filled = fill(cloudy[number], classes == CLEAR)
            hidden = np.isin(classes, (CLOUD, SHADOW, CIRRUS))
            assert np.array_equal(found[name][number], np.where(hidden, filled, cloudy[number]))


# --- what another date gives -------------------------------------------------------------------------------------
FILLS = ["first_guess", "poisson", "similar_pixels", "similar_and_seen"]


def below(cloudy: np.ndarray, reference: np.ndarray, hidden: np.ndarray, numbers=(1,)) -> dict[str, np.ndarray]:
    """What the fills make of images (N, 4, H, W) below cloud."""
    mask = np.where(hidden, CLOUD, CLEAR).astype(np.uint8)
    found = methods.from_another_date(cloudy.astype("f4"), reference.astype("f4"), mask, numbers)
    assert {image.dtype for image in found.values()} == {np.dtype("f4")}
    return {name: image[np.broadcast_to(hidden[:, None], image.shape)] for name, image in found.items()}


def test_a_date_that_differs_by_a_constant_gives_the_ground_and_leaves_what_is_not_hidden(batch, mask):
    cloudy, ground = batch.cloudy.numpy(), batch.known_target.numpy()
    found = methods.from_another_date(cloudy, ground + np.float32(0.02), mask, NUMBERS)
    assert list(found) == FILLS
    hidden = np.broadcast_to(np.isin(mask, (CLOUD, SHADOW, CIRRUS))[:, None], cloudy.shape)
    for image in found.values():
        assert np.array_equal(image[~hidden], cloudy[~hidden]), "of unknown state and without data too"
        assert image[hidden] == pytest.approx(ground[hidden], abs=2e-3)


def test_each_fill_is_its_own_method():
    """Half a step of 0.2 in brightness between the dates; in the hidden column the reference is 0.1 brighter."""
    hidden = np.zeros((1, 16, 16), bool)
    hidden[..., 8] = True
    reference, cloudy = np.full((2, 1, 4, 16, 16), 0.3)
    reference[..., 8] = 0.4
    cloudy[..., 8:] = 0.5
    found = below(cloudy, reference, hidden)
    assert found["poisson"] == pytest.approx(0.4 + 0.1, abs=1e-6)  # halfway between differences of 0 and 0.2
    assert (np.abs(found["first_guess"] - 0.5) > 1e-4).all()  # by cells
    assert found["first_guess"] == pytest.approx(0.5, abs=0.05)
    assert (np.abs(found["similar_pixels"] - found["poisson"]) > 1e-3).all()


def test_similar_pixels_see_that_the_light_has_doubled_and_shifted_dates_do_not():
    hidden = np.zeros((1, 16, 16), bool)
    hidden[:, 5:11, 5:11] = True
    reference = np.random.default_rng(0).uniform(0.1, 0.3, (1, 4, 16, 16))
    ground = 2 * reference + 0.05
    found = below(np.where(hidden[:, None], 0.9, ground), reference, hidden)
    truth = ground[np.broadcast_to(hidden[:, None], ground.shape)]
    off = {name: np.sqrt(np.mean((image - truth) ** 2)) for name, image in found.items()}
    assert off["similar_pixels"] == pytest.approx(0, abs=1e-3)
    assert off["similar_and_seen"] == pytest.approx(0, abs=1e-3), "nothing is seen through opaque cloud"
    assert off["first_guess"] > 0.04
    assert off["poisson"] > 0.04


def test_what_thin_cloud_lets_through_is_added():
    hidden = np.zeros((1, 24, 24), bool)
    hidden[:, 4:20, 4:20] = True
    rng = np.random.default_rng(0)
    reference = rng.uniform(0.1, 0.5, (1, 4, 24, 24))
    ground = reference + 0.02 * rng.standard_normal(reference.shape) * hidden[:, None]  # has changed there
    found = below(np.where(hidden[:, None], 0.7 * ground + 0.2, ground), reference, hidden)
    truth = ground[np.broadcast_to(hidden[:, None], ground.shape)]
    without, seen = (np.sqrt(np.mean((found[name] - truth) ** 2)) for name in FILLS[2:])
    assert without == pytest.approx(0.02, rel=0.1)
    assert seen < 0.8 * without


def test_where_the_other_date_has_no_data_there_is_no_prediction(batch, mask):
    cloudy, reference = batch.cloudy.numpy(), batch.known_target.numpy() + np.float32(0.02)
    reference[0, 1, 2, 3] = np.nan  # in one band alone
    reference[0, :, 12] = np.nan  # clear on the cloudy date
    reference[1] = np.nan
    found = methods.from_another_date(cloudy, reference, mask, NUMBERS)
    for image in found.values():
        missing = np.isnan(image).all(1)
        assert np.array_equal(missing, np.isnan(image).any(1))
        assert np.argwhere(missing[0]).tolist() == [[2, 3]]
        assert np.array_equal(missing[1], np.isin(mask[1], (CLOUD, SHADOW, CIRRUS)))
        assert not missing[2].any()


def test_what_is_drawn_depends_on_the_number_alone():
    """Of 1024 pixels the process knows 500."""
    hidden = np.zeros((1, 32, 32), bool)
    hidden[:, 12:20, 12:20] = True
    reference, cloudy = np.random.default_rng(0).uniform(0.1, 0.5, (2, 1, 4, 32, 32))
    both = below(*(np.concatenate([each, each]) for each in (cloudy, reference, hidden)), numbers=(7, 8))
    alone = below(cloudy, reference, hidden, numbers=(8,))
    for name, image in both.items():
        first, second = image.reshape(2, -1)
        assert np.array_equal(second, alone[name])
        assert (first == second).all() == (name in ("first_guess", "poisson"))


def test_more_dates_are_all_that_a_triplet_has():
    """Three triplets: of three dates, of a first and a third alone, and of the first."""
    rng = np.random.default_rng(1)
    cloudy, *dates = rng.uniform(0.1, 0.5, (4, 3, 4, 16, 16)).astype("f4")
    references = np.stack(dates, 1)
    references[1, 1] = references[2, 1:] = np.nan
    references[0, 1, 2, 3:6] = np.nan  # some rows of the second
    mask = np.full((3, 16, 16), CLEAR, np.uint8)
    mask[:, 3:9, 4:12], mask[:, 12:] = CLOUD, UNKNOWN
    first = methods.from_another_date(cloudy, references[:, 0], mask, NUMBERS)["similar_pixels"]
    kept = first.copy()
    found = methods.from_more_dates(cloudy, references, mask, NUMBERS, first)
    assert np.array_equal(first, kept)
    assert list(found) == ["similar_2_dates", "similar_3_dates"]
    expected = {"similar_2_dates": [[0, 1], [0], [0]], "similar_3_dates": [[0, 1, 2], [0, 2], [0]]}
    for name, dates_of in expected.items():
        for i, which in enumerate(dates_of):
            known = mask[i] == CLEAR
            fill = baselines.similar_pixels(cloudy[i], references[i, which], known, seed=NUMBERS[i])
            assert np.array_equal(found[name][i], np.where(mask[i] == CLOUD, fill, cloudy[i]))
    assert not np.array_equal(found["similar_2_dates"][0], found["similar_3_dates"][0])
    assert methods.from_more_dates(cloudy, references[:, :1], mask, NUMBERS, first) == {}


# --- scores ------------------------------------------------------------------------------------------------------
def by_name(triplet: list[dict]) -> dict[tuple[str, str], dict]:
    return {(row["method"], row["on"]): row for row in triplet}


def test_a_row_for_each_method_and_stratum_that_has_pixels(batch, mask, core):
    truth = batch.known_target.numpy()
    images = {"cloudy": batch.cloudy.numpy(), "perfect": truth, "off": truth + np.float32(0.1)}
    rows = methods.score(images, truth, mask, core)
    assert len(rows) == COUNT
    height = {"thick": 2, "veil": 3, "shadow": 1, "rim": 4, "cloud": 10, "clear": 4, "all": 15}
    last = {"veil": 5, "shadow": 1, "rim": 2, "cloud": 8, "clear": 6, "all": 15}
    for triplet, expected in zip(rows, (height, height, last), strict=True):
        assert list(by_name(triplet)) == [(method, on) for method in images for on in expected]
        assert all(row["pixels"] == SIZE * expected[row["on"]] and row["missing"] == 0 for row in triplet)
    by = by_name(rows[0])
    assert by["perfect", "thick"]["psnr"] == np.inf
    assert by["off", "veil"]["mae"] == pytest.approx(0.1, abs=1e-6)
    assert by["off", "rim"]["psnr"] == pytest.approx(20, abs=1e-4)
    assert by["cloudy", "clear"]["mae"] == 0
    assert by["cloudy", "shadow"]["mae"] == pytest.approx(np.abs(0.9 - truth[0, :, 5]).mean(), abs=1e-6)


def test_what_one_method_lacks_is_taken_from_all_and_told(mask, core):
    """Errors of 0.1, but for one of 0.9 where another has no data in one band."""
    truth = np.full((2, 4, SIZE, SIZE), 0.5, np.float32)
    whole, partial = truth + np.float32(0.1), truth - np.float32(0.2)
    partial[0, 2, 0, :5] = np.nan
    whole[0, :, 0, :5] = 1.4
    partial[0, :, 15] = np.nan  # where the mask has no data either
    first, second = methods.score({"whole": whole, "partial": partial}, truth, mask[:2], core[:2])
    by = by_name(first)
    for on, pixels in (("thick", 2 * SIZE), ("cloud", 10 * SIZE), ("all", 15 * SIZE)):
        assert [by[method, on]["pixels"] for method in ("whole", "partial")] == [pixels - 5] * 2
        assert [by[method, on]["missing"] for method in ("whole", "partial")] == [0, 5]
        assert by["whole", on]["mae"] == pytest.approx(0.1, abs=1e-6)
        assert by["partial", on]["mae"] == pytest.approx(0.2, abs=1e-6)
    assert by["whole", "veil"]["pixels"] == 3 * SIZE
    assert all(row["missing"] == 0 for row in second), "the other has it all"
    assert by_name(second)["whole", "thick"]["pixels"] == 2 * SIZE


def test_pixels_without_a_truth_are_neither_scored_nor_missing(mask, core):
    truth = np.full((1, 4, SIZE, SIZE), 0.5, np.float32)
    image = truth.copy()
    image[:, :, 0], truth[:, :, 0] = np.nan, np.nan
    image[:, :, 1, 0] = np.nan
    thick = by_name(methods.score({"ours": image}, truth, mask[:1], core[:1])[0])["ours", "thick"]
    assert (thick["pixels"], thick["missing"]) == (SIZE - 1, 1)


# --- members -----------------------------------------------------------------------------------------------------
def test_members_are_scored_by_stratum(mask, core):
    """Two members above the truth by 0.1 and 0.3; where there is shadow both are right."""
    truth = np.full((COUNT, 4, SIZE, SIZE), 0.5, np.float32)
    truth[0, 1, 0, :6] = np.nan
    members = truth + np.array([0.1, 0.3], np.float32)[:, None, None, None, None]
    members[:, :, :, 5] = 0.5
    found = methods.score_members(members, truth, mask, core, [1.0, 2.0, 3.0, 0.1])
    hidden = {"thick": 2, "veil": 3, "shadow": 1, "rim": 4, "cloud": 10}
    assert [list(each) for each in found] == [[*hidden]] * 2 + [["veil", "shadow", "rim", "cloud"]]
    assert {on: score["pixels"] for on, score in found[1].items()} == {on: SIZE * rows for on, rows in hidden.items()}
    assert found[0]["thick"]["pixels"] == 2 * SIZE - 6
    thick, spread = found[0]["thick"], 0.2 / np.sqrt(2)
    assert thick["spread"] == pytest.approx(spread, abs=1e-6)
    assert thick["skill"] == pytest.approx(0.2, abs=1e-6)
    assert thick["crps"] == pytest.approx(0.2 - 0.2 / 2, abs=1e-6)
    assert thick["spread_skill"] == pytest.approx(np.sqrt(1.5) * spread / 0.2, abs=1e-5)
    assert thick["ranks"] == [1, 0, 0]
    assert thick["coverage_50"] == 0.25, "of the third band alone is the interval wide enough"
    assert thick["coverage_90"] == 0.75
    assert found[0]["shadow"]["crps"] == found[0]["shadow"]["skill"] == 0


def test_of_a_triplet_without_anything_hidden_no_members_are_scored(core):
    truth = np.full((COUNT, 4, SIZE, SIZE), 0.5, np.float32)
    clear = np.zeros_like(core)
    assert methods.score_members(np.stack([truth, truth]), truth, clear, core, [1.0] * 4) == [{}, {}, {}]


def test_by_similarity_is_the_first_guess_of_the_first_dates_where_something_is_hidden():
    rng = np.random.default_rng(1)
    cloudy, *dates = rng.uniform(0.1, 0.5, (4, 2, 4, 16, 16)).astype("f4")
    references = np.stack(dates, 1)
    references[1, 1:] = np.nan
    references[0, 0, 2, 4:6] = np.nan  # some rows of the first
    mask = np.full((2, 16, 16), CLEAR, np.uint8)
    mask[:, 3:9, 4:12], mask[:, 12:] = CLOUD, UNKNOWN
    found = methods.by_similarity(cloudy, references, mask)
    assert list(found) == ["similarity", "similarity_2_dates", "similarity_3_dates"]
    for count, image in enumerate(found.values(), 1):
        given = (torch.from_numpy(each) for each in (cloudy, references[:, :count], mask == CLEAR))
        hidden, expected = (mask == CLOUD)[:, None], similar(*given)[0].numpy()
        expected[0, :, 4:6] = np.nan
        assert np.array_equal(image, np.where(hidden, expected, cloudy), equal_nan=True)
    assert not np.array_equal(found["similarity"][0], found["similarity_2_dates"][0], equal_nan=True)
    assert np.array_equal(found["similarity"][1], found["similarity_3_dates"][1])
    assert methods.by_similarity(cloudy, references[:, :0], mask) == {}
