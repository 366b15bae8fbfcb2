import math

import batches
import numpy as np
import pytest
import torch
from scipy.interpolate import griddata
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial.distance import cdist

from cloudjob.diffusion.conditions import Conditions, Normalisation
from cloudjob.pixels import CIRRUS, CLEAR, CLOUD, SHADOW, UNKNOWN
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


def pair(size: int = 12, *, seed: int = 0, references: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A cloudy date whose hidden pixels hold nonsense, clear dates of the same ground, and what of the first is known:
    all but for holes inside and at the border."""
    rng = np.random.default_rng(seed)
    ground = rng.uniform(0.1, 0.5, (4, size, size))
    dates = [1.1 * ground + 0.03 + rng.normal(0, 0.02, ground.shape) for _ in range(references)]
    known = np.ones((size, size), bool)
    known[size // 4 : size // 2, size // 4 : size // 2 + 2] = known[-3:, :4] = known[0, -1] = False
    return np.where(known, ground, 9.0).astype(np.float32), np.array(dates, np.float32), known


def test_the_first_guess_is_what_models_started_from():
    """In reflectance, whatever the units of the model are."""
    cloudy, (reference,), _ = pair(32)
    mask = np.random.default_rng(1).choice(np.array([CLEAR, CLOUD, SHADOW, CIRRUS, UNKNOWN], np.uint8), (32, 32))
    cloudy[2, 3, 4], mask[3, 4] = np.nan, CLEAR
    norm = Normalisation((0.1, 0.2, 0.3, 0.4), (0.05, 0.1, 0.2, 0.3))
    image, other = (torch.from_numpy(each)[None] for each in (cloudy, reference))
    told = Conditions.of(
        batches.batch(image, torch.from_numpy(mask)[None], reference=other), norm=norm, first_guess="surroundings"
    )
    found = baselines.first_guess(cloudy, reference, mask)
    assert found == pytest.approx(norm.inverse(told.anchor)[0].numpy(), abs=1e-5)
    mask[3, 4] = UNKNOWN
    assert np.isfinite(found).all()
    assert np.array_equal(found[:, mask == CLEAR], cloudy[:, mask == CLEAR])


def test_the_first_guess_is_rid_of_an_offset_of_the_reference():
    ground, known = scene(64)
    mask = np.where(known, CLEAR, CLOUD).astype(np.uint8)
    found = baselines.first_guess(np.where(known, ground, 0.9).astype(np.float32), ground + np.float32(0.1), mask)
    assert rmse(found, ground, ~known) < 0.01
    assert found.dtype == np.float32


def laplace(difference: np.ndarray, known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Difference (H, W) of one band, in the wanted pixels by its equation: as many neighbours as it has times its own
    value is their sum. Pixels that cannot be told are 0."""
    places = [tuple(place) for place in np.argwhere(wanted)]
    matrix, right = np.zeros((len(places), len(places))), np.zeros(len(places))
    for own, (row, col) in enumerate(places):
        for other in ((row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)):
            inside = 0 <= other[0] < known.shape[0] and 0 <= other[1] < known.shape[1]
            if inside and known[other]:
                right[own] += difference[other]
                matrix[own, own] += 1
            elif inside and wanted[other]:
                matrix[own, places.index(other)] -= 1
                matrix[own, own] += 1
    found = np.zeros(known.shape)
    found[wanted] = np.linalg.solve(matrix, right)
    return found


def test_the_poisson_fill_solves_the_equation_of_laplace():
    cloudy, (reference,), known = pair()
    reference[1, 4, 4] = reference[0, 2, 4] = reference[3, 9, 1] = np.nan  # in holes, and at the border of one
    cloudy[2, 6, 6] = np.nan  # so it is not known
    found = baselines.poisson_fill(cloudy, reference, known)
    present = np.isfinite(reference).all(0)
    known[6, 6] = False
    assert np.array_equal(found[:, known], cloudy[:, known])
    assert np.isnan(found[:, ~known & ~present]).all()
    assert found.dtype == np.float32
    wanted = ~known & present
    for band in range(4):
        expected = reference[band] + laplace(cloudy[band] - reference[band], known & present, wanted)
        assert found[band, wanted] == pytest.approx(expected[wanted], abs=1e-6)


def test_a_poisson_fill_of_a_constant_difference_is_exact():
    ground, known = scene(64)
    found = baselines.poisson_fill(np.where(known, ground, np.nan), ground - np.float32(0.07), known)
    assert found == pytest.approx(ground, abs=1e-6)


def test_a_poisson_fill_keeps_the_reference_where_it_touches_nothing_known():
    """A hole and a single pixel are shut off by pixels where the reference has no data; the other holes are not."""
    cloudy, (reference,), known = pair()
    reference[:, 8, :5] = reference[:, 8:, 4] = np.nan
    reference[:, [9, 11, 10, 10], [9, 9, 8, 10]], known[10, 9] = np.nan, False
    found = baselines.poisson_fill(cloudy, reference, known)
    assert np.array_equal(found[:, 9:, :4], reference[:, 9:, :4])
    assert np.array_equal(found[:, 10, 9], reference[:, 10, 9])
    assert np.abs(found - reference)[:, 4, 4].min() > 1e-3
    nothing = baselines.poisson_fill(cloudy, reference, np.zeros_like(known))
    assert np.array_equal(nothing, reference, equal_nan=True)
    assert np.array_equal(baselines.poisson_fill(cloudy, reference, np.ones_like(known)), cloudy)
    one = baselines.poisson_fill(cloudy[:1], reference[:1], known)
    assert one == pytest.approx(found[:1], abs=1e-6, nan_ok=True)


def trend(cloudy: np.ndarray, spectra: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(bands, H, W) by least squares: of four bands each by its own, its slope drawn to 1; of more by all, their slopes
    drawn to 0."""
    found = []
    for band, values in enumerate(cloudy[:, known]):
        used = spectra[[band]] if len(spectra) == 4 else spectra
        x, y = used[:, known].T, values - values.mean()
        centred = x - x.mean(0)
        penalty, usual = (0.02, 1.0) if len(spectra) == 4 else (1e-3 * np.square(centred).sum() / len(used), 0.0)
        matrix = np.vstack([centred, math.sqrt(penalty) * np.eye(len(used))])
        slopes = np.linalg.lstsq(matrix, np.append(y, [math.sqrt(penalty) * usual] * len(used)), rcond=None)[0]
        found.append(values.mean() + np.tensordot(slopes, used - x.mean(0)[:, None, None], 1))
    return np.array(found)


def process(cloudy: np.ndarray, references: np.ndarray, known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(bands, H, W): the trend, and in the wanted pixels the conditional mean of what all known ones leave."""
    spectra = references.reshape(-1, *known.shape).astype(float)
    found = trend(cloudy.astype(float), spectra, known)
    width = 0.06 * math.sqrt(len(references))

    def covariance(a: tuple[int, int], b: tuple[int, int]) -> float:
        d = math.hypot(a[0] - b[0], a[1] - b[1])
        s = math.dist(spectra[:, *a], spectra[:, *b])
        return math.exp(-d / 25) + 8 * math.exp(-d / 100) * math.exp(-(s**2) / (2 * width**2)) + 4

    near, far = ([tuple(place) for place in np.argwhere(pixels)] for pixels in (known, wanted))
    matrix = np.array([[covariance(a, b) + (a == b) for b in near] for a in near])
    weights = np.linalg.solve(matrix, (cloudy - found)[:, known].T)
    found[:, wanted] += (np.array([[covariance(a, b) for b in near] for a in far]) @ weights).T
    return found


@pytest.mark.parametrize("count", [1, 2])
def test_similar_pixels_are_the_mean_of_a_gaussian_process(count):
    """The references are too unlike for the regression alone to do; less than 500 pixels are known, so all count."""
    cloudy, references, known = pair(10, references=count)
    references[-1, 0, 8, 8] = np.nan
    cloudy[3, 7, 7] = np.nan  # so it is not known
    found = baselines.similar_pixels(cloudy, references, known, seed=5)
    known[7, 7] = False
    present = np.ones_like(known)
    present[8, 8] = False
    assert np.array_equal(found[:, known], cloudy[:, known])
    wanted = ~known & present
    expected = process(cloudy, references, known & present, wanted)
    assert found[:, wanted] == pytest.approx(expected[:, wanted], abs=1e-5)
    assert found.dtype == np.float32
    line = trend(cloudy.astype(float), references.reshape(-1, 10, 10).astype(float), known & present)
    assert np.abs(found - line)[:, wanted].max() > 1e-3


def test_similar_pixels_fall_back_to_the_first_reference():
    cloudy, references, known = pair(references=2)
    references[1, 2, 3:5] = np.nan  # some rows of a hole
    references[:, 0, 9, 1] = np.nan
    present = np.isfinite(references).all((0, 1))
    found = baselines.similar_pixels(cloudy, references, known, seed=0)
    first = baselines.similar_pixels(cloudy, references[:1], known, seed=0)
    missing = ~known & ~present
    assert np.array_equal(found[:, missing], first[:, missing], equal_nan=True)
    assert np.isnan(found).all(0).sum() == 1
    assert np.isnan(found[:, 9, 1]).all()
    both = process(cloudy, references, known & present, ~known & present)
    assert found[:, ~known & present] == pytest.approx(both[:, ~known & present], abs=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_similar_pixels_of_nothing_known_or_nothing_seen(count):
    cloudy, references, known = pair(references=count)
    nothing = baselines.similar_pixels(cloudy, references, np.zeros_like(known), seed=0)
    assert np.array_equal(nothing, references[0])  # nothing to add to it
    blind = baselines.similar_pixels(cloudy, references * np.nan, known, seed=0)
    assert np.array_equal(blind, np.where(known, cloudy, np.nan), equal_nan=True)
    assert np.array_equal(baselines.similar_pixels(cloudy, references, known | True, seed=0), cloudy)


def test_similar_pixels_are_drawn_by_seed_where_more_than_500_are_known():
    cloudy, references, _ = pair(24)
    for known_pixels, alike in ((500, True), (501, False)):
        known = np.arange(24**2).reshape(24, 24) < known_pixels
        one, again, other = (baselines.similar_pixels(cloudy, references, known, seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(one, again)
        assert np.allclose(one, other, atol=1e-6, rtol=0) == alike


def test_similar_pixels_are_drawn_once_each_and_rather_near_to_what_is_hidden(monkeypatch):
    asked = []
    monkeypatch.setattr(baselines, "cdist", lambda a, b, *kind: asked.append(b) or cdist(a, b, *kind))
    cloudy, references, _ = pair(48)
    known = np.ones((48, 48), bool)
    known[:8] = False
    baselines.similar_pixels(cloudy, references, known, seed=0)
    drawn = {tuple(place) for place in asked[0]}
    assert len(drawn) == len(asked[0]) == 500
    assert all(known[place] for place in drawn)
    distance = distance_transform_edt(known)
    mean = np.mean([distance[place] for place in drawn])
    expected = np.average(distance[known], weights=1 / (3 + distance[known]))
    assert expected - 1 < mean < expected + 3 < distance[known].mean()  # the near ones run out: each is drawn once


def test_a_second_reference_that_tells_nothing_does_no_harm():
    """It has data inside the hole alone; or one pixel alone is known."""
    cloudy, references, known = pair(10, references=2)
    references[1][:, known] = np.nan
    first = baselines.similar_pixels(cloudy, references[:1], known, seed=5)
    assert np.array_equal(baselines.similar_pixels(cloudy, references, known, seed=5), first)
    cloudy, references, known = pair(10, references=2)
    known[:] = False
    known[0, 0] = True
    assert np.isfinite(baselines.similar_pixels(cloudy, references, known, seed=5)).all()


def veiled(transmission: float | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A ground, the same below a veil of smooth transmission and light, a fill that lacks its detail, what is known."""
    rng = np.random.default_rng(0)

    def field(scale: float, count: int = 4) -> np.ndarray:
        image = np.stack([gaussian_filter(rng.normal(size=(48, 48)), scale) for _ in range(count)])
        return image / image.std()

    ground = 0.3 + 0.05 * field(6) + 0.03 * field(1.5)
    known = np.arange(48) + np.zeros((48, 1)) < 8
    through = np.clip(transmission + 0.03 * field(16, 1)[0], 0, 1)
    cloudy = np.where(known, ground, through * ground + 0.5 * (1 - through) + 0.02 * field(16))
    fill = np.where(known, ground, ground + 0.01 * field(1))
    return *(image.astype(np.float32) for image in (ground, cloudy, fill)), known


@pytest.mark.parametrize(("transmission", "left"), [(0.3, 0.9), (0.5, 0.75), (0.7, 0.65), (0.85, 0.6), (1.0, 0.55)])
def test_detail_that_thin_cloud_lets_through_is_seen(transmission, left):
    ground, cloudy, fill, known = veiled(transmission)
    found = baselines.see_through(cloudy, fill, known)
    assert found.dtype == np.float32
    assert np.array_equal(found[:, known], fill[:, known])
    assert rmse(found, ground, ~known) < left * rmse(fill, ground, ~known)


@pytest.mark.parametrize(("contrast", "scale", "most"), [(0, 1, 1e-3), (0.02, 16, 1e-3), (0.02, 4, 6e-3)])
def test_nothing_is_seen_through_opaque_cloud(contrast, scale, most):
    """Where the cloud has texture as fine as the ground's, the two agree here and there by chance."""
    _, _, fill, known = veiled(1)
    texture = gaussian_filter(np.random.default_rng(1).normal(size=fill.shape), (0, scale, scale))
    cloud = (0.7 + contrast * texture / texture.std()).astype(np.float32)
    found = baselines.see_through(cloud, fill, known)
    assert np.abs(found - fill).max() < most
    assert rmse(found, fill, ~known) < 5e-4


def test_where_there_is_no_fill_or_no_cloudy_image_nothing_is_seen():
    _, cloudy, fill, known = veiled(0.8)
    whole = baselines.see_through(cloudy, fill, known)
    assert not np.array_equal(whole[:, 20:30, 20:30], fill[:, 20:30, 20:30])
    fill[2, 20:22, 20] = np.nan
    cloudy[1, 25, 30] = np.nan
    found = baselines.see_through(cloudy, fill, known)
    assert np.array_equal(np.isnan(found), np.isnan(fill))
    assert np.array_equal(found[:, [20, 21, 25], [20, 20, 30]], fill[:, [20, 21, 25], [20, 20, 30]], equal_nan=True)
    assert found[..., 47] == pytest.approx(whole[..., 47], abs=1e-6), "far away it changes nothing"
