import csv
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cloudjob.scoring import metrics
from cloudjob.scoring.ssim import ssim_map

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
RNG = np.random.default_rng(0)
TRUTH = RNG.uniform(0, 1.2, (4, 48, 40)).astype(np.float32)
PRED = (TRUTH + RNG.normal(0, 0.1, TRUTH.shape)).astype(np.float32)
ALL = np.ones((48, 40), bool)


@pytest.mark.parametrize("contrast", [1, 0.1])
def test_agrees_with_scikit_image_on_whole_images(contrast):
    """Where there is little contrast, the constants of structural similarity count as much as the variances."""
    pred, truth = (image * np.float32(contrast) for image in (PRED, TRUTH))
    found = metrics.score(pred, truth, ALL)
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(truth, pred, data_range=1), abs=1e-4)
    expected = structural_similarity(
        truth,
        pred,
        data_range=1,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert found["ssim"] == pytest.approx(expected, abs=1e-5)
    assert found["pixels"] == ALL.size


def test_only_the_pixels_asked_for_count():
    mask = np.zeros_like(ALL)
    mask[10:30, 10:30] = True
    spoilt = np.where(mask, PRED, 9).astype(np.float32)
    spoilt[:, 0, 0] = np.nan
    inside, found = metrics.score(PRED, TRUTH, mask), metrics.score(spoilt, TRUTH, mask)
    for name in ("mae", "rmse", "psnr", "sam"):
        assert found[name] == inside[name]
    assert metrics.score(spoilt, TRUTH, ALL)["pixels"] == ALL.size - 1
    holes = TRUTH.copy()
    holes[3, 20, 20] = np.nan  # without data in one band is without data
    for pred, truth in ((holes, TRUTH), (PRED, holes)):
        assert metrics.score(pred, truth, ALL)["pixels"] == ALL.size - 1


def test_known_values():
    offset = metrics.score(TRUTH + np.float32(0.1), TRUTH, ALL)
    assert offset["mae"] == pytest.approx(0.1, abs=1e-6)
    assert offset["psnr"] == pytest.approx(20, abs=1e-4)
    assert metrics.score(TRUTH, TRUTH, ALL)["psnr"] == np.inf
    assert metrics.score(2 * TRUTH, TRUTH, ALL)["sam"] == pytest.approx(0, abs=1e-3)
    assert metrics.spectral_angle(-TRUTH, TRUTH, ALL) == pytest.approx(180, abs=1e-3)
    red, green = np.zeros((2, 4, 12, 12), np.float32)
    red[0], green[1] = 1, 1
    assert metrics.spectral_angle(red, green, np.ones((12, 12), bool)) == pytest.approx(90)


def test_the_high_pass_ratio_finds_noise_and_blur():
    assert metrics.score(2 * TRUTH, TRUTH, ALL)["high_pass_ratio"] == pytest.approx(2, rel=1e-4)
    assert metrics.score(TRUTH * 0 + 0.5, TRUTH, ALL)["high_pass_ratio"] == pytest.approx(0, abs=1e-4)


def test_a_pixel_of_high_pass_is_what_differs_from_the_mean_around():
    found = metrics.high_pass(TRUTH)
    assert found.shape == TRUTH.shape
    for band, row, col in ((0, 2, 2), (3, 20, 30)):
        around = TRUTH[band, row - 2 : row + 3, col - 2 : col + 3].astype(float)
        assert found[band, row, col] == pytest.approx(TRUTH[band, row, col] - around.mean(), abs=1e-6)
    ratio = metrics.high_pass(PRED).std(dtype=float) / found.std(dtype=float)
    assert metrics.score(PRED, TRUTH, ALL)["high_pass_ratio"] == pytest.approx(ratio, rel=1e-12), "double precision"


def test_similarity_counts_where_its_window_is_whole():
    """From the sixth pixel on, at each edge."""
    similarity = ssim_map(PRED, TRUTH)
    for rows, cols in ((np.s_[:], np.s_[:]), (np.s_[5:6], np.s_[5:6]), (np.s_[-6:-5], np.s_[-6:-5])):
        pixels = np.zeros_like(ALL)
        pixels[rows, cols] = True
        inner = pixels.copy()
        inner[:5] = inner[-5:] = inner[:, :5] = inner[:, -5:] = False
        expected = pytest.approx(similarity[:, inner].mean(dtype=float), rel=1e-12)  # in double precision
        assert metrics.score(PRED, TRUTH, pixels)["ssim"] == expected
    for edge in (np.s_[:5], np.s_[-5:], np.s_[:, :5], np.s_[:, -5:]):
        pixels = np.zeros_like(ALL)
        pixels[edge] = True
        assert np.isnan(metrics.score(PRED, TRUTH, pixels)["ssim"])


def test_errors_and_angles_by_hand():
    truth = np.full((4, 12, 12), 0.5, np.float32)
    pred = truth.copy()
    pred[0, 0, 0], pred[3, 0, 1] = 0.5 + 0.3, 0.5 - 0.1
    pixels = np.zeros((12, 12), bool)
    pixels[0, :2] = True
    found = metrics.score(pred, truth, pixels)
    assert found["pixels"] == 2
    assert found["mae"] == pytest.approx(0.4 / 8)
    assert found["rmse"] == pytest.approx(math.sqrt(0.1 / 8))
    assert found["psnr"] == pytest.approx(-10 * math.log10(0.1 / 8))
    assert found["bands"]["mae"] == pytest.approx([0.15, 0, 0, 0.05])
    assert found["bands"]["psnr"][3] == pytest.approx(-10 * math.log10(0.01 / 2))
    angles = [
        math.degrees(math.acos((0.5 * (3 * 0.5 + one)) / (math.sqrt(3 * 0.25 + one**2) * 1))) for one in (0.8, 0.4)
    ]
    assert found["sam"] == pytest.approx(np.mean(angles), abs=1e-4)
    pred[:, 0, 1] = 0  # black has no angle
    assert metrics.spectral_angle(pred, truth, pixels) == pytest.approx(angles[0], abs=1e-4)
    assert np.isnan(metrics.spectral_angle(pred * 0, truth, pixels))


def test_bands_are_scored_alone():
    found = metrics.score(PRED, TRUTH, ALL)["bands"]
    for number, (pred, truth) in enumerate(zip(PRED[:, None], TRUTH[:, None], strict=True)):
        alone = metrics.score(pred, truth, ALL)
        assert {key: values[number] for key, values in found.items()} == {key: alone[key] for key in found}
    assert set(found) == {"mae", "rmse", "psnr", "ssim", "high_pass_ratio"}


def numbers(score) -> list[float]:
    if isinstance(score, dict):
        score = list(score.values())
    return [number for each in score for number in numbers(each)] if isinstance(score, list) else [score]


def test_no_pixels_no_scores():
    found = metrics.score(PRED, TRUTH, ~ALL)
    assert (found.pop("pixels"), found.pop("missing")) == (0, 0)
    assert np.isnan(numbers(found)).all()
    assert set(found) | {"pixels", "missing"} == set(metrics.score(PRED, TRUTH, ALL))
    assert len(numbers(found)) == len(numbers(metrics.score(PRED, TRUTH, ALL))) - 2
    edge = np.zeros_like(ALL)
    edge[0] = True
    assert np.isnan(metrics.score(PRED, TRUTH, edge)["ssim"])


def test_the_filter_lets_half_of_a_wave_of_four_pixels_through():
    assert math.exp(-2 * (math.pi * metrics._HALVING / 4) ** 2) == pytest.approx(0.5, abs=0.001)


def test_octaves_of_some_pixels_are_pinned():
    mask = gaussian_filter(np.random.default_rng(2).normal(size=ALL.shape), 4) > 0
    found = metrics.octave_amplitudes(TRUTH, mask)
    assert found == pytest.approx([0.257314, 0.091745, 0.047594, 0.028751], abs=2e-6)
    assert found == [round(amplitude, 6) for amplitude in found]


def waves(wavelength: float, size: int = 128) -> np.ndarray:
    """(1, size, size) of amplitude 0.1 (RMS 0.0707) round 0.5, along the columns."""
    wave = 0.5 + 0.1 * np.sin(2 * np.pi * np.arange(size) / wavelength + 0.4)
    return np.broadcast_to(wave, (1, size, size)).astype(np.float32)


@pytest.mark.parametrize(("octave", "wavelength"), [(0, 2.5), (1, 6), (2, 12), (3, 24)])
def test_waves_are_found_in_their_octave(octave, wavelength):
    image = waves(wavelength)
    found = metrics.octave_amplitudes(image, np.ones(image.shape[1:], bool))
    assert np.argmax(found) == octave
    assert 0.4 < found[octave] / image.std() <= 1


def test_the_spectrum_tells_octaves_apart():
    truth = sum(waves(wavelength) for wavelength in (2.5, 6, 12, 24)) - 1.5
    pixels = np.ones(truth.shape[1:], bool)
    assert metrics.score(truth * 2, truth, pixels)["spectrum"] == pytest.approx([20 * math.log10(2)] * 4, abs=1e-3)
    blurred = metrics.score(gaussian_filter(truth, (0, 1.5, 1.5)), truth, pixels)["spectrum"]
    assert blurred[0] < -15 < blurred[1] < -3 < blurred[2] < blurred[3] < 0.1
    noise = np.random.default_rng(1).normal(0, 0.1, truth.shape).astype(np.float32)
    noisy = metrics.score(truth + noise, truth, pixels)["spectrum"]
    assert noisy[0] > 3 > noisy[1] > noisy[2] > noisy[3] > -0.1
    for pred in (noise, truth * 0):
        assert np.isnan(metrics.score(pred, truth * 0, pixels)["spectrum"]).all()
    assert metrics.score(truth * 0, truth, pixels)["spectrum"] == [-np.inf] * 4


def test_octaves_see_nothing_outside_of_the_pixels():
    mask = gaussian_filter(np.random.default_rng(2).normal(size=ALL.shape), 4) > 0
    outside = np.where(mask, TRUTH, np.nan)
    assert metrics.octave_amplitudes(outside, mask) == metrics.octave_amplitudes(TRUTH, mask)
    assert metrics.octave_amplitudes(np.where(mask, 0.3, TRUTH), mask) == [0] * 4
    whole = np.array(metrics.octave_amplitudes(TRUTH, ALL))
    assert np.array(metrics.octave_amplitudes(TRUTH, mask))[:2] == pytest.approx(whole[:2], rel=0.15)


def halves() -> dict[str, np.ndarray]:
    left = np.arange(ALL.shape[1]) < 15
    return {"left": ALL & left, "right": ALL & ~left}


def test_pooled_parts_are_the_whole():
    rows = list(metrics.scores(PRED, TRUTH, halves()).values())
    pooled, whole = metrics.pool(rows), metrics.score(PRED, TRUTH, ALL)
    assert set(pooled) == set(whole) | {"psnr_mean"}
    assert pooled["pixels"] == whole["pixels"]
    for key in ("mae", "rmse", "psnr", "sam"):
        assert pooled[key] == pytest.approx(whole[key])
    for key in ("mae", "rmse", "psnr"):
        assert pooled["bands"][key] == pytest.approx(whole["bands"][key])
    assert pooled["psnr_mean"] == pytest.approx((rows[0]["psnr"] + rows[1]["psnr"]) / 2)
    assert pooled["spectrum"] == pytest.approx(whole["spectrum"], abs=0.3)  # the cut is an edge
    assert numbers(metrics.pool([whole, whole]))[2:] == pytest.approx(numbers(metrics.pool([whole]))[2:])


def test_methods_are_scored_on_the_pixels_that_all_have():
    common = np.random.default_rng(1).uniform(size=ALL.shape) < 0.6
    pred = PRED.copy()
    pred[2, 20, 10:30] = np.nan
    here = common & np.isfinite(pred[2])
    found = metrics.scores(pred, TRUTH, halves(), common=common)
    for name, region in halves().items():
        expected = metrics.score(pred, TRUTH, region & here)
        assert found[name]["pixels"] == (region & here).sum()
        assert {**found[name], "missing": 0} == expected
    spoilt = np.where(common, pred, pred + 1)
    for key in ("mae", "rmse", "psnr", "sam"):
        assert metrics.scores(spoilt, TRUTH, {"": ALL}, common=common)[""][key] == pytest.approx(
            metrics.score(pred, TRUTH, here)[key]
        )


@pytest.mark.parametrize("common", [None, ALL, ~ALL, np.arange(40) + np.zeros((48, 1)) < 20])
def test_missing_is_what_has_a_truth_and_no_prediction_whatever_the_others_have(common):
    pred, truth = PRED.copy(), TRUTH.copy()
    pred[2, 20, 10:30] = np.nan  # 5 in the left part, 15 in the right
    pred[:, 30, 12:14] = np.nan  # 2 in the left part
    truth[1, 20, 10:12] = np.nan  # 2 of these do not count
    truth[:, 5] = np.nan
    found = metrics.scores(pred, truth, halves() | {"nothing": ~ALL}, common=common)
    assert {name: row["missing"] for name, row in found.items()} == {"left": 5, "right": 15, "nothing": 0}
    pooled = metrics.pool([found["left"], json.loads(json.dumps(found["right"]).replace("NaN", "null"))])
    assert pooled["missing"] == 20
    assert isinstance(found["left"]["missing"], int)


def test_pooling_weighs_by_pixels_and_pools_powers():
    few, many = metrics.scores(PRED, TRUTH, halves()).values()
    pooled = metrics.pool([few, many])
    ssim = (few["ssim"] * few["pixels"] + many["ssim"] * many["pixels"]) / ALL.size
    assert pooled["ssim"] == pytest.approx(ssim)
    power = {
        image: (few["octaves"][image][1] ** 2 * few["pixels"] + many["octaves"][image][1] ** 2 * many["pixels"])
        for image in ("pred", "truth")
    }
    assert pooled["spectrum"][1] == pytest.approx(10 * math.log10(power["pred"] / power["truth"]))


def test_pooling_leaves_out_what_could_not_be_measured():
    """As rows come back from JSON: None for what was not finite."""
    row = metrics.score(PRED, TRUTH, ALL)
    nothing = json.loads(json.dumps(metrics.score(PRED, TRUTH, ~ALL)).replace("NaN", "null"))
    assert metrics.pool([row, nothing]) == metrics.pool([row])
    pooled = metrics.pool([nothing])
    assert (pooled.pop("pixels"), pooled.pop("missing")) == (0, 0)
    assert np.isnan(numbers(pooled)).all()
    perfect = json.loads(json.dumps(metrics.score(TRUTH, TRUTH, ALL)).replace("Infinity", "null"))
    assert metrics.pool([perfect])["psnr"] == metrics.pool([perfect, row])["psnr_mean"] == np.inf
    assert metrics.pool([perfect, row])["psnr"] == pytest.approx(row["psnr"] + 10 * math.log10(2))


SUMS = np.random.default_rng(3).uniform((500, 5, 5), (5000, 50, 40), (13, 3))  # pixels, squared errors of two methods


@pytest.mark.slow
def test_the_bootstrap_agrees_with_scipy():
    from scipy import stats

    found = metrics.bootstrap(SUMS, metrics.pooled_psnr, draws=20_000, level=0.9)

    def pooled(index, axis):
        return metrics.pooled_psnr(SUMS[index].sum(axis - 1))

    options = {"n_resamples": 20_000, "confidence_level": 0.9, "method": "percentile", "rng": 1}
    expected = stats.bootstrap((np.arange(13),), pooled, vectorized=True, **options).confidence_interval
    assert found == pytest.approx(tuple(expected), abs=0.05)
    assert found[0] < metrics.pooled_psnr(SUMS.sum(0)) < found[1]


def test_the_bootstrap_draws_a_thousand_times_and_gives_95_percent():
    times = np.random.default_rng(0).multinomial(13, np.full(13, 1 / 13), size=1000)
    drawn = [metrics.pooled_psnr((SUMS * draw[:, None]).sum(0)) for draw in times]
    for options, ends in (({}, (0.025, 0.975)), ({"level": 0.9}, (0.05, 0.95))):
        found = metrics.bootstrap(SUMS, metrics.pooled_psnr, **options)
        assert found == pytest.approx(tuple(np.quantile(drawn, ends)))
    assert metrics.pooled_psnr(np.array([50.0, 5.0])) == pytest.approx(10)
    two = metrics.bootstrap(SUMS[:2], metrics.pooled_psnr)
    assert np.isfinite(two).all()


def test_the_bootstrap_of_a_difference_pairs_the_draws():
    def gain(sums):
        return metrics.pooled_psnr(sums[:, [0, 1]]) - metrics.pooled_psnr(sums[:, [0, 2]])

    always_one_better = SUMS[:, [0, 1, 1]] * (1, 1, 10**0.1)
    assert metrics.bootstrap(always_one_better, gain) == pytest.approx((1, 1))
    low, high = metrics.bootstrap(SUMS, gain)
    assert low < gain(SUMS.sum(0, keepdims=True))[0] < high
    assert (low, high) == metrics.bootstrap(SUMS, gain) != metrics.bootstrap(SUMS, gain, seed=1)


def test_the_bootstrap_of_one_group_has_no_interval():
    assert np.isnan(metrics.bootstrap(SUMS[:1], metrics.pooled_psnr)).all()


def test_the_seam_index_finds_steps_at_the_edges_of_tiles():
    flat = np.random.default_rng(4).normal(0, 0.01, (4, 64, 96)).astype(np.float32)
    everywhere = np.ones((64, 96), bool)
    assert metrics.seam_index(flat, everywhere, [0, 32], [32, 64]) == pytest.approx(1, abs=0.15)
    tiled = flat + np.float32(0.1) * (np.arange(96) >= 64)
    assert metrics.seam_index(tiled, everywhere, [], [64]) > 5
    assert metrics.seam_index(tiled, everywhere, [], [63]) < 1.2
    assert metrics.seam_index(tiled.swapaxes(1, 2), everywhere.T, [64], []) > 5
    assert metrics.seam_index(tiled, everywhere & (np.arange(96) < 64), [32], [64]) == pytest.approx(1, abs=0.15)


@given(st.integers(1, 8), st.integers(1, 10))
def test_the_seam_index_of_a_ramp_with_a_jump(row, col):
    ramp = np.add.outer(np.arange(9.0), np.arange(11.0))[None]
    jump = np.add.outer(3.0 * (np.arange(9) >= row), 3.0 * (np.arange(11) >= col))
    found = metrics.seam_index(ramp + jump, np.ones((9, 11), bool), [row], [col])
    assert found == pytest.approx(4)


def test_the_seam_index_by_hand():
    """Steps of the bands' means: across the edge before row 2 and column 1, over all others between known pixels."""
    image = np.zeros((2, 3, 3))
    image[0] = [[0, 1, 3], [4, 6, 9], [9, 9, 9]]
    image[1] = [[0, -1, 1], [2, 0, 1], [1, 5, np.nan]]
    down = (np.abs(np.diff(image, axis=1))).mean(0)
    right = (np.abs(np.diff(image, axis=2))).mean(0)
    across = [*down[1, :2], right[0, 0], right[1, 0], right[2, 0]]
    elsewhere = [*down[0], right[0, 1], right[1, 1]]
    expected = np.mean(across) / np.mean(elsewhere)
    everywhere = np.ones((3, 3), bool)
    assert metrics.seam_index(image, everywhere, [0, 2, 3], [1, 7]) == pytest.approx(expected)
    assert metrics.seam_index(image.swapaxes(1, 2), everywhere, [1], [2]) == pytest.approx(expected)


def test_the_seam_index_where_it_cannot_be_measured():
    assert np.isnan(metrics.seam_index(TRUTH, ALL, [0, 48], []))
    assert np.isnan(metrics.seam_index(TRUTH, ~ALL, [10], [10]))
    assert np.isnan(metrics.seam_index(TRUTH * 0, ALL, [10], [10]))
    holes = TRUTH.copy()
    holes[0, 9] = np.nan
    assert np.isnan(metrics.seam_index(holes, ALL, [10], []))
    assert metrics.seam_index(holes, ALL, [10, 20], []) > 0


@pytest.mark.slow
def test_reproduces_the_published_predictions_scores(shared_data):
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    import rasterio

    folder = shared_data / "sen12mscr_triplets"

    def read(name: str, row: dict) -> np.ndarray:
        with rasterio.open(folder / row["id"] / f"{name}.tif") as file:
            return file.read().astype(np.float32) / 10_000

    with (folder / "reference_metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows[::2]):
        pred, truth = read({"cloudy_input": "cloudy"}.get(row["image"], row["image"]), row), read("clear", row)
        found = metrics.score(pred, truth, np.ones(pred.shape[1:], bool))
        assert found["psnr"] == pytest.approx(float(row["psnr_skimage"]), abs=1e-3)
        assert found["psnr"] == pytest.approx(float(row["psnr_torchmetrics"]), abs=1e-3)
        assert found["ssim"] == pytest.approx(float(row["ssim_gauss_skimage_bandmean"]), abs=1e-4)
        assert found["mae"] == pytest.approx(float(row["mae"]), abs=1e-5)
        assert found["rmse"] == pytest.approx(float(row["rmse"]), abs=1e-5)
        assert found["sam"] == pytest.approx(float(row["sam_deg"]), abs=1e-3)
        if number % 3:
            continue
        # torchmetrics counts the image's border too, mirrored: its map is ours but for these 5 pixels.
        whole, similarity = torchmetrics.structural_similarity_index_measure(
            torch.tensor(pred)[None], torch.tensor(truth)[None], data_range=1.0, return_full_image=True
        )
        assert float(whole) == pytest.approx(float(row["ssim_torchmetrics"]), abs=1e-4)
        ours = ssim_map(pred, truth)[:, 5:-5, 5:-5]
        assert np.abs(ours - similarity[0, :, 5:-5, 5:-5].numpy()).max() < 2e-3
        angle = float(torchmetrics.spectral_angle_mapper(torch.tensor(pred)[None], torch.tensor(truth)[None]))
        assert found["sam"] == pytest.approx(math.degrees(angle), abs=1e-2)
