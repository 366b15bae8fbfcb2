import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cloudjob.pixels import CIRRUS, CLASSES, CLEAR, CLOUD, HIDDEN, NO_DATA, SHADOW, UNKNOWN
from cloudjob.scoring import strata

HIDDEN_STRATA = ("thick", "veil", "shadow", "rim")


@pytest.mark.parametrize(
    ("opacity", "shadow", "expected"),
    [
        (0, 0, CLEAR),
        (0, 1, SHADOW),
        (0, 100, SHADOW),
        (1, 0, CIRRUS),
        (1, 100, CIRRUS),  # cloud hides its own shadow
        (50, 0, CIRRUS),
        (50, 100, CIRRUS),
        (51, 0, CLOUD),
        (100, 100, CLOUD),
    ],
)
def test_cloud_is_thick_above_half_and_goes_before_shadow(opacity, shadow, expected):
    found = strata.core(np.array([opacity, shadow], np.uint8)[:, None, None])
    assert found.tolist() == [[expected]]
    assert found.dtype == np.uint8


def test_the_core_of_several_windows_is_that_of_each():
    above = np.random.default_rng(0).choice(np.array([0, 1, 50, 51, 100], np.uint8), (2, 3, 5, 6))
    found = strata.core(above)
    assert np.array_equal(found, [strata.core(above[:, number]) for number in range(3)])
    assert len(np.unique(found)) == 4


def test_strata_by_hand():
    mask = np.array([[CLOUD, SHADOW, CIRRUS, CLOUD, SHADOW], [CLEAR, CLEAR, UNKNOWN, NO_DATA, CIRRUS]], np.uint8)
    core = np.array([[CLOUD, CLOUD, CIRRUS, SHADOW, CLEAR], [CLEAR, CLOUD, CIRRUS, NO_DATA, UNKNOWN]], np.uint8)
    found = strata.regions(mask, core)
    assert {name: pixels.astype(int).tolist() for name, pixels in found.items()} == {
        "thick": [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]],
        "veil": [[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]],
        "shadow": [[0, 0, 0, 1, 0], [0, 0, 0, 0, 0]],
        "rim": [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1]],
        "cloud": [[1, 1, 1, 1, 1], [0, 0, 0, 0, 1]],
        "clear": [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0]],
        "all": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 1]],
    }
    assert all(pixels.dtype == bool for pixels in found.values())


def test_strata_have_one_order_and_one_headline():
    classes = np.zeros((1, 1), np.uint8)
    assert list(strata.regions(classes, classes)) == list(strata.STRATA)
    assert strata.HEADLINE == next(iter(strata.STRATA)) == "thick"
    assert len(set(strata.STRATA.values())) == len(strata.STRATA)


masks = arrays(np.uint8, (1, 4), elements=st.sampled_from(sorted(CLASSES.values())))


@given(masks, masks)
def test_what_the_mask_hides_is_in_one_stratum_each(mask, core):
    found = strata.regions(mask, core)
    each = np.sum([found[name] for name in HIDDEN_STRATA], axis=0, dtype=int)
    assert np.array_equal(each, np.isin(mask, HIDDEN))
    assert np.array_equal(each == 1, found["cloud"])
    assert not (found["cloud"] & found["clear"]).any()
    rest = np.isin(mask, (UNKNOWN, NO_DATA))
    assert np.array_equal(found["cloud"] | found["clear"], ~rest)
    assert np.array_equal(found["all"], mask != NO_DATA)
