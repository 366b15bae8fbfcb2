"""The rough cloud test on four bands."""

import numpy as np
import pytest
from own_images import clouded, ground

from cloudjob.pixels import CLEAR, CLOUD, NO_DATA
from cloudjob.restoration import cloud_test
from cloudjob.sentinel2.radiometry import digital_number


def test_a_white_cloud_over_fields_is_found(tmp_path):
    image, where = clouded(ground(600, 40), rows=slice(500, 530), cols=slice(5, 20))
    dn = digital_number(image)
    dn[:, 0, :3], dn[2, 0, 3] = 0, 0
    found = cloud_test.classes(dn)
    assert (found[where] == CLOUD).all()
    assert found[0, :5].tolist() == [NO_DATA] * 4 + [CLEAR]
    assert (found[1:][~where[1:]] == CLEAR).all()


@pytest.mark.parametrize(
    ("what", "red_green_blue_nir", "expected"),
    [
        ("cloud", (0.5, 0.5, 0.52, 0.55), CLOUD),
        ("thin cloud", (0.22, 0.22, 0.24, 0.35), CLOUD),
        ("grass", (0.06, 0.09, 0.05, 0.40), CLEAR),
        ("soil", (0.25, 0.19, 0.14, 0.32), CLEAR),
        ("water", (0.02, 0.03, 0.05, 0.01), CLEAR),
        ("sand", (0.45, 0.37, 0.28, 0.50), CLEAR),
        ("shadow", (0.02, 0.02, 0.03, 0.06), CLEAR),  # missed, as it says
        ("snow", (0.85, 0.87, 0.90, 0.80), CLOUD),  # taken for cloud, as it says
    ],
)
def test_what_passes_for_cloud(what, red_green_blue_nir, expected):
    dn = digital_number(np.array(red_green_blue_nir).reshape(4, 1, 1))
    assert cloud_test.classes(dn)[0, 0] == expected
