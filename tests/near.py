"""torch.testing.assert_close, but for the second of imports that its first call takes."""

import numpy as np
from torch import Tensor


def assert_close(found: Tensor, expected: Tensor, *, rtol: float = 1.3e-6, atol: float = 1e-5) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found.detach(), expected.detach(), rtol, atol)
