"""Published scores, made as those who published them do."""

import csv

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from cloudjob.scoring import protocols

RNG = np.random.default_rng(0)
TRUTH = RNG.uniform(0.01, 0.6, (4, 40, 32)).astype(np.float32)
PRED = (TRUTH + RNG.normal(0, 0.05, TRUTH.shape)).clip(0, 1).astype(np.float32)


def convolved(image, window):
    return functional.conv2d(image, window, padding=5, groups=image.shape[1])


def as_published(pred, truth):
    """The same in the steps of their program, in torch."""
    a, b = (torch.from_numpy(image.astype(np.float64))[None] for image in (pred, truth))
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    window = window.expand(a.shape[1], 1, 11, 11)
    mean_a, mean_b = convolved(a, window), convolved(b, window)
    spread_a, spread_b = convolved(a * a, window) - mean_a**2, convolved(b * b, window) - mean_b**2
    both = convolved(a * b, window) - mean_a * mean_b
    above = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    ssim = above / ((mean_a**2 + mean_b**2 + 1e-4) * (spread_a + spread_b + 9e-4))
    rmse = torch.sqrt(torch.mean((a - b) ** 2))
    cosine = (a * b).sum(1) / torch.sqrt((a * a).sum(1)) / torch.sqrt((b * b).sum(1))
    return {
        "rmse": rmse.item(),
        "mae": torch.mean(torch.abs(a - b)).item(),
        "psnr": (20 * torch.log10(1 / rmse)).item(),
        "sam": torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).mean().item(),
        "ssim": ssim.mean().item(),
    }


def test_agrees_with_the_published_steps():
    assert protocols.sen12mscr(PRED, TRUTH) == pytest.approx(as_published(PRED, TRUTH), rel=1e-6)


def test_what_lies_outside_of_0_to_1_and_no_data_count_as_the_loader_has_them():
    wild, tame = TRUTH.copy(), TRUTH.copy()
    wild[:, 0, 0], tame[:, 0, 0] = 1.7, 1
    wild[:, 1, 1], tame[:, 1, 1] = -0.1, 0
    wild[:, 2, 2], tame[:, 2, 2] = np.nan, 0
    assert protocols.sen12mscr(PRED, wild) == pytest.approx(protocols.sen12mscr(PRED, tame), nan_ok=True)
    assert np.isfinite(list(protocols.sen12mscr(PRED, wild).values())).all()


@given(st.floats(0.001, 0.2))
def test_an_offset_has_the_error_that_it_is(offset):
    truth = TRUTH[:, :12, :12]
    found = protocols.sen12mscr(truth + np.float32(offset), truth)
    assert found["rmse"] == pytest.approx(offset, rel=1e-3)
    assert found["psnr"] == pytest.approx(-20 * np.log10(offset), abs=0.01)
    assert found["ssim"] < 1


def test_scores_are_means_over_images_and_the_best_method_comes_first():
    images = [{"a": {"psnr": 20.0, "sam": None}, "b": {"psnr": 30.0, "sam": 2.0}}, {"a": {"psnr": 22.0, "sam": 4.0}}]
    found = protocols.mean(images)
    assert list(found) == ["b", "a"]
    assert found["a"] == {"psnr": 21, "sam": 4}


def test_a_perfect_image_is_told_and_shown():
    found = protocols.sen12mscr(TRUTH, TRUTH)
    assert found["psnr"] == np.inf
    assert (found["rmse"], found["ssim"]) == (0, pytest.approx(1))
    assert "inf" in protocols.table({"ours": found})
    assert "-" in protocols.table({"ours": dict.fromkeys(found)})


def test_outputs_of_published_models_score_as_they_do_elsewhere(shared_data):
    """Ten outputs of two networks on SEN12MS-CR, scored with scikit-image and torchmetrics."""
    folder = shared_data / "sen12mscr_triplets"
    with open(folder / "reference_metrics.csv", encoding="utf-8") as file:
        rows = {(row["id"], row["image"]): row for row in csv.DictReader(file)}
    for name in ("316", "746"):
        images = {}
        for image in ("clear", "pred_residual"):
            with rasterio.open(folder / name / f"{image}.tif") as source:
                images[image] = source.read() / np.float32(10000)
        found, known = protocols.sen12mscr(images["pred_residual"], images["clear"]), rows[name, "pred_residual"]
        assert found["psnr"] == pytest.approx(float(known["psnr_skimage"]), abs=1e-4)
        assert found["mae"] == pytest.approx(float(known["mae"]), abs=1e-6)
        assert found["rmse"] == pytest.approx(float(known["rmse"]), abs=1e-6)
        assert found["sam"] == pytest.approx(float(known["sam_deg"]), abs=1e-4)
        assert found["ssim"] == pytest.approx(float(known["ssim_gauss_skimage_bandmean"]), abs=0.01)  # its edges differ
