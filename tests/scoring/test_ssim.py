"""Structural similarity by torch, against scikit-image's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from cloudjob.pixels import CLOUD
from cloudjob.scoring import methods
from cloudjob.scoring.ssim import BORDER, ssim_map

INNER = np.s_[:, BORDER:-BORDER, BORDER:-BORDER]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.integers(11, 90), st.integers(11, 40), st.sampled_from([1.2, 0.1]))
def test_agrees_with_scikit_image_on_every_pixel_with_a_whole_window(seed, height, width, contrast):
    """In double precision; of images of one strip and of several."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, contrast, (4, height, width)).astype(np.float32)
    pred = (truth + rng.normal(0, contrast / 10, truth.shape)).astype(np.float32)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    pairs = zip(pred.astype(float), truth.astype(float), strict=True)
    expected = np.stack([structural_similarity(*pair, **options)[1] for pair in pairs])
    found = ssim_map(pred, truth)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[INNER], expected[INNER], rtol=0, atol=1e-7)
    assert np.isnan(found).sum() == found.size - found[INNER].size


@pytest.mark.parametrize(("height", "width"), [(10, 30), (30, 10), (30, 3), (3, 3)])
def test_an_image_smaller_than_the_window_has_none(height, width):
    image = np.zeros((4, height, width), np.float32)
    assert np.isnan(ssim_map(image, image)).all()


def test_no_data_is_black():
    image = np.full((4, 12, 12), 0.3, np.float32)
    holed = np.where(np.arange(12) == 6, np.float32(np.nan), image)
    np.testing.assert_array_equal(ssim_map(holed, image), ssim_map(np.nan_to_num(holed), image))


def test_it_is_made_on_the_device_that_the_scores_are_asked_of():
    """The meta device, which gives nothing back, stands in for a GPU."""
    image, mask = np.full((1, 4, 16, 16), 0.3, np.float32), np.full((1, 16, 16), CLOUD, np.uint8)
    assert methods.score({"ours": image}, image, mask, mask)[0][0]["ssim"] == pytest.approx(1)
    with pytest.raises(NotImplementedError, match="meta tensor"):
        methods.score({"ours": image}, image, mask, mask, device="meta")
