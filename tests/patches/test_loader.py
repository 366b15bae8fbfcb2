"""The order of samples depends on the seed and the number seen alone, and no batch is touched while it is in use."""

import hashlib
import threading
import time

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.errors import CorruptFileError, DiskFullError
from cloudjob.patches import loader
from cloudjob.patches.shard_writer import Writer
from cloudjob.patches.shards import Filler, ShardSet

WINDOW = 16
ORDER = [6, 7, 2, 1, 4, 5, 3, 0, 2, 1, 4, 0, 5, 7, 6, 3]  # of 8 triplets, two epochs of seed 3
DONORS = [4, 3, 1, 6, 0, 2, 5, 7, 5, 4, 3, 1, 2, 6, 1, 7]
COUNTS = {"train_0": 5, "train_1": 3, "val_0": 2, "test_0": 2}


SCALARS = {"sun_elevation", "reference_days", "clear_days"}
# By file: elevation of the sun, days to the reference, days to the clear date.
EXPECTED = {"train_0": (20.5, -10, 3), "train_1": (21.5, np.nan, 3), "val_0": (22.5, 3, 0), "test_0": (23.5, -10, 3)}


def product(day):
    return f"S2A_MSIL2A_202403{day:02d}T222541_N0510_R029_T05WPS_202403{day:02d}T251122"


def facts(name, sun, reference):
    """Of a pair; the target of val_0 is the ground, so that its clear date is its reference."""
    products = {"cloudy": product(15), "clear": product(18)} | ({"reference": product(5)} if reference else {})
    target = "ground" if name == "val_0" else "clear date"
    return {"products": products, "sun_elevation": {"cloudy": sun, "clear": 50.0}, "target": target}


