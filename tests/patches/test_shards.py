"""A shard keeps what is written to it, or names itself: no damage goes unnoticed, and none crashes the reader."""

import errno
import json
import lzma
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from shard_files import PAIR, REFERENCE_DAYS, index_of, triplets, write

from cloudjob.errors import ConfigError, CorruptFileError, ItemError
from cloudjob.patches import shards
from cloudjob.patches.shard_writer import read_back
from cloudjob.patches.shards import DAYS, SCALARS, ShardSet, check, columns
from cloudjob.pixels import REFERENCES


@pytest.fixture
def shard_set(tmp_path):
    write(tmp_path / "train_0.h5", 5)
    write(tmp_path / "train_2.h5", 3, references=0, seed=1)
    return ShardSet(tmp_path, index_of(train_0=5, val_1=2, train_2=3), "train")


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
    write(tmp_path / "b.h5", 3, references=0)
    assert "reference_days" not in columns(tmp_path / "b.h5")


@pytest.mark.parametrize("compression", shards.COMPRESSIONS)
def test_what_is_written_is_read(tmp_path, compression):
    result = write(tmp_path / "train_0.h5", 4, capacity=6, compression=compression)
    read_back(tmp_path / "train_0.h5", result)
    found = ShardSet(tmp_path, index_of(train_0=4), "train")
    for position, triplet in enumerate(triplets(4)):
        for name in ("cloudy", "clear", "mask", "reference"):
            np.testing.assert_array_equal(found[position][name], triplet[name])


@examples(30)
@given(written=st.integers(0, 3), asked=st.integers(0, 3), compression=st.sampled_from(("none", "gzip")))
def test_any_number_of_references_is_written_and_any_number_read(tmp_path_factory, written, asked, compression):
    folder = tmp_path_factory.mktemp("shards")
    path = folder / "train_0.h5"
    read_back(path, write(path, 3, references=written, compression=compression))
    found = columns(path)
    assert found["attributes"]["schema_version"] == (2 if written > 1 else 1)
    assert {name: found[name].tolist() for name in DAYS if name in found} == {
        name: [days] * 3 for name, days in zip(DAYS, REFERENCE_DAYS[:written], strict=False)
    }
    shard_set = ShardSet(folder, index_of(train_0=3), "train")
    assert shard_set.references == written
    _, arrays = shard_set.evenly(3, references=asked)
    assert list(arrays) == ["cloudy", "clear", "mask", *REFERENCES[:asked], *SCALARS, *DAYS[1:asked]]
    for slot, triplet in enumerate(triplets(3, references=written)):
        for name in ("cloudy", "clear", "mask", *REFERENCES[:asked]):
            np.testing.assert_array_equal(arrays[name][slot], triplet.get(name, 0))
    for number, name in enumerate(DAYS[1:asked], start=1):
        np.testing.assert_array_equal(arrays[name], [[10, -14][number - 1] if number < written else np.nan] * 3)


def test_what_nobody_asks_for_is_not_read(tmp_path, monkeypatch):
    """What the model is shown lies together, and is read by one call."""
    write(tmp_path / "train_0.h5", 3, references=3)
    shard_set = ShardSet(tmp_path, index_of(train_0=3), "train")
    buffers, plainly, sizes = shard_set.buffers(2, references=1), os.preadv, []
    assert not set(REFERENCES[1:]) & set(buffers)
    filler = shards.Filler(shard_set, buffers)
    monkeypatch.setattr(os, "preadv", lambda *given: sizes.append(plainly(*given)) or sizes[-1])
    filler.fill(filler.plan([2, 1]))
    assert sizes == [3 * 4 * 16 * 16 * 2 + 16 * 16] * 2
    expected = list(triplets(3, references=3))
    for slot, position in enumerate((2, 1)):
        np.testing.assert_array_equal(buffers["reference"][slot], expected[position]["reference"])


