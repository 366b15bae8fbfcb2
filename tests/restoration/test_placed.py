"""Arrays that many fill: any order, each part once or twice, and the file is as numpy writes it."""

import errno
import os

import numpy as np
import pytest

from cloudjob.errors import DiskFullError, ItemError
from cloudjob.restoration.placed import Placed, release


def test_parts_in_any_order_make_the_file_that_numpy_writes(tmp_path):
    whole = np.random.default_rng(0).integers(0, 60000, (3, 20, 7)).astype(np.uint16)
    placed = Placed(tmp_path / "a.npy", whole.shape, "uint16")
    parts = [(layer, top) for layer in range(3) for top in (0, 8, 16)]
    for layer, top in [*reversed(parts), parts[3]]:
        placed.write(top, whole[layer, top : top + 8], layer=layer)
    placed.flush()
    np.testing.assert_array_equal(placed.mapped(), whole)
    np.save(tmp_path / "b.npy", whole)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_layers_are_put_at_once_and_a_view_is_taken_as_it_is(tmp_path):
    whole = np.arange(2 * 6 * 5, dtype=np.float32).reshape(2, 6, 5)
    placed = Placed(tmp_path / "a.npy", whole.shape, "float32")
    for top in (0, 4):
        placed.write_layers(top, whole[:, top : top + 4].astype(np.float64))
    assert np.load(placed.path).dtype == np.float32
    np.testing.assert_array_equal(placed.mapped(), whole)
    flat = Placed(tmp_path / "b.npy", (5, 6), "float32")
    flat.write(0, whole[0].T)
    np.testing.assert_array_equal(flat.mapped(), whole[0].T)


def test_a_file_that_is_not_whole_is_named(tmp_path):
    placed = Placed(tmp_path / "a.npy", (2, 100, 100), "uint16")
    placed.write(0, np.ones((100, 100), np.uint16))
    with pytest.raises(ItemError, match=r"a\.npy: .*; remove its folder and run the same command again"):
        placed.mapped()


def test_a_full_disk_is_told_from_other_errors(tmp_path, monkeypatch):
    placed = Placed(tmp_path / "a.npy", (10, 10), "uint16")
    for number, kind in ((errno.ENOSPC, DiskFullError), (errno.EIO, OSError)):

        def refuse(*_, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "pwrite", refuse)
        with pytest.raises(kind):
            placed.write(0, np.ones((10, 10)))


def test_what_was_released_is_still_there(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(10000))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert mapped.sum() == 49995000
    release(mapped, None, np.arange(3), mapped[5:])
    assert mapped.sum() == 49995000
