"""Sums over sliding windows, against brute force."""

from itertools import pairwise

import numpy as np
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.sentinel2.sums import strip_sums, window_sums


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 7), st.integers(0, 10**6))
def test_window_sums_equal_brute_force(height, width, size, stride, seed):
    values = np.random.default_rng(seed).random((height, width)) < 0.4
    rows, cols = range(0, height - size + 1, stride), range(0, width - size + 1, stride)
    expected = [[values[i : i + size, j : j + size].sum() for j in cols] for i in rows]
    found = window_sums(values, size=size, stride=stride)
    if len(rows) and len(cols):
        np.testing.assert_array_equal(found, expected)
    else:
        assert found.shape == (len(rows), len(cols))


@examples(20)
@given(st.integers(0, 300), st.integers(100, 280), st.integers(20, 400), st.integers(0, 10**6))
def test_several_arrays_are_summed_from_strips_that_a_byte_can_count(more, size, stride, seed):
    arrays = np.random.default_rng(seed).random((3, size + more, 290)) < [[[0.9]], [[1.0]], [[0.1]]]
    seen = []

    def strip(rows):
        seen.append((rows.start, rows.stop))
        return list(arrays[:, rows])

    found = strip_sums(strip, arrays.shape[1:], size=size, stride=stride)
    windows = np.lib.stride_tricks.sliding_window_view(arrays, (size, size), (1, 2))[:, ::stride, ::stride]
    np.testing.assert_array_equal(found, windows.sum((-2, -1)))
    assert all(0 < stop - start < 256 for start, stop in seen)
    assert seen[0][0] == 0
    assert all(stop == start for (_, stop), (start, _) in pairwise(seen))  # each row once