def test_a_shard_of_schema_version_1_is_read(tmp_path):
    """Two triplets that a version before wrote."""
    packed = Path(__file__).with_name("shard-schema-1.h5.xz").read_bytes()
    (tmp_path / "train_0.h5").write_bytes(lzma.decompress(packed))
    found = columns(tmp_path / "train_0.h5")
    assert (found["attributes"]["schema_version"], found["reference_days"].tolist()) == (1, [-3.5] * 2)
    assert json.loads(found["attributes"]["pairs"]) == [PAIR]
    _, arrays = ShardSet(tmp_path, index_of(train_0=2) | {"window": 4}, "train").evenly(2, references=2)
    for number in range(2):
        image = 1000 * (number + 1) + np.arange(64).reshape(4, 4, 4)
        for name, more in {"cloudy": 0, "clear": 100, "reference": 200}.items():
            assert np.array_equal(arrays[name][number], image + more)
        assert np.array_equal(arrays["mask"][number].ravel(), np.arange(16) % 5)
    assert not arrays["reference2"].any()
    assert np.isnan(arrays["reference2_days"]).all()
    assert arrays["reference_days"].tolist() == [-10] * 2  # by the products


def test_the_schema_and_the_filters_are_those_of_the_contract():
    assert shards.SCHEMA_VERSION == 2
    assert shards.filters("zstd")["shuffle"]
    assert shards.filters("gzip")["shuffle"]


def test_positions_run_over_the_files_of_a_split(shard_set):
    assert len(shard_set) == 8
    assert shard_set.references == 1
    expected = [*triplets(5), *triplets(3, seed=1, references=0)]
    for position, triplet in enumerate(expected):
        sample = shard_set[position]
        for name in ("cloudy", "clear", "mask"):
            np.testing.assert_array_equal(sample[name], triplet[name])
        np.testing.assert_array_equal(sample["reference"], triplet.get("reference", 0))
    for outside in (-1, 8):
        with pytest.raises(IndexError):
            shard_set[outside]


@pytest.mark.parametrize("target", ["clear date", "ground"])
@pytest.mark.parametrize("reference", [True, False])
def test_days_are_signed_from_the_cloudy_date_and_none_where_the_target_is_the_ground_of_the_day(target, reference):
    pair = PAIR | {"target": target, "sun_elevation": {"cloudy": 21.0, "clear": 40.0}}
    if not reference:
        pair["products"] = {role: PAIR["products"][role] for role in ("cloudy", "clear")}
    found = shards.scalars(pair)
    expected = (-4, 0) if target == "ground" else (-10 if reference else np.nan, -4)
    np.testing.assert_equal((found["reference_days"], found["clear_days"]), expected)
    assert found["sun_elevation"] == 21.0


def test_of_a_pair_without_facts_nothing_is_known():
    assert all(np.isnan(value) for value in shards.scalars({}).values())
    assert np.isnan(shards.scalars({"sun_elevation": {"cloudy": None}})["sun_elevation"])


