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


def test_the_mean_is_that_of_the_known():
    image, known = scene(64)
    assert baselines.mean_fill(image, known)[2, ~known] == pytest.approx(image[2, known].mean())


def test_a_smooth_surface_is_nearer_than_straight_lines():
    image = np.stack([np.add.outer(x**2, x) for x in (np.linspace(0, scale, 64) for scale in (0.3, 0.5, 0.7, 0.9))])
    gap = np.ones((64, 64), bool)
    gap[20:44, 20:44] = False
    lines = np.stack([griddata(np.argwhere(gap), band[gap], np.argwhere(~gap)) for band in image])
    smooth = baselines.smooth_fill(image.astype(np.float32), gap)
    assert rmse(smooth, image, ~gap) < np.sqrt(np.square(lines - image[:, ~gap]).mean()) / 2


@pytest.mark.parametrize("size", [256, 501])
def test_big_images_are_filled_at_lower_resolution_alike(size, monkeypatch):
    image, known = scene(size)
    found = baselines.smooth_fill(image, known)
    limit = 0.1 * rmse(baselines.mean_fill(image, known), image, ~known)
    assert rmse(found, image, ~known) < limit
    monkeypatch.setattr(baselines, "_MOST_UNKNOWN", 4000)
    coarse = baselines.smooth_fill(image, known)
    assert coarse.dtype == np.float32
    assert np.array_equal(coarse[:, known], image[:, known])
    assert not np.array_equal(coarse, found)
    assert rmse(coarse, image, ~known) < limit
