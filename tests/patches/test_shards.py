"""A shard keeps what is written to it, or names itself: no damage goes unnoticed, and none crashes the reader."""

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudjob.errors import CorruptFileError, ItemError
from cloudjob.patches import shards
from cloudjob.patches.shards import SCALARS, ShardSet, Writer, check, columns, normalisation, read_back

WINDOW = 16
PRODUCT = "S2A_MSIL2A_202403{}T222541_N0510_R029_T05WPS_20240331T001122"
DAYS = {"cloudy": "15", "clear": "11", "reference": "05"}
PAIR = {
    "products": {role: PRODUCT.format(day) for role, day in DAYS.items()},
    "sun_elevation": dict.fromkeys(DAYS, 21.0),
}


def triplets(count, seed=0, reference=True):
    """What `Writer.add` takes; views of larger arrays, as `shard` cuts them."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        images = rng.integers(0, 65536, (3, 4, WINDOW, 2 * WINDOW)).astype(np.uint16)[..., 3 : 3 + WINDOW]
        mask = rng.choice([0, 1, 2, 3, 4, 255], (WINDOW, WINDOW)).astype(np.uint8)
        yield images[0], images[1], mask, images[2] if reference else None, i, 2 * i, i / 10


def write(path, count, *, capacity=None, reference=True, seed=0, compression="none"):
    with Writer(
        path,
        capacity or count,
        window=WINDOW,
        reference=reference,
        compression=compression,
        pair=PAIR,
        reference_days=-3.5 if reference else None,
        attributes={"config_sha256": "abc", "settings": {"masks": {"cloud_m": 100}}},
    ) as writer:
        for triplet in triplets(count, seed, reference):
            writer.add(*triplet)
    return writer.result


def index_of(folder, **counts):
    """An index of the files <split>_<number>.h5 with these counts."""
    files = [{"file": f"{name}.h5", "count": count, "split": name.split("_")[0]} for name, count in counts.items()]
    return {"window": WINDOW, "files": files}


@pytest.fixture
def shard_set(tmp_path):
    write(tmp_path / "train_0.h5", 5)
    write(tmp_path / "train_2.h5", 3, reference=False, seed=1)
    return ShardSet(tmp_path, index_of(tmp_path, train_0=5, val_1=2, train_2=3), "train")


def test_layout_is_the_contract(tmp_path):
    write(tmp_path / "a.h5", 3, capacity=7)
    with h5py.File(tmp_path / "a.h5") as file:
        shapes = {name: (data.shape, data.dtype.str) for name, data in file.items()}
        assert shapes["cloudy"] == shapes["clear"] == shapes["reference"] == ((3, 4, 16, 16), "<u2")
        assert shapes["mask"] == ((3, 16, 16), "|u1")
        assert {shapes[name] for name in ("row", "col", "pair")} == {((3,), "<i4")}
        assert {shapes[name] for name in ("cloud_fraction", "reference_days")} == {((3,), "<f4")}
        assert file["cloudy"].chunks == (1, 4, 16, 16)
        assert file["cloudy"].id.get_num_chunks() == 3
        assert file.attrs["schema_version"] == 1
        assert file.attrs["bands"].decode() == "B04,B03,B02,B08"
        assert (file.attrs["scale"], file.attrs["offset"]) == (1e-4, -0.1)


def test_columns_and_attributes_come_back(tmp_path):
    write(tmp_path / "a.h5", 3)
    found = columns(tmp_path / "a.h5")
    assert found["row"].tolist() == [0, 1, 2]
    assert found["col"].tolist() == [0, 2, 4]
    assert found["pair"].tolist() == [0, 0, 0]
    assert found["cloud_fraction"].tolist() == pytest.approx([0, 0.1, 0.2])
    assert found["reference_days"].tolist() == [-3.5] * 3
    assert json.loads(found["attributes"]["pairs"]) == [PAIR]
    assert json.loads(found["attributes"]["settings"]) == {"masks": {"cloud_m": 100}}
    assert found["attributes"]["config_sha256"] == "abc"
    write(tmp_path / "b.h5", 3, reference=False)
    assert "reference_days" not in columns(tmp_path / "b.h5")


@pytest.mark.parametrize("compression", shards.COMPRESSIONS)
def test_what_is_written_is_read(tmp_path, compression):
    result = write(tmp_path / "train_0.h5", 4, capacity=6, compression=compression)
    read_back(tmp_path / "train_0.h5", result)
    found = ShardSet(tmp_path, index_of(tmp_path, train_0=4), "train")
    for position, (cloudy, clear, mask, reference, *_) in enumerate(triplets(4)):
        sample = found[position]
        for name, expected in [("cloudy", cloudy), ("clear", clear), ("mask", mask), ("reference", reference)]:
            np.testing.assert_array_equal(sample[name], expected)


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_filters_make_real_masks_smaller(tmp_path, compression):
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint16), (4, 64, 64))
    sizes = {}
    for name in ("none", compression):
        with Writer(tmp_path / name, 2, window=64, reference=False, pair={}, attributes={}, compression=name) as writer:
            for _ in range(2):
                writer.add(smooth, smooth, np.zeros((64, 64), np.uint8), None, 0, 0, 0.0)
        sizes[name] = (tmp_path / name).stat().st_size
    assert sizes[compression] < sizes["none"] / 4


def test_positions_run_over_the_files_of_a_split(shard_set):
    assert len(shard_set) == 8
    assert shard_set.has_reference
    expected = [*triplets(5), *triplets(3, seed=1, reference=False)]
    for position, (cloudy, clear, mask, reference, *_) in enumerate(expected):
        sample = shard_set[position]
        np.testing.assert_array_equal(sample["cloudy"], cloudy)
        np.testing.assert_array_equal(sample["clear"], clear)
        np.testing.assert_array_equal(sample["mask"], mask)
        np.testing.assert_array_equal(sample["reference"], 0 if reference is None else reference)
    for outside in (-1, 8):
        with pytest.raises(IndexError):
            shard_set[outside]


def test_without_any_reference_there_is_none(tmp_path):
    write(tmp_path / "train_0.h5", 2, reference=False)
    found = ShardSet(tmp_path, index_of(tmp_path, train_0=2), "train")
    assert not found.has_reference
    assert set(found[0]) == {"cloudy", "clear", "mask", *SCALARS}


def test_a_split_without_files_is_empty(tmp_path):
    empty = ShardSet(tmp_path, index_of(tmp_path, train_0=5), "test")
    assert len(empty) == 0
    assert not empty.has_reference


def test_read_fills_the_given_slot_alone(shard_set):
    buffers = shard_set.buffers(3)
    for buffer in buffers.values():
        buffer[...] = 7
    shard_set.read(2, buffers, 1)
    for name, array in shard_set[2].items():
        np.testing.assert_array_equal(buffers[name][1], array)
        assert (buffers[name][[0, 2]] == 7).all()


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_another_process_opens_the_files_for_itself(tmp_path, compression):
    write(tmp_path / "train_0.h5", 4, compression=compression)
    found = ShardSet(tmp_path, index_of(tmp_path, train_0=4), "train")
    here = [found[i] for i in range(4)]
    with multiprocessing.get_context("fork").Pool(1) as pool:  # found is pickled, and its files are open in the fork
        there = pool.map(found.__getitem__, range(4))
    np.testing.assert_equal(there, here)
    np.testing.assert_equal(pickle.loads(pickle.dumps(found))[3], here[3])


def _read_in_fork(found, expected, answers):
    np.testing.assert_equal(found[1], expected)
    answers.put("same")


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_fork_with_open_files_reads_the_same(tmp_path, compression):
    write(tmp_path / "train_0.h5", 2, compression=compression)
    found = ShardSet(tmp_path, index_of(tmp_path, train_0=2), "train")
    context, expected = multiprocessing.get_context("fork"), found[1]
    answers = context.Queue()
    child = context.Process(target=_read_in_fork, args=(found, expected, answers))
    child.start()
    assert answers.get(timeout=30) == "same"
    child.join()
    np.testing.assert_equal(found[1], expected)


def test_normalisation_is_that_of_every_fourth_valid_pixel(tmp_path):
    results = [write(tmp_path / "a.h5", 4), write(tmp_path / "b.h5", 2, seed=5)]
    clear = np.stack([t[1] for t in (*triplets(4), *triplets(2, seed=5))])[..., ::4, ::4].astype(float)
    values = np.where(clear == 0, np.nan, clear * 1e-4 - 0.1)
    found = normalisation(results)
    np.testing.assert_allclose(found["mean"], np.nanmean(values, (0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found["std"], np.nanstd(values, (0, 2, 3)), atol=1e-6)


def test_pixels_without_data_do_not_count_in_the_normalisation(tmp_path):
    clear = np.full((4, WINDOW, WINDOW), 3000, np.uint16)
    clear[:, :8] = 0
    with Writer(tmp_path / "a", 1, window=WINDOW, reference=False, pair={}, attributes={}) as writer:
        writer.add(clear, clear, clear[0].astype(np.uint8), None, 0, 0, 0.0)
    assert normalisation([writer.result])["mean"] == pytest.approx([0.2] * 4)
    none = writer.result | {"pixels": [0, 8, 8, 8]}
    with pytest.raises(ItemError, match="no data"):
        normalisation([none])


# --- misuse and a full disk ----------------------------------------------------------------------------------
def test_arrays_that_do_not_fit_are_refused(tmp_path):
    cloudy, clear, mask, *_ = next(triplets(1))
    with Writer(tmp_path / "a", 1, window=WINDOW, reference=False, pair={}, attributes={}) as writer:
        for wrong in [(cloudy[:3], clear, mask), (cloudy.astype(np.int32), clear, mask), (cloudy, clear, mask[1:])]:
            with pytest.raises(ValueError, match="expected"):
                writer.add(*wrong, None, 0, 0, 0.0)
        writer.add(cloudy, clear, mask, None, 0, 0, 0.0)
        with pytest.raises(ValueError, match="made for 1"):
            writer.add(cloudy, clear, mask, None, 0, 0, 0.0)
    read_back(tmp_path / "a", writer.result)


FILL_THE_DISK = """
import numpy as np, sys
from cloudjob.patches.shards import Writer
image = np.random.default_rng(0).integers(0, 65536, (4, 64, 64)).astype(np.uint16)
mask = image[0].astype(np.uint8)
try:
    with Writer(
        sys.argv[1], 100, window=64, reference=False, pair={}, attributes={}, compression=sys.argv[2]
    ) as writer:
        for number in range(100):
            writer.add(image, image, mask, None, 0, 0, 0.0)
