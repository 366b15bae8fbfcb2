import numpy as np
import pytest
from scipy.interpolate import griddata
from scipy.ndimage import gaussian_filter

from cloudjob.scoring import baselines


def scene(size: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image (4, size, size) and smaller blobs that cover half of it; what they cover is not known."""
    rng = np.random.default_rng(seed)
    image = np.stack([gaussian_filter(rng.normal(size=(size, size)), size / 8) for _ in range(4)])
    blobs = gaussian_filter(rng.normal(size=(size, size)), size / 32)
    return (0.3 + 0.1 * image / image.std()).astype(np.float32), blobs > np.median(blobs)


def rmse(pred: np.ndarray, truth: np.ndarray, pixels: np.ndarray) -> float:
    return float(np.sqrt(np.square(pred - truth)[:, pixels].mean()))


FILLS = pytest.mark.parametrize("fill", [baselines.mean_fill, baselines.smooth_fill])


@FILLS
def test_known_pixels_stay_and_the_others_have_no_say(fill):
    image, known = scene(64)
    spoilt = np.where(known, image, np.nan)
    spoilt[0, 5, 5], known[5, 5] = np.nan, True  # said to be known, but without data
    found = fill(spoilt, known)
    known[5, 5] = False
    assert found.dtype == np.float32
    assert np.array_equal(found[:, known], image[:, known])
    assert np.array_equal(found, fill(image, known))
    assert np.isfinite(found).all()


@FILLS
def test_nothing_known_and_everything_known(fill):
    image, _ = scene(16)
    nothing = np.zeros((16, 16), bool)
    assert np.array_equal(fill(image * np.nan, nothing), np.full_like(image, 0.2))
    assert np.array_equal(fill(image, ~nothing), image)
    nothing[3, 4] = True
    assert fill(image, nothing) == pytest.approx(np.broadcast_to(image[:, 3:4, 4:5], image.shape))


def test_the_mean_is_that_of_the_known_in_each_band():
    image, known = scene(64)
    found = baselines.mean_fill(image, known)
    for band in range(4):
        mean = np.float32(image[band, known].mean(dtype=np.float64))  # summed in single precision, it is another
        assert set(found[band, ~known]) == {mean}
    small = np.array([[[1.0, 9.0], [2.0, np.nan]], [[0.1, 9.0], [np.nan, 9.0]]], np.float32)
    filled = baselines.mean_fill(small, np.array([[True, False], [True, True]]))
    assert filled.tolist() == [[[1, 1], [1, 1]], [[pytest.approx(0.1)] * 2] * 2]


def test_a_smooth_surface_is_nearer_than_straight_lines():
    image = np.stack([np.add.outer(x**2, x) for x in (np.linspace(0, scale, 64) for scale in (0.3, 0.5, 0.7, 0.9))])
    gap = np.ones((64, 64), bool)
    gap[20:44, 20:44] = False
    lines = np.stack([griddata(np.argwhere(gap), band[gap], np.argwhere(~gap)) for band in image])
    smooth = baselines.smooth_fill(image.astype(np.float32), gap)
    assert rmse(smooth, image, ~gap) < np.sqrt(np.square(lines - image[:, ~gap]).mean()) / 2


@pytest.mark.parametrize(("size", "width"), [(128, 128), (131, 111)])
def test_big_images_are_filled_at_lower_resolution_alike(size, width, monkeypatch):
    image, known = scene(size)
    image, known = image[..., :width], known[:, :width]
    found = baselines.smooth_fill(image, known)
    limit = 0.15 * rmse(baselines.mean_fill(image, known), image, ~known)
    assert rmse(found, image, ~known) < limit
    monkeypatch.setattr(baselines, "_MOST_UNKNOWN", 2000)
    coarse = baselines.smooth_fill(image, known)
    assert coarse.dtype == np.float32
    assert np.array_equal(coarse[:, known], image[:, known])
    assert not np.array_equal(coarse, found)
    assert rmse(coarse, image, ~known) < limit


def test_as_many_unknown_pixels_as_allowed_are_filled_at_full_resolution(monkeypatch):
    assert baselines._MOST_UNKNOWN == 2**17
    image, known = scene(32)
    whole = baselines.smooth_fill(image, known)
    monkeypatch.setattr(baselines, "_MOST_UNKNOWN", np.count_nonzero(~known))
    assert np.array_equal(baselines.smooth_fill(image, known), whole)
    monkeypatch.setattr(baselines, "_MOST_UNKNOWN", np.count_nonzero(~known) - 1)
    assert not np.array_equal(baselines.smooth_fill(image, known), whole)


def test_at_lower_resolution_the_unknown_are_between_the_centres_of_means(monkeypatch):
    """Of 4 x 4 pixels at half the resolution all are known but one, which is filled; then bilinear, by hand."""
    image = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    known = np.ones((4, 4), bool)
    known[:2, :2] = False
    known[2, 3] = False
    monkeypatch.setattr(baselines, "_MOST_UNKNOWN", 1)
    found = baselines.smooth_fill(image, known)
    coarse = np.stack([[[np.nan, band[:2, 2:].mean()], [band[2:, :2].mean(), 0]] for band in image])
    coarse[:, 1, 1] = (image[:, 2, 2] + image[:, 3, 2] + image[:, 3, 3]) / 3
    filled = baselines.smooth_fill(coarse.astype(np.float32), np.isfinite(coarse).all(0))
    weights = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    expected = np.where(known, image, weights @ filled @ weights.T)
    assert found == pytest.approx(expected, rel=1e-6)


def test_halves_are_means_of_the_known_pixels():
    image = np.arange(30, dtype=np.float32).reshape(2, 5, 3)
    known = np.ones((5, 3), bool)
    known[0, 1] = known[1, 2] = known[0, 2] = known[2, 1] = False
    half, there = baselines._half(np.where(known, image, 99), known)
    assert there.tolist() == [[True, False], [True, True], [True, True]]
    expected = [[(0 + 3 + 4) / 3, 0], [(6 + 9 + 10) / 3, (8 + 11) / 2], [(12 + 13) / 2, 14]]
    assert half[0].tolist() == [pytest.approx(row) for row in expected]
    assert half[1].tolist() == [pytest.approx([x + 15 if x else 0 for x in row]) for row in expected]
