"""Digital numbers through every baseline, and the radiometric match."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cloudjob.sentinel2 import radiometry as r

DN = arrays(np.uint16, (4, 3, 5), elements=st.integers(0, 65535))


@given(DN)
def test_reflectance_and_back(dn):
    np.testing.assert_array_equal(r.digital_number(r.reflectance(dn)), dn)


@given(arrays(np.uint16, (4, 3, 5), elements=st.integers(0, 32767)), st.sampled_from([0, -1000]))
def test_source_to_convention_and_back(source, offset):
    ours = r.to_convention(source, offset=offset)
    np.testing.assert_array_equal(r.from_convention(ours, offset=offset), source)
    good = source > 0
    expected = (source[good].astype(float) + offset) / 10000
    np.testing.assert_allclose(r.reflectance(ours)[good], expected, atol=1e-6)
    np.testing.assert_array_equal(ours == 0, source == 0)


def test_other_quantification():
    assert r.to_convention(np.array([[500]], np.uint16), offset=0, quantification=1000)[0, 0] == 6000


def scene(seed=0, size=60):
    rng = np.random.default_rng(seed)
    return rng.integers(3000, 9000, (4, size, size)).astype(np.uint16)


def test_match_finds_the_line_although_a_third_of_the_ground_changed():
    source = scene()
    gains, offsets = np.array([0.8, 0.9, 1.1, 1.25]), np.array([300, -100, 0, 50])
    target = np.rint(source * gains[:, None, None] + offsets[:, None, None]).astype(np.uint16)
    target[:, :20] = 2000
    lines = r.match(source, target, np.ones(source.shape[1:], bool))
    np.testing.assert_allclose([line["gain"] for line in lines], gains, rtol=2e-3)
    np.testing.assert_allclose([line["offset"] for line in lines], offsets, atol=12)
    matched = r.apply_match(source, lines)
    assert np.abs(matched[:, 20:].astype(int) - target[:, 20:]).max() < 12


def test_match_with_hardly_a_pixel_only_shifts_and_with_none_does_nothing():
    source, few = scene(), np.zeros((60, 60), bool)
    few[:3, :3] = True
    lines = r.match(source, source + np.uint16(200), few)
    assert [(line["gain"], line["offset"]) for line in lines] == [(1.0, 200.0)] * 4
    lines = r.match(source, source + np.uint16(200), np.zeros((60, 60), bool))
    np.testing.assert_array_equal(r.apply_match(source, lines), source)


@pytest.mark.parametrize("value", [0, 1, 65535])
def test_apply_match_keeps_no_data_and_the_range(value):
    dn = np.full((4, 2, 2), value, np.uint16)
    out = r.apply_match(dn, [{"gain": 2.0, "offset": -5.0}] * 4)
    assert (out == (0 if value == 0 else np.clip(2 * value - 5, 1, 65535))).all()