except OSError as error:
    print("errno", error.errno)
"""


@pytest.mark.parametrize(
    ("room", "compression"),
    [("8k", "none"), ("1m", "none"), ("6816k", "none"), ("7500k", "none"), ("8k", "zstd"), ("1m", "zstd")],
)
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


# --- damage --------------------------------------------------------------------------------------------------
class Damaged:
    """A whole shard, its result, and a place for damaged copies."""

    def __init__(self, folder: Path, compression: str):
        self.path, self.index = folder / "train_0.h5", index_of(folder, train_0=3)
        self.result = write(self.path, 3, capacity=4, compression=compression)
        self.whole = self.path.read_bytes()
        with h5py.File(self.path) as file:
            chunks = [
                data.id.get_chunk_info(number) for data in file.values() if data.chunks for number in range(len(data))
            ]
        self.pixels = {byte for chunk in chunks for byte in range(chunk.byte_offset, chunk.byte_offset + chunk.size)}
        self.expected = self.read()

    def read(self) -> list[dict]:
        found = ShardSet(self.path.parent, self.index, "train")
        return [found[i] for i in range(3)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Damaged(tmp_path_factory.mktemp("plain"), "none")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return Damaged(tmp_path_factory.mktemp("packed"), "gzip")


places, changes = st.integers(0, 2**32), st.integers(1, 255)


@settings(max_examples=200, deadline=None)
@given(place=places, change=changes)
def test_check_reports_any_damaged_byte(plain, place, change):
    damaged = bytearray(plain.whole)
    damaged[place % len(damaged)] ^= change
    sha256 = shards.hashlib.sha256(plain.whole).hexdigest()
    plain.path.write_bytes(plain.whole)
    check(plain.path, sha256)
    plain.path.write_bytes(damaged)
    with pytest.raises(CorruptFileError, match=r"train_0\.h5"):
        check(plain.path, sha256)


@settings(max_examples=300, deadline=None)
@given(place=places, change=changes)
def test_damaged_structure_is_named_or_does_no_harm(plain, place, change):
    place, damaged = place % len(plain.whole), bytearray(plain.whole)
    damaged[place] ^= change
    plain.path.write_bytes(damaged)
    try:
        found = plain.read()
    except CorruptFileError as error:
        assert "train_0.h5" in str(error)  # noqa: PT017
        return
    changed = sum((a[name] != b[name]).sum() for a, b in zip(found, plain.expected, strict=True) for name in a)
    assert changed == (place in plain.pixels)


@settings(max_examples=300, deadline=None)
@given(place=places, change=changes)
def test_read_back_notices_any_damaged_pixel(plain, place, change):
    place, damaged = sorted(plain.pixels)[place % len(plain.pixels)], bytearray(plain.whole)
    damaged[place] ^= change
    plain.path.write_bytes(damaged)
    with pytest.raises(CorruptFileError, match=r"train_0\.h5: triplet \d"):
        read_back(plain.path, plain.result)


@settings(max_examples=200, deadline=None)
@given(place=places, length=st.integers(1, 5000), what=st.sampled_from(["cut", "zeros", "flip"]), change=changes)
@pytest.mark.parametrize("form", ["plain", "packed"])
def test_no_damage_crashes_a_reader(form, place, length, what, change, request):
    shard = request.getfixturevalue(form)
    place, damaged = place % len(shard.whole), bytearray(shard.whole)
    if what == "cut":
        del damaged[place:]
    elif what == "zeros":
        damaged[place : place + length] = bytes(len(damaged[place : place + length]))
    else:
        damaged[place] ^= change
    shard.path.write_bytes(damaged)
    for reader in (shard.read, lambda: columns(shard.path), lambda: read_back(shard.path, shard.result)):
        try:
            reader()
        except CorruptFileError as error:
            assert "train_0.h5" in str(error)  # noqa: PT017
        else:
            assert what != "cut"


def test_a_file_that_is_cut_after_it_was_opened_is_named(tmp_path, shard_set):
    assert shard_set[0]
    path = tmp_path / "train_0.h5"
    with open(path, "rb+") as file:
        file.truncate(3000)
    with pytest.raises(CorruptFileError, match=r"train_0\.h5: ends within"):
        shard_set[4]


def test_a_missing_file_is_named(tmp_path, shard_set):
    (tmp_path / "train_2.h5").unlink()
    with pytest.raises(CorruptFileError, match=r"train_2\.h5: missing"):
        shard_set[6]
    with pytest.raises(CorruptFileError, match=r"train_2\.h5: missing"):
        check(tmp_path / "train_2.h5", "")


def test_a_file_that_cannot_be_opened_is_not_called_corrupt(tmp_path, shard_set):
    (tmp_path / "train_2.h5").unlink()
    (tmp_path / "train_2.h5").mkdir()
    with pytest.raises(ItemError, match=r"train_2\.h5: cannot be opened") as caught:
        shard_set[6]
    assert not isinstance(caught.value, CorruptFileError)


@pytest.mark.parametrize("left", [0, 1])
def test_too_many_open_files_do_not_make_a_shard_corrupt(shard_set, left):
    limits, spare = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(0)
    os.close(spare)  # the lowest free descriptor
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + left, limits[1]))
    try:
        with pytest.raises(ItemError, match="Too many open files") as caught:
            shard_set[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not isinstance(caught.value, CorruptFileError)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.__delitem__("mask"), "mask"),
        (lambda file: file.attrs.__setitem__("schema_version", 99), "schema_version is 99"),
        (lambda file: file.attrs.__delitem__("schema_version"), "schema_version"),
        (lambda file: file["clear"].resize(2, axis=0), r"/clear is \(2, 4, 16, 16\) uint16, expected \(3,"),
        (lambda file: (file.__delitem__("mask"), file.create_group("mask")), "mask"),
    ],
)
def test_what_does_not_fit_the_contract_is_named(tmp_path, damage, reason):
    write(tmp_path / "train_0.h5", 3)
    with h5py.File(tmp_path / "train_0.h5", "r+") as file:
        damage(file)
    found = ShardSet(tmp_path, index_of(tmp_path, train_0=3), "train")
    with pytest.raises(CorruptFileError, match=rf"train_0\.h5: .*{reason}"):
        found[0]


def test_an_index_of_another_count_or_window_is_noticed(tmp_path):
    write(tmp_path / "train_0.h5", 3)
    index = index_of(tmp_path, train_0=4)
    with pytest.raises(CorruptFileError, match=r"train_0\.h5.*expected \(4,"):
        ShardSet(tmp_path, index, "train")[0]
    index = index_of(tmp_path, train_0=3) | {"window": 32}
    with pytest.raises(CorruptFileError, match=r"train_0\.h5.*expected \(3, 4, 32, 32\)"):
        ShardSet(tmp_path, index, "train")[0]