@pytest.mark.parametrize("number", [0, 1, 3, 8, 20])
def test_some_triplets_come_evenly_from_all_over_the_split(shard_set, number):
    positions, arrays = shard_set.evenly(number)
    assert len(positions) == min(number, 8)
    assert (positions[:1], positions[1:2]) == (([0], [max(8 // number, 1)]) if number > 1 else ([0][:number], []))
    assert len(set(np.diff(positions))) <= 2
    for slot, position in enumerate(positions):
        for name, expected in shard_set[position].items():
            np.testing.assert_array_equal(arrays[name][slot], expected)


# --- zstd without its library --------------------------------------------------------------------------------
@pytest.fixture
def without_hdf5plugin(monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: False)


def test_zstd_without_its_library_is_a_matter_of_configuration(without_hdf5plugin, tmp_path):
    with pytest.raises(ConfigError, match=r"shard\.compression.*pip install 'cloudjob\[zstd\]'"):
        write(tmp_path / "a.h5", 1, compression="zstd")
    assert list(tmp_path.iterdir()) == []
    for compression in ("none", "gzip"):
        write(tmp_path / compression, 1, compression=compression)


def test_a_zstd_shard_without_the_library_says_what_to_install(tmp_path, request):
    write(tmp_path / "train_0.h5", 2, compression="zstd")
    request.getfixturevalue("without_hdf5plugin")
    with pytest.raises(ItemError, match=r"train_0\.h5.*pip install 'cloudjob\[zstd\]'.*shard\.compression") as caught:
        ShardSet(tmp_path, index_of(train_0=2), "train")[0]
    assert not isinstance(caught.value, CorruptFileError)


def test_a_zstd_shard_is_read_where_hdf5_has_the_filter_from_elsewhere(tmp_path, monkeypatch):
    result = write(tmp_path / "train_0.h5", 2, compression="zstd")  # from now on this process has it
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    read_back(tmp_path / "train_0.h5", result)


WRITE_AND_READ = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from cloudjob.patches.shards import ShardSet
from shard_files import index_of, write
folder = Path(sys.argv[1])
write(folder / "train_0.h5", 1)
ShardSet(folder, index_of(train_0=1), "train")[0]
print("hdf5plugin" in sys.modules)
"""


def test_shards_are_read_and_written_without_the_library_where_none_is_compressed(tmp_path):
    """In a process of its own, which must not import it by the way."""
    command = [sys.executable, "-c", WRITE_AND_READ, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


def test_without_any_reference_there_is_none(tmp_path):
    write(tmp_path / "train_0.h5", 2, references=0)
    found = ShardSet(tmp_path, index_of(train_0=2), "train")
    assert found.references == 0
    assert set(found[0]) == {"cloudy", "clear", "mask", *SCALARS}


def test_a_split_without_files_is_empty(tmp_path):
    empty = ShardSet(tmp_path, index_of(train_0=5), "test")
    assert len(empty) == 0
    assert empty.references == 0


def test_read_fills_the_given_slot_alone(shard_set):
    buffers = shard_set.buffers(3)
    for buffer in buffers.values():
        buffer[...] = 7
    shard_set.read(2, buffers, 1)
    for name, array in shard_set[2].items():
        np.testing.assert_array_equal(buffers[name][1], array)
        assert (buffers[name][[0, 2]] == 7).all()


def test_a_filler_fills_as_read_does_one_batch_after_the_other(shard_set):
    shapes = {name: (3, *array.shape) for name, array in shard_set[0].items() if name not in SCALARS}
    plainly, filled = (
        {name: np.zeros(shape, "u1" if name == "mask" else "u2") for name, shape in shapes.items()}
        | {name: np.zeros(3, "f4") for name in SCALARS}
        for _ in range(2)
    )
    filler = shards.Filler(shard_set, filled)
    for positions in ([7, 0, 4], [5, 6, 1]):  # of both files
        filler.fill(filler.plan(positions))
        for slot, position in enumerate(positions):
            shard_set.read(position, plainly, slot)
        for name, buffer in filled.items():
            np.testing.assert_array_equal(buffer, plainly[name], name)


@pytest.mark.parametrize("names", [["mask"], ["clear", "sun_elevation"], ["cloudy", "clear", "reference"]])
def test_a_filler_fills_some_of_the_arrays(shard_set, names):
    """The reference does not follow the clear image in the file: the mask lies between them."""
    filled = {name: buffer for name, buffer in shard_set.buffers(3).items() if name in names}  # one place is left
    filler = shards.Filler(shard_set, filled)
    filler.fill(filler.plan([3, 6]))
    for slot, position in enumerate([3, 6]):
        for name in names:
            np.testing.assert_array_equal(filled[name][slot], shard_set[position][name], name)


def test_a_filler_reads_a_triplet_without_a_filter_by_one_call(shard_set, monkeypatch):
    filler, asked, plainly = shards.Filler(shard_set, shard_set.buffers(3)), [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: asked.append(given) or plainly(*given))
    filler.fill(filler.plan([4, 0, 2]))
    assert len(asked) == 3


def test_a_triplet_that_cannot_be_read_by_one_call_is_read_array_by_array(shard_set, monkeypatch):
    def one_view_alone(file, views, offset):
        if len(views) > 1:
            raise OSError(errno.EIO, "an error of the disk")
        return plainly(file, views, offset)

    filled, plainly = shard_set.buffers(1), os.preadv
    filler = shards.Filler(shard_set, filled)
    monkeypatch.setattr(os, "preadv", one_view_alone)
    filler.fill(filler.plan([4]))
    np.testing.assert_array_equal(filled["clear"][0], shard_set[4]["clear"])


@pytest.mark.parametrize(("compression", "number"), [("none", 1), ("gzip", 2)])
def test_an_open_shard_takes_one_descriptor_and_one_more_for_hdf5_where_it_has_a_filter(tmp_path, compression, number):
    write(tmp_path / "train_0.h5", 2, compression=compression)
    found = ShardSet(tmp_path, index_of(train_0=2), "train")
    assert found[1]
    opened = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert opened.count(str(tmp_path / "train_0.h5")) == number


def test_an_array_that_comes_in_parts_is_read_to_its_end(shard_set, monkeypatch):
    """A read may give less than it was asked for, on a network's file system above all."""
    plainly = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, offset: plainly(file, [views[0][:100]], offset))
    np.testing.assert_array_equal(shard_set[2]["cloudy"], list(triplets(5))[2]["cloudy"])


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_another_process_opens_the_files_for_itself(tmp_path, compression):
    write(tmp_path / "train_0.h5", 4, compression=compression)
    found = ShardSet(tmp_path, index_of(train_0=4), "train")
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
    found = ShardSet(tmp_path, index_of(train_0=2), "train")
    context, expected = multiprocessing.get_context("fork"), found[1]
    answers = context.Queue()
    child = context.Process(target=_read_in_fork, args=(found, expected, answers))
    child.start()
    assert answers.get(timeout=30) == "same"
    child.join()
    np.testing.assert_equal(found[1], expected)


# --- damage --------------------------------------------------------------------------------------------------
class Damaged:
    """A whole shard, its result, and a place for damaged copies."""

    def __init__(self, folder: Path, compression: str):
        self.path, self.index = folder / "train_0.h5", index_of(train_0=3)
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


@examples(200)
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


@examples(300)
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


@examples(300)
@given(place=places, change=changes)
def test_read_back_notices_any_damaged_pixel(plain, place, change):
    place, damaged = sorted(plain.pixels)[place % len(plain.pixels)], bytearray(plain.whole)
    damaged[place] ^= change
    plain.path.write_bytes(damaged)
    with pytest.raises(CorruptFileError, match=r"train_0\.h5: triplet \d"):
        read_back(plain.path, plain.result)


@examples(200)
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
    with pytest.raises(ItemError, match=r"train_2\.h5: Is a directory") as caught:
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


def test_more_files_than_may_be_open_are_read_all_the_same(tmp_path):
    counts = {f"train_{number}": 2 for number in range(9)}
    for number, name in enumerate(counts):
        write(tmp_path / f"{name}.h5", 2, seed=number, compression="gzip" if number == 4 else "none")
    index, order = index_of(**counts), np.random.default_rng(0).permutation(18).tolist()
    found = {}
    for room in (2, 9):
        few = ShardSet(tmp_path, index, "train")
        few.room = room
        before = len(os.listdir("/proc/self/fd"))
        filled = few.buffers(18)
        filler = shards.Filler(few, filled)
        filler.fill(filler.plan(order))
        found[room] = {name: array.copy() for name, array in filled.items()}
        assert len(few._open) == room
        assert len(os.listdir("/proc/self/fd")) - before <= room + 1  # the compressed one is open twice
    for name, array in found[9].items():
        np.testing.assert_array_equal(found[2][name], array)
    assert len(np.unique(found[2]["cloudy"].reshape(18, -1), axis=0)) == 18


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
    found = ShardSet(tmp_path, index_of(train_0=3), "train")
    with pytest.raises(CorruptFileError, match=rf"train_0\.h5: .*{reason}"):
        found[0]


def test_a_triplet_without_pixels_is_named(tmp_path):
    """As HDF5 shows what was never written: zeros that no place in the file holds."""
    write(tmp_path / "train_0.h5", 3, capacity=4)
    with h5py.File(tmp_path / "train_0.h5", "r+") as file:
        for name in ("cloudy", "clear", "mask", "reference"):
            file[name].resize(4, axis=0)
    with pytest.raises(CorruptFileError, match=r"train_0\.h5: triplet 3 of /cloudy is not in the file"):
        ShardSet(tmp_path, index_of(train_0=4), "train")[0]


def test_an_index_of_another_count_or_window_is_noticed(tmp_path):
    write(tmp_path / "train_0.h5", 3)
    index = index_of(train_0=4)
    with pytest.raises(CorruptFileError, match=r"train_0\.h5.*expected \(4,"):
        ShardSet(tmp_path, index, "train")[0]
    index = index_of(train_0=3) | {"window": 32}
    with pytest.raises(CorruptFileError, match=r"train_0\.h5.*expected \(3, 4, 32, 32\)"):
        ShardSet(tmp_path, index, "train")[0]
