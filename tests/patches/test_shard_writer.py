"""What is written is the contract of the files; misuse and a full disk are errors."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from shard_files import WINDOW, triplets, write

from cloudjob.errors import CorruptFileError, ItemError
from cloudjob.patches.shard_writer import Writer, normalisation, read_back
from cloudjob.patches.shards import columns

NOWHERE = {"row": 0, "col": 0, "cloud_fraction": 0.0}


def test_layout_is_the_contract(tmp_path):
    write(tmp_path / "a.h5", 3, capacity=7)
    with h5py.File(tmp_path / "a.h5") as file:
        shapes = {name: (data.shape, data.dtype.str) for name, data in file.items()}
        assert shapes["cloudy"] == shapes["clear"] == shapes["reference"] == ((3, 4, 16, 16), "<u2")
        assert shapes["mask"] == ((3, 16, 16), "|u1")
        assert {shapes[name] for name in ("row", "col", "pair")} == {((3,), "<i4")}
        assert file["pair"][:].tolist() == [0, 0, 0]  # one pair per file: the first of its attribute `pairs`
        assert {shapes[name] for name in ("cloud_fraction", "reference_days")} == {((3,), "<f4")}
        assert file["cloudy"].chunks == (1, 4, 16, 16)
        assert file["cloudy"].id.get_num_chunks() == 3
        assert file.attrs["schema_version"] == 1
        assert file.attrs["bands"].decode() == "B04,B03,B02,B08"
        assert (file.attrs["scale"], file.attrs["offset"]) == (1e-4, -0.1)
    assert (tmp_path / "a.h5").read_bytes()[8] >= 2  # the superblock's version; older ones know no checksums


def test_a_writer_that_is_given_no_triplet_makes_a_shard_of_none(tmp_path):
    result = write(tmp_path / "a.h5", 0, capacity=3)
    read_back(tmp_path / "a.h5", result)
    assert len(columns(tmp_path / "a.h5")["row"]) == result["count"] == 0


def test_reading_back_misses_a_column_that_is_not_there(tmp_path):
    result = write(tmp_path / "a.h5", 2)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["cloud_fraction"]
    with pytest.raises(CorruptFileError, match=r"a\.h5.*cloud_fraction"):
        read_back(tmp_path / "a.h5", result)


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_filters_make_real_masks_smaller(tmp_path, compression):
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint16), (4, 64, 64))
    sizes = {}
    for name in ("none", compression):
        with Writer(tmp_path / name, 2, window=64, pair={}, attributes={}, compression=name) as writer:
            for _ in range(2):
                writer.add(cloudy=smooth, clear=smooth, mask=np.zeros((64, 64), np.uint8), **NOWHERE)
        sizes[name] = (tmp_path / name).stat().st_size
        read_back(tmp_path / name, writer.result)
    assert sizes[compression] < sizes["none"] / 4


def test_normalisation_is_that_of_every_fourth_valid_pixel(tmp_path):
    results = [write(tmp_path / "a.h5", 4), write(tmp_path / "b.h5", 2, seed=5)]
    clear = np.stack([t["clear"] for t in (*triplets(4), *triplets(2, seed=5))])[..., ::4, ::4].astype(float)
    values = np.where(clear == 0, np.nan, clear * 1e-4 - 0.1)
    found = normalisation(results)
    np.testing.assert_allclose(found["mean"], np.nanmean(values, (0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found["std"], np.nanstd(values, (0, 2, 3)), atol=1e-6)
    assert found == {name: np.round(numbers, 6).tolist() for name, numbers in found.items()}


def test_pixels_without_data_do_not_count_in_the_normalisation(tmp_path):
    clear = np.full((4, WINDOW, WINDOW), 3000, np.uint16)
    clear[:, :8] = 0
    with Writer(tmp_path / "a", 1, window=WINDOW, pair={}, attributes={}) as writer:
        writer.add(cloudy=clear, clear=clear, mask=clear[0].astype(np.uint8), **NOWHERE)
    assert normalisation([writer.result])["mean"] == pytest.approx([0.2] * 4)
    assert normalisation([writer.result])["std"] == [0.0001] * 4  # of one level alone: that of one DN
    none = writer.result | {"pixels": [0, 8, 8, 8]}
    with pytest.raises(ItemError, match="no data"):
        normalisation([none])


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    (given,) = triplets(1, references=0)
    with Writer(tmp_path / "a", 1, window=WINDOW, pair={}, attributes={}) as writer:
        for wrong in (
            {"cloudy": given["cloudy"][:3]},
            {"clear": given["clear"].astype(np.int32)},
            {"mask": given["mask"][1:]},
        ):
            with pytest.raises(ValueError, match="expected"):
                writer.add(**given | wrong)
        writer.add(**given)
        with pytest.raises(ValueError, match="made for 1"):
            writer.add(**given)
    read_back(tmp_path / "a", writer.result)


@pytest.mark.parametrize("when", ["between triplets", "at the end"])
def test_a_writer_that_fails_leaves_neither_pixels_nor_an_open_file(tmp_path, monkeypatch, when):
    def fail(*_):
        raise OSError(errno.ENOSPC, "no space")

    def use(writer):
        with writer:
            writer.add(**given)
            if when == "between triplets":
                fail()

    path, (given,) = tmp_path / "a", triplets(1, references=0)
    writer = Writer(path, 1, window=WINDOW, pair={}, attributes={})
    if when == "at the end":
        monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match="no space"):
        use(writer)
    assert given["cloudy"].tobytes() not in path.read_bytes()  # its room on the disk is free
    assert str(path) not in [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert writer.result == {}


FILL_THE_DISK = """
import numpy as np, sys
from cloudjob.patches.shard_writer import Writer
image = np.random.default_rng(0).integers(0, 65536, (4, 64, 64)).astype(np.uint16)
mask = image[0].astype(np.uint8)
try:
    with Writer(
        sys.argv[1], 100, window=64, pair={}, attributes={}, compression=sys.argv[2]
    ) as writer:
        for number in range(100):
            writer.add(cloudy=image, clear=image, mask=mask, row=0, col=0, cloud_fraction=0.0)
except OSError as error:
    print("errno", error.errno)
"""


@pytest.mark.parametrize(
    ("room", "compression"),
    [("8k", "none"), ("1m", "none"), ("6816k", "none"), ("7500k", "none"), ("8k", "zstd"), ("1m", "zstd")],
)
@pytest.mark.slow
def test_a_full_disk_is_an_error_not_a_crash(tmp_path, room, compression):
    unshare = ["unshare", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size={room} tmpfs {tmp_path}"
    if not shutil.which("unshare") or subprocess.run([*unshare, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    command = f'{mount} && exec "$0" -c "$1" {tmp_path}/shard.h5 {compression}'
    done = subprocess.run(
        [*unshare, "sh", "-c", command, sys.executable, FILL_THE_DISK],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stdout) == (0, "errno 28\n"), done.stderr
