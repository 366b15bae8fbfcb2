"""What each method makes of triplets, and the scores of each."""

import batches
import numpy as np
import pytest
import torch
from restored import Known

from cloudjob.diffusion.batch import Batch
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, NO_DATA, SHADOW, UNKNOWN
from cloudjob.scoring import baselines, ensembles, methods, metrics

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
def batch(mask) -> Batch:
    torch.manual_seed(0)
    clear = 0.5 + 0.1 * torch.randn(COUNT, 4, SIZE, SIZE)
    cloudy = torch.where(torch.from_numpy(mask)[:, None] > 0, 0.9, clear)
    return batches.batch(cloudy, torch.from_numpy(mask), target=clear, reference=clear + 0.02)


# --- regions -----------------------------------------------------------------------------------------------------
def test_each_class_counts_where_it_should():
    kinds = np.array([[CLEAR, CLOUD, SHADOW, CIRRUS, UNKNOWN, NO_DATA]], np.uint8)
    found = {name: where.astype(int).tolist()[0] for name, where in methods.regions(kinds).items()}
    assert found == {
        "cloud": [0, 1, 1, 1, 0, 0],
        "clear": [1, 0, 0, 0, 0, 0],
        "all": [1, 1, 1, 1, 1, 0],
        "thick cloud": [0, 1, 0, 0, 0, 0],
        "shadow": [0, 0, 1, 0, 0, 0],
        "cirrus": [0, 0, 0, 1, 0, 0],
    }


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


# --- scores ------------------------------------------------------------------------------------------------------
def test_a_row_for_each_method_and_region_that_has_pixels(batch, mask):
    truth = batch.known_target.numpy()
    images = {"cloudy": batch.cloudy.numpy(), "perfect": truth, "off": truth + np.float32(0.1)}
    rows = methods.score(images, truth, mask)
    assert len(rows) == COUNT
    for number, triplet in enumerate(rows):
        where = methods.regions(mask[number])
        names = ["cloud", "clear", "all", "thick cloud", *(["shadow"] if number < 2 else []), "cirrus"]
        assert [(row["method"], row["on"]) for row in triplet] == [(method, on) for method in images for on in names]
        for row in triplet:
            expected = metrics.score(images[row["method"]][number], truth[number], where[row["on"]])
            assert {key: value for key, value in row.items() if key not in ("method", "on")} == expected
        by = {(row["method"], row["on"]): row for row in triplet}
        assert by["perfect", "cloud"]["psnr"] == np.inf
        assert by["off", "cirrus"]["mae"] == pytest.approx(0.1, abs=1e-6)
        assert by["cloudy", "clear"]["mae"] == 0
        assert by["cloudy", "thick cloud"]["pixels"] == 6 * SIZE
        assert by["cloudy", "all"]["pixels"] == 15 * SIZE


def test_members_are_scored_on_triplets_that_have_something_hidden(batch):
    truth = batch.known_target.numpy()
    rng = np.random.default_rng(0)
    members = (truth + rng.normal(0, 0.1, (4, *truth.shape))).astype("f4")
    where = np.zeros((COUNT, SIZE, SIZE), bool)
    where[0, :5], where[2, 3, 4] = True, True
    factors = [1.0, 2.0, 3.0, 0.1]
    found = methods.score_members(members, truth, where, factors)
    expected = [ensembles.score(members[:, i], truth[i], where[i], temperature=factors) for i in (0, 2)]
    assert found == [{"pixels": pixels} | score for pixels, score in zip((5 * SIZE, 1), expected, strict=True)]
    assert found[0]["coverage_90"] != ensembles.score(members[:, 0], truth[0], where[0])["coverage_90"]
