import math

import pytest
import torch

from cloudjob.diffusion.layers import check_size, noisy_or_empty, sinusoids


def test_sinusoids_in_closed_form():
    """Wavelengths 2 pi to 2e4 pi of 1000 * level, a geometric series; sines first."""
    found = sinusoids(torch.tensor([0.0, 0.5]), 6).double()
    assert found[0].tolist() == [0, 0, 0, 1, 1, 1]
    expected = [function(500 * frequency) for function in (math.sin, math.cos) for frequency in (1, 0.01, 1e-4)]
    assert found[1].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_regression_has_an_empty_image_and_the_most_noise():
    x, level, conditions = torch.randn(2, 4, 3, 5), torch.rand(2), torch.randn(2, 7, 3, 5)
    assert noisy_or_empty(x, level, conditions) == (x, level)
    empty, most = noisy_or_empty(None, None, conditions)
    assert torch.equal(empty, torch.zeros(2, 4, 3, 5))
    assert most.tolist() == [1, 1]


def test_sides_that_do_not_divide_are_named():
    check_size(torch.empty(1, 1, 16, 48), 16)
    for shape, said in (((1, 1, 8, 48), "8 x 48"), ((1, 1, 16, 47), "16 x 47")):
        with pytest.raises(ValueError, match=f"{said} pixels: both must be divisible by the network's stride 16"):
            check_size(torch.empty(shape), 16)
