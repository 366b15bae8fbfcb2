"""Windows cut from stripes are the windows of the whole scene."""

import numpy as np
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.patches.cut import cut
from cloudjob.patches.windows import Windows


@examples(60)
@given(st.integers(0, 10**6), st.sampled_from([3, 8, 10]), st.sampled_from([4, 7, 16]), st.integers(0, 40))
def test_windows_from_stripes_are_those_of_the_whole(seed, window, rows, count):
    rng = np.random.default_rng(seed)
    bands, mask = rng.integers(0, 999, (2, 4, 33, 21)), rng.integers(0, 4, (33, 21))
    places = sorted({(rng.integers(0, 33 - window + 1), rng.integers(0, 21 - window + 1)) for _ in range(count)})
    row, col = (np.array([place[axis] for place in places], np.int32) for axis in (0, 1))
    windows = Windows(row, col, np.zeros(len(places), np.float32), window)

    def stripes():
        buffer = np.empty((2, 4, rows, 21), int)  # used again for each stripe, as the reader's is
        for top in range(0, 33, rows):
            part = buffer[:, :, : min(rows, 33 - top)]
            part[:] = bands[:, :, top : top + rows]
            yield top, {"cloudy": part[0], "clear": part[1], "mask": mask[top : top + rows]}

    seen = []
    for number, images in cut(stripes(), windows):
        here = np.s_[..., row[number] : row[number] + window, col[number] : col[number] + window]
        assert list(images) == ["cloudy", "clear", "mask"]
        np.testing.assert_array_equal(images["cloudy"], bands[0][here])
        np.testing.assert_array_equal(images["clear"], bands[1][here])
        np.testing.assert_array_equal(images["mask"], mask[here])
        seen.append(number)
    assert seen == list(range(len(places)))
