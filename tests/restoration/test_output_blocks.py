"""Compressed blocks, against HDF5's own filters and plain sums."""

import zlib

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cloudjob.restoration.output.blocks import SIDE, fletcher32, halved, hdf5_chunk, tiff_block


def by_hdf5(data: bytes) -> int:
    """The checksum that HDF5 itself writes behind these bytes."""
    with h5py.File("any", "w", driver="core", backing_store=False) as file:
        chunk = file.create_dataset("a", data=np.frombuffer(data, "u1"), chunks=(len(data),), fletcher32=True)
        file.flush()
        return int.from_bytes(chunk.id.read_direct_chunk((0,))[1][-4:], "little")


@given(st.binary(min_size=1, max_size=3000) | st.integers(1, 3000).map(lambda n: b"\xff" * n))
def test_the_checksum_is_that_of_hdf5(data):
    assert fletcher32(data) == by_hdf5(data)


def test_the_checksum_of_a_large_chunk_is_exact():
    data = np.random.default_rng(0).integers(0, 256, 600_001).astype("u1").tobytes()
    assert fletcher32(data) == by_hdf5(data)
    assert fletcher32(b"\xff" * 600_000) == by_hdf5(b"\xff" * 600_000)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_a_chunk_is_what_hdf5_would_read(dtype):
    pixels = np.random.default_rng(0).integers(0, 200, (5, 7)).astype(dtype)
    with h5py.File("any", "w", driver="core", backing_store=False) as file:
        options = {"chunks": (6, 8), "compression": "gzip", "shuffle": True, "fletcher32": True}
        data = file.create_dataset("a", (6, 8), dtype, **options)
        data.id.write_direct_chunk((0, 0), hdf5_chunk(pixels, (6, 8), 9))
        np.testing.assert_array_equal(data[:5, :7], pixels)
        assert (data[5:] == 9).all()
        assert (data[:, 7] == 9).all()


def test_a_block_has_the_differences_along_its_rows():
    pixels = np.random.default_rng(0).integers(0, 65536, (100, SIDE)).astype("u2")
    steps = np.frombuffer(zlib.decompress(tiff_block(pixels)), "<u2").reshape(SIDE, SIDE)
    found = np.cumsum(steps, axis=1, dtype="u2")
    np.testing.assert_array_equal(found[:100], pixels)
    assert not found[100:].any()


@given(arrays(np.uint16, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 65535) | st.just(0)))
def test_a_half_is_the_mean_of_what_is_known(pixels):
    found, sharp = halved(pixels, nearest=False), halved(pixels, nearest=True)
    rows, columns = (-(-side // 2) for side in pixels.shape)
    assert found.shape == sharp.shape == (rows, columns)
    assert found.dtype == sharp.dtype == np.uint16
    for row in range(rows):
        for column in range(columns):
            four = pixels[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            known = four[four > 0]
            assert abs(found[row, column] - (known.mean() if known.size else 0)) <= 0.5
            assert sharp[row, column] == four[0, 0]
