"""The notebook's way gives back what it was given, so that a comparison with it compares the same triplets."""

import numpy as np

from cloudjob.benches import notebook


def test_files_of_windows_come_back_as_batches(tmp_path):
    rng = np.random.default_rng(0)
    cloudy, clear = rng.integers(0, 20000, (2, 4, 40, 50)).astype(np.uint16)
    mask = rng.integers(0, 4, (40, 50)).astype(np.uint8)
    places = [(0, 0), (8, 16), (24, 34)]
    notebook.write(tmp_path, places, cloudy, clear, mask, window=16)
    assert len(list(tmp_path.iterdir())) == 9
    loader = notebook.Loader(tmp_path)
    assert len(loader) == 3
    found = loader.batch([2, 0])
    assert [part.shape for part in found] == [(2, 4, 16, 16), (2, 4, 16, 16), (2, 1, 16, 16)]
    assert {part.dtype for part in found} == {np.dtype("f4")}
    for scene, part in zip((cloudy, clear), found, strict=False):
        np.testing.assert_allclose(part[0], scene[:, 24:40, 34:50] / 127.5 - 1, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[2][1, 0], mask[:16, :16])


def test_the_loop_keeps_five_to_thirty_percent_of_cloud():
    scl = np.full((40, 80), 4)
    scl[:2, :20] = 8  # 40 of 400 pixels
    scl[20:27, 20:40] = 9  # 140
    scl[20, 40:60] = 10  # 20: exactly 5 %
    scl[0, 60:79] = 8  # 19
    scl[20:26, 60:] = 10  # 120: exactly 30 %
    assert notebook.select(scl, window=20, stride=20) == [(0, 0), (20, 40), (20, 60)]
