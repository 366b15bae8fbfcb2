import csv

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cloudjob.diffusion import metrics

RNG = np.random.default_rng(0)
TRUTH = RNG.uniform(0, 1.2, (4, 48, 40)).astype(np.float32)
PRED = (TRUTH + RNG.normal(0, 0.1, TRUTH.shape)).astype(np.float32)
ALL = np.ones((48, 40), bool)


def test_agrees_with_scikit_image_on_whole_images():
    found = metrics.score(PRED, TRUTH, ALL)
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(TRUTH, PRED, data_range=1), abs=1e-4)
    expected = structural_similarity(
        TRUTH,
        PRED,
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


def test_known_values():
    offset = metrics.score(TRUTH + np.float32(0.1), TRUTH, ALL)
    assert offset["mae"] == pytest.approx(0.1, abs=1e-6)
    assert offset["psnr"] == pytest.approx(20, abs=1e-4)
    assert metrics.score(TRUTH, TRUTH, ALL)["psnr"] == np.inf
    assert metrics.score(2 * TRUTH, TRUTH, ALL)["sam"] == pytest.approx(0, abs=1e-3)
    red, green = np.zeros((2, 4, 12, 12), np.float32)
    red[0], green[1] = 1, 1
    assert metrics.spectral_angle(red, green, np.ones((12, 12), bool)) == pytest.approx(90)


def test_the_high_pass_ratio_finds_noise_and_blur():
    assert metrics.score(2 * TRUTH, TRUTH, ALL)["high_pass_ratio"] == pytest.approx(2, rel=1e-4)
    assert metrics.score(TRUTH * 0 + 0.5, TRUTH, ALL)["high_pass_ratio"] == pytest.approx(0, abs=1e-4)


def test_no_pixels_no_scores():
    found = metrics.score(PRED, TRUTH, ~ALL)
    assert found.pop("pixels") == 0
    assert np.isnan(list(found.values())).all()
    assert set(found) | {"pixels"} == set(metrics.score(PRED, TRUTH, ALL))
    edge = np.zeros_like(ALL)
    edge[0] = True
    assert np.isnan(metrics.score(PRED, TRUTH, edge)["ssim"])


def test_reproduces_the_published_predictions_scores(shared_data):
    import rasterio

    folder = shared_data / "sen12mscr_triplets"

    def read(name: str, row: dict) -> np.ndarray:
        with rasterio.open(folder / row["id"] / f"{name}.tif") as file:
            return file.read().astype(np.float32) / 10_000

    with (folder / "reference_metrics.csv").open() as file:
        rows = list(csv.DictReader(file))[:6]
    for row in rows:
        pred = read({"cloudy_input": "cloudy"}.get(row["image"], row["image"]), row)
        found = metrics.score(pred, read("clear", row), np.ones(pred.shape[1:], bool))
        assert found["psnr"] == pytest.approx(float(row["psnr_skimage"]), abs=1e-3)
        assert found["ssim"] == pytest.approx(float(row["ssim_gauss_skimage_bandmean"]), abs=1e-4)
        assert found["mae"] == pytest.approx(float(row["mae"]), abs=1e-5)
        assert found["rmse"] == pytest.approx(float(row["rmse"]), abs=1e-5)
        assert found["sam"] == pytest.approx(float(row["sam_deg"]), abs=1e-3)