def write(path, count, *, reference, compression, seed):
    rng = np.random.default_rng(seed)
    pair = facts(path.stem, 20.5 + seed, reference)
    days = [-10.0] if reference else []
    with Writer(
        path, count, window=WINDOW, compression=compression, pair=pair, reference_days=days, attributes={}
    ) as writer:
        for _ in range(count):
            images = rng.integers(1, 65536, (3, 4, WINDOW, WINDOW)).astype(np.uint16)
            mask = rng.integers(0, 4, (WINDOW, WINDOW)).astype(np.uint8)
            given = {"cloudy": images[0], "clear": images[1], "reference": images[2]}
            writer.add(**given, mask=mask, row=0, col=0, cloud_fraction=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two training shards, one of them without a reference and compressed, and others."""
    folder = tmp_path_factory.mktemp("shards")
    for seed, (name, count) in enumerate(COUNTS.items()):
        odd = name == "train_1"
        write(folder / f"{name}.h5", count, reference=not odd, compression="zstd" if odd else "none", seed=seed)
    return folder


def index_of(folder):
    files = []
    for name, count in COUNTS.items():
        data = (folder / f"{name}.h5").read_bytes()
        entry = {"file": f"{name}.h5", "count": count, "split": name.split("_")[0], "size": len(data)}
        files.append(entry | {"sha256": hashlib.sha256(data).hexdigest()})
    return {"window": WINDOW, "files": files}


@pytest.fixture
def own(folder, tmp_path):
    """A copy of the folder that a test may damage, and the index of the whole files."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path, index_of(tmp_path)


@pytest.fixture
def train(folder):
    return ShardSet(folder, index_of(folder), "train")


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


# --- order ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_and_threads_sees_the_same_samples(train, ranks, threads):
    def global_batches(start):
        sources = [
            loader.batches(train, seed=3, start=start, stop=24, batch=4, rank=r, size=ranks, threads=threads)
            for r in range(ranks)
        ]
        for step in zip(*sources, strict=True):
            yield sorted((n, image.copy()) for samples, arrays in step for n, image in _rows(samples, arrays, "clear"))

    whole = list(global_batches(0))
    assert [[n for n, _ in batch] for batch in whole] == [list(range(i, i + 4)) for i in range(0, 24, 4)]
    for numbered in whole:
        for n, image in numbered:
            np.testing.assert_array_equal(image, train[loader.position(3, n, 8)]["clear"])
    later = list(global_batches(8))  # a resumed training goes on with the very same samples
    np.testing.assert_equal(later, whole[2:])


def _rows(samples, arrays, name):
    return zip(samples, arrays[name], strict=True)


def test_each_epoch_sees_each_triplet_once_in_another_order():
    epochs = [[loader.position(0, n, 50) for n in range(e * 50, e * 50 + 50)] for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_is_the_one_that_running_trainings_have_begun_with():
    """Another order would make a resumed training see some triplets twice and others never."""
    assert [loader.position(3, n, 8) for n in range(16)] == ORDER
    assert [loader.donor(3, n, 8) for n in range(16)] == DONORS


@given(seed=st.integers(0, 99), sample=st.integers(0, 10_000), number=st.integers(2, 300))
def test_a_donor_is_another_triplet(seed, sample, number):
    found = loader.donor(seed, sample, number)
    assert 0 <= found < number
    assert found != loader.position(seed, sample, number)


def test_donors_do_not_follow_the_order():
    distances = {(loader.donor(0, n, 50) - loader.position(0, n, 50)) % 50 for n in range(50)}
    assert len(distances) > 20
    assert loader.donor(0, 3, 1) == 0  # there is no other


@examples(40)
@given(
    start=st.integers(0, 20),
    length=st.integers(0, 20),
    batch=st.integers(1, 9),
    size=st.integers(1, 3),
    threads=st.integers(1, 3),
    donors=st.booleans(),
)
def test_batches_hold_what_the_shards_hold(folder, start, length, batch, size, threads, donors):
    train = ShardSet(folder, index_of(folder), "train")
    seen = []
    for rank in range(size):
        for samples, arrays in loader.batches(
            train,
            seed=7,
            start=start,
            stop=start + length,
            batch=batch,
            rank=rank,
            size=size,
            threads=threads,
            donors=donors,
        ):
            seen += samples
            names = {"cloudy", "clear", "mask", "reference", *SCALARS}
            assert set(arrays) == names | ({"donor"} if donors else set())
            assert all(len(array) == len(samples) for array in arrays.values())
            for slot, sample in enumerate(samples):
                for name, expected in train[loader.position(7, sample, len(train))].items():
                    np.testing.assert_array_equal(arrays[name][slot], expected)
                if donors:
                    expected = train[loader.donor(7, sample, len(train))]["mask"]
                    np.testing.assert_array_equal(arrays["donor"][slot], expected)
    assert sorted(seen) == list(range(start, start + length))
    assert loader_threads() == []


def test_without_any_reference_there_is_no_such_array(folder):
    index = index_of(folder)
    index["files"] = [entry for entry in index["files"] if entry["file"] == "train_1.h5"]
    _, arrays = next(loader.batches(ShardSet(folder, index, "train"), seed=0, start=0, stop=2, batch=2))
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items() if name not in SCALARS} == {
        "cloudy": ((2, 4, WINDOW, WINDOW), "uint16"),
        "clear": ((2, 4, WINDOW, WINDOW), "uint16"),
        "mask": ((2, WINDOW, WINDOW), "uint8"),
    }


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_sample_has_the_numbers_of_its_pair(folder, split):
    found = ShardSet(folder, index_of(folder), split)
    order = [name for name, count in COUNTS.items() if name.startswith(split) for _ in range(count)]
    for samples, arrays in loader.batches(found, seed=5, start=0, stop=2 * len(found), batch=3, threads=2):
        numbers = np.stack([arrays[name] for name in ("sun_elevation", "reference_days", "clear_days")], 1)
        assert numbers.dtype == np.float32
        names = [order[loader.position(5, sample, len(found))] for sample in samples]
        np.testing.assert_array_equal(numbers, [EXPECTED[name] for name in names])


# --- buffers and threads -------------------------------------------------------------------------------------
def test_two_batches_are_read_ahead_and_none_into_the_one_in_use(train, monkeypatch):
    read, plainly = [], Filler.fill

    def fill(self, plan):
        plainly(self, plan)
        read.extend(plan)

    monkeypatch.setattr(Filler, "fill", fill)
    for samples, arrays in loader.batches(train, seed=1, start=0, stop=40, batch=4, threads=2):
        until = time.monotonic() + 30
        while len(read) < min(40, samples[0] + 3 * 4):  # nothing more is under way
            assert time.monotonic() < until, f"{len(read)} triplets were read ahead"
            time.sleep(0.01)
        for slot, sample in enumerate(samples):
            for name, expected in train[loader.position(1, sample, 8)].items():
                np.testing.assert_array_equal(arrays[name][slot], expected)


def test_batches_lie_in_the_given_memory_which_is_used_again(train):
    made = []

    def allocate(shape, dtype):
        made.append(np.zeros(shape, dtype))
        return made[-1]

    used = set()
    for _, arrays in loader.batches(train, seed=1, start=0, stop=40, batch=4, allocate=allocate, donors=True):
        used |= {number for number, memory in enumerate(made) for a in arrays.values() if np.shares_memory(a, memory)}
        assert sum(np.shares_memory(a, memory) for memory in made for a in arrays.values()) == len(arrays) == 8
    assert used == set(range(len(made))) == set(range(3 * 8))


def test_a_loader_that_is_closed_early_leaves_no_thread(train):
    source = loader.batches(train, seed=1, start=0, stop=10_000, batch=4, threads=3)
    next(source)
    assert loader_threads()
    source.close()
    assert loader_threads() == []


@pytest.mark.parametrize("threads", [1, 3])
def test_a_broken_shard_is_named_to_the_consumer_and_nothing_hangs(own, threads):
    folder, index = own
    data = (folder / "train_1.h5").read_bytes()
    (folder / "train_1.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptFileError, match=r"train_1\.h5"):
        for _ in loader.batches(ShardSet(folder, index, "train"), seed=1, start=0, stop=80, batch=4, threads=threads):
            pass
    assert loader_threads() == []


def test_a_shard_cut_while_it_is_open_is_named_by_the_fast_way_too(own):
    folder, index = own
    found = ShardSet(folder, index, "train")
    source = loader.batches(found, seed=1, start=0, stop=8000, batch=4, threads=2)
    next(source)
    with open(folder / "train_0.h5", "rb+") as file:
        file.truncate(3000)
    with pytest.raises(CorruptFileError, match=r"train_0\.h5: ends within"):
        for _ in source:
            pass


# --- copies and checks ---------------------------------------------------------------------------------------
def test_the_local_copy_holds_the_splits_of_a_training(own, tmp_path):
    folder, index = own
    said = []
    target = loader.local_copy(folder, index, tmp_path / "node" / "disk", said.append)
    assert sorted(path.name for path in target.iterdir()) == ["train_0.h5", "train_1.h5", "val_0.h5"]
    for path in target.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert len(said) == 1
    here, there = ShardSet(folder, index, "train"), ShardSet(target, index, "train")
    np.testing.assert_equal([there[i] for i in range(8)], [here[i] for i in range(8)])


def test_a_second_copy_mends_what_is_broken_and_leaves_the_rest(own, tmp_path):
    folder, index = own
    target = loader.local_copy(folder, index, tmp_path / "node")
    before = {path.name: path.stat().st_ino for path in target.iterdir()}
    damaged = bytearray((target / "train_1.h5").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (target / "train_1.h5").write_bytes(damaged)
    (target / "val_0.h5").unlink()
    loader.local_copy(folder, index, target)
    assert target.joinpath("train_0.h5").stat().st_ino == before["train_0.h5"]
    for name in before:
        assert (target / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:99] + b"?" + data[100:], None])
def test_a_broken_source_is_named_and_not_copied(own, tmp_path, damage):
    folder, index = own
    path = folder / "train_1.h5"
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    with pytest.raises(CorruptFileError, match=r"train_1\.h5") as caught:
        loader.local_copy(folder, index, tmp_path / "node")
    assert caught.value.path == path
    assert [path.name for path in (tmp_path / "node").iterdir()] == ["train_0.h5"]


def test_too_small_a_disk_is_said_before_the_copy_begins(own, tmp_path):
    folder, index = own
    index["files"][1]["size"] = 10**18
    with pytest.raises(DiskFullError, match="MiB free, the copy of the shards needs 95367431640"):
        loader.local_copy(folder, index, tmp_path / "node")
    assert list((tmp_path / "node").iterdir()) == []


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_file_of_a_split_is_verified_by_one_rank(own, size):
    folder, index = own
    for rank in range(size):
        loader.verify(folder, index, "train", rank, size)
    path = folder / "train_1.h5"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    loader.verify(folder, index, "val")
    found = []
    for rank in range(size):
        try:
            loader.verify(folder, index, "train", rank, size)
        except CorruptFileError as error:
            found.append(error.path)
    assert found == [path]
